// bytes.cu - y = x W.T for bytes times bytes and many tokens, scaled by token and by row as it is written (Hopper).
//
// A block has HIGH sets of four warps over 64 tokens each, and two warps more that let the tensor copy engine bring x and W: 128
// columns of TOKENS tokens and of ROWS rows of W a stage, DEPTH stages in a ring, swizzled by 128 bytes, as wgmma reads them. Blocks
// take tiles in turn; a tile's last products and its writing pass while the next one's operands come. SPLIT 2: two blocks of a cluster
// take half of the columns each of one tile; each sends the other half of its sums, and writes half of the rows. Rows of W stand in
// shared memory in such an order that a lane's sums of a token are of four rows side by side.
//
// Compiled with ACT 1 int8 | 2 float8 e4m3, HALF 0 | 1: y bfloat16 | float16, NT eights of rows of W, even (SPLIT 2: a multiple of 4);
// HIGH, DEPTH, SPLIT; FOLD: stages after which sums leave the tensor cores, which keep few bits of e4m3's, 0: at the end.

constexpr int TOKENS = HIGH * 64, ROWS = NT * 8;             // of a block's tile
constexpr int WARPS = HIGH * 4;                              // that multiply
constexpr int THREADS = WARPS * 32 + 64;
constexpr int X_BYTES = TOKENS * 128, W_BYTES = ROWS * 128, STAGE = X_BYTES + W_BYTES;
constexpr int SPAN = 8;                                      // tiles over tokens that go together over the rows, for the cache's sake
constexpr int SCALES = ROWS * 2, SCALE_SLOTS = DEPTH + 1;    // bytes of a tile's scales of rows; so many tiles may be begun at once
constexpr int INBOX = SPLIT > 1 ? WARPS * NT / 2 * 512 : 0;  // bytes of sums that the other block sends

typedef Sum Sums[NT][4];

template <int EIGHTS>
INLINE void clear(Sum (&sums)[EIGHTS][4]) {
#pragma unroll
    for (int i = 0; i < EIGHTS * 4; i++) sums[i / 4][i % 4] = 0;
}
INLINE void add(Sums& total, const Sums& sums) {
#pragma unroll
    for (int i = 0; i < NT * 4; i++) total[i / 4][i % 4] += sums[i / 4][i % 4];
}

// where tile i of all begins. across, down: tiles over tokens, over rows
struct Place { int token, row; };
INLINE Place place_of(int i, int across, int down) {
    const int first = i / (SPAN * down) * SPAN, wide = min(SPAN, across - first), rest = i - first * down;
    return {(first + rest % wide) * TOKENS, rest / wide * ROWS};
}

// A lane's tokens `token` and `token` + 8 of EIGHTS eights of rows of y, 8 bytes a time. Of sixteen rows q its sums of four are in eight
// q / APART * APART + q and APART behind. scales: of its rows, [rows / 16, 8, 2], r and r + 8 beside each other
template <int APART, int EIGHTS>
INLINE void write(const Sum (&sums)[EIGHTS][4], u16* y, const float (&by)[2], u32 scales, int token, int row, int all_tokens, int rows) {
    const int c = threadIdx.x % 4;
    u16* to = y + (size_t)token * rows + row + 4 * c;
#pragma unroll
    for (int q = 0; q < EIGHTS / 2; q++) {
        const uint4 pairs = read16(scales + q * 32 + c % 2 * 16);
        const u32 choice = c < 2 ? 0x1044 : 0x3244;          // scales are bfloat16
        const float scale[4] = {__uint_as_float(bytes(pairs.x, 0, choice)), __uint_as_float(bytes(pairs.y, 0, choice)),
                                __uint_as_float(bytes(pairs.z, 0, choice)), __uint_as_float(bytes(pairs.w, 0, choice))};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int at = q / APART * APART + q;
            const Sum *near = sums[at] + h * 2, *far = sums[at + APART] + h * 2;
            const uint2 four = {pair_of_halves((float)near[0] * by[h] * scale[0], (float)near[1] * by[h] * scale[1]),
                                pair_of_halves((float)far[0] * by[h] * scale[2], (float)far[1] * by[h] * scale[3])};
            if (token + 8 * h < all_tokens && row + q * 16 < rows) *(uint2*)(to + (size_t)8 * h * rows + q * 16) = four;
        }
    }
}

#if SPLIT > 1
typedef Sum Kept[NT / 2][4];
INLINE u32 bits_of(int v) { return v; }
INLINE u32 bits_of(float v) { return __float_as_uint(v); }
INLINE void take(int& sum, u32 bits) { sum += (int)bits; }
INLINE void take(float& sum, u32 bits) { sum += __uint_as_float(bits); }

// All sums of this block's half of the rows: its own and those that the other block sends. came: the barrier that counts them
INLINE void exchange(Kept& kept, const Sums& sums, u32 inbox, u32 came, int part) {
    const u32 place = inbox + threadIdx.x / 32 * (NT / 2 * 512) + threadIdx.x % 32 * 16;
#pragma unroll
    for (int i = 0; i < NT / 2; i++) {
        const Sum(&lower)[4] = sums[i / 2 + i % 2 * (NT / 2)], (&upper)[4] = sums[i / 2 + i % 2 * (NT / 2) + NT / 4];
        u32 sent[4];
#pragma unroll
        for (int j = 0; j < 4; j++) kept[i][j] = part ? upper[j] : lower[j], sent[j] = bits_of(part ? lower[j] : upper[j]);
        send16(place + i * 512, uint4{sent[0], sent[1], sent[2], sent[3]}, came, 1 - part);
    }
    wait_for_phase(came, 0);
#pragma unroll
    for (int i = 0; i < NT / 2; i++) {
        const uint4 v = read16(place + i * 512);
        take(kept[i][0], v.x), take(kept[i][1], v.y), take(kept[i][2], v.z), take(kept[i][3], v.w);
    }
}
#endif

// x: [tokens, inputs] in boxes of 128 bytes, TOKENS tokens; w: [rows, inputs] in boxes of 128 bytes, 2 of 4 rows, 4, NT / 2.
// rows: a multiple of 16. SPLIT 2: as many clusters as tiles, at least two chunks
extern "C" __global__ void __cluster_dims__(1, SPLIT, 1) __launch_bounds__(THREADS, 1)
    bytes_by_bytes(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, u16* y, const float* token_scale,
                   const u8* row_scale, int all_tokens, int rows, int chunks) {
    extern __shared__ __align__(1024) u8 shared[];
    const int lane = threadIdx.x % 32, warp = warp_index(), part = blockIdx.y % SPLIT;
    const u32 ring = address(shared), inbox = ring + DEPTH * STAGE, scales = inbox + INBOX, full = scales + SCALE_SLOTS * SCALES;
    const u32 empty = full + 8 * DEPTH, came = empty + 8 * DEPTH;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < DEPTH; s++) begin_barrier(full + 8 * s, 2), begin_barrier(empty + 8 * s, WARPS);
        if (SPLIT > 1) begin_barrier(came), expect_bytes(came, INBOX);
    }
    if (SPLIT > 1) meet_in_cluster();
    else __syncthreads();
    let_the_next_kernel_start();

    const int across = (all_tokens + TOKENS - 1) / TOKENS, down = (rows + ROWS - 1) / ROWS, tiles = across * down;
    const int first = part * chunks / SPLIT, end = (part + 1) * chunks / SPLIT;
    int stage = 0, parity = 0, slot = 0;
    const auto next_stage = [&] {
        if (++stage == DEPTH) stage = 0, parity ^= 1;
    };
    const auto next_slot = [&] { slot = slot == SCALE_SLOTS - 1 ? 0 : slot + 1; };
    if (warp == WARPS) {
        if (elected()) {                                     // W is there before the kernels before have ended
            for (int tile = blockIdx.y / SPLIT; tile < tiles; tile += gridDim.y / SPLIT, next_slot()) {
                const int row = place_of(tile, across, down).row, known = min(ROWS, rows - row) * 2;
#pragma unroll 1
                for (int chunk = first; chunk < end; chunk++, next_stage()) {
                    const u32 to = ring + stage * STAGE + X_BYTES, filled = full + 8 * stage;
                    wait_for_phase(empty + 8 * stage, parity ^ 1);
                    expect_bytes(filled, W_BYTES + (chunk == first ? known : 0));
                    copy_pairs(to, w, chunk * 64, 0, row / 16, filled);
                    copy_pairs(to + W_BYTES / 2, w, chunk * 64, 2, row / 16, filled);
                    if (chunk == first) copy_many(scales + slot * SCALES, row_scale + (size_t)row * 2, known, filled);
                }
            }
        }
    } else if (warp > WARPS) {
        if (elected()) {
            fetch_map(x);
            wait_for_the_kernels_before();
            for (int tile = blockIdx.y / SPLIT; tile < tiles; tile += gridDim.y / SPLIT) {
                const int token = place_of(tile, across, down).token;
#pragma unroll 1
                for (int chunk = first; chunk < end; chunk++, next_stage()) {
                    wait_for_phase(empty + 8 * stage, parity ^ 1);
                    expect_bytes(full + 8 * stage, X_BYTES);
                    copy_box(ring + stage * STAGE, x, chunk * 64, token, full + 8 * stage, 1);
                }
            }
        }
    } else {
        wait_for_the_kernels_before();
        const auto give_back = [&](int s) {                  // this warp has read the stage
            if (lane == 0) arrive_at(empty + 8 * s);
        };
        Sums sums, total;
        const int group = FOLD ? FOLD : end - first;
        for (int tile = blockIdx.y / SPLIT; tile < tiles; tile += gridDim.y / SPLIT, next_slot()) {
            const Place at = place_of(tile, across, down);
            const int token = at.token + warp * 16 + lane / 4;
            float by[2];
#pragma unroll
            for (int h = 0; h < 2; h++) by[h] = token + 8 * h < all_tokens ? token_scale[token + 8 * h] : 0.f;
            if (FOLD) clear(total);
#pragma unroll 1
            for (int begin = first; begin < end; begin += group) {
#pragma unroll 1
                for (int chunk = begin; chunk < min(end, begin + group); chunk++) {
                    wait_for_phase(full + 8 * stage, parity);
                    const u32 left = (ring + stage * STAGE + warp / 4 * 64 * 128) >> 4, right = (ring + stage * STAGE + X_BYTES) >> 4;
                    wide_begin();
#pragma unroll
                    for (int k = 0; k < 4; k++) wide_multiply_rows(sums, left + 2 * k, right + 2 * k, chunk > begin || k);
                    wide_end();
                    wide_wait_for_all_but<1>();              // only in a straight line do products follow one another
                    if (chunk > begin) give_back(stage ? stage - 1 : DEPTH - 1);
                    next_stage();
                }
                wide_wait_for_all_but<0>();
                wide_take(sums);
                give_back(stage ? stage - 1 : DEPTH - 1);
                if (FOLD) add(total, sums);
            }
            const u32 known = scales + slot * SCALES;
#if SPLIT > 1
            Kept kept;
            exchange(kept, FOLD ? total : sums, inbox, came, part);
            write<1>(kept, y, by, known + part * (SCALES / 2), token, at.row + part * (ROWS / 2), all_tokens, rows);
#else
            write<NT / 2>(FOLD ? total : sums, y, by, known, token, at.row, all_tokens, rows);
#endif
        }
    }
}
