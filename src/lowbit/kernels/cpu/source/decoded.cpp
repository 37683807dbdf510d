// decoded - y = x W.T for codes that mean floats: tables of up to 16 values, vectors of eight out of books, trellises.
//
// Sixteen rows and a span of inputs are decoded to floats that stay in the first cache, scaled, and multiplied by every token.
// Many tokens: the caller takes decoded rows and multiplies them itself. Codes lie as they are stored, but for trellises, whose
// tiles have their codes from last to first, so that a state is 16 bits of the stream (decoded.py).
#include "lanes.h"
#include "work.h"

namespace {

enum Family { TABLE = 0, VECTORS = 1, TRELLIS = 2 };
enum Stored { FLOAT16 = 3, POWER = 4 };
constexpr int HIGH = 16, SPAN = 512, TOKENS = 16;

struct Matrix {
  const uint8_t *codes, *end;
  int64_t stride, rows, inputs;
  int family, bits, width;
  /// Tables: 16 floats, or float16 for each row. Vectors: books of eight floats. Trellises: `width` floats a state.
  const float *values, *more;
  const uint16_t *own;
  int first_bytes, more_bytes;
  uint32_t mask;
  const void *scale;
  int scale_kind;
  int64_t groups, group;
  bool shared;

  float size(int64_t row, int64_t k) const {
    const int64_t at = shared ? 0 : row * groups + k / group;
    if (scale_kind == BFLOAT16) return widened(((const uint16_t *)scale)[at]);
    if (scale_kind == FLOAT16) return _cvtsh_ss(((const uint16_t *)scale)[at]);
    if (scale_kind == FLOAT32) return ((const float *)scale)[at];
    const uint32_t power = ((const uint8_t *)scale)[at], bits = power ? power << 23 : 1u << 22;
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
  }

  /// The scales along a row: looked up once a group.
  struct Along {
    const Matrix &w;
    int64_t row, until = 0;
    float found = 0;
    float at(int64_t k) {
      if (k >= until) found = w.size(row, k), until = (k / w.group + 1) * w.group;
      return found;
    }
  };

  uint64_t eight(const uint8_t *p) const {
    uint64_t found = 0;
    if (end - p >= 8) std::memcpy(&found, p, 8);
    else std::memcpy(&found, p, end - p);
    return found;
  }

  void table(int64_t row, int64_t from, int64_t to, float *out) const {
    float sixteen[16];
    for (int i = 0; i < 16; i++) sixteen[i] = own ? _cvtsh_ss(own[(row << bits) + i % (1 << bits)]) : values[i];
    int32_t places[16];
    for (int i = 0; i < 16; i++) places[i] = i % 8 * bits;
    const uint8_t *p = codes + row * stride + from / 8 * bits;
    Along scales{*this, row};
#ifdef __AVX512VNNI__
    const Floats all = load(sixteen);
    const Ints shifts = load(places);
#else
    const __m256 low = _mm256_loadu_ps(sixteen), high = _mm256_loadu_ps(sixteen + 8);
    const __m256i shifts = _mm256_loadu_si256((const __m256i *)places);
#endif
    for (int64_t k = from; k < to; k += 16, p += 2 * bits, out += 16) {
      const uint64_t v = eight(p);
      const Floats scale = fill(scales.at(k));
#ifdef __AVX512VNNI__
      const Ints halves = _mm512_mask_set1_epi32(fill((int32_t)v), 0xFF00, (int32_t)(v >> 8 * bits));
      store(out, times(_mm512_permutexvar_ps(_mm512_srlv_epi32(halves, shifts), all), scale));
#else
      const auto found = [&](uint64_t part) {
        const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32((int32_t)part), shifts);
        const __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), choice);
      };
      store(out, times(Floats{found(v), found(v >> 8 * bits)}, scale));
#endif
    }
  }

  void vectors(int64_t row, int64_t from, int64_t to, float *out) const {
    const uint8_t *p = codes + row * stride + from / 8 * (first_bytes + more_bytes);
    Along scales{*this, row};
    for (int64_t k = from; k < to; k += 8, out += 8) {
      const auto index = [&](int bytes) {
        const int64_t found = bytes == 2 ? p[0] | p[1] << 8 : p[0];
        p += bytes;
        return found;
      };
      __m256 v = _mm256_loadu_ps(values + 8 * index(first_bytes));
      if (more_bytes) v = _mm256_add_ps(v, _mm256_loadu_ps(more + 8 * index(more_bytes)));
      _mm256_storeu_ps(out, _mm256_mul_ps(v, _mm256_set1_ps(scales.at(k))));
    }
  }

  /// Sixteen rows of the tiles of a span. Places of a tile: lowbit/dtypes/_trellis.py.
  void trellis(int64_t row, int64_t from, int64_t to, float *out) const {
    const int64_t bytes = 32 / width * bits;
    const int steps = 256 / width;
    for (int64_t k = from; k < to; k += 16) {
      uint8_t ring[32 * 8 + 8];
      std::memcpy(ring, codes + row / 16 * stride + k / 16 * bytes, bytes);
      std::memcpy(ring + bytes, ring, 8);
      float found[256];
      for (int i = 0; i < steps; i++) {
        const int at = (steps - 1 - i) * bits;
        const float *v = values + (((uint32_t)word(ring + at / 8) >> at % 8) & mask) * width;
        found[i * width] = v[0];
        if (width == 2) found[i * width + 1] = v[1];
      }
      for (int line = 0; line < 32; line++)
        for (int half = 0; half < 2; half++) {
          const float *v = found + 8 * line + 4 * half, scale = size(row + line / 4 + 8 * half, k);
          float *to_row = out + (line / 4 + 8 * half) * SPAN + (k - from) + line % 4 * 2;
          to_row[0] = v[0] * scale, to_row[1] = v[1] * scale, to_row[8] = v[2] * scale, to_row[9] = v[3] * scale;
        }
    }
  }

  /// Rows row .. row + n of a span, [HIGH][SPAN].
  void decode(int64_t row, int64_t n, int64_t from, int64_t to, float *out) const {
    if (family == TRELLIS) return trellis(row, from, to, out);
    for (int64_t i = 0; i < n; i++) family == TABLE ? table(row + i, from, to, out + i * SPAN) : vectors(row + i, from, to, out + i * SPAN);
  }
};

/// Add the products of a decoded row with the tokens to y, TEAM tokens at a time.
template <int TEAM> inline void multiply(const float *w, const float *x, int64_t stride, int64_t n, int64_t tokens, float *y) {
  for (int64_t first = 0; first < tokens; first += TEAM) {
    const int64_t team = std::min<int64_t>(TEAM, tokens - first);
    Floats sum[TEAM][2];
    EACH(i, TEAM * 2) sum[i / 2][i % 2] = fill(0.0f);
    const float *at[TEAM];
    EACH(i, TEAM) at[i] = x + (first + (i < team ? i : 0)) * stride;
    for (int64_t k = 0; k < n; k += 32) {
      const Floats one = load(w + k), two = load(w + k + 16);
      EACH(i, TEAM) {
        sum[i][0] = fuse(one, load(at[i] + k), sum[i][0]);
        sum[i][1] = fuse(two, load(at[i] + k + 16), sum[i][1]);
      }
    }
    for (int64_t i = 0; i < team; i++) y[first + i] += total(plus(sum[i][0], sum[i][1]));
  }
}

void product(const Matrix &w, const float *x, int64_t stride, int64_t tokens, int64_t row, float *room, char *to, int kind) {
  const int64_t n = std::min<int64_t>(HIGH, w.rows - row);
  float y[HIGH][TOKENS] = {};
  for (int64_t from = 0; from < w.inputs; from += SPAN) {
    const int64_t stop = std::min<int64_t>(from + SPAN, w.inputs), wide = (stop - from + 31) / 32 * 32;
    w.decode(row, n, from, stop, room);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t k = stop - from; k < wide; k++) room[i * SPAN + k] = 0;
      tokens == 1 ? multiply<1>(room + i * SPAN, x + from, stride, wide, 1, y[i])
                  : multiply<4>(room + i * SPAN, x + from, stride, wide, tokens, y[i]);
    }
  }
  for (int64_t m = 0; m < tokens; m++)
    for (int64_t i = 0; i < n; i++) narrow(&y[i][m], to + (m * w.rows + row + i) * (kind == FLOAT32 ? 4 : 2), kind, 1);
}

} // namespace

/// x [tokens, inputs] of `kind` -> y [tokens, rows]; without x: y [rows, inputs] becomes the decoded matrix.
EXPORT void lowbit_decoded(const char *x, char *y, int64_t kind, int64_t tokens, int64_t rows, int64_t inputs, const uint8_t *codes,
                           int64_t size, int64_t stride, int64_t family, int64_t bits, int64_t width, int64_t first_bytes,
                           int64_t more_bytes, const float *values, const float *more, const uint16_t *own, int64_t mask,
                           const void *scale, int64_t scale_kind, int64_t groups, int64_t group, int64_t shared, int64_t threads) {
  const Matrix w{codes, codes + size, stride, rows, inputs, (int)family, (int)bits, (int)width, values, more, own, (int)first_bytes,
                 (int)more_bytes, (uint32_t)mask, scale, (int)scale_kind, groups, group ? group : inputs, shared != 0};
  static thread_local Room room;
  const int64_t padded = (inputs + 31) / 32 * 32, wide = kind == FLOAT32 ? 4 : 2, blocks = (rows + HIGH - 1) / HIGH;
  for (int64_t first = 0; first < (x ? tokens : 1); first += TOKENS) {
    const int64_t n = std::min<int64_t>(TOKENS, tokens - first);
    float *floats = (float *)room.get(x ? n * padded * 4 : 64);
    for (int64_t m = 0; x && m < n; m++) {
      widen(x + (first + m) * inputs * wide, kind, floats + m * padded, inputs);
      std::memset(floats + m * padded + inputs, 0, (padded - inputs) * 4);
    }
    Parts left(blocks, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      static thread_local Room own_room;
      float *mine = (float *)own_room.get(HIGH * SPAN * 4);
      int64_t start, stop;
      while (left.take(start, stop))
        for (; start < stop; start++) {
          const int64_t row = start * HIGH, high = std::min<int64_t>(HIGH, rows - row);
          if (x) {
            product(w, floats, padded, n, row, mine, y + first * rows * wide, kind);
            continue;
          }
          for (int64_t from = 0; from < inputs; from += SPAN) {
            const int64_t to = std::min<int64_t>(from + SPAN, inputs);
            w.decode(row, high, from, to, mine);
            for (int64_t i = 0; i < high; i++) narrow(mine + i * SPAN, y + ((row + i) * inputs + from) * wide, kind, to - from);
          }
        }
    }
  }
}
