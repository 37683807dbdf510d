// linear.cu - y = x W.T for packed integers, one launch; see linear.py for the layout.
//
// A warp owns RT tiles of 16 rows and every WK-th chunk of 128 columns. Its weights come by cp.async into a ring of DEPTH
// stages of its own in shared memory, each lane copying what it will read, so the stream needs no barrier; weights.cuh makes
// left operands of them. x is the right operand; it lies in shared memory in blocks of 64 columns, swizzled by 128 bytes.
// WIDE 0: mma.m16n8k16 per warp. WIDE 1: wgmma.m64nNk16 of four warps (Hopper), their tiles one below the other.
// Sums of one group are scaled in float32; SCALED 1: the weights are, rounded as decoding rounds them.
// WK warps add up in shared memory, the blocks of one row of tiles (along y) in global memory: the last one to come adds all.
//
// ACT: weights and inputs are bytes, and two bytes are what a half is elsewhere: a column. W is row-major as libraries want it; the
// operands' columns are x's in another order (see _product.py). Nothing is cut out or scaled before the end.
// With BITS 8 a column is two codes of 4 bits, and W lies as it does for floats: a byte of a word is one code of row r and one of
// row r + 8. Sums of a group are scaled as elsewhere.
//
// Compiled with the macros of weights.cuh, NT tokens / 8, RT, WN warps over rows, WK warps over columns, DEPTH,
// SPANS 0: x comes whole | 1: in spans; ACT 0 | 1 int8 (then BITS 16 and GROUP 0, or BITS 8) | 2 float8 e4m3 (BITS 16, GROUP 0 or 2).

#include "weights.cuh"

constexpr int STAGE = RT * TILE_BYTES;
constexpr int ROWS = WN * RT * 16;                           // rows of one block
constexpr int TOKENS = NT * 8;
constexpr int THREADS = WN * WK * 32;                        // at least TOKENS
constexpr int LINE = ROWS + 4;                               // floats from token to token among the sums: no bank conflicts
constexpr bool FOLDED = (GROUP && !SCALED) || (ACT == 2 && WIDE); // wgmma sums e4m3 in few bits: fold them as groups are
constexpr bool BY_GROUP = ACT == 2 && GROUP;                 // x has a scale a token and 128 columns, beside [columns / 128, tokens]
constexpr bool BY_TOKEN = (ACT && !BY_GROUP) || ONE_SCALE;   // sums are scaled at the end
static_assert(!WIDE || (RT == 1 && WN % 4 == 0), "four warps of one tile each make a wgmma");

// BITS 16: where piece `piece` (8 columns) of a row lies in a stage: no banks meet when 8 lanes read 4 pieces of 2 rows
INLINE u32 row_place(int row, int piece) { return row * 256 + ((piece ^ (row & 1) * 4) << 4); }

INLINE Words read_words(u32 at, int lane) {
    Words w;
    if constexpr (BITS == 16) {                              // of 32 columns a lane has a piece of row r and one of row r + 8
#pragma unroll
        for (int u = 0; u < 4; u++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint4 q = read16(at + row_place(lane / 4 + half * 8, u * 4 + lane % 4));
                w.low[u * 8 + half] = q.x, w.low[u * 8 + 2 + half] = q.y, w.low[u * 8 + 4 + half] = q.z, w.low[u * 8 + 6 + half] = q.w;
            }
        return w;
    }
#pragma unroll
    for (int v = 0; v < LOW / 2; v++) {
        uint4 q = read16(at + v * 512 + lane * 16);
        w.low[4 * v] = q.x, w.low[4 * v + 1] = q.y, w.low[4 * v + 2] = q.z, w.low[4 * v + 3] = q.w;
    }
    if (ODD) {
        const uint2 q = read8(at + LOW_BYTES + lane * 8);
        w.high[0] = q.x, w.high[ODD] = q.y;
    }
    return w;
}

// BITS 16: one stage of the ring from row-major W
INLINE void fetch_rows(u32 stage, const u8* w, int tile, int rows, int inputs, int chunk, int lane, u64 policy) {
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
        for (int v = 0; v < 8; v++) {
            const int row = v * 2 + lane / 16, piece = lane % 16, column = chunk * 128 + piece * 8;
            const u32 to = stage + rt * TILE_BYTES + row_place(row, piece);
            const u8* from = w + ((size_t)min((tile + rt) * 16 + row, rows - 1) * inputs + column) * 2;
            copy16_or_zeros(to, from, column < inputs, policy);
        }
}

// What a lane copies of its warp's tiles, a stage after the other.
struct Source {
    const u8 *low, *high, *meta;                             // where the lane's part of the first tile's first chunk lies
    u32 at[RT];                                              // chunks before the next one
    u64 policy;

    INLINE void next(u32 stage, int lane) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            const u32 to = stage + rt * TILE_BYTES;
            const u8* from = low + (size_t)at[rt] * LOW_BYTES;
#pragma unroll
            for (int v = 0; v < LOW / 2; v++) copy16(to + v * 512 + lane * 16, from + v * 512, policy);
            if (ODD) copy8(to + LOW_BYTES + lane * 8, high + (size_t)at[rt] * HIGH_BYTES, policy);
            if (GROUP) scales_of(to, rt, lane);
            at[rt] += WK;
        }
    }
    INLINE void scales_of(u32 tile, int rt, int lane) const {
        copy16_if(tile + LOW_BYTES + HIGH_BYTES + lane * 16, meta + (size_t)at[rt] * META_BYTES, policy, lane < META_BYTES / 16);
    }
    INLINE void next_scales(u32 stage, int lane) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++) scales_of(stage + rt * TILE_BYTES, rt, lane), at[rt] += WK;
    }
};

// CODEC: a pair of x in its own type -> a sixteenth of it, in halves
INLINE u32 sixteenths(u32 pair) {
    return OUT ? pair_of_halves(low_half(pair) * 0.0625f, high_half(pair) * 0.0625f) : mul2(pair, 0x2C002C00u);
}

// where 16 bytes of x lie in shared memory: block of 64 columns (`block` bytes each), token, eighth of the block
INLINE u32 x_place(int index, int block, int token, int eighth) { return index * block + token * 128 + ((eighth ^ (token & 7)) << 4); }

// eight columns of x at their place, or (VECTORS) their pairs 16 bytes apart
INLINE void put_x(u8* shared, u32 place, uint4 v) {
    if (!VECTORS) {
        *(uint4*)(shared + place) = v;
        return;
    }
    const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) *(u32*)(shared + (place ^ j << 4)) = pairs[j];
}

// Copies x into shared memory, 16 bytes a time. Many tokens: a thread has one eighth of one block of 64 columns, of every
// (THREADS / 16)-th token, so that its places follow from one another.
struct CopyX {
    const u8* from;
    u32 to;
    int block, tokens, inputs, token, v;

    INLINE CopyX(u32 shared, int block_, const u8* x, int tokens_, int inputs_) : block(block_), tokens(tokens_), inputs(inputs_) {
        token = threadIdx.x / 16, v = threadIdx.x % 16;
        from = x + (size_t)(NT == 1 ? 0 : token) * inputs * 2 + (NT == 1 ? 0 : v * 16);
        to = shared + (NT == 1 || THREADS % 128 ? 0 : x_place(v / 8, block, token, v % 8));
    }
    // Few tokens, all chunks: by reads, so that nobody waits for the weights that are on their way. CODEC, VECTORS: x comes as it is
    INLINE void now(u8* shared, int chunk, int chunks) const {
        constexpr int AT_ONCE = 4;
        for (int i = threadIdx.x; i < tokens * chunks * 16; i += AT_ONCE * THREADS) {
            uint4 v[AT_ONCE];
            u32 place[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                const int n = i + k * THREADS, t = tokens == 1 ? 0 : n / (chunks * 16), piece = n - t * chunks * 16;
                const int column = chunk * 128 + piece * 8;
                place[k] = VECTORS ? x_place(piece / 8, block, t, piece & 4) + piece % 4 * 4 : x_place(piece / 8, block, t, piece % 8);
                const bool there = t < tokens && column < inputs;
                v[k] = there ? *(const uint4*)(from + ((size_t)t * inputs + column) * 2) : uint4{0, 0, 0, 0};
                if (CODEC || VECTORS) v[k] = {sixteenths(v[k].x), sixteenths(v[k].y), sixteenths(v[k].z), sixteenths(v[k].w)};
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                if (i + k * THREADS < tokens * chunks * 16) put_x(shared, place[k], v[k]);
        }
    }
    // `chunks` chunks from `chunk` on, `at` bytes behind the start
    INLINE void operator()(u32 at, int chunk, int chunks) const {
        if (NT == 1) {
            for (int i = threadIdx.x; i < tokens * chunks * 16; i += THREADS) {
                const int t = tokens == 1 ? 0 : i / (chunks * 16), piece = i - t * chunks * 16, column = chunk * 128 + piece * 8;
                const u32 place = at + to + x_place(piece / 8, block, t, piece % 8);
                copy16_or_zeros(place, from + ((size_t)t * inputs + column) * 2, column < inputs);  // zeros beyond the last column
            }
            return;
        }
        const int left = (inputs - v * 8 - chunk * 128 + 127) / 128;  // chunks in which this thread's columns are there
        const u8* row = from + (size_t)chunk * 256;
        for (int t = token; t < tokens; t += THREADS / 16) {
            const u32 place = THREADS % 128 ? at + to + x_place(v / 8, block, t, v % 8) : at + to + (t - token) * 128;
#pragma unroll 4
            for (int c = 0; c < chunks; c++) copy16_or_zeros(place + c * 2 * block, row + c * 256, c < left);
            row += (size_t)(THREADS / 16) * inputs * 2;
        }
    }
};

typedef Sum Part[RT][NT][4];
typedef float Sums[RT][NT][4];

// by: BY_GROUP: the scales of the tokens in this group
INLINE void add_scaled(Sums& total, Part& part, const Group (&group)[RT], const float* by) {
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float scale = GROUP == 0 ? 1.f : j < 2 ? group[rt].upper : group[rt].lower;
                total[rt][nt][j] += part[rt][nt][j] * (BY_GROUP ? scale * by[nt * 8 + threadIdx.x % 4 * 2 + j % 2] : scale);
                if (!WIDE) part[rt][nt][j] = 0;
            }
        }
}

// 32 columns: unit U of a chunk. `part` sums a group, or everything where there is no scale to apply to a group
template <int U>
INLINE void step(Part& part, Sums& total, const Words (&w)[RT], const Words (&before)[RT], Group (&group)[RT], u32 meta, const u32 (&x_at)[NT],
                                     u32 x, int block, int lane, const Books& books, const float* by) {
    if (GROUP && U % UNITS == 0) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            const u32 at = meta + rt * TILE_BYTES + (U / UNITS * 8 + lane / 4) * META;
            group[rt].set(read4(at), ASYM ? read4(at + 4) : 0);
        }
    }
    u32 a[RT][8];
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
        unit<U>(a[rt], w[rt], before[rt], group[rt].top, group[rt].bottom, books);
        if (SCALED) {
#pragma unroll
            for (int j = 0; j < 8; j++) a[rt][j] = mul2(a[rt][j], j % 2 ? group[rt].lower2 : group[rt].upper2);
        }
    }
#if WIDE
    constexpr bool last = FOLDED && (U + 1) % UNITS == 0;    // unit of its group
    wide_begin();
    wide_multiply(part[0], a[0], (x >> 4) + (U / 2 * TOKENS * 128 + U % 2 * 64) / 16, !(FOLDED && U % UNITS == 0));
    wide_multiply(part[0], a[0] + 4, (x >> 4) + (U / 2 * TOKENS * 128 + U % 2 * 64 + 32) / 16, 1);
    if (last || U == 3) wide_wait();
    if (last) add_scaled(total, part, group, by + U / UNITS * TOKENS);
#else
    const u32 at = x + U / 2 * block;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        u32 b[4];
        load_matrices(b, (x_at[nt] ^ (U % 2 * 64)) + at);
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            multiply(part[rt][nt], a[rt], b[0], b[1]);
            multiply(part[rt][nt], a[rt] + 4, b[2], b[3]);
        }
    }
    if (FOLDED && (U + 1) % UNITS == 0) add_scaled(total, part, group, by + U / UNITS * TOKENS);
#endif
}

INLINE float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// rows row .. row + 3 of y, whose rows lie `rows` apart
INLINE void put4(u16* y, int row, int rows, float4 v, float by) {
    const u16 h[4] = {in_type(v.x * by), in_type(v.y * by), in_type(v.z * by), in_type(v.w * by)};
    if (rows % 4 == 0) {
        if (row < rows) *(uint2*)(y + row) = uint2{h[0] | (u32)h[1] << 16, h[2] | (u32)h[3] << 16};
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (row + i < rows) y[row + i] = h[i];
}

// beside: ACT: scales of tokens (BY_GROUP: of groups and tokens), ONE_SCALE: that one, LUT: the table's bytes. high: VECTORS: the two books.
// part [row blocks x token blocks, slices, TOKENS, ROWS] and count [row blocks x token blocks] (0 before and after): for slices > 1
extern "C" __global__ void __launch_bounds__(THREADS) product(const u8* x, const u8* low, const u8* high, const u8* meta, u16* y,
                                                              const float* beside, float* part_sums, int* count,
                                                              int all_tokens, int rows, int inputs, int chunks, int span) {
    extern __shared__ __align__(1024) u8 shared[];
    let_the_next_kernel_start();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wk = warp / WN, wn = warp % WN;
    const int tiles = (rows + 15) / 16, tile = (blockIdx.x * WN + wn) * RT;
    const int slices = gridDim.y, per = (chunks + slices - 1) / slices, first = blockIdx.y * per;
    const int mine = max(0, min(per, chunks - first));               // chunks of this block
    const int steps = mine > wk ? (mine - wk + WK - 1) / WK : 0;     // of this warp: first + wk, first + wk + WK, ...
    const int token = blockIdx.z * TOKENS, tokens = min(TOKENS, all_tokens - token);
    const int block = (WIDE ? TOKENS : tokens) * 128;                // bytes of 64 columns of x
    const int buffers = span < per ? 2 : 1, buffer = span * 2 * block;
    const u32 xs = address(shared), ring = xs + buffers * buffer + warp * DEPTH * STAGE;
    Source source = {low + lane * 16, high + lane * 8, meta + lane * 16, {}, streamed()};
#pragma unroll
    for (int rt = 0; rt < RT; rt++) source.at[rt] = min(tile + rt, tiles - 1) * chunks + first + wk;
    u32 filled = ring, used = ring;                                  // the stages that come next
    const auto after = [&](u32 stage) { return stage == ring + (DEPTH - 1) * STAGE ? ring : stage + STAGE; };
    const auto get = [&](int i) {                                    // round i into its stage
        if (BITS == 16) fetch_rows(filled, low, tile, rows, inputs, first + wk + i * WK, lane, source.policy);
        else source.next(filled, lane);
        if (BITS == 16 && GROUP) source.next_scales(filled, lane);
        filled = after(filled);
    };
#pragma unroll
    for (int d = 0; d < DEPTH - 1; d++) {
        if (d < steps) get(d);
        end_group();
    }
    uint4* const all_books = (uint4*)(shared + buffers * buffer + WN * WK * DEPTH * STAGE);
    const Books books = {all_books + lane % COPIES, COPIES};
    for (int i = threadIdx.x; i < ENTRIES; i += THREADS) {
        const uint4 entry = ((const uint4*)high)[i];
#pragma unroll
        for (int k = 0; k < COPIES; k++) all_books[i * COPIES + (k + lane) % COPIES] = entry;
    }
    Group group[RT];
    if (GROUP == 0 && !ONE_SCALE) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            const u32* m = (const u32*)(meta + ((size_t)min(tile + rt, tiles - 1) * 8 + lane / 4) * META);
            group[rt].set(m[0], ASYM ? m[1] : 0);
        }
    }

    // x comes in spans of `span` chunks: the first at once, when the kernels that make x are done, each later one while
    // the one before it is used. A group of copies is complete DEPTH - 1 rounds after it was made: span / WK >= DEPTH - 1.
    wait_for_the_kernels_before();
    x += (size_t)token * inputs * 2;
    __shared__ float token_scales[TOKENS];
    float* by_tokens = (float*)(shared + buffers * buffer + WN * WK * DEPTH * STAGE);
    if (BY_GROUP)
        for (int i = threadIdx.x; i < mine * 2 * TOKENS; i += THREADS) {
            const int at = first * 2 + i / TOKENS, t = i % TOKENS;
            by_tokens[i] = t < tokens && at * 64 < inputs ? beside[(size_t)at * all_tokens + token + t] : 0.f;
        }
    if (BY_TOKEN && threadIdx.x < tokens)
        token_scales[threadIdx.x] = beside[ONE_SCALE ? 0 : token + threadIdx.x] * (ACT && BITS == 8 ? 0.0625f : 1.f);
    const CopyX copy_x(xs, block, x, tokens, inputs);
    if (NT == 1 && !SPANS && !WIDE) {
        copy_x.now(shared, first, mine);
    } else {
        copy_x(0, first, min(span, mine));
        wait_for_copies();
        show_to_wgmma();
    }
    __syncthreads();

    Part part = {};
    Sums total = {};
    Words table;
    if (LUT) table = table_of(beside);
    u32 x_at[NT];                                                    // tokens beyond the last repeat it and are not written
#pragma unroll
    for (int nt = 0; nt < NT; nt++) x_at[nt] = x_place(0, block, min(nt * 8 + lane % 8, tokens - 1), lane / 8);
    const int rounds = SPANS ? (mine + WK - 1) / WK : steps, per_span = span / WK;
    int place = 0, now = 0;                                          // round of the span, its buffer
    u32 x_now = xs + wk * 2 * block;                                 // this warp's chunk of x
#pragma unroll 1
    for (int i = 0; i < rounds; i++) {
        wait_for_all_groups_but<DEPTH - 2>();
        __syncwarp();
        if (SPANS && place == per_span) {
            show_to_wgmma();
            __syncthreads();
            place = 0, now ^= 1;
            x_now = xs + now * buffer + wk * 2 * block;
        }
        if (SPANS && place == 0) {
            const int start = (i + per_span) * WK;
            if (start < mine) copy_x((now ^ 1) * buffer, first + start, min(span, mine - start));
        }
        const int next = i + DEPTH - 1;
        if (next < steps) get(next);
        end_group();
        if (!SPANS || i < steps) {
            const u32 stage = used;
            Words w[RT], before[RT];
#pragma unroll
            for (int rt = 0; rt < RT; rt++) {
                w[rt] = read_words(stage + rt * TILE_BYTES, lane);
                if (CODEC) before[rt] = read_words(stage + rt * TILE_BYTES, (lane + 31) % 32);
                if (LUT) before[rt] = table;
            }
            const u32 metas = stage + LOW_BYTES + HIGH_BYTES;
            const float* by = by_tokens + (BY_GROUP ? (i * WK + wk) * 2 * TOKENS : 0);
            step<0>(part, total, w, before, group, metas, x_at, x_now, block, lane, books, by);
            step<1>(part, total, w, before, group, metas, x_at, x_now, block, lane, books, by);
            step<2>(part, total, w, before, group, metas, x_at, x_now, block, lane, books, by);
            step<3>(part, total, w, before, group, metas, x_at, x_now, block, lane, books, by);
            used = after(used);
            x_now += WK * 2 * block;
        }
        place++;
    }
    if (SCALED || GROUP == 0) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float sum = FOLDED ? total[rt][nt][j] : part[rt][nt][j];
                    total[rt][nt][j] = sum * (SCALED || ONE_SCALE ? 1.f : j < 2 ? group[rt].upper : group[rt].lower);
                }
    }

    // sums of the warps, then of the blocks that share the columns, in order of index
    __syncthreads();
    float* sums = (float*)shared;
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = (wn * RT + rt) * 16 + lane / 4 + (j / 2) * 8, column = nt * 8 + lane % 4 * 2 + j % 2;
                if (column < tokens) sums[(wk * TOKENS + column) * LINE + row] = total[rt][nt][j];
            }
    __syncthreads();
    y += (size_t)token * rows;
    constexpr int FOURS = ROWS / 4;
    const int tile_index = blockIdx.z * gridDim.x + blockIdx.x;
    part_sums += (size_t)tile_index * slices * TOKENS * ROWS;
    for (int i = threadIdx.x; i < tokens * FOURS; i += THREADS) {
        const int column = i / FOURS, row = i % FOURS * 4;
        float4 v = *(const float4*)(sums + column * LINE + row);
#pragma unroll
        for (int k = 1; k < WK; k++) v = v + *(const float4*)(sums + (k * TOKENS + column) * LINE + row);
        if (slices == 1) put4(y + (size_t)column * rows, blockIdx.x * ROWS + row, rows, v, BY_TOKEN ? token_scales[column] : 1.f);
        else *(float4*)(part_sums + ((size_t)blockIdx.y * TOKENS + column) * ROWS + row) = v;
    }
    if (slices == 1 || !last_of(count + tile_index, slices)) return;
    for (int i = threadIdx.x; i < tokens * FOURS; i += THREADS) {
        const int column = i / FOURS, row = i % FOURS * 4;
        const float* at = part_sums + column * ROWS + row;
        float4 v = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 1
        for (int k = 0; k < slices; k += 4) {                        // four reads on their way at once
            float4 some[4];
#pragma unroll
            for (int j = 0; j < 4; j++) some[j] = read16_far(at + (size_t)min(k + j, slices - 1) * TOKENS * ROWS);
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (k + j < slices) v = v + some[j];
        }
        put4(y + (size_t)column * rows, blockIdx.x * ROWS + row, rows, v, BY_TOKEN ? token_scales[column] : 1.f);
    }
}

#if !ACT

// 32 columns of a tile of the decoded matrix into shared memory, rows 272 bytes apart
template <int U>
INLINE void decode_unit(u32 to, const Words& w, const Words& before, const u8* meta, int lane, const Books& books) {
    constexpr int g = U / (GROUP ? GROUP : 1);
    const u32* m = (const u32*)(meta + ((GROUP ? g * 8 : 0) + lane / 4) * META);
    Zero top, bottom;
    if (ASYM) top = zero_of(m[1] & 0xffff), bottom = zero_of(m[1] >> 16);
    u32 a[8], scale[2];
    unit<U>(a, w, before, top, bottom, books);
    if (!ONE_SCALE) scale[0] = scale_pair(m[0] & 0xffff), scale[1] = scale_pair(m[0] >> 16);
#pragma unroll
    for (int j = 0; j < 8; j++) {                            // step j / 4, columns + 8 for j % 4 / 2, rows + 8 for j % 2
        const int column = VECTORS ? lane % 4 * 8 + j / 2 * 2 : j / 4 * 16 + j % 4 / 2 * 8 + lane % 4 * 2;
        const u32 at = to + (lane / 4 + j % 2 * 8) * 272 + (U * 32 + column) * 2;
        write4(at, ONE_SCALE ? a[j] : mul2(a[j], scale[j % 2]));
    }
}

// the decoded matrix (ONE_SCALE: without that): one warp per tile and chunk; grid (chunks / 4, tiles), 4 warps
extern "C" __global__ void __launch_bounds__(128) matrix(const u8* low, const u8* high, const u8* meta, const float* beside, u16* out,
                                                             int rows, int inputs, int chunks) {
    __shared__ __align__(16) u8 tiles[4][16 * 272];
    const int lane = threadIdx.x % 32, chunk = blockIdx.x * 4 + threadIdx.x / 32, tile = blockIdx.y;
    let_the_next_kernel_start();
    wait_for_the_kernels_before();
    if (chunk >= chunks) return;
    const size_t at = (size_t)tile * chunks + chunk;
    const Words w = words_of(low + at * LOW_BYTES, high + at * 256, lane);
    Words before;
    if (CODEC) before = words_of(low + at * LOW_BYTES, high + at * 256, (lane + 31) % 32);
    if (LUT) before = table_of(beside);
    const u8* m = meta + (GROUP ? at * META_BYTES : (size_t)tile * 8 * META);
    const u32 to = address(tiles[threadIdx.x / 32]);
    decode_unit<0>(to, w, before, m, lane, {(const uint4*)high, 1});
    decode_unit<1>(to, w, before, m, lane, {(const uint4*)high, 1});
    decode_unit<2>(to, w, before, m, lane, {(const uint4*)high, 1});
    decode_unit<3>(to, w, before, m, lane, {(const uint4*)high, 1});
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = i * 2 + lane / 16, column = chunk * 128 + lane % 16 * 8;
        const uint4 q = read16(to + row * 272 + lane % 16 * 16);
        if (tile * 16 + row < rows && column < inputs) *(uint4*)(out + (size_t)(tile * 16 + row) * inputs + column) = q;
    }
}
#endif
