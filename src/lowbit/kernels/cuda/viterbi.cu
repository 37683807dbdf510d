// viterbi.cu - the search of trellis codes: one block a sequence, all 2**LENGTH states in one step.
//
// Compiled with FRESH (F, bits of a step), VALUES (V, 1 or 2), LENGTH (L), THREADS. R = 2**(L - F) roots; state s = j R + r,
// reached from root s >> F. Kept between steps: least[r], the cost of the cheapest way to any state s with s % R == r; so
//     least'[r] = min over j of least[(j R + r) >> F] + |value(j R + r) - x|^2,
// and no cost of a state is ever stored. The winner j travels in the lowest F bits of the cost: a comparison of floats finds both.
// The sum of the four bytes of a word is one dot product (dp4a) that starts at the bits of 2^23: its result is a float already.

#define ROOTS (1 << (LENGTH - FRESH))
#define BRANCHES (1 << FRESH)
#define EACH (ROOTS / THREADS)                               // roots of a thread, side by side
#define SHARING (EACH < BRANCHES ? EACH : BRANCHES)          // of these have the same root before
#define FIRST 0x83DCD12Du
#define SECOND 0xCBAC1FEDu
#define MAGIC 0x4B000000u                                    // the float 2^23
#define FAR 1e30f

INLINE float bytes_of(u32 hash) { return __uint_as_float(dot_bytes(hash, MAGIC)) - 8388608.0f; }

INLINE u32 winner(float cost) { return __float_as_uint(cost) & (BRANCHES - 1); }

// back [N, T, R]: the j that won. end [N]: the cheapest root after the last step. start [N]: the root before the first, -1: any.
// A value is sum * a + b. x [N, T, V].
extern "C" __global__ void __launch_bounds__(THREADS) forward(const float* x, const int* start, u8* back, int* end, int steps,
                                                              const float* affine) {
    extern __shared__ __align__(16) u8 shared[];
    float* least = (float*)shared;
    const int n = blockIdx.x, own = threadIdx.x * EACH;
    const float a = affine[0], b = affine[1];
    const int from = start[n];
    for (int i = 0; i < EACH; ++i) least[own + i] = from < 0 || from == own + i ? 0.0f : FAR;
    __syncthreads();
    float best[EACH];
    for (int t = 0; t < steps; ++t) {
        const float shift0 = b - x[((long long)n * steps + t) * VALUES];
        const float shift1 = VALUES == 2 ? b - x[((long long)n * steps + t) * VALUES + VALUES - 1] : 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; ++i) best[i] = __uint_as_float(0x7F000000u);
#pragma unroll(FRESH <= 4 ? 4 : 2)
        for (int j = 0; j < BRANCHES; ++j) {
            const u32 state = j * ROOTS + own;
            const u32 hash0 = state * FIRST, hash1 = state * SECOND;
#pragma unroll
            for (int g = 0; g < EACH; g += SHARING) {
                const float before = least[(state + g) >> FRESH];
#pragma unroll
                for (int i = g; i < g + SHARING; ++i) {
                    const float miss = fmaf(bytes_of(hash0 + i * FIRST), a, shift0);
                    float cost = fmaf(miss, miss, before);
                    if (VALUES == 2) {
                        const float other = fmaf(bytes_of(hash1 + i * SECOND), a, shift1);
                        cost = fmaf(other, other, cost);
                    }
                    best[i] = fminf(best[i], __uint_as_float((__float_as_uint(cost) & ~(BRANCHES - 1u)) | j));
                }
            }
        }
        __syncthreads();
        u8* row = back + ((long long)n * steps + t) * ROOTS + own;
#pragma unroll
        for (int i = 0; i < EACH; ++i) least[own + i] = best[i];
#pragma unroll
        for (int i = 0; i + 4 <= EACH; i += 4)               // four winners a store
            *(u32*)(row + i) = winner(best[i]) | winner(best[i + 1]) << 8 | winner(best[i + 2]) << 16 | winner(best[i + 3]) << 24;
        for (int i = EACH & ~3; i < EACH; ++i) row[i] = (u8)winner(best[i]);
        __syncthreads();
    }
    u64 own_best = ~0ull;                                    // costs are positive: their bits are in their order
    for (int i = 0; i < EACH; ++i) own_best = min(own_best, (u64)__float_as_uint(least[own + i]) << 32 | (u64)(own + i));
    __syncthreads();
    u64* cheapest = (u64*)shared;
    if (threadIdx.x == 0) *cheapest = ~0ull;
    __syncthreads();
    atomicMin(cheapest, own_best);
    __syncthreads();
    if (threadIdx.x == 0) end[n] = (int)(u32)*cheapest;
}

// codes [N, T]: the fresh bits of each step of the way back from root end[n]; root [N]: the root before step `at`.
extern "C" __global__ void __launch_bounds__(32) backward(const u8* back, const int* end, u8* codes, int* root, int steps, int at,
                                                          int count) {
    const int n = blockIdx.x * 32 + threadIdx.x;
    if (n >= count) return;
    int r = end[n];
    for (int t = steps - 1; t >= 0; --t) {
        const int state = back[((long long)n * steps + t) * ROOTS + r] * ROOTS + r;
        codes[(long long)n * steps + t] = (u8)(state & (BRANCHES - 1));
        r = state >> FRESH;
        if (t == at) root[n] = r;
    }
}
