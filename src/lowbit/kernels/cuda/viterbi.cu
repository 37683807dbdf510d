// viterbi.cu - the search of trellis codes: a block searches for some sequences, all 2**LENGTH states of each in one step.
//
// Compiled with FRESH (F, bits of a step), VALUES (V, 1 or 2), LENGTH (L), THREADS, TOGETHER (sequences of a block), TWICE
// (1: room for the costs of two steps, half the barriers) and SIDES: sequences whose costs share a word, 1: floats | 2: halves
// (HALF 1, Hopper). R = 2**(L - F) roots; state s = j R + r, reached from root s >> F. Kept between steps: least[r], the cost of
// the cheapest way to any state s with s % R == r; so
//     least'[r] = min over j of least[(j R + r) >> F] + |value(j R + r) - x|^2,
// and no cost of a state is ever stored. The winner j travels in the lowest F bits of the cost; costs are positive, so that their
// bits are in their order, and the least of three numbers or pairs is one instruction on Hopper: two branches a comparison.
// The sum of the four bytes of a word is one dot product (dp4a) that starts at the bits of a power of two: its result is a float
// or half already, and value - x one fma of it. A state and word take add, dp4a, fma, fma, lop3, half a min; the first two serve
// all sequences of a block.
// A thread has runs of four roots side by side, THREADS runs apart: shared memory is read and written without bank conflicts.

#define ROOTS (1 << (LENGTH - FRESH))
#define BRANCHES (1 << FRESH)
#define WORDS (TOGETHER / SIDES)
#define RUN 4
#define EACH (ROOTS / THREADS)                               // roots of a thread
#define SHARING (RUN < BRANCHES ? RUN : BRANCHES)            // of a run have the same root before
#define WINNERS (EACH * SIDES / 4)                           // words of a thread's winners, a byte each
#define PART (WINNERS < 4 ? WINNERS : 4)                     // of these are written at once
#define FIRST 0x83DCD12Du
#define SECOND 0xCBAC1FEDu
constexpr int UNROLL = FRESH <= 4 ? 2 : 1;                   // pairs of branches

// ---- what a word of costs is

#if SIDES == 2
constexpr u32 ALL = 0x00010001u, FAR = 0x7753u, UNKNOWN = 0x7fff7fffu;      // 30000
INLINE u32 bytes_of(u32 hash) { return dot_bytes(hash, 0x01010101u, 0x6400u); }                       // 1024 + sum
INLINE u32 farther(u32 before, u32 number, u32 factor, u32 shift) {
    const u32 miss = fma2_of_low(number, factor, shift);
    return fma2(miss, miss, before);
}
INLINE u32 lesser(u32 a, u32 b) { return min2(a, b); }
INLINE void winners_of(const u32* run, u32* bytes_of_run) {
    bytes_of_run[0] = bytes(run[0], run[1], 0x6240), bytes_of_run[1] = bytes(run[2], run[3], 0x6240);
}
INLINE int byte_of(int k, int side) { return k / 2 * 4 + side * 2 + k % 2; }                          // of root k of a run
#else
constexpr u32 ALL = 1, FAR = 0x7149F2CAu, UNKNOWN = 0x7F000000u;            // 1e30
INLINE u32 bytes_of(u32 hash) { return dot_bytes(hash, 0x40404040u, 0x4B000000u); }                   // 2^23 + 64 * sum
INLINE u32 farther(u32 before, u32 number, u32 factor, u32 shift) {
    const float miss = fmaf(__uint_as_float(number), __uint_as_float(factor), __uint_as_float(shift));
    return __float_as_uint(fmaf(miss, miss, __uint_as_float(before)));
}
INLINE u32 lesser(u32 a, u32 b) { return min(a, b); }
INLINE void winners_of(const u32* run, u32* bytes_of_run) {
    bytes_of_run[0] = bytes(bytes(run[0], run[1], 0x0040), bytes(run[2], run[3], 0x0040), 0x5410);
}
INLINE int byte_of(int k, int side) { return k; }
#endif
constexpr u32 WINNER = ALL * (BRANCHES - 1);

// ---- what a thread has

INLINE int root_of(int thread, int i) { return (i / RUN * THREADS + thread) * RUN + i % RUN; }  // the i-th of a thread

// where the winner of a root lies in a row of them
INLINE int place_of(int root, int side) {
    const int run = root / RUN, thread = run % THREADS, at = run / THREADS * RUN * SIDES + byte_of(root % RUN, side);
    return (at / (4 * PART) * THREADS + thread) * 4 * PART + at % (4 * PART);
}

INLINE void keep_winners(u8* row, const u32 (&best)[EACH], int thread) {
    struct alignas(4 * PART) Part { u32 word[PART]; };
    u32 words[WINNERS];
#pragma unroll
    for (int i = 0; i < EACH; i += RUN) winners_of(best + i, words + i / RUN * SIDES);
#pragma unroll
    for (int w = 0; w < WINNERS; w += PART) {
        Part part;
#pragma unroll
        for (int k = 0; k < PART; ++k) part.word[k] = words[w + k];
        ((Part*)row)[w / PART * THREADS + thread] = part;
    }
}

// Halves tell costs apart while these are small: the least of all is taken off every LESS steps. It is known a step late, and
// without the winner's bits, so that none is less. room: a word a warp.
#define LESS 4
#define WARPS ((THREADS + 31) / 32)
INLINE void lower(u32 (&best)[EACH], u32* room, int step, int thread) {
#if SIDES == 2
    const auto of_warp = [](u32 word) {
#pragma unroll
        for (int far = 1; far < 32; far *= 2) word = lesser(word, of_other(word, far));
        return word;
    };
    if (step % LESS == LESS - 1) {
        u32 own = best[0];
#pragma unroll
        for (int i = 1; i < EACH; ++i) own = lesser(own, best[i]);
        room[thread / 32] = of_warp(own & ~WINNER);
    }
    if (step % LESS == 0 && step) {
        const u32 lowest = of_warp(room[min(thread % 32, WARPS - 1)]);
#pragma unroll
        for (int i = 0; i < EACH; ++i) best[i] = sub2(best[i], lowest);
    }
#endif
}

// the root of least cost; room: eight bytes that nobody needs
INLINE int cheapest(const u32* least, int side, u64* room, int thread) {
    u64 own = ~0ull;
    for (int i = 0; i < EACH; ++i) {
        const int root = root_of(thread, i);
        const u32 cost = SIDES == 2 ? least[root] >> 16 * side & 0xffff : least[root];
        own = min(own, (u64)cost << 32 | (u64)root);
    }
    __syncthreads();
    if (thread == 0) *room = ~0ull;
    __syncthreads();
    atomicMin(room, own);
    __syncthreads();
    return (int)(u32)*room;
}

// back [N / TOGETHER, T, WORDS, R * SIDES]: the j that won, by place_of. end [N]: the cheapest root after the last step. start [N]:
// the root before the first, -1: any. value - x is bytes_of * factor + shifts [N / TOGETHER, T, V, TOGETHER].
extern "C" __global__ void __launch_bounds__(THREADS) forward(const u32* shifts, const int* start, u8* back, int* end, int steps,
                                                              u32 factor) {
    extern __shared__ __align__(16) u8 shared[];
    u32* least = (u32*)shared;
    u32* next = least + (TWICE ? WORDS * ROOTS : 0);
    u64* const room = (u64*)(next + WORDS * ROOTS);
    u32* const rooms = (u32*)(room + 1);                     // [WORDS, WARPS]
    const int thread = threadIdx.x;
    start += blockIdx.x * TOGETHER, end += blockIdx.x * TOGETHER;
    shifts += (long long)blockIdx.x * steps * VALUES * WORDS;
    back += (long long)blockIdx.x * steps * ROOTS * TOGETHER;
#pragma unroll
    for (int k = 0; k < WORDS; ++k) {
        for (int i = 0; i < EACH; ++i) {
            const int root = root_of(thread, i);
            u32 word = 0;
#pragma unroll
            for (int side = 0; side < SIDES; ++side) {
                const int from = start[k * SIDES + side];
                word |= from < 0 || from == root ? 0 : FAR << 16 * side;
            }
            least[k * ROOTS + root] = word;
        }
    }
    __syncthreads();
    for (int t = 0; t < steps; ++t, shifts += VALUES * WORDS) {
        u32 best[WORDS][EACH];
#pragma unroll
        for (int k = 0; k < WORDS; ++k)
#pragma unroll
            for (int i = 0; i < EACH; ++i) best[k][i] = UNKNOWN;
#pragma unroll UNROLL
        for (int j = 0; j < BRANCHES; j += 2) {
            const u32 state = j * ROOTS + root_of(thread, 0), hash0 = state * FIRST, hash1 = state * SECOND;
#pragma unroll
            for (int g = 0; g < EACH; g += SHARING) {
                u32 before[2][WORDS];
#pragma unroll
                for (int k = 0; k < WORDS; ++k) {
                    before[0][k] = least[k * ROOTS + ((j * ROOTS + root_of(thread, g)) >> FRESH)];
                    before[1][k] = least[k * ROOTS + (((j + 1) * ROOTS + root_of(thread, g)) >> FRESH)];
                }
#pragma unroll
                for (int i = g; i < g + SHARING; ++i) {
                    u32 first[2], second[2];
#pragma unroll
                    for (int m = 0; m < 2; ++m) {
                        first[m] = bytes_of(hash0 + (root_of(0, i) + m * ROOTS) * FIRST);
                        second[m] = VALUES == 2 ? bytes_of(hash1 + (root_of(0, i) + m * ROOTS) * SECOND) : 0;
                    }
#pragma unroll
                    for (int k = 0; k < WORDS; ++k) {
                        u32 cost[2];
#pragma unroll
                        for (int m = 0; m < 2; ++m) {
                            cost[m] = farther(before[m][k], first[m], factor, shifts[k]);
                            if (VALUES == 2) cost[m] = farther(cost[m], second[m], factor, shifts[WORDS * (VALUES - 1) + k]);
                            cost[m] = and_or(cost[m], ~WINNER, (j + m) * ALL);
                        }
                        best[k][i] = lesser(lesser(best[k][i], cost[0]), cost[1]);
                    }
                }
            }
        }
        if (!TWICE) __syncthreads();
#pragma unroll
        for (int k = 0; k < WORDS; ++k, back += ROOTS * SIDES) {
            keep_winners(back, best[k], thread);
            lower(best[k], rooms + k * WARPS, t, thread);
#pragma unroll
            for (int i = 0; i < EACH; ++i) next[k * ROOTS + root_of(thread, i)] = best[k][i];
        }
        __syncthreads();
        u32* const used = least;
        least = next, next = used;
    }
    for (int k = 0; k < TOGETHER; ++k) {
        const int found = cheapest(least + k / SIDES * ROOTS, k % SIDES, room, thread);
        if (thread == 0) end[k] = found;
    }
}

// codes [N, T]: the fresh bits of each step of the way back from root end[n]; root [N]: the root before step `at`.
extern "C" __global__ void __launch_bounds__(32) backward(const u8* back, const int* end, u8* codes, int* root, int steps, int at,
                                                          int count) {
    const int n = blockIdx.x * 32 + threadIdx.x, word = n % TOGETHER / SIDES, side = n % SIDES;
    if (n >= count) return;
    int r = end[n];
    for (int t = steps - 1; t >= 0; --t) {
        const u8* row = back + (((long long)n / TOGETHER * steps + t) * WORDS + word) * ROOTS * SIDES;
        const int state = (row[place_of(r, side)] & (BRANCHES - 1)) * ROOTS + r;
        codes[(long long)n * steps + t] = (u8)(state & (BRANCHES - 1));
        r = state >> FRESH;
        if (t == at) root[n] = r;
    }
}
