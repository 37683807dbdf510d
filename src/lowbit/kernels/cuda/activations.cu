// activations.cu - rows of x -> bytes and a scale a row, or what both stand for, behind a Hadamard matrix where one is asked for;
// one block a row.
//
// Element i of a row: bits 0 .. 2 of i lie in a thread (16 bytes of x), 3 .. 7 over the lanes, the rest over warps and vectors.
// Butterflies of the lowest eight bits need registers and shuffles, those above go through shared memory, four bits a pass;
// an odd order (with the twos that it needs) is a dense product down the columns of what the powers of two left.
//
// Compiled with HALF 0 bfloat16 | 1 float16 (type of x), NT 0, ACT 1 int8 | 2 float8 e4m3, THREADS, VECTORS of 8 a thread,
// TWOS (log2 of the power of two in the order; 0: no Hadamard), ODD (the other factor of the order), SIGNED (x times factors first),
// GROUPED (1: a scale for 128 columns of a row, n a multiple of that), ORDERED (0: codes as they come | 1, 2: in the order of
// linear.cu's operands, for rows of bytes and for 4-bit codes), DECODED (1: bytes times scales in the type of x instead of bytes).

constexpr int ROOM = 32;                                     // floats of shared memory that the warps' maxima take
constexpr int WARPS = THREADS / 32;

INLINE float value_of(u32 bits) { return HALF ? half_value(bits) : __uint_as_float(bits << 16); }

INLINE void butterfly(float& a, float& b) {
    const float sum = a + b;
    b = a - b, a = sum;
}

// the lowest min(TWOS, 8) bits
INLINE void in_registers(float (&v)[8], int lane) {
#pragma unroll
    for (int h = 1; h < 8; h *= 2)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (!(i & h)) butterfly(v[i], v[i + h]);
#pragma unroll
    for (int bit = 3; bit < (TWOS < 8 ? TWOS : 8); bit++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float other = of_lane(v[i], lane ^ 1 << (bit - 3));
            v[i] = lane >> (bit - 3) & 1 ? other - v[i] : v[i] + other;
        }
}

// bits FROM .. FROM + COUNT - 1 of `row`
template <int FROM, int COUNT>
INLINE void in_memory(float* row, int n) {
    for (int column = threadIdx.x; column < n >> COUNT; column += THREADS) {
        float* at = row + ((column >> FROM) << (FROM + COUNT)) + (column & ((1 << FROM) - 1));
        float v[1 << COUNT];
#pragma unroll
        for (int k = 0; k < 1 << COUNT; k++) v[k] = at[k << FROM];
#pragma unroll
        for (int h = 1; h < 1 << COUNT; h *= 2)
#pragma unroll
            for (int k = 0; k < 1 << COUNT; k++)
                if (!(k & h)) butterfly(v[k], v[k + h]);
#pragma unroll
        for (int k = 0; k < 1 << COUNT; k++) at[k << FROM] = v[k];
    }
    __syncthreads();
}

INLINE void odd_part(float* row, int n, const float* matrix) {
    for (int column = threadIdx.x; column < n / ODD; column += THREADS) {
        float* at = row + (column >> TWOS) * (ODD << TWOS) + (column & ((1 << TWOS) - 1));
        float v[ODD];
#pragma unroll
        for (int k = 0; k < ODD; k++) v[k] = at[k << TWOS];
#pragma unroll 1
        for (int i = 0; i < ODD; i++) {
            float sum = 0.f;
#pragma unroll
            for (int k = 0; k < ODD; k++) sum = fmaf(v[k], matrix[i * ODD + k], sum);
            at[i << TWOS] = sum;
        }
    }
    __syncthreads();
}

template <int FROM>
INLINE void rest(float* row, int n) {
    if constexpr (FROM < TWOS) {
        constexpr int COUNT = TWOS - FROM < 4 ? TWOS - FROM : 4;
        in_memory<FROM, COUNT>(row, n);
        rest<FROM + COUNT>(row, n);
    }
}

INLINE float greatest(float most, float* room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 16; h; h /= 2) most = fmaxf(most, of_lane(most, lane ^ h));
    if (lane == 0) room[warp] = most;
    __syncthreads();
    most = room[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) most = fmaxf(most, room[w]);
    return most;
}

INLINE float step_of(float most) { return most > 0.f ? divided(most, ACT == 1 ? 127.5f : 448.f) : 1.f; }

INLINE float value_of_code(u32 code) {                       // of e4m3, the bits of a half 256 times as small
    return ACT == 1 ? (float)(signed char)code : half_value((code & 128) << 8 | (code & 127) << 7) * 256.f;
}

// grid (rows). x [rows, n] -> codes [rows, n] (DECODED: of the type of x), scale [rows], GROUPED: [n / 128, rows]. n a multiple of 8. share: of the maximum that the range covers.
// factors float16 [n]; matrix float32 [ODD, ODD]; unit: what Hadamard's sums are multiplied by.
extern "C" __global__ void __launch_bounds__(THREADS) quantize(const u8* x, u8* codes, float* scale, const u16* factors,
                                                               const float* matrix, int n, int share_bits, int unit_bits) {
    extern __shared__ __align__(16) u8 shared[];
    float* room = (float*)shared;
    float* row = room + ROOM;
    const int lane = threadIdx.x % 32;
    let_the_next_kernel_start();
    wait_for_the_kernels_before();
    float v[VECTORS][8], most = 0.f;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = (k * THREADS + threadIdx.x) * 8;
        const bool inside = at < n;
        const uint4 q = inside ? *(const uint4*)(x + ((size_t)blockIdx.x * n + at) * 2) : uint4{0, 0, 0, 0};
        const u32 words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int i = 0; i < 8; i++) v[k][i] = value_of(words[i / 2] >> (i % 2 * 16) & 0xffff);
        if (SIGNED && inside) {
#pragma unroll
            for (int i = 0; i < 8; i++) v[k][i] *= half_value(factors[at + i]);
        }
        if (TWOS) in_registers(v[k], lane);
        if (TWOS > 8 || ODD > 1) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (inside) row[at + i] = v[k][i];
        }
    }
    if (TWOS > 8 || ODD > 1) {
        __syncthreads();
        rest<8>(row, n);
        if constexpr (ODD > 1) odd_part(row, n, matrix);
    }
    const float unit = __uint_as_float(unit_bits);
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = (k * THREADS + threadIdx.x) * 8;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (TWOS > 8 || ODD > 1) v[k][i] = at < n ? row[at + i] : 0.f;
            if (TWOS) v[k][i] *= unit;
            most = fmaxf(most, fabsf(v[k][i]));
        }
    }
    const float share = __uint_as_float(share_bits);
    if (!GROUPED) most = greatest(most, room);
    float step = step_of(most * share), inverse = divided(1.f, step);
    if (!GROUPED && threadIdx.x == 0) scale[blockIdx.x] = step;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = (k * THREADS + threadIdx.x) * 8;
        if (GROUPED) {                                       // 128 columns are in 16 lanes
            most = 0.f;
#pragma unroll
            for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(v[k][i]));
#pragma unroll
            for (int h = 8; h; h /= 2) most = fmaxf(most, of_lane(most, lane ^ h));
            step = step_of(most * share), inverse = divided(1.f, step);
            if (lane % 16 == 0 && at < n) scale[(size_t)(at / 128) * gridDim.x + blockIdx.x] = step;
        }
        u32 words[2] = {0, 0}, code[8];                      // bytes 0 .. 3 and 4 .. 7
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float near = v[k][i] * inverse, number = fmaf(fmaf(-near, step, v[k][i]), inverse, near); // v / step, rounded
            code[i] = ACT == 1 ? int8_of(number) : e4m3_of(number);
            words[i / 4] |= code[i] << (i % 4 * 8);
        }
        if (DECODED) {
            u32 pairs[4];
#pragma unroll
            for (int i = 0; i < 4; i++) pairs[i] = pair_of_halves(value_of_code(code[2 * i]) * step, value_of_code(code[2 * i + 1]) * step);
            if (at < n) *(uint4*)(codes + ((size_t)blockIdx.x * n + at) * 2) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
            continue;
        }
        u8* to = codes + (size_t)blockIdx.x * n;
        if (ORDERED == 2) {                                  // of 16 bytes k and 8 + k go to 2k and 2k + 1: two threads' bytes in turn
            const float got = of_lane(__uint_as_float(words[1 - lane % 2]), lane ^ 1);
            const u32 first = lane % 2 ? __float_as_uint(got) : words[0], second = lane % 2 ? words[1] : __float_as_uint(got);
            words[0] = bytes(first, second, 0x5140), words[1] = bytes(first, second, 0x7362);
        }
        if (ORDERED == 1 && at < n) {                        // eight bytes 16 c + 8 t of 64 go to 32 t + 4 c and 16 behind
            to += (at & ~63) + (at >> 3 & 1) * 32 + (at >> 4 & 3) * 4;
            *(u32*)to = words[0], *(u32*)(to + 16) = words[1];
        } else if (at < n) {
            *(uint2*)(to + at) = uint2{words[0], words[1]};
        }
    }
}
