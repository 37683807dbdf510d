// linear.cu - y = x W.T for packed integers, one launch; see linear.py for the layout.
//
// A warp owns RT tiles of 16 rows and every WK-th chunk of 128 columns. Its weights come by cp.async into a ring of DEPTH
// stages of its own in shared memory, each lane copying what it will read, so the stream needs no barrier. A register pair
// holds the left operand of a product as it is: the bits are cut out by lop3 into halves "magic + u", and the zero is taken
// off exactly. x is the right operand; it lies in shared memory in blocks of 64 columns, swizzled by 128 bytes.
// WIDE 0: mma.m16n8k16 per warp. WIDE 1: wgmma.m64nNk16 of four warps (Hopper), their tiles one below the other.
// Sums of one group are scaled in float32; SCALED 1: the weights are, rounded as decoding rounds them.
// WK warps add up in shared memory, the blocks of a cluster (along y) through each other's.
//
// Compiled with: BITS 2|3|4|8, HALF 0 bfloat16 | 1 float16, GROUP units of 32 columns (0: a scale per row), ASYM, SCALED,
// WIDE, NT tokens / 8, RT, WN warps over rows, WK warps over columns, DEPTH.

constexpr int LOW = BITS == 3 ? 2 : BITS;                    // bits in the low words
constexpr int LOW_BYTES = LOW * 256;                         // bytes of a chunk of 16 rows x 128 columns
constexpr int HIGH_BYTES = BITS == 3 ? 256 : 0;
constexpr int META = ASYM ? 8 : 4;                           // bytes of scales and zeros of two rows
constexpr int META_BYTES = GROUP ? 4 / GROUP * 8 * META : 0; // of one chunk
constexpr int TILE_BYTES = LOW_BYTES + HIGH_BYTES + META_BYTES;
constexpr int STAGE = RT * TILE_BYTES;
constexpr int ROWS = WN * RT * 16;                           // rows of one block
constexpr int TOKENS = NT * 8;
constexpr int THREADS = WN * WK * 32;
constexpr int LINE = ROWS + 4;                               // floats from token to token among the sums: no bank conflicts
static_assert(!WIDE || (RT == 1 && WN % 4 == 0), "four warps of one tile each make a wgmma");

constexpr int BITS_OF_MAGIC = HALF ? 10 : 7;                 // bits below the hidden one
constexpr u32 MAGIC = HALF ? 0x64006400u : 0x43004300u;
constexpr int MAGIC_VALUE = HALF ? 1024 : 128;
constexpr int PER_SHIFT = (BITS_OF_MAGIC - BITS) / LOW + 1;  // pairs that one shift serves (BITS < 8)

// the half of +-m / 2^p + z, for 0 <= z < 2^BITS, as a pair; m the magic value
__host__ __device__ constexpr u32 half_bits(int value8) {   // value8 = 8 * value > 0, exact in either type
    int e = 0;
    while ((value8 >> (e + 1)) != 0) e++;                    // value8 = 2^e * (1 + f)
    u32 f = (u32)(value8 - (1 << e));
    u32 fraction = e > BITS_OF_MAGIC ? f >> (e - BITS_OF_MAGIC) : f << (BITS_OF_MAGIC - e);
    u32 half = ((u32)(e - 3 + (HALF ? 15 : 127)) << BITS_OF_MAGIC) | fraction;
    return half * 0x00010001u;
}
constexpr u32 NEGATIVE = 0x80008000u;

INLINE u32 byte_pair(u32 t) {            // two codes of 8 bits -> u - 128
#if HALF
    return sub2(and_or(t, 0x00ff00ffu, MAGIC), half_bits(8 * (1024 + 128)));
#else
    return sub2(and_or(t, 0x007f007fu, MAGIC), and_xor(t, 0x00800080u, 0x43804380u));
#endif
}

struct Zero {                                                // what is taken off a pair of one row
    u32 at[4];                                               // by place of the code in its half; at[0] for 8 bits
};

INLINE Zero zero_of(u32 code) {          // code: one row's zero
    Zero z;
    u32 pair = code * 0x00010001u;
    if constexpr (BITS == 8) {
        z.at[0] = byte_pair(pair);
    } else {
        z.at[0] = (pair | MAGIC) ^ NEGATIVE;
#pragma unroll
        for (int j = 1; j < (PER_SHIFT < 4 ? PER_SHIFT : 4); j++)
            z.at[j] = sub2(z.at[0], half_bits(8 * MAGIC_VALUE - 8 * MAGIC_VALUE / (1 << (LOW * j))) ^ NEGATIVE);
    }
    return z;
}

// pair I of a low word (and pair J of a high word): element values less zero
template <int I, int J>
INLINE u32 pair_of(u32 low, u32 high, const Zero& zero) {
    if constexpr (BITS == 8) {
        u32 v = byte_pair(I ? low >> 8 : low);
        return ASYM ? sub2(v, zero.at[0]) : v;
    } else {
        constexpr int PLACES = PER_SHIFT < 4 ? PER_SHIFT : 4;
        constexpr int place = I % PLACES, at = LOW * place, shift = LOW * (I - place);
        constexpr u32 mask = ((1u << LOW) - 1) * 0x00010001u << at;
        u32 v = and_or(shift ? low >> shift : low, mask, MAGIC);
        if constexpr (BITS == 3) {
            constexpr int bits[16] = {2, 4, 6, 3, 5, 7, 14, 15, 8, 10, 12, 9, 11, 13, 0, 1};
            constexpr int move = bits[J] - at - 2;
            u32 h = move > 0 ? high >> (move > 0 ? move : 0) : high << (move > 0 ? 0 : -move);
            v = and_or(h, 0x00040004u << at, v);
        }
        constexpr u32 symmetric = half_bits(8 * MAGIC_VALUE / (1 << at) + 8 * (1 << (BITS - 1))) ^ NEGATIVE;
        constexpr u32 factor = half_bits(8) - (u32)(at << BITS_OF_MAGIC) * 0x00010001u;
        u32 off = ASYM ? zero.at[place] : symmetric;
        return at ? fma2(v, factor, off) : sub2(v, off ^ NEGATIVE);
    }
}

// the operands of two steps (32 columns, unit U of the chunk) of one tile: a[4 * step + register]
template <int U>
INLINE void unit(u32 (&a)[8], const u32* low, const u32* high, const Zero& top, const Zero& bottom) {
    constexpr int N = 16 / LOW, B = U % 2 * 8;               // pairs of a word; first pair in the high word
    const u32* w = low + U * (8 / N);
    const u32 h = BITS == 3 ? high[U / 2] : 0;
    a[0] = pair_of<0 % N, B + 0>(w[0 / N], h, top), a[1] = pair_of<1 % N, B + 1>(w[1 / N], h, bottom);
    a[2] = pair_of<2 % N, B + 2>(w[2 / N], h, top), a[3] = pair_of<3 % N, B + 3>(w[3 / N], h, bottom);
    a[4] = pair_of<4 % N, B + 4>(w[4 / N], h, top), a[5] = pair_of<5 % N, B + 5>(w[5 / N], h, bottom);
    a[6] = pair_of<6 % N, B + 6>(w[6 / N], h, top), a[7] = pair_of<7 % N, B + 7>(w[7 / N], h, bottom);
}

INLINE float low_half(u32 pair) { return __uint_as_float(pair << 16); }   // scales are bfloat16
INLINE float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

struct Words {
    u32 low[2 * LOW];
    u32 high[BITS == 3 ? 2 : 1];
};

INLINE Words read_words(u32 at, int lane) {
    Words w;
#pragma unroll
    for (int v = 0; v < LOW / 2; v++) {
        uint4 q = read16(at + v * 512 + lane * 16);
        w.low[4 * v] = q.x, w.low[4 * v + 1] = q.y, w.low[4 * v + 2] = q.z, w.low[4 * v + 3] = q.w;
    }
    if (BITS == 3) {
        const uint2 q = read8(at + LOW_BYTES + lane * 8);
        w.high[0] = q.x, w.high[BITS == 3] = q.y;
    }
    return w;
}

// one stage of the ring: chunk `chunk` of this warp's tiles
INLINE void fetch(u32 stage, const u8* low, const u8* high, const u8* meta, int tile, int tiles, int chunk,
                                      int chunks, int lane, u64 policy) {
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
        const size_t at = (size_t)min(tile + rt, tiles - 1) * chunks + chunk;
        const u32 to = stage + rt * TILE_BYTES;
#pragma unroll
        for (int v = 0; v < LOW / 2; v++) copy16(to + v * 512 + lane * 16, low + at * LOW_BYTES + v * 512 + lane * 16, policy);
        if (BITS == 3) copy8(to + LOW_BYTES + lane * 8, high + at * HIGH_BYTES + lane * 8, policy);
        if (lane < META_BYTES / 16)
            copy16(to + LOW_BYTES + HIGH_BYTES + lane * 16, meta + at * META_BYTES + lane * 16, policy);
    }
}

// where 16 bytes of x lie in shared memory: block of 64 columns (`block` bytes each), token, eighth of the block
INLINE u32 x_place(int index, int block, int token, int eighth) { return index * block + token * 128 + ((eighth ^ (token & 7)) << 4); }

INLINE void copy_x(u32 to, int block, const u8* x, int inputs, int chunk, int token, int v) {
    const int column = chunk * 128 + v * 8;
    const bool inside = column < inputs;                     // zeros beyond the last column
    const u8* from = inside ? x + ((size_t)token * inputs + column) * 2 : x;
    copy16_or_zeros(to + x_place(v / 8, block, token, v % 8), from, inside);
}

// `chunks` chunks from `chunk` on of every token of this block into shared memory
INLINE void load_x(u32 to, int block, const u8* x, int tokens, int inputs, int chunk, int chunks) {
    if (NT == 1) {
        for (int i = threadIdx.x; i < tokens * chunks * 16; i += THREADS) {
            const int token = tokens == 1 ? 0 : i / (chunks * 16);
            copy_x(to, block, x, inputs, chunk, token, i - token * chunks * 16);
        }
    } else {
        for (int token = threadIdx.x / 16; token < tokens; token += THREADS / 16)
#pragma unroll 4
            for (int c = 0; c < chunks; c++) copy_x(to, block, x, inputs, chunk, token, c * 16 + threadIdx.x % 16);
    }
}

typedef float Sums[RT][NT][4];

INLINE u32 scale_pair(u32 bits) {                            // a bfloat16 scale twice, in the type of x
    return (HALF ? (u32)rounded(low_half(bits)) : bits) * 0x00010001u;
}

// what the rows of a lane share in a group: zeros, and scales as float32 and, where weights are scaled, as pairs
struct Group {
    Zero top, bottom;
    float upper, lower;
    u32 upper2, lower2;
    INLINE void set(u32 scales, u32 zeros) {
        upper = low_half(scales), lower = high_half(scales);
        if (SCALED) upper2 = scale_pair(scales & 0xffff), lower2 = scale_pair(scales >> 16);
        if (ASYM) top = zero_of(zeros & 0xffff), bottom = zero_of(zeros >> 16);
    }
};

INLINE void add_scaled(Sums& total, Sums& part, const Group (&group)[RT]) {
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            total[rt][nt][0] += part[rt][nt][0] * group[rt].upper, total[rt][nt][1] += part[rt][nt][1] * group[rt].upper;
            total[rt][nt][2] += part[rt][nt][2] * group[rt].lower, total[rt][nt][3] += part[rt][nt][3] * group[rt].lower;
            if (!WIDE) part[rt][nt][0] = part[rt][nt][1] = part[rt][nt][2] = part[rt][nt][3] = 0.f;
        }
}

// 32 columns: unit U of a chunk. `part` sums a group, or everything where there is no scale to apply to a group
template <int U>
INLINE void step(Sums& part, Sums& total, const Words (&w)[RT], Group (&group)[RT], u32 meta, const u32 (&x_at)[NT],
                                     u32 x, int block, int lane) {
    constexpr int units = GROUP ? GROUP : 1;
    if (GROUP && U % units == 0) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            const u32 at = meta + rt * TILE_BYTES + (U / units * 8 + lane / 4) * META;
            group[rt].set(read4(at), ASYM ? read4(at + 4) : 0);
        }
    }
    u32 a[RT][8];
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
        unit<U>(a[rt], w[rt].low, w[rt].high, group[rt].top, group[rt].bottom);
        if (SCALED) {
#pragma unroll
            for (int j = 0; j < 8; j++) a[rt][j] = mul2(a[rt][j], j % 2 ? group[rt].lower2 : group[rt].upper2);
        }
    }
    const u32 at = x + U / 2 * block;
#if WIDE
    constexpr bool last = GROUP && !SCALED && (U + 1) % units == 0;  // unit of its group
    wide_begin();
    wide_multiply(part[0], a[0], at + U % 2 * 64, !(GROUP && !SCALED && U % units == 0));
    wide_multiply(part[0], a[0] + 4, at + U % 2 * 64 + 32, 1);
    if (last || U == 3) wide_wait();
    if (last) add_scaled(total, part, group);
#else
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
    if (GROUP && !SCALED && (U + 1) % units == 0) add_scaled(total, part, group);
#endif
}

INLINE float sum_of_warps(const float* at) {
    float v = 0.f;
#pragma unroll
    for (int k = 0; k < WK; k++) v += at[k * TOKENS * LINE];
    return v;
}

extern "C" __global__ void __launch_bounds__(THREADS) product(const u8* x, const u8* low, const u8* high, const u8* meta, u16* y,
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
    const u64 policy = streamed();
#pragma unroll
    for (int d = 0; d < DEPTH - 1; d++) {
        if (d < steps) fetch(ring + d * STAGE, low, high, meta, tile, tiles, first + wk + d * WK, chunks, lane, policy);
        end_group();
    }
    Group group[RT];
    if (GROUP == 0) {
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
    load_x(xs, block, x, tokens, inputs, first, min(span, mine));
    wait_for_copies();
    show_to_wgmma();
    __syncthreads();

    Sums part = {}, total = {};
    u32 x_at[NT];                                                    // tokens beyond the last repeat it and are not written
#pragma unroll
    for (int nt = 0; nt < NT; nt++) x_at[nt] = x_place(0, block, min(nt * 8 + lane % 8, tokens - 1), lane / 8);
    const int rounds = (mine + WK - 1) / WK, per_span = span / WK;
    int place = 0, now = 0;                                          // round of the span, its buffer
#pragma unroll 1
    for (int i = 0; i < rounds; i++) {
        wait_for_all_groups_but<DEPTH - 2>();
        __syncwarp();
        if (place == per_span) {
            show_to_wgmma();
            __syncthreads();
            place = 0, now ^= 1;
        }
        if (place == 0) {
            const int start = (i + per_span) * WK;
            if (start < mine) load_x(xs + (now ^ 1) * buffer, block, x, tokens, inputs, first + start, min(span, mine - start));
        }
        const int next = i + DEPTH - 1;
        if (next < steps)
            fetch(ring + next % DEPTH * STAGE, low, high, meta, tile, tiles, first + wk + next * WK, chunks, lane, policy);
        end_group();
        if (i < steps) {
            const u32 stage = ring + i % DEPTH * STAGE;
            Words w[RT];
#pragma unroll
            for (int rt = 0; rt < RT; rt++) w[rt] = read_words(stage + rt * TILE_BYTES, lane);
            const u32 metas = stage + LOW_BYTES + HIGH_BYTES;
            const u32 at = xs + now * buffer + (wk + place * WK) * 2 * block;
            step<0>(part, total, w, group, metas, x_at, at, block, lane);
            step<1>(part, total, w, group, metas, x_at, at, block, lane);
            step<2>(part, total, w, group, metas, x_at, at, block, lane);
            step<3>(part, total, w, group, metas, x_at, at, block, lane);
        }
        place++;
    }
    if (SCALED || GROUP == 0) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int j = 0; j < 4; j++) total[rt][nt][j] = part[rt][nt][j] * (SCALED ? 1.f : j < 2 ? group[rt].upper : group[rt].lower);
    }

    // sums of the warps, then of the blocks of the cluster, in order of index
    __syncthreads();
    float* sums = (float*)shared;
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = (wn * RT + rt) * 16 + lane / 4 + (j / 2) * 8, column = nt * 8 + lane % 4 * 2 + j % 2;
                sums[(wk * TOKENS + column) * LINE + row] = total[rt][nt][j];
            }
    __syncthreads();
    y += (size_t)token * rows;
    const int used = tokens * ROWS;
    if (slices == 1) {
        for (int i = threadIdx.x; i < used; i += THREADS) {
            const int column = i / ROWS, row = i % ROWS;
            const float v = sum_of_warps(sums + column * LINE + row);
            if (blockIdx.x * ROWS + row < rows) y[(size_t)column * rows + blockIdx.x * ROWS + row] = rounded(v);
        }
        return;
    }
    if (WK > 1)
        for (int i = threadIdx.x; i < used; i += THREADS) {
            float* at = sums + i / ROWS * LINE + i % ROWS;
            *at = sum_of_warps(at);
        }
    meet_the_cluster();
    for (int i = blockIdx.y * THREADS + threadIdx.x; i < used; i += slices * THREADS) {
        const int column = i / ROWS, row = i % ROWS;
        float v = 0.f;
        for (int k = 0; k < slices; k++) v += read_of_block(sums + column * LINE + row, k);
        if (blockIdx.x * ROWS + row < rows) y[(size_t)column * rows + blockIdx.x * ROWS + row] = rounded(v);
    }
    meet_the_cluster();
}

// 32 columns of a tile of the decoded matrix into shared memory, rows 272 bytes apart
template <int U>
INLINE void decode_unit(u32 to, const Words& w, const u8* meta, int lane) {
    constexpr int g = U / (GROUP ? GROUP : 1);
    const u32* m = (const u32*)(meta + ((GROUP ? g * 8 : 0) + lane / 4) * META);
    Zero top, bottom;
    if (ASYM) top = zero_of(m[1] & 0xffff), bottom = zero_of(m[1] >> 16);
    u32 a[8];
    unit<U>(a, w.low, w.high, top, bottom);
    const u32 scale[2] = {scale_pair(m[0] & 0xffff), scale_pair(m[0] >> 16)};
#pragma unroll
    for (int j = 0; j < 8; j++) {                            // step j / 4, columns + 8 for j % 4 / 2, rows + 8 for j % 2
        const u32 at = to + (lane / 4 + j % 2 * 8) * 272 + (U * 32 + j / 4 * 16 + j % 4 / 2 * 8 + lane % 4 * 2) * 2;
        write4(at, mul2(a[j], scale[j % 2]));
    }
}

// the decoded matrix: one warp per tile and chunk; grid (chunks / 4, tiles), 4 warps
extern "C" __global__ void __launch_bounds__(128) matrix(const u8* low, const u8* high, const u8* meta, u16* out, int rows, int inputs, int chunks) {
    __shared__ __align__(16) u8 tiles[4][16 * 272];
    const int lane = threadIdx.x % 32, chunk = blockIdx.x * 4 + threadIdx.x / 32, tile = blockIdx.y;
    let_the_next_kernel_start();
    wait_for_the_kernels_before();
    if (chunk >= chunks) return;
    const size_t at = (size_t)tile * chunks + chunk;
    Words w;
#pragma unroll
    for (int v = 0; v < LOW / 2; v++) {
        const uint4 q = *(const uint4*)(low + at * LOW_BYTES + v * 512 + lane * 16);
        w.low[4 * v] = q.x, w.low[4 * v + 1] = q.y, w.low[4 * v + 2] = q.z, w.low[4 * v + 3] = q.w;
    }
    if (BITS == 3) {
        const uint2 q = *(const uint2*)(high + at * 256 + lane * 8);
        w.high[0] = q.x, w.high[BITS == 3] = q.y;
    }
    const u8* m = meta + (GROUP ? at * META_BYTES : (size_t)tile * 8 * META);
    const u32 to = address(tiles[threadIdx.x / 32]);
    decode_unit<0>(to, w, m, lane);
    decode_unit<1>(to, w, m, lane);
    decode_unit<2>(to, w, m, lane);
    decode_unit<3>(to, w, m, lane);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = i * 2 + lane / 16, column = chunk * 128 + lane % 16 * 8;
        const uint4 q = read16(to + row * 272 + lane % 16 * 16);
        if (tile * 16 + row < rows && column < inputs) *(uint4*)(out + (size_t)(tile * 16 + row) * inputs + column) = q;
    }
}
