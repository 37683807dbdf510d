// viterbi.cu - the search of trellis codes: one block a sequence, all 2**LENGTH states in one step.
//
// Compiled with FRESH (F, bits of a step), VALUES (V, 1 or 2), LENGTH (L), THREADS, TOGETHER. R = 2**(L - F) roots; state s = j R + r,
// reached from root s >> F. Kept between steps: least[r], the cost of the cheapest way to any state s with s % R == r; so
//     least'[r] = min over j of least[(j R + r) >> F] + |value(j R + r) - x|^2,
// and no cost of a state is ever stored. The winner j travels in the lowest F bits of the cost; costs are positive, so that their
// bits are in their order, and the least of three numbers is one instruction on Hopper: two branches a comparison.
// The sum of the four bytes of a word, times 64, is one dot product (dp4a) that starts at the bits of 2^23: its result is a float
// f already, and value - x one fma of f. A state takes five and a half instructions: add, dp4a, fma, fma, lop3, half a min; the
// first two serve all sequences of a block.
// A thread has runs of RUN roots side by side, THREADS runs apart: shared memory is read and written without bank conflicts.

#define ROOTS (1 << (LENGTH - FRESH))
#define BRANCHES (1 << FRESH)
#define EACH (ROOTS / THREADS)                               // roots of a thread
#define RUN (EACH < 4 ? EACH : 4)                            // of these side by side
#define SHARING (RUN < BRANCHES ? RUN : BRANCHES)            // of a run have the same root before
#define TWICE (8 * ROOTS * TOGETHER <= 200 << 10)            // room for `least` of two steps: half the barriers
#define FIRST 0x83DCD12Du
#define SECOND 0xCBAC1FEDu
#define FAR 1e30f
constexpr int UNROLL = FRESH <= 4 ? 2 : 1;                   // pairs of branches

INLINE float bytes_of(u32 hash) { return __uint_as_float(dot_bytes(hash, 0x40404040u, 0x4B000000u)); }  // 2^23 + 64 * sum

INLINE u32 winner(u32 cost) { return cost & (BRANCHES - 1); }

INLINE int root_of(int thread, int i) { return (i / RUN * THREADS + thread) * RUN + i % RUN; }  // the i-th of a thread

// the costs of a thread's roots into shared memory, their winners into global memory
INLINE void keep(float* least, u8* row, const u32 (&best)[EACH], int thread) {
#pragma unroll
    for (int i = 0; i < EACH; i += RUN) {
        const int root = root_of(thread, i);
#pragma unroll
        for (int k = 0; k < RUN; ++k) least[root + k] = __uint_as_float(best[i + k]);
        if (RUN == 4) {                                      // four winners a store
            const u32 low = winner(best[i]) | winner(best[i + RUN / 4]) << 8;
            *(u32*)(row + root) = low | winner(best[i + RUN / 2]) << 16 | winner(best[i + RUN - 1]) << 24;
        } else {
            for (int k = 0; k < RUN; ++k) row[root + k] = (u8)winner(best[i + k]);
        }
    }
}

// the root of least cost; room: eight bytes that nobody needs
INLINE int cheapest(const float* least, u64* room, int thread) {
    u64 own = ~0ull;                                         // costs are positive: their bits are in their order
    for (int i = 0; i < EACH; ++i) {
        const int root = root_of(thread, i);
        own = min(own, (u64)__float_as_uint(least[root]) << 32 | (u64)root);
    }
    __syncthreads();
    if (thread == 0) *room = ~0ull;
    __syncthreads();
    atomicMin(room, own);
    __syncthreads();
    return (int)(u32)*room;
}

// back [N, T, R]: the j that won. end [N]: the cheapest root after the last step. start [N]: the root before the first, -1: any.
// A value is bytes_of * a + b. x [N, T, V]. A block has TOGETHER sequences; the last block may have some twice.
extern "C" __global__ void __launch_bounds__(THREADS) forward(const float* x, const int* start, u8* back, int* end, int steps,
                                                              int number, const float* affine) {
    extern __shared__ __align__(16) u8 shared[];
    float* least = (float*)shared;
    float* next = least + (TWICE ? TOGETHER * ROOTS : 0);
    const int thread = threadIdx.x;
    const float a = affine[0], b = affine[1];
    int n[TOGETHER];
#pragma unroll
    for (int k = 0; k < TOGETHER; ++k) {
        n[k] = min((int)blockIdx.x * TOGETHER + k, number - 1);
        const int from = start[n[k]];
        for (int i = 0; i < EACH; ++i) {
            const int root = root_of(thread, i);
            least[k * ROOTS + root] = from < 0 || from == root ? 0.0f : FAR;
        }
    }
    __syncthreads();
    for (int t = 0; t < steps; ++t) {
        float shift0[TOGETHER], shift1[TOGETHER];
        u32 best[TOGETHER][EACH];
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k) {
            const float* at = x + ((long long)n[k] * steps + t) * VALUES;
            shift0[k] = b - at[0], shift1[k] = b - at[VALUES - 1];
#pragma unroll
            for (int i = 0; i < EACH; ++i) best[k][i] = 0x7F000000u;
        }
#pragma unroll UNROLL
        for (int j = 0; j < BRANCHES; j += 2) {
            const u32 state = j * ROOTS + root_of(thread, 0), hash0 = state * FIRST, hash1 = state * SECOND;
#pragma unroll
            for (int g = 0; g < EACH; g += SHARING) {
                float before[2][TOGETHER];
#pragma unroll
                for (int k = 0; k < TOGETHER; ++k) {
                    before[0][k] = least[k * ROOTS + ((j * ROOTS + root_of(thread, g)) >> FRESH)];
                    before[1][k] = least[k * ROOTS + (((j + 1) * ROOTS + root_of(thread, g)) >> FRESH)];
                }
#pragma unroll
                for (int i = g; i < g + SHARING; ++i) {
                    float first[2], second[2];
#pragma unroll
                    for (int m = 0; m < 2; ++m) {
                        first[m] = bytes_of(hash0 + (root_of(0, i) + m * ROOTS) * FIRST);
                        second[m] = VALUES == 2 ? bytes_of(hash1 + (root_of(0, i) + m * ROOTS) * SECOND) : 0.0f;
                    }
#pragma unroll
                    for (int k = 0; k < TOGETHER; ++k) {
                        u32 cost[2];
#pragma unroll
                        for (int m = 0; m < 2; ++m) {
                            const float miss = fmaf(first[m], a, shift0[k]);
                            float sum = fmaf(miss, miss, before[m][k]);
                            if (VALUES == 2) {
                                const float other = fmaf(second[m], a, shift1[k]);
                                sum = fmaf(other, other, sum);
                            }
                            cost[m] = and_or(__float_as_uint(sum), ~(BRANCHES - 1u), j + m);
                        }
                        best[k][i] = min(min(best[k][i], cost[0]), cost[1]);
                    }
                }
            }
        }
        if (!TWICE) __syncthreads();
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k) {
            u8* row = back + ((long long)n[k] * steps + t) * ROOTS;
            keep(next + k * ROOTS, row, best[k], thread);
        }
        __syncthreads();
        float* const used = least;
        least = next, next = used;
    }
    u64* const room = (u64*)(TWICE ? next : least + TOGETHER * ROOTS);
    for (int k = 0; k < TOGETHER; ++k) {
        const int found = cheapest(least + k * ROOTS, room, thread);
        if (thread == 0) end[n[k]] = found;
    }
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
