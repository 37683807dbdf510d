// step - what stands around the linears when a decoder writes one token; see _step.py. All tensors are contiguous, of one kind.
#include "attention.h"
#include "lanes.h"
#include "work.h"

#include <cmath>

namespace {

constexpr int LANES = 16;

/// Floats of a kind, sixteen at a time: what lies beyond the last is read as 0, and not written.
template <int KIND> struct Row {
  static constexpr int SIZE = KIND == FLOAT32 ? 4 : 2;
  char *at;
  Row(const void *p) : at((char *)p) {}

  struct Sixteen {
    float x[LANES];
    float &operator[](int i) { return x[i]; }
  };

  Sixteen get(int64_t i, int64_t n) const {
    Sixteen found{};
    if (n - i >= LANES) store(found.x, KIND == FLOAT32 ? load((const float *)at + i) : halves((const uint16_t *)at + i));
    else widen(at + i * SIZE, KIND, found.x, n - i);
    return found;
  }
  void put(int64_t i, int64_t n, const Sixteen &v) const {
    if (n - i >= LANES) KIND == FLOAT32 ? store((float *)at + i, load(v.x)) : store_halves((uint16_t *)at + i, load(v.x));
    else narrow(v.x, at + i * SIZE, KIND, n - i);
  }
  /// Rounded to the kind.
  static Sixteen rounded(Sixteen v) {
    if (KIND != FLOAT32) store(v.x, rounded_halves(load(v.x)));
    return v;
  }
};

/// hidden += delta; y = weight * hidden / sqrt(mean(hidden^2) + eps).
template <int KIND> void norm(Row<KIND> hidden, Row<KIND> delta, Row<KIND> weight, Row<KIND> y, int64_t n, float eps) {
  float sums[LANES] = {};
  for (int64_t i = 0; i < n; i += LANES) {
    auto x = hidden.get(i, n);
    if (delta.at) {
      auto more = delta.get(i, n);
      for (int j = 0; j < LANES; j++) x[j] += more[j];
      x = hidden.rounded(x);
      hidden.put(i, n, x);
    }
    for (int j = 0; j < LANES; j++) sums[j] += x[j] * x[j];
  }
  double sum = 0;
  for (float some : sums) sum += some;
  const float scale = 1.0f / std::sqrt((float)(sum / n) + eps);
  for (int64_t i = 0; i < n; i += LANES) {
    auto x = hidden.get(i, n), w = weight.get(i, n);
    for (int j = 0; j < LANES; j++) x[j] *= scale;
    x = hidden.rounded(x);
    for (int j = 0; j < LANES; j++) x[j] *= w[j];
    y.put(i, n, x);
  }
}

/// y = silu(first half) * second half, n each.
template <int KIND> void gate(Row<KIND> both, Row<KIND> y, int64_t n) {
  const Row<KIND> second(both.at + n * both.SIZE);
  for (int64_t i = 0; i < n; i += LANES) {
    auto x = both.get(i, n), up = second.get(i, n);
    typename Row<KIND>::Sixteen e;
    store(e.x, exponential(minus(fill(0.0f), load(x.x))));
    for (int j = 0; j < LANES; j++) x[j] /= 1.0f + e[j];
    x = both.rounded(x);
    for (int j = 0; j < LANES; j++) x[j] *= up[j];
    y.put(i, n, x);
  }
}

/// y += bias, n each.
template <int KIND> void shift(Row<KIND> y, Row<KIND> bias, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) {
    auto x = y.get(i, n), more = bias.get(i, n);
    for (int j = 0; j < LANES; j++) x[j] += more[j];
    y.put(i, n, x);
  }
}

/// A head turned by the angles of its place.
template <int KIND> void turn(Row<KIND> x, Row<KIND> cos, Row<KIND> sin, Row<KIND> to, int64_t n) {
  const int64_t half = n / 2, bytes = half * x.SIZE;
  const Row<KIND> other(x.at + bytes), other_cos(cos.at + bytes), other_sin(sin.at + bytes), other_to(to.at + bytes);
  for (int64_t i = 0; i < half; i += LANES) {
    auto a = x.get(i, half), b = other.get(i, half), c = cos.get(i, half), s = sin.get(i, half);
    auto d = other_cos.get(i, half), t = other_sin.get(i, half);
    for (int j = 0; j < LANES; j++) {
      const float before = a[j];
      a[j] = before * c[j] - b[j] * s[j];
      b[j] = b[j] * d[j] + before * t[j];
    }
    to.put(i, half, a), other_to.put(i, half, b);
  }
}

/// The place of the first of the greatest of n floats.
template <int KIND> int64_t likeliest(Row<KIND> logits, int64_t n) {
  constexpr int64_t SPAN = 1024;
  float best = -INFINITY;
  int64_t place = 0;
  for (int64_t start = 0; start < n; start += SPAN) {
    const int64_t stop = std::min(start + SPAN, n);
    float greatest[LANES];
    for (float &one : greatest) one = -INFINITY;
    int64_t i = start;
    for (; i + LANES <= stop; i += LANES) {
      auto x = logits.get(i, stop);
      for (int j = 0; j < LANES; j++) greatest[j] = std::max(greatest[j], x[j]);
    }
    float top = -INFINITY;
    for (float one : greatest) top = std::max(top, one);
    for (; i < stop; i++) top = std::max(top, logits.get(i, i + 1)[0]);
    if (top > best) {
      best = top;
      for (place = start; logits.get(place, place + 1)[0] != top;) place++;
    }
  }
  return place;
}

/// y [n] of rows `start` .. `stop` of weight [rows][n].
template <int KIND> void plain(const char *x, const char *weight, const char *bias, char *y, int64_t n, int64_t start, int64_t stop) {
  constexpr int64_t SIZE = KIND == FLOAT32 ? 4 : 2;
  constexpr int TOGETHER = 4;
  const auto at = [](const char *p, int64_t i) INLINE { return KIND == FLOAT32 ? load((const float *)p + i) : halves((const uint16_t *)p + i); };
  for (int64_t row = start; row < stop; row++) {
    const char *w = weight + row * n * SIZE;
    Floats sums[TOGETHER];
    EACH(i, TOGETHER) sums[i] = fill(0.0f);
    int64_t k = 0;
    for (; k + TOGETHER * LANES <= n; k += TOGETHER * LANES) {
      EACH(i, TOGETHER * LANES * SIZE / 64) _mm_prefetch(w + k * SIZE + i * 64 + AHEAD, _MM_HINT_T1);
      EACH(i, TOGETHER) sums[i] = fuse(at(w, k + i * LANES), at(x, k + i * LANES), sums[i]);
    }
    float all = total(plus(plus(sums[0], sums[1]), plus(sums[2], sums[3]))), one[2];
    for (; k < n; k++) {
      widen(w + k * SIZE, KIND, one, 1), widen(x + k * SIZE, KIND, one + 1, 1);
      all += one[0] * one[1];
    }
    if (bias) {
      widen(bias + row * SIZE, KIND, one, 1);
      all += one[0];
    }
    narrow(&all, y + row * SIZE, KIND, 1);
  }
}

template <int KIND>
void attention(const char *qkv, const char *cos, const char *sin, int64_t position, char *keys, char *values, int64_t room, char *y,
               int64_t queries, int64_t pairs, int64_t width, double scale, int64_t threads) {
  constexpr int64_t SIZE = KIND == FLOAT32 ? 4 : 2;
  const int64_t bytes = width * SIZE, head = room * bytes;
  static thread_local Room turned;
  char *q = turned.get(queries * bytes);
  const Row<KIND> c(cos + position * bytes), s(sin + position * bytes);
  for (int64_t h = 0; h < queries; h++) turn<KIND>(qkv + h * bytes, c, s, q + h * bytes, width);
  for (int64_t h = 0; h < pairs; h++) {
    turn<KIND>(qkv + (queries + h) * bytes, c, s, keys + h * head + position * bytes, width);
    std::memcpy(values + h * head + position * bytes, qkv + (queries + pairs + h) * bytes, bytes);
  }
  const auto held = [&](const char *at) { return Held{{}, {at, position + 1, 0, head}, {}, width}; };
  const int64_t work = 2 * (position + 1) * pairs * bytes;
  attend({held(keys), held(values), 0, nullptr, 1, pairs, queries / pairs, KIND, scale}, q, y,
         std::max<int64_t>(1, std::min(threads, work >> 16)));
}

} // namespace

#define EITHER(kind, call)                                                                                                         \
  {                                                                                                                                \
    if (kind == FLOAT32) {                                                                                                         \
      constexpr int KIND = FLOAT32;                                                                                                \
      call;                                                                                                                        \
    } else {                                                                                                                       \
      constexpr int KIND = BFLOAT16;                                                                                               \
      call;                                                                                                                        \
    }                                                                                                                              \
  }

/// hidden [n] += delta (null: nothing); y [n] = its norm times weight.
EXPORT void lowbit_norm(char *hidden, const char *delta, const char *weight, char *y, int64_t n, double eps, int64_t kind) {
  EITHER(kind, norm<KIND>(hidden, delta, weight, y, n, (float)eps));
}

/// to: row *token of table [rows][bytes]; zeros where there is none.
EXPORT void lowbit_row(const int64_t *token, const char *table, int64_t rows, int64_t bytes, char *to) {
  if (*token >= 0 && *token < rows) std::memcpy(to, table + *token * bytes, bytes);
  else std::memset(to, 0, bytes);
}

/// x [n], weight [rows][n], bias [rows] or null -> y [rows].
EXPORT void lowbit_plain(const char *x, const char *weight, const char *bias, char *y, int64_t rows, int64_t n, int64_t kind, int64_t threads) {
  Parts left(rows, threads, 16);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    int64_t start, stop;
    while (left.take(start, stop)) EITHER(kind, plain<KIND>(x, weight, bias, y, n, start, stop));
  }
}

/// both [2 n] -> y [n].
EXPORT void lowbit_gate(const char *both, char *y, int64_t n, int64_t kind) { EITHER(kind, gate<KIND>(both, y, n)); }

/// y [tokens][n] += bias [n].
EXPORT void lowbit_shift(char *y, const char *bias, int64_t tokens, int64_t n, int64_t kind) {
  for (int64_t m = 0; m < tokens; m++) EITHER(kind, shift<KIND>(y + m * n * Row<KIND>::SIZE, bias, n));
}

/// qkv [queries + 2 pairs heads][width] of one token at `position`, cos and sin [any][width] -> y [queries][width]. keys and values
/// [pairs][room][width] hold the tokens before it; it is written there.
EXPORT void lowbit_step_attention(const char *qkv, const char *cos, const char *sin, const int64_t *position, char *keys, char *values,
                                  int64_t room, char *y, int64_t queries, int64_t pairs, int64_t width, double scale, int64_t kind,
                                  int64_t threads) {
  EITHER(kind, attention<KIND>(qkv, cos, sin, *position, keys, values, room, y, queries, pairs, width, scale, threads));
}

/// The likeliest of `vocab` logits -> token, written[number]; position and number are one more.
EXPORT void lowbit_take(const char *logits, int64_t vocab, int64_t kind, int64_t *token, int64_t *position, int64_t *written, int64_t *number) {
  int64_t found = 0;
  EITHER(kind, found = likeliest<KIND>(logits, vocab));
  *token = written[*number] = found;
  *position += 1;
  *number += 1;
}
