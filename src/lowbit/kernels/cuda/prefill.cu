// prefill.cu - y = x W.T for packed weights and many tokens: tensor cores multiply what the other instructions decode meanwhile.
//
// A block has SPLIT sets of WN warps over 16 rows each, four of them a wgmma, and one thread more that lets the tensor copy engine
// bring x, 64 columns of TOKENS tokens a stage, DEPTH stages in a ring. Weights come straight from global memory to the registers that
// hold them as left operands, a chunk of 128 columns ahead; while a unit of 32 columns is multiplied the next one is decoded.
// SHARE blocks of a cluster, one below the other, have the same tokens: each brings a part of every stage to all of them.
// SPLIT 2: the two sets have the same rows and take turns along the columns, chunk by chunk; in the end each has all sums of half of
// the tokens, since they tell each other the other half.
// All chunks of all tiles (of a cluster: rows by tokens) are one line, tokens fastest, and every cluster has the same share of it, in
// grains: of whole tiles; or of a chunk, then tiles at the ends of a share have several clusters, and the last of them to come adds
// their sums, in order of index.
//
// Compiled with the macros of weights.cuh (SCALED 1) and NT tokens / 8, WN, DEPTH, SHARE, SPLIT 1 | 2 (then whole tiles of an even
// number of chunks).

#include "weights.cuh"

constexpr int ROWS = WN * 16;
constexpr int TOKENS = NT * 8;
constexpr int WORKERS = SPLIT * WN * 32;                     // threads that multiply
constexpr int THREADS = WORKERS + 128;                      // registers are given to four warps together
constexpr int X_BYTES = TOKENS * 128;                        // of a stage
constexpr int READS = NT < 4 ? NT * 4 : 16;                  // of parts of sums that are on their way at once
constexpr int FIELDS = ASYM ? 2 : 1;
constexpr int METAS = GROUP ? 4 / GROUP * FIELDS : FIELDS;   // words of scales and zeros of a lane, in a chunk
constexpr int KEPT = NT / SPLIT;                             // eights of tokens whose sums a warp writes
constexpr int STRIP = KEPT < 8 ? KEPT : 8;                   // of them lie in shared memory at once
constexpr int LINE = 64 + 8;                                 // halves from token to token there: no bank conflicts
constexpr int TOLD = SPLIT > 1 ? KEPT * 2048 : 0;            // bytes of sums that four warps tell others
constexpr int OUT_BYTES = TOLD > STRIP * 8 * LINE * 2 ? TOLD : STRIP * 8 * LINE * 2;   // of four warps, for them and for results

static_assert(DEPTH <= 8 && DEPTH >= 2 * SPLIT, "barriers have 128 bytes; what a set waits for must come before what the other one reads next");

typedef Sum Sums[NT][4];
typedef Sum Kept[KEPT][4];

// the line of chunks from a set's point of view: of a tile of its cluster every SPLITth from `first` on, then the next tile
struct Walk {
    int token, down, chunk;                                  // tile over tokens, over rows
    const int first, chunks, across;
    INLINE void step(int by) {
        chunk += by;
        if (chunk < chunks) return;
        chunk = first;
        if (++token == across) token = 0, down++;
    }
};

// where a warp's weights of a chunk begin
struct Source {
    const u8 *low, *high, *meta;
    INLINE Source at(size_t chunk) const { return {low + chunk * LOW_BYTES, high + chunk * HIGH_BYTES, meta + chunk * META_BYTES}; }
};

// what a lane needs of a chunk
struct Chunk {
    Words words, before;
    u32 meta[METAS];
    INLINE void get(const Source& from, int lane) {
        words = words_of(from.low, from.high, lane);
        if (CODEC) before = words_of(from.low, from.high, (lane + 31) % 32);
        if (!GROUP) return;
#pragma unroll
        for (int g = 0; g < METAS / FIELDS; g++) {
            const u32* m = (const u32*)(from.meta + (g * 8 + lane / 4) * META);
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

// SPLIT 2: the sums of the tokens that this warp keeps, its own and those of the warp of the other set with the same rows, which lie
// `other` bytes from its own. box: what it tells; place: barrier of the four warps and the others
INLINE void exchange(Kept& kept, const Sums& sums, u8* box, int other, int set, int barrier) {
    float4* told = (float4*)(box + threadIdx.x % 128 * 16);
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const Sum(&lower)[4] = sums[i], (&upper)[4] = sums[NT - KEPT + i];
        told[i * 128] = set ? float4{lower[0], lower[1], lower[2], lower[3]} : float4{upper[0], upper[1], upper[2], upper[3]};
#pragma unroll
        for (int j = 0; j < 4; j++) kept[i][j] = set ? upper[j] : lower[j];
    }
    meet_some(barrier, 256);
    const float4* heard = (const float4*)(box + other + threadIdx.x % 128 * 16);
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const float4 v = heard[i * 128];
        kept[i][0] += v.x, kept[i][1] += v.y, kept[i][2] += v.z, kept[i][3] += v.w;
    }
    meet_some(barrier, 256);                                 // the box is free
}

// y of 64 rows, of four warps, by way of shared memory
template <int EIGHTS>
INLINE void write_tile(u16* results, const Sum (&sums)[EIGHTS][4], u16* y, int token, int all_tokens, int first_row, int rows) {
    const int lane = threadIdx.x % 32, four = threadIdx.x / 128;
    const u32 place = address(results + lane % 8 * LINE + threadIdx.x / 32 % 4 * 16 + lane / 8 % 2 * 8);
#pragma unroll
    for (int e = 0; e < EIGHTS; e += STRIP) {
        meet_some(1 + four, 128);
#pragma unroll
        for (int i = 0; i < STRIP; i++) {
            const Sum(&s)[4] = sums[e + i];
            write_transposed(place + i * 8 * LINE * 2, in_type(s[0]) | (u32)in_type(s[1]) << 16, in_type(s[2]) | (u32)in_type(s[3]) << 16);
        }
        meet_some(1 + four, 128);
#pragma unroll 1
        for (int i = threadIdx.x % 128; i < STRIP * 64; i += 128) {
            const int t = token + e * 8 + i / 8, row = first_row + i % 8 * 8;
            if (t >= all_tokens) break;
            u16* to = y + (size_t)t * rows + row;
            const u16* from = results + i / 8 * LINE + i % 8 * 8;
            if (rows % 8 == 0) {
                if (row < rows) *(uint4*)to = *(const uint4*)from;
            } else {
#pragma unroll
                for (int j = 0; j < 8; j++)
                    if (row + j < rows) to[j] = from[j];
            }
        }
    }
}

// x: [tokens, inputs] in boxes of 64 columns, TOKENS / SHARE tokens. beside: CODEC: one scale, LUT: the table's bytes
// grain: chunks, of a tile, or 1; then parts [clusters, 2, SHARE, NT * 4, WORKERS] and count [tiles, SHARE] (0 before and after)
extern "C" __global__ void __cluster_dims__(1, SHARE, 1) __launch_bounds__(THREADS, 1)
    prefill(const __grid_constant__ TensorMap x, const u8* low, const u8* high, const u8* meta, u16* y, const float* beside,
            float* parts, int* count, int all_tokens, int rows, int chunks, int grain) {
    extern __shared__ __align__(1024) u8 shared[];
    const int lane = threadIdx.x % 32, warp = warp_index(), set = warp / WN, rank = blockIdx.y % SHARE;
    const u32 xs = address(shared), full = xs + DEPTH * X_BYTES, empty = full + 8 * DEPTH;
    u8* out = shared + DEPTH * X_BYTES + 128 + warp / 4 * OUT_BYTES;          // of four warps
    __shared__ float factor;
    if (threadIdx.x == 0) {
        factor = CODEC ? beside[0] : 1.f;
#pragma unroll
        for (int s = 0; s < DEPTH; s++) begin_barrier(full + 8 * s, 1), begin_barrier(empty + 8 * s, SHARE * WN);
    }
    __syncthreads();
    if (SHARE > 1) wait_for_the_cluster();
    let_the_next_kernel_start();

    const int cluster = blockIdx.y / SHARE, clusters = gridDim.y / SHARE, last_tile = (rows + 15) / 16 - 1;
    const int across = (all_tokens + TOKENS - 1) / TOKENS, down = (rows + SHARE * ROWS - 1) / (SHARE * ROWS);
    const int all = across * down * chunks, begin = share_begin(cluster, clusters, all / grain) * grain;
    int left = share_begin(cluster + 1, clusters, all / grain) * grain - begin;            // chunks
    const int tile = begin / chunks, first = warp < SPLIT * WN ? set : 0;
    Walk at{tile % across, tile / across, begin % chunks + first, first, chunks, across};
    const auto first_row = [&](int down) { return (down * SHARE + rank) * ROWS; };

    int stage = 0, parity = 0;
    const auto next_stage = [&](int by) {
        stage += by;
        if (stage >= DEPTH) stage -= DEPTH, parity ^= 1;
    };
    if (warp >= SPLIT * WN) {
        fewer_registers<24>();
        if (warp == SPLIT * WN && elected()) {
            fetch_map(x);
            wait_for_the_kernels_before();
#pragma unroll 1
            for (int i = 0; i < 2 * left; i++) {             // this block's part of a stage, to all that share it
                if (i >= DEPTH) wait_for_phase(empty + 8 * stage, parity ^ 1);
                expect_bytes(full + 8 * stage, X_BYTES);
                copy_box(xs + stage * X_BYTES + rank * (X_BYTES / SHARE), x, at.chunk * 128 + i % 2 * 64,
                         at.token * TOKENS + rank * (TOKENS / SHARE), full + 8 * stage, SHARE);
                next_stage(1);
                if (i % 2) at.step(1);
            }
        }
        __syncwarp();
    } else {
        more_registers<SPLIT * WN <= 8 ? 240 : 112>();
        const auto place = [&](int down) { return min(first_row(down) / 16 + warp % WN, last_tile); };   // of 16 rows of this warp
        const auto source = [&] { return Source{low, high, meta}.at((size_t)place(at.down) * chunks + at.chunk); };
        Chunk next;
        next.get(source(), lane);
        Group group;
        Words table;
        if (LUT) table = table_of(beside);
        wait_for_the_kernels_before();

        u32 a[2][8];
        Sums sums;
        if (SPLIT > 1) next_stage(2 * set);
        int before = -1;                                     // the stage before
        const auto half_chunk = [&](const Chunk& now, bool odd) {
            wait_for_phase(full + 8 * stage, parity);
            const u32 here = xs + stage * X_BYTES;
            if (odd) step<2>(sums, a[0], now, table, group, here);
            else step<0>(sums, a[0], now, table, group, here);
            // here this warp has read the stage before this one
            if (before >= 0 && lane < SHARE) arrive_in_cluster(empty + 8 * before, lane);
            if (odd) step<3>(sums, a[1], now, table, group, here);
            else step<1>(sums, a[1], now, table, group, here);
            before = stage;
            next_stage(odd ? 2 * SPLIT - 1 : 1);
        };
#pragma unroll 1
        while (left > 0) {
            const Walk here = at;
            const int number = min(chunks - at.chunk + first, left);   // of chunks of this tile, of all sets
            if (GROUP == 0 && !CODEC) {
                const u32* m = (const u32*)(meta + ((size_t)place(at.down) * 8 + lane / 4) * META);
                group.set(m[0], m[FIELDS - 1]);
            }
#pragma unroll
            for (int j = 0; j < NT * 4; j++) sums[j / 4][j % 4] = 0;
#pragma unroll 1
            for (int n = number / SPLIT; n > 0; n--) {
                const Chunk now = next;
                left -= SPLIT, at.step(SPLIT);
                if (left > 0) next.get(source(), lane);
                half_chunk(now, false);
                half_chunk(now, true);
            }
            wide_wait_for_all_but<0>();
            meet_some(1 + warp / 4, 128);
            // ptxas 13.0 moves what reads sums above the wait: partial sums were seen. It cannot move this read, which they need
            const float by = *(volatile float*)&factor;
#pragma unroll
            for (int j = 0; j < NT * 4; j++) sums[j / 4][j % 4] *= by;

            bool mine = true;
            if (SPLIT == 1 && number < chunks) {
                const int tile = here.down * across + here.token, tile_begin = tile * chunks;
                const int one = owner(tile_begin, clusters, all), other = owner(tile_begin + chunks - 1, clusters, all);
                const auto part_of = [&](int c) {            // its part of this tile is its first one, or else its last
                    const bool second = share_begin(c, clusters, all) < tile_begin;
                    return parts + (((size_t)c * 2 + second) * SHARE + rank) * (NT * 4 * WORKERS) + threadIdx.x;
                };
                float* own = part_of(cluster);
#pragma unroll
                for (int j = 0; j < NT * 4; j++) own[j * WORKERS] = sums[j / 4][j % 4];
                mine = last_of<WORKERS>(count + tile * SHARE + rank, other - one + 1);
                if (mine) {
#pragma unroll
                    for (int j = 0; j < NT * 4; j += READS) {
                        float sum[READS] = {};
#pragma unroll 1
                        for (int c = one; c <= other; c++) {
                            const float* from = part_of(c) + j * WORKERS;
#pragma unroll
                            for (int k = 0; k < READS; k++)
                                sum[k] += c == cluster ? sums[(j + k) / 4][k % 4] : read_far(from + k * WORKERS);
                        }
#pragma unroll
                        for (int k = 0; k < READS; k++) sums[(j + k) / 4][k % 4] = sum[k];
                    }
                }
            }
            const int token = here.token * TOKENS + set * KEPT * 8, four = warp % WN / 4, row = first_row(here.down) + four * 64;
            if constexpr (SPLIT > 1) {
                Kept kept;
                exchange(kept, sums, out, (set ? -1 : 1) * WN / 4 * OUT_BYTES, set, 8 + four);
                write_tile((u16*)out, kept, y, token, all_tokens, row, rows);
            } else if (mine) {
                write_tile((u16*)out, sums, y, token, all_tokens, row, rows);
            }
        }
    }
    if (SHARE > 1) meet_in_cluster();                        // no block ends while another one may still tell it something
}
