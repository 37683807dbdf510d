// attention.cu - a new token of each sequence attends to its packed past; see attention.py.
//
// Two warps bring what a block reads, one keys and one values, into a ring of stages of MANY tokens: codes in bulk copies (Hopper), which one
// lane asks for; scales and zeros for BATCH stages at once into a ring of their own, because many small bulk copies are what takes time.
// TEAMS teams of warps take stages in turn, a team always the same ones (DEPTH is a multiple of TEAMS: a warp that waits for a stage's next phase
// has seen the last one, so that one bit tells phases apart). A warp takes TOKENS tokens of a stage, as they lie in memory; reads of values meet
// banks, which copies hide.
// Both products take the packed side as the left operand (16 tokens, or 16 channels, by 16) and up to 8 heads that share it as the
// right one: scores^T = K q^T, out^T = V^T p^T. The scores of a tile are the right operand of the second product once their 8 x 8
// blocks are transposed, so nothing goes through shared memory but the codes. Codes become halves "u * 2^(k - 24)", which are exact;
// their powers are taken off the query, the score and the sum at the end, zeros off sums in float32.
// Maxima are followed loosely (a score may exceed its maximum by SLACK), so that most tiles need no exchange between lanes.
//
// Compiled with HALF 1, NT 0, KBITS, VBITS 2|4|8|0 (0: float8 e4m3), KZERO, VZERO (a zero a token), WIDTH 64|128 channels,
// KTURNED, VTURNED (in the Hadamard basis of
// a head), KFIXED, VFIXED 0: a scale a token | 1: one float32 for all | 2: one a head, QUERY 0 bfloat16 | 1 float16 (of q, plain tokens and
// out), FLOATS (there are plain tokens), TILES of 16 tokens at once, WARPS, TEAMS, DEPTH stages, BATCH.

constexpr int KROW = WIDTH * (KBITS ? KBITS : 8) / 8, VROW = WIDTH * (VBITS ? VBITS : 8) / 8; // bytes of a token
constexpr int TEAM = WARPS / TEAMS, THREADS = (WARPS + 2) * 32;
constexpr int TOKENS = TILES * 16, MANY = TEAM * TOKENS;                                  // of a warp; of a stage
constexpr int V_AT = MANY * KROW, STAGE = V_AT + MANY * VROW;                             // keys, values
constexpr int BATCHED = BATCH * MANY, SLOT = 8 * BATCHED, SLOTS = (DEPTH + BATCH - 2) / BATCH + 1;    // scales and zeros: 4 halves a token
constexpr int STEPS = WIDTH / 16;                                                         // products of 16 x 16 a tile
constexpr int CHANNELS = WIDTH / 8;                                                       // of values, of one lane
constexpr float SLACK = 4.f, LIFT = 16.f;                                                 // weights are lifted off the subnormals
constexpr float NOTHING = -1e30f;
constexpr bool KMETAS = !KFIXED || KZERO, VMETAS = !VFIXED || VZERO;

struct Ring { u32 stages, metas, full, empty, told; };                                    // told: barriers of `metas`
INLINE Ring ring_in(u8* shared) {
    const u32 stages = address(shared), metas = stages + DEPTH * STAGE, full = metas + SLOTS * SLOT;
    return {stages, metas, full, full + DEPTH * 8, full + 2 * DEPTH * 8};
}
constexpr int QUERY_AT = DEPTH * (STAGE + 16) + SLOTS * (SLOT + 8) + 15 & ~15;

// what a block has of a past: `mine` tokens from `start` on
struct Span {
    const int* table;                                                                     // of its sequence, or null
    int page, page_bits, start, mine;
};
// the place in the store of the block's `at`-th token
INLINE size_t place_of(const Span& span, int at) {
    const int token = span.start + at, page = span.table ? span.table[token >> span.page_bits] : blockIdx.z;
    return (size_t)(page * gridDim.y + blockIdx.y) * span.page + (span.table ? token & (span.page - 1) : token);
}

// One lane brings `tokens` tokens of codes from the block's `from`-th on, a copy a page.
template <int ROW>
INLINE void bring_codes(const Span& span, const u8* codes, int from, int tokens, u32 to, u32 barrier) {
    expect_bytes(barrier, tokens * ROW);
#pragma unroll 1
    for (int done = 0; done < tokens;) {
        const int left = tokens - done, some = span.table ? min(left, span.page - (span.start + from + done & (span.page - 1))) : left;
        copy_many(to + done * ROW, codes + place_of(span, from + done) * ROW, some * ROW, barrier);
        done += some;
    }
}

// All lanes bring their scales and zeros, 8 tokens a copy: so the lanes look up pages side by side, and the size of pages does not matter.
template <bool SCALES, bool ZEROS>
INLINE void bring_metas(const Span& span, const u8* scales, const u8* zeros, int from, int tokens, u32 to, u32 barrier, int lane) {
#pragma unroll 1
    for (int done = lane * 8; done < tokens; done += 256) {
        const size_t at = place_of(span, from + done) * 2;
        if (SCALES) copy16_or_zeros(to + done * 2, scales + at, true);
        if (ZEROS) copy16_or_zeros(to + 4 * BATCHED + done * 2, zeros + at, true);
    }
    arrive_after_copies(barrier);
}

// One warp brings the keys, or the values, of a block. to, metas_to: their place in a stage, and in a slot.
template <int ROW, bool SCALES, bool ZEROS>
INLINE void bring(const Ring& ring, const Span& span, const u8* codes, const u8* scales, const u8* zeros, u32 to, u32 metas_to, int lane) {
    const int tokens = span.mine + 7 & ~7;
    u32 stage = 0, turn = 1, slot = 0;
#pragma unroll 1
    for (int from = 0, i = 0; from < tokens; from += MANY, i++) {
        __syncwarp();
        wait_for_phase(ring.empty + stage * 8, turn);                                     // at once in the first turn
        if (elected()) bring_codes<ROW>(span, codes, from, min(MANY, tokens - from), ring.stages + stage * STAGE + to, ring.full + stage * 8);
        if ((SCALES || ZEROS) && i % BATCH == 0) {
            const u32 metas = ring.metas + slot * SLOT + metas_to;
            bring_metas<SCALES, ZEROS>(span, scales, zeros, from, min(BATCHED, tokens - from), metas, ring.told + slot * 8, lane);
            slot = slot == SLOTS - 1 ? 0 : slot + 1;
        }
        if (++stage == DEPTH) stage = 0, turn ^= 1;
    }
}

// the scale that all tokens of the block's key head share; 1 where each has its own
template <int FIXED>
INLINE float fixed(const u8* scales) { return FIXED ? ((const float*)scales)[FIXED == 2 ? blockIdx.y : 0] : 1.f; }

// Row r < 8 of a tile is this token, row r + 8 its neighbour (^ 1): so few reads of codes meet in a bank, and scales are read by twos.
INLINE int token_of(int r) { return ((r ^ r >> 2) & 1) + (r & 6) + (r & 1) * 8; }

INLINE float number(u32 bits) { return __uint_as_float(bits << 16); }                     // a bfloat16

INLINE u32 e4m3_pair(u32 t) {                                                             // bytes 1 and 3, times 2^-8
    return and_or(t, 0x80008000u, (t >> 1) & 0x3f803f80u);
}

// the exponent that pair i of a word of codes of B bits has too much
template <int B>
__host__ __device__ constexpr int lift(int i) { return B == 8 || B == 0 ? 0 : i * B % 8; }

// pair i of a word of keys: the halves of codes i and i + 16 / B, of integers times 2^-24
template <int B>
INLINE u32 key_pair(u32 word, int i) {
    if (B == 0) return e4m3_pair(i ? word : word << 8);
    if (B == 8) return bytes(word, 0, i ? 0x4341 : 0x4240);
    return (i * B >= 8 ? word >> 8 : word) & ((1u << B) - 1) * 0x00010001u << lift<B>(i);
}

// code i of the words of two tokens as a pair; times the same
template <int B>
INLINE u32 value_pair(u32 first, u32 second, int i) {
    if (B == 0) return e4m3_pair(bytes(first, second, i * 0x1010 + 0x4000));
    if (B == 8) return bytes(bytes(first, second, i < 2 ? 0x5140 : 0x7362), 0, i % 2 ? 0x4342 : 0x4140);
    const u32 pair = bytes(first, second, i * B < 16 ? 0x5410 : 0x7632);
    const int at = i * B % 16;
    return (at >= 8 ? pair >> 8 : pair) & ((1u << B) - 1) * 0x00010001u << at % 8;
}

// N words of shared memory
template <int N>
INLINE void read_words(u32 (&w)[N], u32 at) {
    if (N == 1) w[0] = read4(at);
    if (N == 2) { const uint2 q = read8(at); w[0] = q.x, w[N - 1] = q.y; }
    if (N == 4) { const uint4 q = read16(at); w[0] = q.x, w[N > 1] = q.y, w[N > 2 ? 2 : 0] = q.z, w[N - 1] = q.w; }
}

// the words of one token that a lane multiplies: columns of the query in the order of `column_of`
constexpr int KWORDS = KROW / 16, KPAIRS = KBITS ? 16 / KBITS : 2;
INLINE void read_keys(u32 (&w)[KWORDS], u32 at) {
    constexpr int N = KWORDS > 4 ? 4 : KWORDS;
#pragma unroll
    for (int i = 0; i < KWORDS; i += N) {
        u32 part[N];
        read_words(part, at + i * 16);
#pragma unroll
        for (int j = 0; j < N; j++) w[i + j] = part[j];
    }
}
// the channel of half e of pair i of word w of lane column c
INLINE int column_of(int c, int w, int i, int e) {
    constexpr int N = KWORDS > 4 ? 4 : KWORDS, CODES = 2 * KPAIRS;
    return (w / N * 4 + c) * N * CODES + w % N * CODES + i + e * KPAIRS;
}

INLINE void put(u16* to, float v) { *to = QUERY ? rounded(v) : rounded_bfloat(v); }
INLINE float taken(u16 v) { return QUERY ? half_value(v) : number(v); }

// a head of WIDTH channels in the orthonormal Hadamard basis; lane l has channels l * EACH, ...
constexpr int EACH = WIDTH / 32;
INLINE void turn(float (&v)[EACH], int lane) {
#pragma unroll
    for (int h = 1; h < EACH; h *= 2)
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (!(i & h)) {
                const float sum = v[i] + v[i + h];
                v[i + h] = v[i] - v[i + h], v[i] = sum;
            }
#pragma unroll
    for (int h = 1; h < 32; h *= 2)
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const float other = of_lane(v[i], lane ^ h);
            v[i] = lane & h ? other - v[i] : v[i] + other;
        }
#pragma unroll
    for (int i = 0; i < EACH; i++) v[i] *= WIDTH == 128 ? 0.08838834764831845f : 0.125f;
}

// the heads of q, in the basis of the packed keys, as float32 [8, WIDTH] in shared memory; beyond `group` zeros
INLINE void take_query(float* to, const u16* q, int group, int lane, int warp) {
    for (int head = warp; head < 8; head += WARPS) {
        float v[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) v[i] = head < group ? taken(q[head * WIDTH + lane * EACH + i]) : 0.f;
        if (KTURNED) turn(v, lane);
#pragma unroll
        for (int i = 0; i < EACH; i++) to[head * WIDTH + lane * EACH + i] = v[i];
    }
}

struct Query {
    u32 b[STEPS][2];
    float sum[2];                                                                         // of heads 2c, 2c + 1, in the unit of scores
};

INLINE void load_query(Query& to, const float* q, int lane) {
    const int head = lane / 4, c = lane % 4;
    float sum = 0.f;
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int pair = 2 * s + h, w = pair / KPAIRS, i = pair % KPAIRS;
            u32 both = 0;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const u32 low = rounded(q[head * WIDTH + column_of(c, w, i, e)] / (1 << lift<KBITS>(i)));
                both |= low << (16 * e);
                sum += half_value(low) * (1 << lift<KBITS>(i));
            }
            to.b[s][h] = both;
        }
    sum *= 0x1p-24f;
    sum += of_lane(sum, lane ^ 1);
    sum += of_lane(sum, lane ^ 2);
#pragma unroll
    for (int e = 0; e < 2; e++) to.sum[e] = of_lane(sum, (2 * c + e) * 4);
}

struct Running {                                                                          // of heads 2c, 2c + 1
    float most[2], total[2], offset[2];
    float out[WIDTH / 16][4];
};

INLINE void raise(Running& r, const float (&most)[2], int lane) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float m = fmaxf(most[e], r.most[e]);
        m = fmaxf(m, of_lane(m, lane ^ 4));
        m = fmaxf(m, of_lane(m, lane ^ 8));
        m = fmaxf(m, of_lane(m, lane ^ 16));
        const float factor = power_of_2(r.most[e] - m);
        r.most[e] = m, r.total[e] *= factor, r.offset[e] *= factor;
#pragma unroll
        for (int j = 0; j < WIDTH / 16; j++) r.out[j][e] *= factor, r.out[j][2 + e] *= factor;
    }
}

// what a lane needs of each stage: places of its keys, its values (columns 2c and 2c + 1) and its scales; picks: see of_two
struct Places { u32 k, v[2], meta, picks[2]; };
INLINE Places places_of(int lane, int place) {
    const int r = lane / 4, c = lane % 4, from = place * TOKENS, own = token_of(r);
    Places p;
    p.k = kept((from + own) * KROW + c * (KWORDS > 4 ? 4 : KWORDS) * 4);
#pragma unroll
    for (int i = 0; i < 2; i++) p.v[i] = kept(V_AT + (from + token_of(2 * c + i)) * VROW + r * (VROW / 8));
    p.meta = kept((from + (own & ~1)) * 2);
#pragma unroll
    for (int i = 0; i < 2; i++) p.picks[i] = kept((own ^ i) & 1 ? 0x3244 : 0x1044);
    return p;
}
INLINE float of_two(u32 pair, u32 pick) { return __uint_as_float(bytes(pair, 0, pick)); }  // of a token and its neighbour

// scores[j]: the lane's token (j < 2) or its neighbour, head 2c + j % 2; in units of log2
INLINE void score(float (&s)[4], const Query& q, const Places& at, u32 keys, u32 meta, float scale) {
    u32 upper[KWORDS], lower[KWORDS];
    read_keys(upper, keys), read_keys(lower, keys ^ KROW);
    float part[2][4] = {};                                                                // two chains of products
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u32 a[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int pair = 2 * step + h, w = pair / KPAIRS, i = pair % KPAIRS;
            a[2 * h] = key_pair<KBITS>(upper[w], i), a[2 * h + 1] = key_pair<KBITS>(lower[w], i);
        }
        multiply(part[step % 2], a, q.b[step][0], q.b[step][1]);
    }
    const u32 scales = KFIXED ? 0 : read4(meta), zeros = KZERO ? read4(meta + 4 * BATCHED) : 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float by = KFIXED ? scale : of_two(scales, at.picks[half]) * scale;
        const float zero = KZERO ? of_two(zeros, at.picks[half]) : (1 << KBITS) / 2;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float sum = part[0][2 * half + e] + part[1][2 * half + e];
            s[2 * half + e] = (KBITS ? fmaf(-zero, q.sum[e], sum) : sum) * by;
        }
    }
}

constexpr int VWORDS = VROW / 32;
INLINE void read_values(u32 (&w)[4][VWORDS], const Places& p, u32 stage, int tile) {
#pragma unroll
    for (int i = 0; i < 4; i++) read_words(w[i], (stage + p.v[i % 2] ^ (i < 2 ? 0 : VROW)) + tile * 16 * VROW);
}

// out += values of the tile times weights; p: as scores, weights times LIFT times the scale of the values
INLINE void add_values(Running& r, const float (&p)[4], const u32 (&w)[4][VWORDS]) {
    const u32 b0 = transposed(pair_of_halves(p[0], p[1])), b1 = transposed(pair_of_halves(p[2], p[3]));
    constexpr int CODES = VBITS ? 32 / VBITS : 4;
#pragma unroll
    for (int j = 0; j < WIDTH / 16; j++) {                                                // channels CHANNELS g + 2j, + 1
        u32 a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int code = 2 * j + i % 2, word = code / CODES;
            a[i] = value_pair<VBITS>(w[i / 2 * 2][word], w[i / 2 * 2 + 1][word], code % CODES);
        }
        multiply(r.out[j], a, b0, b1);
    }
}

// WHOLE: all TOKENS are there; else `left` of them
template <bool WHOLE>
INLINE void tile_of_tokens(Running& r, const Query& q, const Places& at, u32 stage, u32 metas, int left, int lane, float scale, float lifted) {
    const int own = token_of(lane / 4);
    float s[TILES][4], most[2] = {NOTHING, NOTHING};
    u32 w[TILES][4][VWORDS];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        score(s[i], q, at, stage + at.k + i * 16 * KROW, metas + at.meta + i * 32, scale);
        read_values(w[i], at, stage, i);
    }
    if (!WHOLE)
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (i * 16 + (own ^ j / 2) >= left) s[i][j] = 4 * NOTHING;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) most[j % 2] = fmaxf(most[j % 2], s[i][j]);
    if (any_lane(most[0] > r.most[0] + SLACK || most[1] > r.most[1] + SLACK)) raise(r, most, lane);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        float p[4];
        const u32 meta = metas + at.meta + i * 32;
        const u32 scales = VFIXED ? 0 : read4(meta + 2 * BATCHED), zeros = VZERO ? read4(meta + 6 * BATCHED) : 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float weight = power_of_2(s[i][j] - r.most[j % 2]);
            const bool there = WHOLE || i * 16 + (own ^ j / 2) < left;                    // scales beyond the end may be anything
            r.total[j % 2] += weight;
            p[j] = there ? weight * ((VFIXED ? 1.f : of_two(scales, at.picks[j / 2])) * lifted) : 0.f;
            const float zero = VZERO ? of_two(zeros, at.picks[j / 2]) : (1 << VBITS) / 2;
            if (VBITS && there) r.offset[j % 2] = fmaf(p[j], -zero, r.offset[j % 2]);
        }
        add_values(r, p, w[i]);
    }
}

// the sums of all lanes that have the same heads
INLINE float over_rows(float v, int lane) {
    v += of_lane(v, lane ^ 4);
    v += of_lane(v, lane ^ 8);
    return v + of_lane(v, lane ^ 16);
}

// Tokens kept as floats, [first; last]: eight lanes have one token, two heads a pass. Parts as below.
struct Plain {
    const u16 *keys[2], *values[2];
    int number[2];
};
constexpr int LINE = WIDTH + 4;                                                           // floats of a part: out, most, total, none, none

INLINE void plain_tokens(float* parts, const Plain& from, const u16* q, int group, int warp, int lane, float scale) {
    const int slot = lane / 8, e = lane % 8, number_of_tokens = from.number[0] + from.number[1];
    for (int h0 = 0; h0 < group; h0 += 2) {
        float own[2][CHANNELS], out[2][CHANNELS], most[2] = {NOTHING, NOTHING}, total[2] = {0.f, 0.f};
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int i = 0; i < CHANNELS; i++) own[h][i] = taken(q[min(h0 + h, group - 1) * WIDTH + e * CHANNELS + i]), out[h][i] = 0.f;
        for (int t0 = warp * 4; t0 < number_of_tokens; t0 += WARPS * 4) {
            const int t = min(t0 + slot, number_of_tokens - 1), which = t >= from.number[0];
            const size_t at = (size_t)(t - which * from.number[0]) * WIDTH + e * CHANNELS;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float s = 0.f;
#pragma unroll
                for (int i = 0; i < CHANNELS; i++) s = fmaf(own[h][i], taken(from.keys[which][at + i]), s);
                s += of_lane(s, lane ^ 1), s += of_lane(s, lane ^ 2), s += of_lane(s, lane ^ 4);
                s = t0 + slot < number_of_tokens ? s * scale : 4 * NOTHING;
                const float above = fmaxf(most[h], s), factor = power_of_2(most[h] - above), weight = power_of_2(s - above);
                most[h] = above, total[h] = total[h] * factor + weight;
#pragma unroll
                for (int i = 0; i < CHANNELS; i++) out[h][i] = fmaf(weight, taken(from.values[which][at + i]), out[h][i] * factor);
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int far = 8; far < 32; far *= 2) {
                const float above = fmaxf(most[h], of_lane(most[h], lane ^ far)), factor = power_of_2(most[h] - above);
                most[h] = above, total[h] *= factor, total[h] += of_lane(total[h], lane ^ far);
#pragma unroll
                for (int i = 0; i < CHANNELS; i++) out[h][i] *= factor, out[h][i] += of_lane(out[h][i], lane ^ far);
            }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float* to = parts + (warp * 8 + h0 + h) * LINE;
            if (slot == 0 && h0 + h < group) {
#pragma unroll
                for (int i = 0; i < CHANNELS; i++) to[e * CHANNELS + i] = out[h][i];
                if (e == 0) to[WIDTH] = most[h], to[WIDTH + 1] = total[h];
            }
        }
    }
}

// what the sum of the n-th channel of a lane counts
INLINE float unit(int n) {
    constexpr int B = VBITS ? VBITS : 8;
    return VBITS ? 0x1p24f / (1 << n % (32 / B) * B % 8) : 256.f;
}
// A warp's heads into shared memory: [8, LINE]. by: the fixed scale of the values
INLINE void write_part(float* to, const Running& r, int lane, float by) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const float total = over_rows(r.total[e], lane), offset = VBITS ? over_rows(r.offset[e], lane) : 0.f;
        float* line = to + (lane % 4 * 2 + e) * LINE;
#pragma unroll
        for (int j = 0; j < WIDTH / 16; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                line[lane / 4 * CHANNELS + 2 * j + half] = (r.out[j][2 * half + e] * unit(2 * j + half) + offset) * by;
        if (lane < 4) line[WIDTH] = r.most[e], line[WIDTH + 1] = total;
    }
}

// The parts of one head, LINE floats each, by any block, are made one: channels lane * EACH, ... of its output. The last part is of
// plain tokens where there are any; the others are in the basis of the packed values.
INLINE void finish(u16* out, const float* parts, int number, int lane) {
    constexpr int AT_ONCE = 8;
    float most = NOTHING, total = 0.f, sum[2][EACH] = {};
    for (int first = 0; first < number; first += AT_ONCE) {
        float m[AT_ONCE], t[AT_ONCE], v[AT_ONCE][EACH];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const float* part = parts + min(first + k, number - 1) * LINE;
            m[k] = read_far(part + WIDTH), t[k] = read_far(part + WIDTH + 1);
#pragma unroll
            for (int i = 0; i < EACH; i++) v[k][i] = read_far(part + lane * EACH + i);
        }
        const float before = most;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) most = fmaxf(most, m[k]);
        const float less = power_of_2(before - most);
        total *= less;
#pragma unroll
        for (int i = 0; i < EACH; i++) sum[0][i] *= less, sum[1][i] *= less;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const float factor = first + k < number ? power_of_2(m[k] - most) : 0.f;
            const bool plain = FLOATS && first + k == number - 1;
            total += t[k] * factor;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                if (plain) sum[1][i] = fmaf(v[k][i], factor, sum[1][i]);
                else sum[0][i] = fmaf(v[k][i], factor, sum[0][i]);
            }
        }
    }
    if (VTURNED) turn(sum[0], lane);
#pragma unroll
    for (int i = 0; i < EACH; i++) put(out + lane * EACH + i, (sum[0][i] + sum[1][i]) / total);
}

// grid (splits and one more for plain tokens, key heads, sequences). q, out [sequences, key heads, group, WIDTH]. Stores [pages, key
// heads, page, ...]; table [sequences, table_width]: pages of a sequence, of 2^page_bits tokens; null: page n is all of sequence n.
// Plain tokens [sequences, key heads, first_room or last_room, WIDTH]. counts [sequences, 3]: tokens of first, packed and last;
// null: first_room, packed, last_room. span: tokens of a block. part [sequences, key heads, group, gridDim.x, LINE].
// count [sequences, key heads]: zero before and after.
extern "C" __global__ void __launch_bounds__(THREADS, 1) attend(
    const u16* q, const u8* k, const u8* k_scale, const u8* k_zero, const u8* v, const u8* v_scale, const u8* v_zero, const int* table,
    const int* counts, const u16* first_k, const u16* first_v, const u16* last_k, const u16* last_v, u16* out, float* part, int* count,
    int group, int page, int page_bits, int table_width, int span, int first_room, int packed, int last_room, int scale_bits) {
    extern __shared__ __align__(256) u8 shared[];
    const int lane = threadIdx.x % 32, warp = warp_index(), splits = gridDim.x;
    const Ring ring = ring_in(shared);
    if (warp == 0 && elected()) {
#pragma unroll
        for (int i = 0; i < DEPTH; i++) begin_barrier(ring.full + i * 8, 2), begin_barrier(ring.empty + i * 8, TEAM);
#pragma unroll
        for (int i = 0; i < SLOTS; i++) begin_barrier(ring.told + i * 8, max(1, 32 * (KMETAS + VMETAS)));
    }
    __syncthreads();
    let_the_next_kernel_start();
    wait_for_the_kernels_before();
    const int one = blockIdx.z * gridDim.y + blockIdx.y, start = blockIdx.x * span;
    const bool plain = FLOATS && blockIdx.x == splits - 1;
    const int length = counts ? counts[blockIdx.z * 3 + 1] : packed, mine = plain ? 0 : max(0, min(span, length - start));
    const float scale = __uint_as_float(scale_bits), lifted = warp % 2 ? -LIFT : LIFT;    // tensor cores round towards zero: so it cancels
    float* queries = (float*)(shared + QUERY_AT);
    q += (size_t)one * group * WIDTH;
    Running r = {{NOTHING, NOTHING}, {0.f, 0.f}, {0.f, 0.f}, {}};
    if (warp >= WARPS) {
        const Span own = {table ? table + blockIdx.z * table_width : nullptr, page, page_bits, start, mine};
        if (warp == WARPS) bring<KROW, !KFIXED, KZERO>(ring, own, k, k_scale, k_zero, 0, 0, lane);
        else bring<VROW, !VFIXED, VZERO>(ring, own, v, v_scale, v_zero, V_AT, 2 * BATCHED, lane);
    } else {
        take_query(queries, q, group, lane, warp);
        meet_some(1, WARPS * 32);
        Query heads;
        load_query(heads, queries, lane);
        const float packed_scale = (KBITS ? 0x1p24f : 256.f) * scale * fixed<KFIXED>(k_scale);
        const Places places = places_of(lane, warp % TEAM);
        u32 stage = warp / TEAM, turn = 0;
#pragma unroll 1
        for (int i = warp / TEAM; i * MANY < mine; i += TEAMS) {
            const int slot = i / BATCH % SLOTS, left = mine - i * MANY - warp % TEAM * TOKENS;
            wait_for_phase(ring.full + stage * 8, turn);                                      // first: what the slot had before is past then
            if (KMETAS || VMETAS) wait_for_phase(ring.told + slot * 8, i / BATCH / SLOTS & 1);
            const u32 codes = ring.stages + stage * STAGE, metas = ring.metas + slot * SLOT + i % BATCH * MANY * 2;
            if (left >= TOKENS) tile_of_tokens<true>(r, heads, places, codes, metas, left, lane, packed_scale, lifted);
            else if (left > 0) tile_of_tokens<false>(r, heads, places, codes, metas, left, lane, packed_scale, lifted);
            __syncwarp();
            if (lane == 0) arrive_at(ring.empty + stage * 8);
            stage += TEAMS;
            if (stage >= DEPTH) stage -= DEPTH, turn ^= 1;
        }
    }
    __syncthreads();
    float* parts = (float*)shared;
    if (plain && warp < WARPS) {
        const size_t first = (size_t)one * first_room * WIDTH, last = (size_t)one * last_room * WIDTH;
        const int there[2] = {counts ? counts[blockIdx.z * 3] : first_room, counts ? counts[blockIdx.z * 3 + 2] : last_room};
        plain_tokens(parts, {{first_k + first, last_k + last}, {first_v + first, last_v + last}, {there[0], there[1]}}, q, group, warp, lane, scale);
    } else if (warp < WARPS) {
        write_part(parts + warp * 8 * LINE, r, lane, fixed<VFIXED>(v_scale) / lifted);
    }
    __syncthreads();
    part += (size_t)one * group * splits * LINE;
    for (int i = threadIdx.x; i < group * (WIDTH + 2); i += THREADS) {                    // the warps' parts are made one
        const int head = i / (WIDTH + 2), d = i % (WIDTH + 2);
        const float* from = parts + head * LINE;
        float most = NOTHING, sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, from[w * 8 * LINE + WIDTH]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += from[w * 8 * LINE + d] * power_of_2(from[w * 8 * LINE + WIDTH] - most);
        part[(head * splits + blockIdx.x) * LINE + d] = d == WIDTH ? most : sum;
    }
    if (!last_of(count + one, splits)) return;
    for (int head = warp; head < group; head += WARPS + 2)
        finish(out + ((size_t)one * group + head) * WIDTH, part + (size_t)head * splits * LINE, splits, lane);
}
