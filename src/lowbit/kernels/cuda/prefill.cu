// prefill.cu - y = x W.T for packed weights and many tokens: tensor cores multiply what the other instructions decode meanwhile.
//
// A block has WN warps over 16 rows each, four of them a wgmma. The tensor copy engine brings x, 64 columns of TOKENS tokens a
// stage, DEPTH stages in a ring. Weights come straight from global memory to the registers that hold them as left operands, a
// chunk of 128 columns ahead; while a unit of 32 columns is multiplied the next one is decoded.
// SHARE blocks of a cluster, one below the other, have the same tokens: each brings a part of every stage to all of them.
// All chunks of all tiles (of a cluster: rows by tokens) are one line, tokens fastest, and every cluster has the same share of it, in
// grains: of whole tiles; or of a chunk, then tiles at the ends of a share have several clusters, and the last of them to come adds
// their sums, in order of index.
//
// Compiled with the macros of weights.cuh (SCALED 1) and NT tokens / 8, WN, DEPTH, SHARE.

#include "weights.cuh"

constexpr int ROWS = WN * 16;
constexpr int TOKENS = NT * 8;
constexpr int THREADS = WN * 32;
constexpr int X_BYTES = TOKENS * 128;                        // of a stage
constexpr int LINE = ROWS + 8;                               // halves from token to token among the results: few bank conflicts
constexpr int READS = NT < 4 ? NT * 4 : 16;                  // of parts of sums that are on their way at once
constexpr int FIELDS = ASYM ? 2 : 1;
constexpr int METAS = GROUP ? 4 / GROUP * FIELDS : FIELDS;   // words of scales and zeros of a lane, in a chunk

typedef Sum Sums[NT][4];

// what a lane needs of a chunk
struct Chunk {
    Words words, before;
    u32 meta[METAS];
    INLINE void get(const u8* low, const u8* high, const u8* from, size_t at, int lane) {
        words = words_of(low + at * LOW_BYTES, high + at * HIGH_BYTES, lane);
        if (CODEC) before = words_of(low + at * LOW_BYTES, high + at * HIGH_BYTES, (lane + 31) % 32);
        if (!GROUP) return;
#pragma unroll
        for (int g = 0; g < METAS / FIELDS; g++) {
            const u32* m = (const u32*)(from + at * META_BYTES + (g * 8 + lane / 4) * META);
            meta[g * FIELDS] = m[0];
            if (ASYM) meta[g * FIELDS + FIELDS - 1] = m[1];
        }
    }
};

// 32 columns: unit U of a chunk. a: free, since the products of two units before are done. x: address of the stage
template <int U>
INLINE void step(Sums& sums, u32 (&a)[8], const Chunk& chunk, const Words& table, Group& group, u32 x) {
    if (GROUP && U % UNITS == 0) group.set(chunk.meta[U / UNITS * FIELDS], chunk.meta[U / UNITS * FIELDS + FIELDS - 1]);
    unit<U>(a, chunk.words, CODEC ? chunk.before : table, group.top, group.bottom, {});
    if (!CODEC) {
#pragma unroll
        for (int j = 0; j < 8; j++) a[j] = mul2(a[j], j % 2 ? group.lower2 : group.upper2);
    }
    wide_begin();
    wide_multiply(sums, a, (x + U % 2 * 64) >> 4, 1);
    wide_multiply(sums, a + 4, (x + U % 2 * 64 + 32) >> 4, 1);
    wide_end();
    wide_wait_for_all_but<1>();
}

// of the line of `all` chunks: where the share of a cluster begins, and whose share a chunk is in
INLINE int share_begin(int cluster, int clusters, int all) { return (int)((long long)cluster * all / clusters); }
INLINE int owner(int chunk, int clusters, int all) { return (int)((((long long)chunk + 1) * clusters - 1) / all); }

// y [tokens, ROWS] of a tile, by way of shared memory
INLINE void write_tile(u16* results, const Sums& sums, u16* y, int token, int all_tokens, int first_row, int rows) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < NT * 4; i++)
        results[(i / 4 * 8 + lane % 4 * 2 + i % 2) * LINE + warp * 16 + lane / 4 + i % 4 / 2 * 8] = in_type(sums[i / 4][i % 4]);
    __syncthreads();
    for (int i = threadIdx.x; i < TOKENS * ROWS / 8; i += THREADS) {
        const int t = i / (ROWS / 8), row = i % (ROWS / 8) * 8;
        if (token + t >= all_tokens) break;
        u16* to = y + (size_t)(token + t) * rows + first_row + row;
        const u16* from = results + t * LINE + row;
        if (rows % 8 == 0) {
            if (first_row + row < rows) *(uint4*)to = *(const uint4*)from;
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (first_row + row + j < rows) to[j] = from[j];
        }
    }
    __syncthreads();
}

// x: [tokens, inputs] in boxes of 64 columns, TOKENS / SHARE tokens. beside: CODEC: one scale, LUT: the table's bytes
// grain: chunks, of a tile, or 1; then parts [clusters, 2, SHARE, NT * 4, THREADS] and count [tiles, SHARE] (0 before and after)
extern "C" __global__ void __cluster_dims__(1, SHARE, 1) __launch_bounds__(THREADS, 1)
    prefill(const __grid_constant__ TensorMap x, const u8* low, const u8* high, const u8* meta, u16* y, const float* beside,
            float* parts, int* count, int all_tokens, int rows, int chunks, int grain) {
    extern __shared__ __align__(1024) u8 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = blockIdx.y % SHARE;
    const u32 xs = address(shared), full = xs + DEPTH * X_BYTES, empty = full + 8 * DEPTH;
    u16* results = (u16*)(shared + DEPTH * X_BYTES + 128);   // [TOKENS, LINE]
    __shared__ float factor;
    if (threadIdx.x == 0) {
        factor = CODEC ? beside[0] : 1.f;
#pragma unroll
        for (int s = 0; s < DEPTH; s++) begin_barrier(full + 8 * s, 1), begin_barrier(empty + 8 * s, SHARE * WN);
    }
    meet_in_cluster();
    let_the_next_kernel_start();

    const int cluster = blockIdx.y / SHARE, clusters = gridDim.y / SHARE, last_tile = (rows + 15) / 16 - 1;
    const int across = (all_tokens + TOKENS - 1) / TOKENS, down = (rows + SHARE * ROWS - 1) / (SHARE * ROWS);
    const int all = across * down * chunks, begin = share_begin(cluster, clusters, all / grain) * grain;
    const int stages = 2 * (share_begin(cluster + 1, clusters, all / grain) * grain - begin);
    const auto first_row = [&](int tile) { return (tile / across * SHARE + rank) * ROWS; };
    int tile = begin / chunks, chunk = begin % chunks;
    int brought = 0, token = tile % across, column = chunk * 128;             // of the next stage of x
    const auto bring = [&] {                                 // this block's part of it, to all
        const u32 barrier = full + 8 * (brought % DEPTH), to = xs + brought % DEPTH * X_BYTES + rank * (X_BYTES / SHARE);
        expect_bytes(barrier, X_BYTES);
        copy_box(to, x, column, token * TOKENS + rank * (TOKENS / SHARE), barrier, SHARE);
        brought++, column += 64;
        if (column == chunks * 128) column = 0, token = token + 1 == across ? 0 : token + 1;
    };
    const auto place = [&](int tile) { return min(first_row(tile) / 16 + warp, last_tile); };   // of 16 rows of this warp

    size_t at = (size_t)place(tile) * chunks + chunk;
    Chunk next;
    next.get(low, high, meta, at, lane);
    Group group;
    Words table;
    if (LUT) table = table_of(beside);
    wait_for_the_kernels_before();
    if (threadIdx.x == 0)
        while (brought < min(DEPTH, stages)) bring();

    u32 a[2][8];
    int stage = 0, parity = 0, i = 0;                        // stage i lies in place `stage`
    Sums sums;
    const auto half_chunk = [&](const Chunk& now, bool odd) {
        const int old = i - 2;                               // by now most warps have read stage `old`
        if (threadIdx.x == 0 && old >= 0 && old + DEPTH < stages) {
            wait_for_phase(empty + 8 * (old % DEPTH), old / DEPTH & 1);
            bring();
        }
        __syncwarp();
        wait_for_phase(full + 8 * stage, parity);
        const u32 here = xs + stage * X_BYTES;
        if (odd) step<2>(sums, a[0], now, table, group, here);
        else step<0>(sums, a[0], now, table, group, here);
        // here this warp has read the stage before this one
        if (i && lane < SHARE) arrive_in_cluster(empty + 8 * ((stage ? stage : DEPTH) - 1), lane);
        if (odd) step<3>(sums, a[1], now, table, group, here);
        else step<1>(sums, a[1], now, table, group, here);
        if (++stage == DEPTH) stage = 0, parity ^= 1;
        i++;
    };
#pragma unroll 1
    while (i < stages) {
        const int from = chunk, to = min(chunks, chunk + (stages - i) / 2);
        if (GROUP == 0 && !CODEC) {
            const u32* m = (const u32*)(meta + ((size_t)place(tile) * 8 + lane / 4) * META);
            group.set(m[0], m[FIELDS - 1]);
        }
#pragma unroll
        for (int j = 0; j < NT * 4; j++) sums[j / 4][j % 4] = 0;
#pragma unroll 1
        for (; chunk < to; chunk++) {
            const Chunk now = next;
            at = chunk + 1 < chunks ? at + 1 : (size_t)place(tile + 1) * chunks;
            if (i + 2 < stages) next.get(low, high, meta, at, lane);
            half_chunk(now, false);
            half_chunk(now, true);
        }
        wide_wait_for_all_but<0>();
        __syncthreads();
        // ptxas 13.0 moves what reads sums above the wait: partial sums were seen. It cannot move this read, which they need
        const float by = *(volatile float*)&factor;
#pragma unroll
        for (int j = 0; j < NT * 4; j++) sums[j / 4][j % 4] *= by;

        bool mine = true;
        if (to - from < chunks) {
            const int tile_begin = tile * chunks;
            const int one = owner(tile_begin, clusters, all), other = owner(tile_begin + chunks - 1, clusters, all);
            const auto part_of = [&](int c) {                // its part of this tile is its first one, or else its last
                const bool later = share_begin(c, clusters, all) < tile_begin;
                return parts + (((size_t)c * 2 + later) * SHARE + rank) * (NT * 4 * THREADS) + threadIdx.x;
            };
            float* own = part_of(cluster);
#pragma unroll
            for (int j = 0; j < NT * 4; j++) own[j * THREADS] = sums[j / 4][j % 4];
            mine = last_of(count + tile * SHARE + rank, other - one + 1);
            if (mine) {
#pragma unroll
                for (int j = 0; j < NT * 4; j += READS) {
                    float sum[READS] = {};
#pragma unroll 1
                    for (int c = one; c <= other; c++) {
                        const float* part = part_of(c) + j * THREADS;
#pragma unroll
                        for (int k = 0; k < READS; k++) sum[k] += c == cluster ? sums[(j + k) / 4][k % 4] : read_far(part + k * THREADS);
                    }
#pragma unroll
                    for (int k = 0; k < READS; k++) sums[(j + k) / 4][k % 4] = sum[k];
                }
            }
        }
        if (mine) write_tile(results, sums, y, tile % across * TOKENS, all_tokens, first_row(tile), rows);
        chunk = 0, tile++;
    }
    meet_in_cluster();                                       // no block ends while another one may still tell it something
}
