// linear.cu - y = x W.T for packed integers, one launch; see linear.py for the layout.
//
// One warp owns RT tiles of 16 rows and every WK-th chunk of 128 columns. Its weights come by cp.async into a ring of DEPTH
// stages of its own in shared memory, each lane copying what it will read, so the stream needs no barrier. A register pair
// holds the operand of mma.m16n8k16 as it is: the bits are cut out by lop3 into halves "magic + u", and the zero is taken off
// exactly. W is the left operand (16 rows), x the right one (8 tokens); columns are permuted alike in both.
// Sums of one group are scaled in float32. WK warps add up in shared memory, SK blocks of a cluster through each other's.
//
// Compiled with: BITS 2|3|4|8, HALF 0 bfloat16 | 1 float16, GROUP units of 32 columns (0: a scale per row), ASYM,
// NT tokens / 8, RT, WN warps over rows, WK warps over columns, DEPTH.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

constexpr int LOW = BITS == 3 ? 2 : BITS;                    // bits in the low words
constexpr int LOW_BYTES = LOW * 256;                         // bytes of a chunk of 16 rows x 128 columns
constexpr int HIGH_BYTES = BITS == 3 ? 256 : 0;
constexpr int META = ASYM ? 8 : 4;                           // bytes of scales and zeros of two rows
constexpr int META_BYTES = GROUP ? 4 / GROUP * 8 * META : 0; // of one chunk
constexpr int TILE_BYTES = LOW_BYTES + HIGH_BYTES + META_BYTES;
constexpr int STAGE = RT * TILE_BYTES;
constexpr int ROWS = WN * RT * 16;                           // rows of one block
constexpr int TOKENS = NT * 8;

constexpr int BITS_OF_MAGIC = HALF ? 10 : 7;                 // bits below the hidden one
constexpr u32 MAGIC = HALF ? 0x64006400u : 0x43004300u;
constexpr int MAGIC_VALUE = HALF ? 1024 : 128;
constexpr int PER_SHIFT = (BITS_OF_MAGIC - BITS) / LOW + 1;  // pairs that one shift serves (BITS < 8)

__device__ __forceinline__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ u64 streamed() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void copy16(u32 to, const u8* from, u64 policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "l"(policy) : "memory");
}

__device__ __forceinline__ void copy8(u32 to, const u8* from, u64 policy) {
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "l"(policy) : "memory");
}

__device__ __forceinline__ uint4 read16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}

// (a & mask) | b, (a & mask) ^ b: one instruction
__device__ __forceinline__ u32 and_or(u32 a, u32 mask, u32 b) {
    u32 v;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(a), "r"(mask), "r"(b));
    return v;
}
__device__ __forceinline__ u32 and_xor(u32 a, u32 mask, u32 b) {
    u32 v;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(v) : "r"(a), "r"(mask), "r"(b));
    return v;
}

// two halves at once
__device__ __forceinline__ u32 sub2(u32 a, u32 b) {
    u32 v;
#if HALF
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
#else
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
#endif
    return v;
}
__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
    u32 v;
#if HALF
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
#else
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
#endif
    return v;
}

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

__device__ __forceinline__ u32 byte_pair(u32 t) {            // two codes of 8 bits -> u - 128
#if HALF
    return sub2(and_or(t, 0x00ff00ffu, MAGIC), half_bits(8 * (1024 + 128)));
#else
    return sub2(and_or(t, 0x007f007fu, MAGIC), and_xor(t, 0x00800080u, 0x43804380u));
#endif
}

struct Zero {                                                // what is taken off a pair of one row
    u32 at[4];                                               // by place of the code in its half; at[0] for 8 bits
};

__device__ __forceinline__ Zero zero_of(u32 code) {          // code: one row's zero
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
__device__ __forceinline__ u32 pair_of(u32 low, u32 high, const Zero& zero) {
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
__device__ __forceinline__ void unit(u32 (&a)[8], const u32* low, const u32* high, const Zero& top, const Zero& bottom) {
    constexpr int N = 16 / LOW, B = U % 2 * 8;               // pairs of a word; first pair in the high word
    const u32* w = low + U * (8 / N);
    const u32 h = BITS == 3 ? high[U / 2] : 0;
    a[0] = pair_of<0 % N, B + 0>(w[0 / N], h, top), a[1] = pair_of<1 % N, B + 1>(w[1 / N], h, bottom);
    a[2] = pair_of<2 % N, B + 2>(w[2 / N], h, top), a[3] = pair_of<3 % N, B + 3>(w[3 / N], h, bottom);
    a[4] = pair_of<4 % N, B + 4>(w[4 / N], h, top), a[5] = pair_of<5 % N, B + 5>(w[5 / N], h, bottom);
    a[6] = pair_of<6 % N, B + 6>(w[6 / N], h, top), a[7] = pair_of<7 % N, B + 7>(w[7 / N], h, bottom);
}

__device__ __forceinline__ void multiply(float (&d)[4], const u32* a, u32 b0, u32 b1) {
#if HALF
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float low_half(u32 pair) { return __uint_as_float(pair << 16); }   // scales are bfloat16
__device__ __forceinline__ float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ u16 rounded(float v) {
    u16 h;
#if HALF
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
#endif
    return h;
}

__device__ __forceinline__ u32 rounded2(float low, float high) { return (u32)rounded(low) | (u32)rounded(high) << 16; }

struct Words {
    u32 low[2 * LOW];
    u32 high[BITS == 3 ? 2 : 1];
};

__device__ __forceinline__ Words read_words(u32 at, int lane) {
    Words w;
#pragma unroll
    for (int v = 0; v < LOW / 2; v++) {
        uint4 q = read16(at + v * 512 + lane * 16);
        w.low[4 * v] = q.x, w.low[4 * v + 1] = q.y, w.low[4 * v + 2] = q.z, w.low[4 * v + 3] = q.w;
    }
    if (BITS == 3)
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(w.high[0]), "=r"(w.high[BITS == 3]) : "r"(at + LOW_BYTES + lane * 8) : "memory");
    return w;
}

// one stage of the ring: chunk `chunk` of this warp's tiles
__device__ __forceinline__ void fetch(u32 stage, const u8* low, const u8* high, const u8* meta, int tile, int tiles, int chunk,
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

// columns of `chunks` chunks of every token into shared memory; zeros beyond the last column
template <bool ASYNC>
__device__ __forceinline__ void load_x(u32 to, int stride, const u8* x, int tokens, int inputs, int chunk, int chunks) {
    const int vectors = chunks * 16;
    for (int i = threadIdx.x; i < tokens * vectors; i += WN * WK * 32) {
        const int token = i / vectors, v = i - token * vectors, column = chunk * 128 + v * 8;
        const u32 at = to + token * stride + v * 16;
        const bool inside = column < inputs;
        const u8* from = inside ? x + ((size_t)token * inputs + column) * 2 : x;
        if (ASYNC) {
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(inside ? 16 : 0) : "memory");
        } else {
            const uint4 q = inside ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(q.x), "r"(q.y), "r"(q.z), "r"(q.w) : "memory");
        }
    }
}

template <int U>
__device__ __forceinline__ void step(float (&part)[RT][NT][4], float (&total)[RT][NT][4], const Words (&w)[RT], Zero (&top)[RT],
                                     Zero (&bottom)[RT], u32 meta, const u32 (&x_at)[NT], u32 x, int lane) {
    if (GROUP ? ASYM && U % (GROUP ? GROUP : 1) == 0 : false) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            u32 z;
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(z) : "r"(meta + rt * TILE_BYTES + (U / (GROUP ? GROUP : 1) * 8 + lane / 4) * META + 4) : "memory");
            top[rt] = zero_of(z & 0xffff), bottom[rt] = zero_of(z >> 16);
        }
    }
    uint4 b[NT];
#pragma unroll
    for (int nt = 0; nt < NT; nt++) b[nt] = read16(x_at[nt] + x + U * 64);
#pragma unroll
    for (int rt = 0; rt < RT; rt++) {
        u32 a[8];
        unit<U>(a, w[rt].low, w[rt].high, top[rt], bottom[rt]);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            multiply(part[rt][nt], a, b[nt].x, b[nt].y);
            multiply(part[rt][nt], a + 4, b[nt].z, b[nt].w);
        }
    }
    if (GROUP ? (U + 1) % (GROUP ? GROUP : 1) == 0 : false) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            u32 s;
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(s) : "r"(meta + rt * TILE_BYTES + (U / (GROUP ? GROUP : 1) * 8 + lane / 4) * META) : "memory");
            const float upper = low_half(s), lower = high_half(s);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                total[rt][nt][0] += part[rt][nt][0] * upper, total[rt][nt][1] += part[rt][nt][1] * upper;
                total[rt][nt][2] += part[rt][nt][2] * lower, total[rt][nt][3] += part[rt][nt][3] * lower;
                part[rt][nt][0] = part[rt][nt][1] = part[rt][nt][2] = part[rt][nt][3] = 0.f;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(WN* WK * 32) product(const u8* x, const u8* low, const u8* high, const u8* meta,
                                                                  u16* y, int tokens, int rows, int inputs, int chunks, int span) {
    extern __shared__ __align__(128) u8 shared[];
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wk = warp % WK, wn = warp / WK;
    const int tiles = (rows + 15) / 16, tile = (blockIdx.x * WN + wn) * RT;
    const int slices = gridDim.y, per = (chunks + slices - 1) / slices, first = blockIdx.y * per;
    const int mine = max(0, min(per, chunks - first));               // chunks of this block
    const int steps = mine > wk ? (mine - wk + WK - 1) / WK : 0;     // of this warp: first + wk, first + wk + WK, ...
    const u32 ring = address(shared) + warp * DEPTH * STAGE;
    const u64 policy = streamed();
#pragma unroll
    for (int d = 0; d < DEPTH - 1; d++) {
        if (d < steps) fetch(ring + d * STAGE, low, high, meta, tile, tiles, first + wk + d * WK, chunks, lane, policy);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    Zero top[RT], bottom[RT];
    u32 row_scale[RT];
    if (GROUP == 0) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            const u32* m = (const u32*)(meta + ((size_t)min(tile + rt, tiles - 1) * 8 + lane / 4) * META);
            row_scale[rt] = m[0];
            if (ASYM) top[rt] = zero_of(m[1] & 0xffff), bottom[rt] = zero_of(m[1] >> 16);
        }
    }

    // x comes in spans of `span` chunks: the first at once, when the kernels that make x are done, each later one while
    // the one before it is used. A group of copies is complete DEPTH - 1 rounds after it was made: span / WK >= DEPTH - 1.
    asm volatile("griddepcontrol.wait;" ::: "memory");
    const int stride = span * 256 + 64, buffer = tokens * stride;
    const u32 xs = address(shared) + WN * WK * DEPTH * STAGE;
    load_x<false>(xs, stride, x, tokens, inputs, first, min(span, mine));
    __syncthreads();

    float part[RT][NT][4] = {}, total[RT][NT][4] = {};
    u32 x_at[NT];                                                    // tokens beyond the last repeat it and are not written
#pragma unroll
    for (int nt = 0; nt < NT; nt++) x_at[nt] = xs + lane % 4 * 16 + min(nt * 8 + lane / 4, tokens - 1) * stride;
    const int rounds = (mine + WK - 1) / WK, per_span = span / WK;
    int place = 0, now = 0;                                          // round of the span, its buffer
#pragma unroll 1
    for (int i = 0; i < rounds; i++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 2) : "memory");
        __syncwarp();
        if (place == per_span) {
            __syncthreads();
            place = 0, now ^= 1;
        }
        if (place == 0) {
            const int start = (i + per_span) * WK;
            if (start < mine) load_x<true>(xs + (now ^ 1) * buffer, stride, x, tokens, inputs, first + start, min(span, mine - start));
        }
        const int next = i + DEPTH - 1;
        if (next < steps)
            fetch(ring + next % DEPTH * STAGE, low, high, meta, tile, tiles, first + wk + next * WK, chunks, lane, policy);
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (i < steps) {
            const u32 stage = ring + i % DEPTH * STAGE;
            Words w[RT];
#pragma unroll
            for (int rt = 0; rt < RT; rt++) w[rt] = read_words(stage + rt * TILE_BYTES, lane);
            const u32 metas = stage + LOW_BYTES + HIGH_BYTES;
            const u32 at = now * buffer + (wk + place * WK) * 256;
            step<0>(part, total, w, top, bottom, metas, x_at, at, lane);
            step<1>(part, total, w, top, bottom, metas, x_at, at, lane);
            step<2>(part, total, w, top, bottom, metas, x_at, at, lane);
            step<3>(part, total, w, top, bottom, metas, x_at, at, lane);
        }
        place++;
    }
    if (GROUP == 0) {
#pragma unroll
        for (int rt = 0; rt < RT; rt++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int j = 0; j < 4; j++) total[rt][nt][j] = part[rt][nt][j] * (j < 2 ? low_half(row_scale[rt]) : high_half(row_scale[rt]));
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
                const int row = (wn * RT + rt) * 16 + lane / 4 + (j / 2) * 8, token = nt * 8 + lane % 4 * 2 + j % 2;
                sums[(wk * TOKENS + token) * ROWS + row] = total[rt][nt][j];
            }
    __syncthreads();
    const int used = min(tokens, TOKENS) * ROWS;
    if (slices == 1) {
        for (int i = threadIdx.x; i < used; i += WN * WK * 32) {
            float v = 0.f;
#pragma unroll
            for (int k = 0; k < WK; k++) v += sums[k * TOKENS * ROWS + i];
            const int row = blockIdx.x * ROWS + i % ROWS;
            if (row < rows) y[(size_t)(i / ROWS) * rows + row] = rounded(v);
        }
        return;
    }
    for (int i = threadIdx.x; i < used; i += WN * WK * 32) {
        float v = 0.f;
#pragma unroll
        for (int k = 0; k < WK; k++) v += sums[k * TOKENS * ROWS + i];
        sums[i] = v;
    }
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    for (int i = blockIdx.y * WN * WK * 32 + threadIdx.x; i < used; i += slices * WN * WK * 32) {
        float v = 0.f;
        for (int k = 0; k < slices; k++) {
            u32 there;
            float f;
            asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address(sums + i)), "r"(k));
            asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(f) : "r"(there) : "memory");
            v += f;
        }
        const int row = blockIdx.x * ROWS + i % ROWS;
        if (row < rows) y[(size_t)(i / ROWS) * rows + row] = rounded(v);
    }
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

template <int U>
__device__ __forceinline__ void write_unit(const Words& w, Zero& top, Zero& bottom, const u8* meta, u16* out, int row, int column, int rows,
                                           int inputs, int lane) {
    constexpr int g = U / (GROUP ? GROUP : 1);
    const u32* m = (const u32*)(meta + ((GROUP ? g * 8 : 0) + lane / 4) * META);
    if (ASYM) top = zero_of(m[1] & 0xffff), bottom = zero_of(m[1] >> 16);
    u32 a[8];
    unit<U>(a, w.low, w.high, top, bottom);
    const float scale[2] = {low_half(m[0]), high_half(m[0])};
    column += U * 32 + lane % 4 * 8;
    if (column >= inputs) return;
#pragma unroll
    for (int side = 0; side < 2; side++) {
        u32 q[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 pair = a[2 * j + side];
            float lo, hi;
#if HALF
            asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(lo), "=f"(hi) : "r"(pair));
#else
            lo = low_half(pair), hi = high_half(pair);
#endif
            q[j] = rounded2(lo * scale[side], hi * scale[side]);
        }
        if (row + side * 8 < rows) *(uint4*)(out + (size_t)(row + side * 8) * inputs + column) = make_uint4(q[0], q[1], q[2], q[3]);
    }
}

// the decoded matrix: one warp per tile and chunk; grid (chunks / 4, tiles), 4 warps
extern "C" __global__ void __launch_bounds__(128) matrix(const u8* low, const u8* high, const u8* meta, u16* out, int rows, int inputs, int chunks) {
    const int lane = threadIdx.x % 32, chunk = blockIdx.x * 4 + threadIdx.x / 32, tile = blockIdx.y;
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
    Zero top, bottom;
    const int row = tile * 16 + lane / 4, column = chunk * 128;
    write_unit<0>(w, top, bottom, m, out, row, column, rows, inputs, lane);
    write_unit<1>(w, top, bottom, m, out, row, column, rows, inputs, lane);
    write_unit<2>(w, top, bottom, m, out, row, column, rows, inputs, lane);
    write_unit<3>(w, top, bottom, m, out, row, column, rows, inputs, lane);
}
