// bytes.cu - y = x W.T for bytes times bytes and many tokens, scaled by token and by row as it is written (Hopper).
//
// A block has HIGH sets of four warps over 64 tokens each, and one warp more that lets the tensor copy engine bring both operands:
// 128 columns of TOKENS tokens and of ROWS rows of W a stage, DEPTH stages in a ring, swizzled by 128 bytes, as wgmma reads them.
// SHARE blocks of a cluster have the same rows (ALONG 0: they lie along the tokens) or the same tokens (ALONG 1: along the rows):
// each brings a part of what they share to all of them. Clusters take tiles in turn; a tile's last products and its writing pass
// while the next one's operands come.
//
// Compiled with ACT 1 int8 | 2 float8 e4m3, HALF 0 | 1: y bfloat16 | float16, NT eights of rows of W, a multiple of 4; HIGH, DEPTH,
// SHARE, ALONG; BLOCKS of a multiprocessor; FOLD: stages after which sums leave the tensor cores, which keep few bits of e4m3's, 0: at the end.

constexpr int TOKENS = HIGH * 64, ROWS = NT * 8;             // of a block's tile
constexpr int WARPS = HIGH * 4;                              // that multiply
constexpr int THREADS = WARPS * 32 + 32;
constexpr int X_BYTES = TOKENS * 128, W_BYTES = ROWS * 128, STAGE = X_BYTES + W_BYTES;
constexpr int X_SHARE = ALONG ? SHARE : 1, W_SHARE = ALONG ? 1 : SHARE;  // blocks that have the same tokens, the same rows
constexpr int SPAN = 8;                                      // tiles over tokens that go together over the rows, for the cache's sake

typedef Sum Sums[NT][4];

INLINE void clear(Sums& sums) {
#pragma unroll
    for (int i = 0; i < NT * 4; i++) sums[i / 4][i % 4] = 0;
}
INLINE void add(Sums& total, const Sums& sums) {
#pragma unroll
    for (int i = 0; i < NT * 4; i++) total[i / 4][i % 4] += sums[i / 4][i % 4];
}

// where tile i of all begins for a block of its cluster. across, down: tiles of a cluster over tokens, over rows
struct Place { int token, row; };
INLINE Place place_of(int i, int across, int down, int rank) {
    const int first = i / (SPAN * down) * SPAN, wide = min(SPAN, across - first), rest = i - first * down;
    return {((first + rest % wide) * W_SHARE + (ALONG ? 0 : rank)) * TOKENS, (rest / wide * X_SHARE + (ALONG ? rank : 0)) * ROWS};
}

// word i of lane c of four goes to lane i, as its word c
INLINE void exchange(u32 (&words)[4]) {
#pragma unroll
    for (int mask = 1; mask <= 2; mask *= 2) {
        const bool upper = threadIdx.x & mask;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & mask) continue;
            const u32 got = of_other(upper ? words[i] : words[i + mask], mask);
            words[i] = upper ? got : words[i], words[i + mask] = upper ? words[i + mask] : got;
        }
    }
}

INLINE float first_of(u32 pair) { return __uint_as_float(pair << 16); }   // scales of rows are bfloat16
INLINE float second_of(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// A warp's 16 tokens of y from `token` on, ROWS rows from `row` on, 16 bytes a time. row_scale: [rows / 16, 8, 2], r and r + 8 beside each other
INLINE void write(const Sums& sums, u16* y, const float* token_scale, const u8* row_scale, int token, int row, int all_tokens, int rows) {
    const int lane = threadIdx.x % 32, c = lane % 4;
    const int tokens[2] = {token + lane / 4, token + lane / 4 + 8};
    float by[2];
#pragma unroll
    for (int h = 0; h < 2; h++) by[h] = tokens[h] < all_tokens ? token_scale[tokens[h]] : 0.f;
#pragma unroll
    for (int q = 0; q < NT / 4; q++) {                       // 32 rows; a lane has two of each eight, and writes eight in a row
        u32 words[2][4];
#pragma unroll
        for (int t = 0; t < 2; t++) {
            const uint2 scale = *(const uint2*)(row_scale + (size_t)min(row / 16 + q * 2 + t, rows / 16 - 1) * 32 + c * 8);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const Sum *near = sums[q * 4 + t * 2] + h * 2, *far = sums[q * 4 + t * 2 + 1] + h * 2;
                words[h][t * 2] = pair_of_halves((float)near[0] * by[h] * first_of(scale.x), (float)near[1] * by[h] * first_of(scale.y));
                words[h][t * 2 + 1] = pair_of_halves((float)far[0] * by[h] * second_of(scale.x), (float)far[1] * by[h] * second_of(scale.y));
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            exchange(words[h]);
            const int at = row + q * 32 + c * 8;
            if (tokens[h] < all_tokens && at < rows)
                *(uint4*)(y + (size_t)tokens[h] * rows + at) = uint4{words[h][0], words[h][1], words[h][2], words[h][3]};
        }
    }
}

// x: [tokens, inputs] in boxes of 128 bytes, TOKENS / X_SHARE tokens; w: [rows, inputs], ROWS / W_SHARE rows. rows: a multiple of 16
extern "C" __global__ void __cluster_dims__(1, SHARE, 1) __launch_bounds__(THREADS, BLOCKS)
    bytes_by_bytes(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, u16* y, const float* token_scale,
                   const u8* row_scale, int all_tokens, int rows, int chunks) {
    extern __shared__ __align__(1024) u8 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = blockIdx.y % SHARE;
    const u32 ring = address(shared), full = ring + DEPTH * STAGE, empty = full + 8 * DEPTH;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < DEPTH; s++) begin_barrier(full + 8 * s, 1), begin_barrier(empty + 8 * s, SHARE * WARPS);
    }
    meet_in_cluster();
    let_the_next_kernel_start();

    const int across = (all_tokens + TOKENS * W_SHARE - 1) / (TOKENS * W_SHARE), down = (rows + ROWS * X_SHARE - 1) / (ROWS * X_SHARE);
    const int cluster = blockIdx.y / SHARE, clusters = gridDim.y / SHARE, tiles = across * down;
    int stage = 0, parity = 0;
    const auto next_stage = [&] {
        if (++stage == DEPTH) stage = 0, parity ^= 1;
    };
    if (warp == WARPS) {
        if (lane == 0) {                                     // this block's part of what it shares, and all of what it does not
            const auto bring_w = [&](int s, int row, int chunk) {
                const int part = W_SHARE > 1 ? rank * (ROWS / W_SHARE) : 0;
                expect_bytes(full + 8 * s, STAGE);
                copy_box(ring + s * STAGE + X_BYTES + part * 128, w, chunk * 64, row + part, full + 8 * s, W_SHARE);
            };
            const auto bring_x = [&](int s, int token, int chunk) {
                const int part = X_SHARE > 1 ? rank * (TOKENS / X_SHARE) : 0;
                copy_box(ring + s * STAGE + part * 128, x, chunk * 64, token + part, full + 8 * s, X_SHARE);
            };
            const Place first = place_of(cluster, across, down, rank);
            int early = min(DEPTH, chunks);                  // W is there before the kernels before have ended
            for (int s = 0; s < early; s++) bring_w(s, first.row, s);
            wait_for_the_kernels_before();
            for (int s = 0; s < early; s++) bring_x(s, first.token, s);
            for (int tile = cluster; tile < tiles; tile += clusters) {
                const Place at = place_of(tile, across, down, rank);
#pragma unroll 1
                for (int chunk = 0; chunk < chunks; chunk++) {
                    if (early) {
                        early--;
                    } else {
                        wait_for_phase(empty + 8 * stage, parity ^ 1);
                        bring_w(stage, at.row, chunk);
                        bring_x(stage, at.token, chunk);
                    }
                    next_stage();
                }
            }
        }
        __syncwarp();
    } else {
        wait_for_the_kernels_before();
        const auto give_back = [&](int s) {                  // this warp has read the stage
            if (lane < SHARE) arrive_in_cluster(empty + 8 * s, lane);
        };
        Sums sums, total;
        const int group = FOLD ? FOLD : chunks;
        for (int tile = cluster; tile < tiles; tile += clusters) {
            if (FOLD) clear(total);
#pragma unroll 1
            for (int first = 0; first < chunks; first += group) {
#pragma unroll 1
                for (int chunk = first; chunk < min(chunks, first + group); chunk++) {
                    wait_for_phase(full + 8 * stage, parity);
                    const u32 left = (ring + stage * STAGE + warp / 4 * 64 * 128) >> 4, right = (ring + stage * STAGE + X_BYTES) >> 4;
                    wide_begin();
#pragma unroll
                    for (int k = 0; k < 4; k++) wide_multiply_rows(sums, left + 2 * k, right + 2 * k, chunk > first || k);
                    wide_end();
                    wide_wait_for_all_but<1>();              // only in a straight line do products follow one another
                    if (chunk > first) give_back(stage ? stage - 1 : DEPTH - 1);
                    next_stage();
                }
                wide_wait_for_all_but<0>();
                wide_take(sums);
                give_back(stage ? stage - 1 : DEPTH - 1);
                if (FOLD) add(total, sums);
            }
            const Place at = place_of(tile, across, down, rank);
            write(FOLD ? total : sums, y, token_scale, row_scale, at.token + warp * 16, at.row, all_tokens, rows);
        }
    }
    meet_in_cluster();                                       // no block ends while another one may still tell it something
}
