// panel.cu - the columns of one panel of a solver, rounded one after the other; a thread has a row.
//
// Compiled with UP (0: feedback, the last column comes first; 1: coordinate descent, the first does), ZERO (whether groups have
// zeros), LEVELS (length of the sorted table of values; 0: whole numbers low .. high), BY_ROW (a table a row), DEPTH (2**DEPTH
// tell LEVELS apart), THREADS. Matrices are transposed, [columns, out], so that threads side by side read side by side.
// A column's error moves those that follow: within PART columns in registers, unrolled; those of the parts before are added when
// a part begins, by a loop over their errors. So a column costs the way from its own value to the next one's, some 100 cycles,
// and no thread waits for another one but where a part of `pull` comes into shared memory.

constexpr int COLUMNS = 128, PART = 32, QUADS = PART / 4;

// The level that is nearest to `unit`, and its code.
INLINE float nearest(float unit, const float* levels, int row, int out, float low, float high, float& code) {
    if (LEVELS == 0) {
        code = fminf(fmaxf(unit, low), high) + 12582912.f;   // to even, as long as it is below 2^22
        code = code - 12582912.f;
        return code;
    }
    int place = 0;
#pragma unroll
    for (int d = DEPTH - 1; d >= 0; --d) {
        const int j = place + (1 << d);
        if (j < LEVELS) {
            const float upper = levels[BY_ROW ? j * out + row : j], lower = levels[BY_ROW ? (j - 1) * out + row : j - 1];
            if (unit > (upper + lower) * 0.5f) place = j;
        }
    }
    code = (float)place;
    return levels[BY_ROW ? place * out + row : place];
}

// base, moved, values, errors: the n rows of this panel; base and values may be the same. errors: base - values (UP: added, and
// what was added is in changes).
// pull: its element [k][j] is what the error of column k adds to x of column j; rows are `stride` apart. UP: x of column j is
// base + moved / pull[j][j] and what `moved` is, pull adds to. group: row of scale and zero, place: row of codes, for each column.
extern "C" __global__ void __launch_bounds__(THREADS) rounded(
    const float* base, const float* __restrict__ moved, const float* __restrict__ pull, const int* __restrict__ group,
    const long long* __restrict__ place, const float* __restrict__ scale, const float* __restrict__ zero,
    const float* __restrict__ levels, float* codes, float* values, float* errors, float* changes, int out, int n, int stride,
    u32 low_bits, u32 high_bits) {
    __shared__ float4 near[COLUMNS][QUADS];                  // the columns of one part of `pull`
    __shared__ float lost[COLUMNS - PART][THREADS];          // errors of the parts before
    __shared__ float inverse[PART];
    const int thread = threadIdx.x, mine = blockIdx.x * THREADS + thread, row = min(mine, out - 1);
    const bool inside = mine < out;
    const float low = __uint_as_float(low_bits), high = __uint_as_float(high_bits);
    const int parts = (n + PART - 1) / PART;
    for (int step = 0; step < parts; ++step) {
        const int first = (UP ? step : parts - 1 - step) * PART;
        const int from = UP ? 0 : first, to = UP ? first + PART : parts * PART;
        __syncthreads();
        for (int i = from * PART + thread; i < to * PART; i += THREADS) {
            const int k = i / PART, j = first + i % PART;
            ((float*)near)[i] = k < n && j < n ? pull[(long long)k * stride + j] : 0.f;
        }
        if (UP && thread < PART) {
            const int j = first + thread;
            inverse[thread] = j < n ? divided(1.f, pull[(long long)j * stride + j]) : 0.f;
        }
        float x[PART], w[PART], s[PART], z[PART];
#pragma unroll
        for (int j = 0; j < PART; ++j) {
            const bool there = first + j < n;
            const int at = (first + j) * out + row, g = there ? group[first + j] : 0;
            x[j] = there ? moved[at] : 0.f;
            w[j] = there ? base[at] : 0.f;
            s[j] = scale[(long long)g * out + row];
            z[j] = ZERO ? zero[(long long)g * out + row] : 0.f;
        }
        __syncthreads();
        for (int i = 0; i < (UP ? first : to - first - PART); ++i) {
            const int k = UP ? i : to - 1 - i;
            const float error = lost[UP ? k : k - PART][thread];
#pragma unroll
            for (int q = 0; q < QUADS; ++q) {
                const float4 by = near[k][q];
                x[4 * q] = fmaf(error, by.x, x[4 * q]);
                x[4 * q + 1] = fmaf(error, by.y, x[4 * q + 1]);
                x[4 * q + 2] = fmaf(error, by.z, x[4 * q + 2]);
                x[4 * q + 3] = fmaf(error, by.w, x[4 * q + 3]);
            }
        }
#pragma unroll
        for (int i = 0; i < PART; ++i) {
            const int k = UP ? i : PART - 1 - i, column = first + k;
            const bool there = column < n;
            const float wanted = UP ? fmaf(x[k], inverse[k], w[k]) : x[k], by_scale = reciprocal(s[k]), about = wanted * by_scale;
            const float unit = fmaf(fmaf(-about, s[k], wanted), by_scale, about);  // wanted / s[k], without a branch
            float code;
            const float value = (nearest(ZERO ? unit + z[k] : unit, levels, row, out, low, high, code) - z[k]) * s[k];
            w[k] = there ? w[k] - value : 0.f;
            x[k] = code, s[k] = value;
#pragma unroll
            for (int q = 0; q < QUADS; ++q) {
                const float4 by = near[column][q];
                if (UP ? 4 * q > k : 4 * q < k) x[4 * q] = fmaf(w[k], by.x, x[4 * q]);
                if (UP ? 4 * q + 1 > k : 4 * q + 1 < k) x[4 * q + 1] = fmaf(w[k], by.y, x[4 * q + 1]);
                if (UP ? 4 * q + 2 > k : 4 * q + 2 < k) x[4 * q + 2] = fmaf(w[k], by.z, x[4 * q + 2]);
                if (UP ? 4 * q + 3 > k : 4 * q + 3 < k) x[4 * q + 3] = fmaf(w[k], by.w, x[4 * q + 3]);
            }
        }
#pragma unroll
        for (int k = 0; k < PART; ++k) {
            const int column = first + k;
            if (UP ? first < COLUMNS - PART : first >= PART) lost[UP ? column : column - PART][thread] = w[k];
            if (UP && column < n && inside) changes[column * out + row] = w[k];
        }
#pragma unroll
        for (int k = 0; k < PART; ++k)                       // all at once: nothing is read between stores
            if (UP && first + k < n) w[k] += errors[(first + k) * out + row];
#pragma unroll
        for (int k = 0; k < PART; ++k) {
            const int column = first + k, at = column * out + row;
            if (column >= n || !inside) continue;
            codes[place[column] * out + row] = x[k];
            values[at] = s[k];
            errors[at] = w[k];
        }
    }
}
