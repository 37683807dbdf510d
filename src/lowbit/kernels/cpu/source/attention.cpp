// attention - one new token of each sequence attends to held keys and values: y = softmax(scale q K^T) V. See attention.py.
//
// A tile of up to TILE tokens is opened in the first cache: keys with a token a lane, values with a channel a lane, so that no
// product is summed across lanes. Of packed tokens the codes are opened as bytes, four channels of a key or one channel of four
// tokens to a lane; queries, and the weights times the scales of values, become whole numbers of two bytes (float32: three), so
// that products are exact sums of dot() and a weight of 4 bits takes a sixteenth of it. Zeros and means follow the sums.
// Threads share sequences, heads and slices of the past; each slice keeps its part of the softmax, the parts are added in order.
#include "attention.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "rows.h"
#include "work.h"

namespace {

constexpr int TILE = 64, LANES = 16;
/// Query heads and vectors of a tile that multiply together: as many sums as there are registers for.
#ifdef __AVX512VNNI__
constexpr int TEAM = 4, WIDE = 2, WIDE_FLOATS = 4;
#else
constexpr int TEAM = 2, WIDE = 1, WIDE_FLOATS = 2;
#endif
/// What the greatest number becomes in one, two and three signed bytes.
constexpr float RANGES[] = {127, 127 * 256 + 127, 127 * 65536};
constexpr float NOTHING = -1e30f;

template <int N> using Number = std::integral_constant<int, N>;

/// f(first, Number) for teams of up to TEAM of n.
template <class F> inline void in_teams(int64_t n, F f) {
  int64_t first = 0;
  for (; first + TEAM <= n; first += TEAM) f(first, Number<TEAM>{});
  if constexpr (TEAM > 2) {
    if (n - first == 3) f(first, Number<3>{});
    if (n - first == 2) f(first, Number<2>{});
  }
  if (n - first == 1) f(first, Number<1>{});
}

/// f(first, Number) for spans of STEP of n, then for those of one.
template <int STEP, class F> inline void in_spans(int64_t n, F f) {
  int64_t first = 0;
  for (; first + STEP <= n; first += STEP) f(first, Number<STEP>{});
  for (; first < n && STEP > 1; first++) f(first, Number<1>{});
}

inline Floats some(const void *p, int kind) { return kind == FLOAT32 ? load((const float *)p) : halves((const uint16_t *)p); }

/// x [n] as whole numbers in signed bytes, the highest first, [PARTS][stride]; what one of them is worth.
template <int PARTS> float whole_bytes(const float *x, int64_t n, uint8_t *to, int64_t stride) {
  int32_t bits = 0;  // of the largest magnitude: those of NaN are above all, and reach every product through the step
  for (int64_t i = 0; i < n; i++) bits = std::max(bits, word(x + i) & 0x7FFFFFFF);
  float peak;
  std::memcpy(&peak, &bits, 4);
  const float step = peak / RANGES[PARTS - 1], inverse = peak < 1e-30f ? 0 : RANGES[PARTS - 1] / peak;
  const Ints low = fill(255);
  for (int64_t i = 0; i < n; i += LANES) {
    const Ints v = whole(times(load(x + i), fill(inverse)));
    EACH(part, PARTS) {
      constexpr int32_t carry[] = {0, 128, 128 + 128 * 256};
      const int below = PARTS - 1 - part;
      store_bytes(to + part * stride + i, both(right(plus(v, fill(carry[below])), 8 * below), low));
    }
  }
  return step;
}

/// The sum of such numbers, of n from the start of each part on.
template <int PARTS> float sum_of(const uint8_t *bytes, int64_t stride, int64_t n) {
  int64_t sum = 0;
  for (int part = 0; part < PARTS; part++) {
    int32_t some = 0;
    for (int64_t i = 0; i < n; i++) some += (int8_t)bytes[part * stride + i];
    sum = sum * 256 + some;
  }
  return (float)sum;
}

/// Where opened codes, floats and results of a thread lie.
struct Scratch {
  uint8_t *opened, *bytes, *rows;
  float *floats, *scales, *zeros, *scores, *shares;
};

/// The softmax of the query heads of one key head over a slice. packed, plain [group][width]: values in their basis and as they are.
struct State {
  float *top, *total, *packed, *plain;
};

template <int KIND> struct Worker {
  static constexpr int PARTS = KIND == FLOAT32 ? 3 : 2, SIZE = KIND == FLOAT32 ? 4 : 2;
  const Attention &a;
  const int64_t group, keys, values;
  Scratch at;
  /// Scaled queries [group][keys], as they are and in the basis of the keys; as bytes [group][PARTS][keys] in the order of codes.
  float *q, *turned, *q_step, *q_sum;
  uint8_t *q_bytes;

  static int64_t numbers(const Attention &a) {
    const int64_t wide = std::max(a.keys.width, a.values.width), side = std::max(a.keys.pages.groups, a.values.pages.groups) + 1;
    return wide * TILE * 2 + a.group * (2 * a.keys.width + 3 * wide + 2 * TILE + 2 * TILE + side + 1) + TILE * (4 + 2 * side) + 16 * wide;
  }

  Worker(const Attention &a, float *room) : a(a), group(a.group), keys(a.keys.width), values(a.values.width) {
    const int64_t wide = std::max(keys, values), side = std::max(a.keys.pages.groups, a.values.pages.groups) + 1;
    const auto take = [&](int64_t n) {
      float *found = room;
      room += (n + LANES - 1) / LANES * LANES;
      return found;
    };
    at.floats = take(wide * TILE), at.opened = (uint8_t *)at.floats;
    at.rows = (uint8_t *)take(16 * wide), at.bytes = (uint8_t *)take(group * TILE);
    at.scores = take(group * TILE), at.shares = take(TILE);
    at.scales = take(TILE * side), at.zeros = take(TILE * side);
    q = take(group * keys), turned = take(group * keys), q_bytes = (uint8_t *)take(group * keys);
    q_step = take(group), q_sum = take(group * side);
  }

  // ---- queries

  /// The channel of number i of codes: those of one lane lie side by side.
  static int64_t channel(int64_t i, int64_t bits) {
    const int64_t codes = 8 / bits, word = i / (4 * codes), code = i % (4 * codes);
    return word * 4 * codes + code % 4 * codes + code / 4;
  }

  void ask(const char *from, int64_t head) {
    widen(from + head * group * keys * SIZE, KIND, q, group * keys);
    for (int64_t i = 0; i < group * keys; i++) q[i] *= (float)a.scale;
    const Packed &pages = a.keys.pages;
    if (!a.packed) return;
    const float *basis = pages.basis ? pages.basis + head * pages.basis_step : nullptr;
    for (int64_t m = 0; m < group; m++) {
      float *x = turned + m * keys, *ordered = at.floats;
      std::memcpy(x, q + m * keys, keys * 4);
      if (basis) {
        std::memset(x, 0, keys * 4);
        for (int64_t c = 0; c < keys; c++) add(x, basis + c * keys, q[m * keys + c], keys);
      }
      for (int64_t i = 0; i < keys; i++) ordered[i] = x[channel(i, pages.bits)];
      q_step[m] = whole_bytes<PARTS>(ordered, keys, q_bytes + m * PARTS * keys, keys);
      const int64_t each = keys / pages.groups;
      for (int64_t g = 0; g < pages.groups; g++) q_sum[m * pages.groups + g] = sum_of<PARTS>(q_bytes + m * PARTS * keys + g * each, keys, each);
    }
  }

  static void add(float *to, const float *from, float times_it, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store(to + i, fuse(load(from + i), fill(times_it), load(to + i)));
  }

  // ---- opening tiles

  /// Asks for the bytes of a tile behind the one that is used now.
  static void ahead(const void *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)from + bytes + i, _MM_HINT_T1);
  }

  /// 16 rows of `bytes` from `p` on of which n are there: those themselves, or a copy with zeros behind.
  const uint8_t *whole_rows(const uint8_t *p, int64_t n, int64_t bytes) const {
    if (n >= LANES) return p;
    std::memcpy(at.rows, p, n * bytes);
    std::memset(at.rows + n * bytes, 0, (LANES - n) * bytes);
    return at.rows;
  }

  /// Floats of n tokens -> [keys][tokens].
  void open_floats(const char *from, int64_t n) const {
    const int64_t bytes = keys * SIZE, blocks = (n + LANES - 1) / LANES;
    ahead(from, n * bytes);
    for (int64_t block = 0; block < blocks; block++) {
      const uint8_t *p = whole_rows((const uint8_t *)from + block * LANES * bytes, n - block * LANES, bytes);
      float *to = at.floats + block * LANES;
      for (int64_t piece = 0; piece < bytes; piece += 16) {
        Ints v[4];
        pieces(p + piece, bytes, v);
        turn_words(v);
        EACH(i, 4) {
          const int64_t c = (piece / 4 + i) * (4 / SIZE);
          if constexpr (KIND == FLOAT32) store(to + c * blocks * LANES, as_floats(v[i]));
          else {
            store(to + c * blocks * LANES, as_floats(left(v[i], 16)));
            store(to + (c + 1) * blocks * LANES, as_floats(both(v[i], fill((int32_t)0xFFFF0000))));
          }
        }
      }
    }
  }

  template <int BITS, class F> static inline void parts_of(Ints v, F f) {
    constexpr int32_t mask = BITS == 8 ? -1 : ((1 << BITS) - 1) * 0x01010101;
    EACH(s, 8 / BITS) f(s, both(s ? right(v, BITS * s) : v, fill(mask)));
  }

  /// Codes of keys of n tokens -> bytes [quads of channels][tokens][4].
  template <int BITS> void open_keys(const uint8_t *from, int64_t n) const {
    const int64_t bytes = keys * BITS / 8, blocks = (n + LANES - 1) / LANES;
    ahead(from, n * bytes);
    for (int64_t block = 0; block < blocks; block++) {
      const uint8_t *p = whole_rows(from + block * LANES * bytes, n - block * LANES, bytes);
      for (int64_t piece = 0; piece < bytes; piece += 16) {
        Ints v[4];
        pieces(p + piece, bytes, v);
        turn_words(v);
        EACH(i, 4) {
          uint8_t *to = at.opened + ((piece / 4 + i) * (8 / BITS) * blocks + block) * 64;
          parts_of<BITS>(v[i], [&](int s, Ints found) { store(to + s * blocks * 64, found); });
        }
      }
    }
  }

  /// Codes of values of n tokens -> bytes [quads of tokens][vectors of channels][16 channels][4].
  template <int BITS> void open_values(const uint8_t *from, int64_t n) const {
    const int64_t bytes = values * BITS / 8, blocks = (n + LANES - 1) / LANES;
    ahead(from, n * bytes);
    for (int64_t block = 0; block < blocks; block++) {
      const uint8_t *p = whole_rows(from + block * LANES * bytes, n - block * LANES, bytes);
      for (int64_t piece = 0; piece < bytes; piece += 16) {
        Ints v[4];
        pieces(p + piece, bytes, v);
        turn_bytes(v);
        EACH(i, 4) {
          uint8_t *to = at.opened + (block * 4 + i) * values * 4 + piece / 16 * (8 / BITS) * 64;
          parts_of<BITS>(v[i], [&](int s, Ints found) { store(to + s * 64, found); });
        }
      }
    }
  }

  /// The channel of lane i of opened values.
  static int64_t channel_of_value(int64_t i, int64_t bits) {
    const int64_t codes = 8 / bits, piece = i / (LANES * codes), s = i / LANES % codes;
    return (piece * LANES + i % LANES) * codes + s;
  }

  /// Scales and zeros of n tokens, [groups][TILE], zeros behind them.
  void sides(const Packed &pages, int64_t batch, int64_t head, int64_t start, int64_t n) const {
    const int64_t place = batch * pages.parts_batch + head * pages.parts_head + start * pages.groups;
    const float fixed = pages.fixed ? pages.fixed[head * pages.fixed_step] : 0, half = (float)(1 << (pages.bits - 1));
    for (int64_t g = 0; g < pages.groups; g++) {
      float *scale = at.scales + g * TILE, *zero = at.zeros + g * TILE;
      for (int64_t t = 0; t < n; t++) {
        scale[t] = pages.fixed ? fixed : widened(pages.scale[place + t * pages.groups + g]);
        zero[t] = pages.zero ? widened(pages.zero[place + t * pages.groups + g]) : half;
      }
      for (int64_t t = n; t < TILE; t++) scale[t] = zero[t] = 0;
    }
  }

  // ---- products

  /// Sums of quads: of opened bytes [quads][row] the vectors from `opened` on, times bytes x of M heads.
  template <int BITS, int M, int W>
  static inline void dots(const uint8_t *opened, int64_t row, int64_t quads, const uint8_t *x, int64_t head, int64_t part, Floats found[M][W]) {
    Ints sum[M][PARTS][W];
    EACH(i, M * PARTS * W) sum[i / W / PARTS][i / W % PARTS][i % W] = fill(0);
    for (int64_t quad = 0; quad < quads; quad++, opened += row, x += 4) {
      Ints v[W];
      EACH(w, W) v[w] = load(opened + 64 * w);
      EACH(m, M) {
        EACH(p, PARTS) {
          const Ints number = fill(word(x + m * head + p * part));
          EACH(w, W) sum[m][p][w] = dot<BITS>(sum[m][p][w], v[w], number);
        }
      }
    }
    EACH(m, M) {
      EACH(w, W) {
        found[m][w] = real(plus(left(sum[m][0][w], 8), sum[m][1][w]));
        if constexpr (PARTS == 3) found[m][w] = fuse(found[m][w], fill(256.0f), real(sum[m][PARTS - 1][w]));
      }
    }
  }

  /// Scores [group][TILE] of the opened keys.
  template <int BITS> void packed_scores(int64_t n) const {
    const Packed &pages = a.keys.pages;
    const int64_t blocks = (n + LANES - 1) / LANES, groups = pages.groups, each = keys / groups;
    in_teams(group, [&](int64_t first, auto team) {
      in_spans<WIDE>(blocks, [&](int64_t block, auto wide) {
        constexpr int M = decltype(team)::value, W = decltype(wide)::value;
        Floats score[M][W];
        EACH(i, M * W) score[i / W][i % W] = fill(0.0f);
        for (int64_t g = 0; g < groups; g++) {
          Floats found[M][W];
          const uint8_t *x = q_bytes + first * PARTS * keys + g * each;
          dots<BITS, M, W>(at.opened + (g * each / 4 * blocks + block) * 64, blocks * 64, each / 4, x, PARTS * keys, keys, found);
          EACH(w, W) {
            const int64_t place = g * TILE + (block + w) * LANES;
            const Floats scale = load(at.scales + place), zero = load(at.zeros + place);
            EACH(m, M) {
              const Floats less = unfuse(zero, fill(q_sum[(first + m) * groups + g]), found[m][w]);
              score[m][w] = fuse(times(less, scale), fill(q_step[first + m]), score[m][w]);
            }
          }
        }
        EACH(i, M * W) store(at.scores + (first + i / W) * TILE + (block + i % W) * LANES, score[i / W][i % W]);
      });
    });
  }

  void plain_scores(int64_t n) const {
    const int64_t blocks = (n + LANES - 1) / LANES, row = blocks * LANES;
    in_teams(group, [&](int64_t first, auto team) {
      in_spans<WIDE_FLOATS>(blocks, [&](int64_t block, auto wide) {
        constexpr int M = decltype(team)::value, W = decltype(wide)::value;
        Floats score[M][W];
        EACH(i, M * W) score[i / W][i % W] = fill(0.0f);
        for (int64_t c = 0; c < keys; c++) {
          Floats v[W];
          EACH(w, W) v[w] = load(at.floats + c * row + (block + w) * LANES);
          EACH(m, M) {
            const Floats x = fill(q[(first + m) * keys + c]);
            EACH(w, W) score[m][w] = fuse(v[w], x, score[m][w]);
          }
        }
        EACH(i, M * W) store(at.scores + (first + i / W) * TILE + (block + i % W) * LANES, score[i / W][i % W]);
      });
    });
  }

  /// Take n scores of each head into the softmax: they become weights, zeros behind them.
  void soften(State &state, int64_t n) const {
    for (int64_t m = 0; m < group; m++) {
      float *score = at.scores + m * TILE, top = state.top[m], lanes[LANES];
      for (int64_t t = n; t < TILE; t++) score[t] = -std::numeric_limits<float>::infinity();
      store(lanes, greater(greater(load(score), load(score + 16)), greater(load(score + 32), load(score + 48))));
      for (float one : lanes) top = std::max(top, one);
      if (top > state.top[m]) {
        const float fade = std::exp(state.top[m] - top);
        state.top[m] = top, state.total[m] *= fade;
        for (int64_t c = 0; c < values; c++) state.packed[m * values + c] *= fade, state.plain[m * values + c] *= fade;
      }
      Floats sum = fill(0.0f);
      for (int64_t t = 0; t < TILE; t += LANES) {
        const Floats weight = exponential(minus(load(score + t), fill(top)));
        store(score + t, weight);
        if (t + LANES <= n) sum = plus(sum, weight);
        else
          for (int64_t i = t; i < n; i++) state.total[m] += score[i];
      }
      for (int64_t t = n; t < TILE; t++) score[t] = 0;
      state.total[m] += total(sum);
    }
  }

  template <int BITS> void add_packed(State &state, int64_t n) const {
    const Packed &pages = a.values.pages;
    const int64_t groups = pages.groups, wide_of = values / LANES / groups, quads = (n + LANES - 1) / LANES * 4;
    for (int64_t g = 0; g < groups; g++)
      in_teams(group, [&](int64_t first, auto team) {
        constexpr int M = decltype(team)::value;
        float step[M], zeros[M];
        for (int m = 0; m < M; m++) {
          const float *weight = at.scores + (first + m) * TILE, *scale = at.scales + g * TILE, *zero = at.zeros + g * TILE;
          for (int64_t t = 0; t < TILE; t += LANES) store(at.shares + t, times(load(weight + t), load(scale + t)));
          step[m] = whole_bytes<PARTS>(at.shares, TILE, at.bytes + m * PARTS * TILE, TILE);
          Floats sum = fill(0.0f);
          const Floats inverse = fill(step[m] > 0 ? 1 / step[m] : 0);
          for (int64_t t = 0; t < TILE; t += LANES) sum = fuse(real(whole(times(load(at.shares + t), inverse))), load(zero + t), sum);
          zeros[m] = total(sum);
        }
        in_spans<WIDE>(wide_of, [&](int64_t some, auto wide) {
          constexpr int W = decltype(wide)::value;
          const int64_t place = g * wide_of + some;
          Floats found[M][W];
          dots<BITS, M, W>(at.opened + place * 64, values * 4, quads, at.bytes, PARTS * TILE, TILE, found);
          EACH(m, M) {
            EACH(w, W) {
              float *to = state.packed + (first + m) * values + (place + w) * LANES;
              store(to, fuse(minus(found[m][w], fill(zeros[m])), fill(step[m]), load(to)));
            }
          }
        });
      });
  }

  void add_plain(State &state, const char *from, int64_t n) const {
    ahead(from, n * values * SIZE);
    in_teams(group, [&](int64_t first, auto team) {
      in_spans<WIDE_FLOATS>(values / LANES, [&](int64_t place, auto wide) {
        constexpr int M = decltype(team)::value, W = decltype(wide)::value;
        Floats sum[M][W];
        float *to = state.plain + first * values + place * LANES;
        EACH(i, M * W) sum[i / W][i % W] = load(to + i / W * values + i % W * LANES);
        for (int64_t t = 0; t < n; t++) {
          Floats v[W];
          EACH(w, W) v[w] = some(from + (t * values + (place + w) * LANES) * SIZE, KIND);
          EACH(m, M) {
            const Floats weight = fill(at.scores[(first + m) * TILE + t]);
            EACH(w, W) sum[m][w] = fuse(v[w], weight, sum[m][w]);
          }
        }
        EACH(i, M * W) store(to + i / W * values + i % W * LANES, sum[i / W][i % W]);
      });
    });
  }

  /// f(mean, t, stop) for the tokens of a tile that share one.
  template <class F> void each_mean(const Packed &pages, int64_t width, int64_t batch, int64_t head, int64_t start, int64_t n, F f) const {
    for (int64_t t = 0; pages.mean && t < n;) {
      const int64_t step = (start + t) / pages.centred, stop = std::min(n, (step + 1) * pages.centred - start);
      f(pages.mean + batch * pages.mean_batch + head * pages.mean_head + step * width, t, stop);
      t = stop;
    }
  }

  // ---- tiles

  void packed_tile(State &state, int64_t batch, int64_t head, int64_t start, int64_t n) const {
    const Packed &k = a.keys.pages, &v = a.values.pages;
    const uint8_t *k_codes = k.codes + batch * k.codes_batch + head * k.codes_head + start * keys * k.bits / 8;
    const uint8_t *v_codes = v.codes + batch * v.codes_batch + head * v.codes_head + start * values * v.bits / 8;
    sides(k, batch, head, start, n);
    if (k.bits == 8) open_keys<8>(k_codes, n), packed_scores<8>(n);
    else k.bits == 4 ? open_keys<4>(k_codes, n) : open_keys<2>(k_codes, n), packed_scores<4>(n);
    each_mean(k, keys, batch, head, start, n, [&](const uint16_t *mean, int64_t t, int64_t stop) {
      for (int64_t m = 0; m < group; m++) {
        Floats sum = fill(0.0f);
        for (int64_t c = 0; c < keys; c += LANES) sum = fuse(halves(mean + c), load(q + m * keys + c), sum);
        const float more = total(sum);
        for (int64_t i = t; i < stop; i++) at.scores[m * TILE + i] += more;
      }
    });
    soften(state, n);
    sides(v, batch, head, start, n);
    if (v.bits == 8) open_values<8>(v_codes, n), add_packed<8>(state, n);
    else v.bits == 4 ? open_values<4>(v_codes, n) : open_values<2>(v_codes, n), add_packed<4>(state, n);
    each_mean(v, values, batch, head, start, n, [&](const uint16_t *mean, int64_t t, int64_t stop) {
      for (int64_t m = 0; m < group; m++) {
        float weight = 0;
        for (int64_t i = t; i < stop; i++) weight += at.scores[m * TILE + i];
        for (int64_t c = 0; c < values; c++) state.plain[m * values + c] += weight * widened(mean[c]);
      }
    });
  }

  void plain_tile(State &state, const Plain &k, const Plain &v, int64_t batch, int64_t head, int64_t start, int64_t n) const {
    open_floats(k.at + batch * k.batch + head * k.head + start * keys * SIZE, n);
    plain_scores(n);
    soften(state, n);
    add_plain(state, v.at + batch * v.batch + head * v.head + start * values * SIZE, n);
  }

  /// Values in the order of their channels and out of their basis: all of them in `plain`.
  void finish(State &state, int64_t head) const {
    const Packed &pages = a.values.pages;
    if (!a.packed) return;
    const float *basis = pages.basis ? pages.basis + head * pages.basis_step : nullptr;
    for (int64_t m = 0; m < group; m++) {
      float *ordered = at.floats, *to = state.plain + m * values;
      for (int64_t i = 0; i < values; i++) ordered[channel_of_value(i, pages.bits)] = state.packed[m * values + i];
      for (int64_t c = 0; c < values; c++) {
        if (!basis) {
          to[c] += ordered[c];
          continue;
        }
        Floats sum = fill(0.0f);
        for (int64_t d = 0; d < values; d += LANES) sum = fuse(load(basis + c * values + d), load(ordered + d), sum);
        to[c] += total(sum);
      }
    }
  }

  /// Tiles start .. stop of a sequence: of the pages first, then of the floats before and behind them.
  void slice(State &state, const char *from, int64_t batch, int64_t head, int64_t part, int64_t parts) {
    const Plain &first = a.keys.first, &last = a.keys.last;
    const int32_t *counts = a.counts ? a.counts + 3 * batch : nullptr;
    const int64_t n[3] = {counts ? counts[1] : a.packed, counts ? counts[0] : first.count, counts ? counts[2] : last.count};
    int64_t tiles[3], all = 0;
    for (int i = 0; i < 3; i++) all += tiles[i] = (n[i] + TILE - 1) / TILE;
    const int64_t start = all * part / parts, stop = all * (part + 1) / parts;
    for (int64_t m = 0; m < group; m++) state.top[m] = NOTHING, state.total[m] = 0;
    std::memset(state.packed, 0, group * values * 4), std::memset(state.plain, 0, group * values * 4);
    if (start == stop) return;
    ask(from + batch * a.heads * group * keys * SIZE, head);
    for (int64_t tile = start; tile < stop; tile++) {
      int64_t i = 0, own = tile;
      for (; own >= tiles[i]; i++) own -= tiles[i];
      const int64_t place = own * TILE, some = std::min<int64_t>(TILE, n[i] - place);
      if (i == 0) packed_tile(state, batch, head, place, some);
      else i == 1 ? plain_tile(state, first, a.values.first, batch, head, place, some)
                  : plain_tile(state, last, a.values.last, batch, head, place, some);
    }
    finish(state, head);
  }

  /// What the slices of a key head have, added.
  void combine(const float *slots, int64_t slot, int64_t parts, char *to) const {
    for (int64_t m = 0; m < group; m++) {
      float top = NOTHING, sum = 0, *y = at.floats;
      for (int64_t i = 0; i < parts; i++) top = std::max(top, slots[i * slot + m]);
      std::memset(y, 0, values * 4);
      for (int64_t i = 0; i < parts; i++) {
        const float *own = slots + i * slot, share = std::exp(own[m] - top);
        sum += own[group + m] * share;
        add(y, own + (2 * group + LANES - 1) / LANES * LANES + group * values + m * values, share, values);
      }
      for (int64_t c = 0; c < values; c++) y[c] = sum == 0 ? 0 : y[c] / sum;
      narrow(y, to + m * values * SIZE, KIND, values);
    }
  }
};

template <int KIND> void run(const Attention &a, const char *q, char *y, int64_t threads) {
  const int64_t pairs = a.batch * a.heads, tokens = a.packed + a.keys.first.count + a.keys.last.count;
  /// Enough slices that a slow core does not keep the others waiting; none below 512 tokens.
  const int64_t parts = threads == 1 ? 1 : std::max<int64_t>(1, std::min((4 * threads + pairs - 1) / pairs, tokens / 512));
  const int64_t stats = (2 * a.group + LANES - 1) / LANES * LANES, slot = stats + 2 * a.group * a.values.width;
  static thread_local Room slots;
  float *all = (float *)slots.get(pairs * parts * slot * 4);
  Parts left(pairs * parts, threads), done(pairs, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Room room;
    Worker<KIND> worker(a, (float *)room.get(Worker<KIND>::numbers(a) * 4 + 20 * 64));
    int64_t start, stop;
    while (left.take(start, stop))
      for (; start < stop; start++) {
        float *own = all + start * slot;
        State state{own, own + a.group, own + stats, own + stats + a.group * a.values.width};
        worker.slice(state, q, start / parts / a.heads, start / parts % a.heads, start % parts, parts);
      }
#pragma omp barrier
    while (done.take(start, stop))
      for (; start < stop; start++)
        worker.combine(all + start * parts * slot, slot, parts, y + start * a.group * a.values.width * Worker<KIND>::SIZE);
  }
}

} // namespace

void attend(const Attention &asked, const char *q, char *y, int64_t threads) {
  asked.kind == FLOAT32 ? run<FLOAT32>(asked, q, y, threads) : run<BFLOAT16>(asked, q, y, threads);
}

EXPORT void lowbit_attend(const Attention *asked, const char *q, char *y, int64_t threads) { attend(*asked, q, y, threads); }
