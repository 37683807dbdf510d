// attention.cu - a new token of each sequence attends to its packed past; see attention.py.
//
// A warp owns every WARPS-th part of TOKENS tokens of its block's span. Its codes come in bulk copies (Hopper) into a ring of its own,
// a barrier a stage, and lie there as in memory; reads of values meet banks, which costs less than swizzling copies.
// Both products take the packed side as the left operand (16 tokens, or 16 channels, by 16) and up to 8 heads that share it as the
// right one: scores^T = K q^T, out^T = V^T p^T. The scores of a tile are the right operand of the second product once their 8 x 8
// blocks are transposed, so nothing goes through shared memory but the codes. Codes become halves "1024 + u * 2^k": of keys the
// powers are taken off the query and the 1024 off the score; of values both exactly, so that small sums stay small.
// Maxima are followed loosely (a score may exceed its maximum by SLACK), so that most tiles need no exchange between lanes.
//
// Compiled with HALF 1, NT 0, KBITS, VBITS 2|4|8|0 (0: float8 e4m3), KZERO, VZERO (a zero a token), WIDTH 64|128 channels,
// KTURNED, VTURNED (in the Hadamard basis of
// a head), KFIXED, VFIXED 0: a scale a token | 1: one float32 for all | 2: one a head, QUERY 0 bfloat16 | 1 float16 (of q, plain tokens and
// out), FLOATS (there are plain tokens), TILES of 16 tokens at once, WARPS, DEPTH.

constexpr int KROW = WIDTH * (KBITS ? KBITS : 8) / 8, VROW = WIDTH * (VBITS ? VBITS : 8) / 8; // bytes of a token
constexpr int TOKENS = TILES * 16, THREADS = WARPS * 32;
constexpr int K_AT = 0, V_AT = TOKENS * KROW, META_AT = V_AT + TOKENS * VROW;             // in a stage
constexpr int STAGE = META_AT + 8 * TOKENS;                                               // scales and zeros: 4 halves a token
constexpr int STEPS = WIDTH / 16;                                                         // products of 16 x 16 a tile
constexpr int CHANNELS = WIDTH / 8;                                                       // of values, of one lane
constexpr float SLACK = 4.f, LIFT = 16.f;                                                 // weights are lifted off the subnormals
constexpr float NOTHING = -1e30f;

// What one lane copies of each stage: keys, values, their scales, their zeros, as they lie in memory.
struct Source {
    const u8* from;                                                                       // null: nothing
    u32 to, bytes;                                                                        // place in a stage; bytes of a token
};
INLINE Source source_of(int lane, const u8* k, const u8* v, const u8* k_scale, const u8* v_scale, const u8* k_zero, const u8* v_zero) {
    switch (lane) {
        case 0: return {k, K_AT, KROW};
        case 1: return {v, V_AT, VROW};
        case 2: return {KFIXED ? nullptr : k_scale, META_AT, 2};
        case 3: return {VFIXED ? nullptr : v_scale, META_AT + 2 * TOKENS, 2};
        case 4: return {KZERO ? k_zero : nullptr, META_AT + 4 * TOKENS, 2};
        case 5: return {VZERO ? v_zero : nullptr, META_AT + 6 * TOKENS, 2};
        default: return {nullptr, 0, 0};
    }
}

// `tokens` tokens (a multiple of 8) from place `at` of the store
INLINE void fetch(u32 stage, u32 barrier, const Source& own, size_t at, int tokens, int lane) {
    constexpr u32 BYTES = KROW + VROW + 2 * (!KFIXED + !VFIXED + KZERO + VZERO);
    if (lane == 0) expect_bytes(barrier, BYTES * tokens);
    __syncwarp();
    if (own.from) copy_many(stage + own.to, own.from + at * own.bytes, own.bytes * tokens, barrier);
}

// the scale that all tokens of the block's key head share; 1 where each has its own
template <int FIXED>
INLINE float fixed(const u8* scales) { return FIXED ? ((const float*)scales)[FIXED == 2 ? blockIdx.y : 0] : 1.f; }

INLINE float number(u32 bits) { return __uint_as_float(bits << 16); }                     // a bfloat16

INLINE u32 e4m3_pair(u32 t) {                                                             // bytes 1 and 3, times 2^-8
    return and_or(t, 0x80008000u, (t >> 1) & 0x3f803f80u);
}

// the exponent that pair i of a word of codes of B bits has too much
template <int B>
__host__ __device__ constexpr int lift(int i) { return B == 8 || B == 0 ? 0 : i * B % 8; }

// pair i of a word of keys: the halves of codes i and i + 16 / B
template <int B>
INLINE u32 key_pair(u32 word, int i) {
    if (B == 0) return e4m3_pair(i ? word : word << 8);
    if (B == 8) return bytes(word, 0x64646464u, i ? 0x4341 : 0x4240);
    return and_or(i * B >= 8 ? word >> 8 : word, ((1u << B) - 1) * 0x00010001u << lift<B>(i), 0x64006400u);
}

// code i of the words of two tokens as a pair, less half the range
template <int B>
INLINE u32 value_pair(u32 first, u32 second, int i) {
    if (B == 0) return e4m3_pair(bytes(first, second, i * 0x1010 + 0x4000));
    if (B == 8) return sub2(bytes(bytes(first, second, i < 2 ? 0x5140 : 0x7362), 0x64646464u, i % 2 ? 0x4342 : 0x4140), 0x64806480u);
    const u32 pair = bytes(first, second, i * B < 16 ? 0x5410 : 0x7632);
    const int at = i * B % 16, up = at % 8;
    const u32 v = and_or(at >= 8 ? pair >> 8 : pair, ((1u << B) - 1) * 0x00010001u << up, 0x64006400u);
    const u32 off = up == 0 ? 0x6400u + (1 << B >> 1)                                     // (1024 + half the range) / 2^up, rounded never
                  : up == 2 ? 0x5c00u + (2 << B) : up == 4 ? 0x5400u + (8 << B) : 0x4c00u + (32 << B);
    return up ? fma2(v, (0x3c00u - (up << 10)) * 0x00010001u, (off | 0x8000u) * 0x00010001u) : sub2(v, off * 0x00010001u);
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
INLINE void read_keys(u32 (&w)[KWORDS], u32 stage, int row, int c) {
    constexpr int N = KWORDS > 4 ? 4 : KWORDS;
#pragma unroll
    for (int i = 0; i < KWORDS; i += N) {
        const int at = c * KWORDS * 4 + i * 4;
        u32 part[N];
        read_words(part, stage + K_AT + row * KROW + at);
#pragma unroll
        for (int j = 0; j < N; j++) w[i + j] = part[j];
    }
}
// the channel of half e of pair i of word w of lane column c
INLINE int column_of(int c, int w, int i, int e) {
    constexpr int N = KWORDS > 4 ? 4 : KWORDS, CODES = 2 * KPAIRS;
    return (w / N + c * (KWORDS / N)) * N * CODES + w % N * CODES + i + e * KPAIRS;
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
    float raised[2], sum[2];                                                              // of heads 2c, 2c + 1: 1024 * lifted q; q
};

INLINE void load_query(Query& to, const float* q, int lane) {
    const int head = lane / 4, c = lane % 4;
    float raised = 0.f, sum = 0.f;
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
                raised += half_value(low) * 1024.f, sum += half_value(low) * (1 << lift<KBITS>(i));
            }
            to.b[s][h] = both;
        }
    raised += of_lane(raised, lane ^ 1), sum += of_lane(sum, lane ^ 1);
    raised += of_lane(raised, lane ^ 2), sum += of_lane(sum, lane ^ 2);
#pragma unroll
    for (int e = 0; e < 2; e++) to.raised[e] = of_lane(raised, (2 * c + e) * 4), to.sum[e] = of_lane(sum, (2 * c + e) * 4);
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

// scores[j]: row r (j < 2) or r + 8, head 2c + j % 2; in units of log2
INLINE void score(float (&s)[4], const Query& q, u32 stage, int tile, int lane, float scale) {
    const int r = lane / 4, c = lane % 4;
    u32 upper[KWORDS], lower[KWORDS];
    read_keys(upper, stage, tile * 16 + r, c), read_keys(lower, stage, tile * 16 + r + 8, c);
    s[0] = s[1] = s[2] = s[3] = 0.f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u32 a[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int pair = 2 * step + h, w = pair / KPAIRS, i = pair % KPAIRS;
            a[2 * h] = key_pair<KBITS>(upper[w], i), a[2 * h + 1] = key_pair<KBITS>(lower[w], i);
        }
        multiply(s, a, q.b[step][0], q.b[step][1]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 at = stage + META_AT + (tile * 16 + r + half * 8) * 2;
        const float by = (KFIXED ? 1.f : number(read2(at))) * scale * (KBITS ? 1.f : 256.f);
        const float zero = KZERO ? number(read2(at + 4 * TOKENS)) : KBITS ? (1 << KBITS) / 2 : 0;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float off = KBITS ? fmaf(zero, q.sum[e], q.raised[e]) : 0.f;
            s[2 * half + e] = (s[2 * half + e] - off) * by;
        }
    }
}

// out += values of the tile times weights; p: as scores, weights times LIFT times the scale of the values
INLINE void add_values(Running& r, const float (&p)[4], u32 stage, int tile, int lane) {
    const int g = lane / 4, c = lane % 4;
    const u32 b0 = transposed(pair_of_halves(p[0], p[1])), b1 = transposed(pair_of_halves(p[2], p[3]));
    constexpr int WORDS = VROW / 32, CODES = VBITS ? 32 / VBITS : 4;
    u32 w[4][WORDS];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = tile * 16 + 2 * c + i % 2 + i / 2 * 8;
        read_words(w[i], stage + V_AT + row * VROW + g * WORDS * 4);
    }
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

INLINE void tile_of_tokens(Running& r, const Query& q, u32 stage, int left, int lane, float scale) {
    float s[TILES][4], most[2] = {NOTHING, NOTHING};
#pragma unroll
    for (int i = 0; i < TILES; i++) score(s[i], q, stage, i, lane, scale);
    if (left < TOKENS)
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (i * 16 + lane / 4 + j / 2 * 8 >= left) s[i][j] = 4 * NOTHING;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) most[j % 2] = fmaxf(most[j % 2], s[i][j]);
    if (any_lane(most[0] > r.most[0] + SLACK || most[1] > r.most[1] + SLACK)) raise(r, most, lane);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        float p[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = lane / 4 + j / 2 * 8;
            const u32 at = stage + META_AT + (i * 16 + row) * 2;
            const float weight = power_of_2(s[i][j] - r.most[j % 2]);
            const bool there = left >= TOKENS || i * 16 + row < left;                     // scales beyond the end may be anything
            r.total[j % 2] += weight;
            p[j] = there ? weight * ((VFIXED ? 1.f : number(read2(at + 2 * TOKENS))) * LIFT) : 0.f;
            if (VZERO && there) r.offset[j % 2] += p[j] * ((1 << VBITS) / 2 - number(read2(at + 6 * TOKENS)));
        }
        add_values(r, p, stage, i, lane);
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

// A warp's heads into shared memory: [8, LINE]. by: the fixed scale of the values
INLINE void write_part(float* to, const Running& r, int lane, float by) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const float total = over_rows(r.total[e], lane), offset = VZERO ? over_rows(r.offset[e], lane) : 0.f;
        float* line = to + (lane % 4 * 2 + e) * LINE;
#pragma unroll
        for (int j = 0; j < WIDTH / 16; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                line[lane / 4 * CHANNELS + 2 * j + half] = (r.out[j][2 * half + e] + offset) * ((VBITS ? 1.f : 256.f) / LIFT * by);
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
extern "C" __global__ void __launch_bounds__(THREADS) attend(
    const u16* q, const u8* k, const u8* k_scale, const u8* k_zero, const u8* v, const u8* v_scale, const u8* v_zero, const int* table,
    const int* counts, const u16* first_k, const u16* first_v, const u16* last_k, const u16* last_v, u16* out, float* part, int* count,
    int group, int page, int page_bits, int table_width, int span, int first_room, int packed, int last_room, int scale_bits) {
    extern __shared__ __align__(16) u8 shared[];
    let_the_next_kernel_start();
    wait_for_the_kernels_before();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, splits = gridDim.x;
    const int one = blockIdx.z * gridDim.y + blockIdx.y, start = blockIdx.x * span;
    const bool plain = FLOATS && blockIdx.x == splits - 1;
    const int length = counts ? counts[blockIdx.z * 3 + 1] : packed, mine = plain ? 0 : max(0, min(span, length - start));
    const int all = (mine + TOKENS - 1) / TOKENS, rounds = all > warp ? (all - warp + WARPS - 1) / WARPS : 0;
    const float scale = __uint_as_float(scale_bits);
    const Source source = source_of(lane, k, v, k_scale, v_scale, k_zero, v_zero);
    const u32 ring = address(shared) + warp * DEPTH * STAGE, barriers = address(shared) + WARPS * DEPTH * STAGE + warp * DEPTH * 8;
    float* queries = (float*)(shared + WARPS * DEPTH * (STAGE + 8));
    q += (size_t)one * group * WIDTH;
    if (lane < DEPTH) begin_barrier(barriers + lane * 8);
    __syncwarp();

    auto get = [&](int i) {                                                               // round i into its stage
        const int token = start + (i * WARPS + warp) * TOKENS;
        const u32 place = table ? table[blockIdx.z * table_width + (token >> page_bits)] : blockIdx.z;
        const size_t at = (size_t)(place * gridDim.y + blockIdx.y) * page + (table ? token & (page - 1) : token);
        fetch(ring + i % DEPTH * STAGE, barriers + i % DEPTH * 8, source, at, min(TOKENS, (length - token + 7) & ~7), lane);
    };
#pragma unroll
    for (int i = 0; i < DEPTH - 1; i++)
        if (i < rounds) get(i);
    take_query(queries, q, group, lane, warp);
    __syncthreads();
    Query heads;
    load_query(heads, queries, lane);
    Running r = {{NOTHING, NOTHING}, {0.f, 0.f}, {0.f, 0.f}, {}};
    const float packed_scale = scale * fixed<KFIXED>(k_scale);
#pragma unroll 1
    for (int i = 0; i < rounds; i++) {
        __syncwarp();                                                                     // nobody reads round i - 1 any more
        if (i + DEPTH - 1 < rounds) get(i + DEPTH - 1);
        wait_for_phase(barriers + i % DEPTH * 8, i / DEPTH & 1);
        tile_of_tokens(r, heads, ring + i % DEPTH * STAGE, mine - (i * WARPS + warp) * TOKENS, lane, packed_scale);
    }
    __syncthreads();
    float* parts = (float*)shared;
    if (plain) {
        const size_t first = (size_t)one * first_room * WIDTH, last = (size_t)one * last_room * WIDTH;
        const int there[2] = {counts ? counts[blockIdx.z * 3] : first_room, counts ? counts[blockIdx.z * 3 + 2] : last_room};
        plain_tokens(parts, {{first_k + first, last_k + last}, {first_v + first, last_v + last}, {there[0], there[1]}}, q, group, warp, lane, scale);
    } else {
        write_part(parts + warp * 8 * LINE, r, lane, fixed<VFIXED>(v_scale));
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
    for (int head = warp; head < group; head += WARPS)
        finish(out + ((size_t)one * group + head) * WIDTH, part + (size_t)head * splits * LINE, splits, lane);
}
