// trellis - y = x W.T for trellis codes whose values are sums of the bytes of state * a number: computed, not looked up.
//
// Lanes are tiles: 32 lanes of 16 bits are the states of 32 tiles of 16 x 16 (4 rows of tiles, 8 columns) at one step. The steps
// of a tile take its rows in pairs r, r + 8 (places: lowbit/dtypes/_trellis.py), so that a slice is 32 places of each tile: two
// rows of sums, kept in registers along all inputs. trellis.py says how the words of a slice lie.
//
// A sum of bytes has 10 bits. bfloat16 x becomes 16 bits with one scale a token, sums are multiplied with them as they are, and
// the value's slope and offset follow: values before their rounding to half precision. float32 x is multiplied by the values.
#include "halves.h"
#include "inputs.h"

#include <utility>

namespace {

/// Which rule makes values of states: mul1, mul2 (two values a state), trellis_int, mul1 of
/// 12 bits. Numbers known to Python (trellis.py).
enum Rule { ONE = 0, TWO = 1, MASKED = 2, SHORT = 3 };
constexpr uint32_t FIRST = 0x83DCD12D, SECOND = 0xCBAC1FED;
/// A panel of tiles, HIGH and WIDE, is ROWS high and SPAN wide.
constexpr int SIDE = 16, HIGH = 4, WIDE = 8, ROWS = HIGH * SIDE, SPAN = WIDE * SIDE, SLICES = 8, PLACES = 32;
/// Tokens that share decoded values in registers.
constexpr int TEAM = 4;
/// Spans summed as integers: two products of 1020 * 32767 for each of 16 columns stay below 2^31.
constexpr int64_t TOGETHER = 2;
constexpr int32_t RANGE = 32767;
/// mul1 and mul2: value = SLOPE * (1024 + sum) + OFFSET, the half-precision numbers 0x1EEE and 0xC931.
constexpr float SLOPE = 1774.0f / 262144, OFFSET = -1329.0f / 128;

struct Matrix {
  const uint8_t *words;
  int64_t rows, spans;
  const float *scale;
  bool shared;
  float size(int64_t row) const { return scale[shared ? 0 : row]; }
};

/// body(0) .. body(N - 1) with numbers that the compiler knows.
template <class Body, int... AT> INLINE inline void each(const Body &body, std::integer_sequence<int, AT...>) {
  (body(std::integral_constant<int, AT>()), ...);
}
template <int N, class Body> INLINE inline void each(const Body &body) { each(body, std::make_integer_sequence<int, N>()); }

/// The column of a tile, and which of its two rows, that a place of a slice is.
constexpr int column(int place) { return place / 8 * 2 + place % 2 + place / 2 % 2 * 8; }
constexpr int half(int place) { return place / 4 % 2; }

/// The sums of the four bytes of words of 16 bits times a number of 32.
template <uint32_t FACTOR> INLINE inline Ints byte_sums(Ints states) {
#ifdef __AVX512VNNI__
  const Ints even = _mm512_mullo_epi32(both(states, fill(0xFFFF)), fill((int32_t)FACTOR)), zero = fill(0);
  const Ints odd = _mm512_mullo_epi32(right(states, 16), fill((int32_t)FACTOR));
  return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_dbsad_epu8(even, zero, 0), _mm512_dbsad_epu8(odd, zero, 0));
#else
  const Ints low = low16(states, fill16((int16_t)FACTOR));
  const Ints high = plus16(low16(states, fill16((int16_t)(FACTOR >> 16))), high16(states, fill16((int16_t)FACTOR)));
  return plus16(pairs(low), pairs(high));
#endif
}
/// The same, each byte without its two highest bits.
template <uint32_t FACTOR> INLINE inline Ints masked_sums(Ints states) {
  const Ints low = low16(states, fill16((int16_t)FACTOR)), mask = fill(0x3F3F3F3F);
  const Ints high = plus16(low16(states, fill16((int16_t)(FACTOR >> 16))), high16(states, fill16((int16_t)FACTOR)));
  return pairs(plus8(both(low, mask), both(high, mask)));
}

template <int RULE, int BITS> struct Code {
  static constexpr int values = RULE == TWO ? 2 : 1, bits = PLACES / values * BITS, words = bits / 16;
  /// A slice is decoded in turns of whole words.
  static constexpr int turns = bits % 64 == 0 ? 4 : bits % 32 == 0 ? 2 : 1, places = PLACES / turns;
  static constexpr float slope = RULE == MASKED ? 1 : SLOPE, offset = RULE == MASKED ? -126 : 1024 * SLOPE + OFFSET;

  template <int WHICH> static INLINE Ints sums(Ints states) {
    if constexpr (RULE == MASKED) return masked_sums<SECOND>(states);
    else return byte_sums<WHICH ? SECOND : FIRST>(states);
  }

  /// Values of sums, as floats.
  static INLINE Floats value(Ints sum) {
    if (RULE == MASKED) return minus(real(sum), fill(126.0f));
    return halved(fuse(plus(real(sum), fill(1024.0f)), fill(SLOPE), fill(OFFSET)));
  }

  /// body(place, columns, sums) for the places of a slice: column(place) + columns is their column. before: the last word of the
  /// slice before, of the same tiles.
  template <class Body> static INLINE void decode(const uint8_t *p, const uint8_t *before, const Body &body) {
    constexpr int count = words / turns;
    Ints word[count + 1];
    word[count] = load(before);
    for (int turn = 0; turn < turns; turn++, p += 64 * count) {
      word[0] = word[count];
      EACH(i, count) word[i + 1] = load(p + 64 * i), _mm_prefetch((const char *)p + 64 * i + AHEAD, _MM_HINT_T1);
      each<places / values>([&](auto step) INLINE {
        constexpr int end = (step + 1) * BITS, rest = end % 16;
        Ints states = word[(end + 15) / 16];
        if constexpr (rest != 0) states = window<16 - rest>(word[end / 16], states);
        if constexpr (RULE == SHORT) states = both(states, fill(0x0FFF0FFF));
        each<values>([&](auto which) INLINE {
          body(std::integral_constant<int, step * values + which>(), turn * (places / 4), sums<which>(states));
        });
      });
    }
  }
};

INLINE inline Ints evens(Ints sums) { return both(sums, fill(0xFFFF)); }
INLINE inline Ints odds(Ints sums) { return right(sums, 16); }

/// Words of the slices of a panel of 64 rows: [SLICES][spans][words].
struct Slice {
  const uint8_t *p, *before;
  int64_t stride;
  Slice(const Matrix &w, int64_t panel, int slice, int words) : stride(64 * words) {
    const int64_t all = w.spans * stride;
    const uint8_t *first = w.words + panel * SLICES * all;
    p = first + slice * all;
    before = first + (slice + SLICES - 1) % SLICES * all + stride - 64;
  }
  void next(int64_t spans = 1) { p += spans * stride, before += spans * stride; }
};

/// Tokens by teams: [teams][spans][SIDE columns][team][8 columns of tiles]: 16 bits, or floats, even columns first.
struct Tokens {
  int64_t team, spans;
  int wide;
  char *at;
  float *scale, *sum;

  static size_t size(int64_t tokens, int64_t spans) { return tokens * (spans * SPAN * 4 + 8); }
  Tokens(char *room, int64_t tokens, int64_t team, int64_t spans, bool whole) : team(team), spans(spans), wide(whole ? 16 : 32) {
    at = room;
    scale = (float *)(room + tokens * spans * SPAN * 4);
    sum = scale + tokens;
  }
  const char *of(int64_t token, int64_t span) const { return at + ((token / team * spans + span) * SIDE * team + token % team) * wide; }

  /// room: floats for all spans.
  void read(int64_t token, const void *from, int kind, int64_t n, float *room) {
    widen(from, kind, room, n);
    std::memset(room + n, 0, (spans * SPAN - n) * 4);
    if (kind == BFLOAT16) round(token, room);
    for (int64_t span = 0; span < spans; span++)
      for (int c = 0; c < SIDE; c++) {
        const float *x = room + span * SPAN + c;
        char *to = (char *)of(token, span) + c * team * wide;
        for (int i = 0; i < 8; i++) {
          if (kind == BFLOAT16) ((int16_t *)to)[i] = (int16_t)x[SIDE * i];
          else ((float *)to)[i % 2 * 4 + i / 2] = x[SIDE * i];
        }
      }
  }

  /// Infinity and NaN reach every output through the scale.
  void round(int64_t token, float *x) {
    const float peak = Inputs::peak_of(x, spans * SPAN);
    const bool small = peak < 1e-30f;
    const float inverse = small ? 0 : RANGE / peak;
    int64_t all = 0;
    for (int64_t k = 0; k < spans * SPAN; k++) {
      const float v = x[k] * inverse;
      const int32_t code = (int32_t)(v + (v < 0 ? -0.5f : 0.5f));
      x[k] = (float)code, all += code;
    }
    scale[token] = small ? 0 : peak / RANGE, sum[token] = (float)all;
  }
};

/// M tokens from `token` on times a panel: y [M][ROWS]. WHOLE: of 16 bits.
template <int RULE, int BITS, int M, bool WHOLE> void few(const Matrix &w, const Tokens &x, int64_t panel, int64_t token, float *y) {
  using C = Code<RULE, BITS>;
  for (int slice = 0; slice < SLICES; slice++) {
    Slice at(w, panel, slice, C::words);
    Floats found[2][M];
    EACH(i, 2 * M) found[i / M][i % M] = fill(0.0f);
    for (int64_t first = 0; first < w.spans; first += TOGETHER) {
      Ints sum[2][M];
      EACH(i, 2 * M) sum[i / M][i % M] = fill(0);
      for (int64_t span = first; span < std::min(first + TOGETHER, w.spans); span++, at.next()) {
        const char *quads = x.of(token, span);
        C::decode(at.p, at.before, [&](auto place, int columns, Ints sums) INLINE {
          constexpr int h = half(place);
          const char *all = quads + (column(place) + columns) * M * (WHOLE ? 16 : 32);
          if constexpr (WHOLE) {
            EACH(m, M) sum[h][m] = dot16(sum[h][m], sums, four(all + 16 * m));
          } else {
            const Floats even = C::value(evens(sums)), odd = C::value(odds(sums));
            EACH(m, M) {
              const Floats one = as_floats(four(all + 32 * m)), two = as_floats(four(all + 32 * m + 16));
              found[h][m] = fuse(odd, two, fuse(even, one, found[h][m]));
            }
          }
        });
      }
      if (WHOLE) EACH(i, 2 * M) found[i / M][i % M] = plus(found[i / M][i % M], real(sum[i / M][i % M]));
    }
    EACH(i, 2 * M) {
      const int h = i / M, m = i % M;
      float lanes[16];
      store(lanes, found[h][m]);
      for (int tile = 0; tile < HIGH; tile++) {
        const float *four = lanes + 4 * tile;
        float all = (four[0] + four[1]) + (four[2] + four[3]);
        if (WHOLE) all = (C::slope * all + C::offset * x.sum[token + m]) * x.scale[token + m];
        y[m * ROWS + tile * SIDE + slice + 8 * h] = all;
      }
    }
  }
}

/// Where a panel is decoded to: [ROWS][spans * SPAN], inputs of a span as (column of a tile, tile). Rows that are not there are not written.
struct Rows {
  char *y;
  int64_t rows, spans, wide;
  bool there(int64_t row) const { return row < rows; }
  char *at(int64_t row, int64_t span, int64_t column) const { return y + (row * spans * SPAN + span * SPAN + column * WIDE) * wide; }
};
#ifdef __AMX_BF16__
/// The same in tiles of 16 rows and 32 inputs (halves.h).
struct Tiles {
  char *room;
  bool there(int64_t) const { return true; }
  char *at(int64_t row, int64_t span, int64_t column) const {
    const int64_t k = span * SPAN + column * WIDE;
    return room + (k / STEP * HIGH_TILES + row / SIXTEEN) * TILE_BYTES + row % SIXTEEN * 64 + k % STEP * 2;
  }
};
#endif

/// Spans of a panel decoded to bfloat16 (WHOLE) or float32. place: of its rows, the first span at 0.
template <int RULE, int BITS, bool WHOLE, class Place> void open(const Matrix &w, int64_t panel, int64_t first, int64_t last, const Place &place_of) {
  using C = Code<RULE, BITS>;
  constexpr int64_t wide = WHOLE ? 2 : 4;
  for (int slice = 0; slice < SLICES; slice++) {
    Slice at(w, panel, slice, C::words);
    at.next(first);
    float sizes[32];
    int64_t rows[2 * HIGH];
    for (int i = 0; i < 32; i++) {
      const int64_t row = rows[i / 4] = i % 16 / 4 * SIDE + slice + i / 16 * 8;
      sizes[i] = panel * ROWS + row < w.rows ? w.size(panel * ROWS + row) : 0;
    }
    for (int64_t span = 0; span < last - first; span++, at.next())
      C::decode(at.p, at.before, [&](auto place, int columns, Ints sums) INLINE {
        constexpr int h = half(place);
        const int64_t to = column(place) + columns;
        const Floats size = load(sizes + 16 * h);
        alignas(64) char lanes[32 * wide];
        if constexpr (WHOLE) {
          const Floats slope = times(size, fill(C::slope)), offset = times(size, fill(C::offset));
          const Ints up = fill(0x8000), even = plus(as_ints(fuse(real(evens(sums)), slope, offset)), up);
          store(lanes, join(right(even, 16), plus(as_ints(fuse(real(odds(sums)), slope, offset)), up), fill((int32_t)0xFFFF0000)));
        } else {
          float apart[32];
          store(apart, times(C::value(evens(sums)), size)), store(apart + 16, times(C::value(odds(sums)), size));
          for (int i = 0; i < 32; i++) ((float *)lanes)[i] = apart[i / 2 + i % 2 * 16];
        }
        EACH(tile, HIGH) {
          const int64_t row = rows[HIGH * h + tile];
          if (place_of.there(row)) std::memcpy(place_of.at(row, span, to), lanes + tile * WIDE * wide, WIDE * wide);
        }
      });
  }
}

using Few = void (*)(const Matrix &, const Tokens &, int64_t, int64_t, float *);
template <class Place> using Open = void (*)(const Matrix &, int64_t, int64_t, int64_t, const Place &);
struct Kernels {
  Few one, team, floats;
  Open<Rows> open, open_floats;
#ifdef __AMX_BF16__
  Open<Tiles> open_tiles;
#endif
};
template <int RULE, int BITS> constexpr Kernels kernels_of() {
  return {few<RULE, BITS, 1, true>, few<RULE, BITS, TEAM, true>, few<RULE, BITS, 1, false>, open<RULE, BITS, true, Rows>, open<RULE, BITS, false, Rows>,
#ifdef __AMX_BF16__
          open<RULE, BITS, true, Tiles>,
#endif
  };
}
/// The rates that are compiled: RULES of trellis.py.
Kernels kernels(int64_t rule, int64_t bits) {
  constexpr Kernels ones[] = {kernels_of<ONE, 1>(), kernels_of<ONE, 2>(), kernels_of<ONE, 3>(), kernels_of<ONE, 4>()};
  constexpr Kernels twos[] = {kernels_of<TWO, 3>(), kernels_of<TWO, 4>(), kernels_of<TWO, 5>(), kernels_of<TWO, 7>()};
  constexpr Kernels masked[] = {kernels_of<MASKED, 2>(), kernels_of<MASKED, 3>(), kernels_of<MASKED, 4>()};
  constexpr Kernels shorts[] = {kernels_of<SHORT, 2>(), kernels_of<SHORT, 3>(), kernels_of<SHORT, 4>()};
  return rule == ONE ? ones[bits - 1] : rule == TWO ? twos[bits - (bits < 6 ? 3 : 4)] : (rule == MASKED ? masked : shorts)[bits - 2];
}

} // namespace

/// x [tokens, inputs] of `kind` -> y [tokens, rows] of the same; without x: y [rows, padded inputs] becomes the decoded matrix.
EXPORT void lowbit_trellis(const char *x, char *y, int64_t kind, int64_t tokens, int64_t rows, int64_t inputs, const uint8_t *words,
                           int64_t rule, int64_t bits, const float *scale, int64_t shared, int64_t threads) {
  const int64_t spans = (inputs + SPAN - 1) / SPAN, panels = (rows + ROWS - 1) / ROWS, wide = kind == FLOAT32 ? 4 : 2;
  const Matrix w{words, rows, spans, scale, shared != 0};
  const Kernels found = kernels(rule, bits);
  const Few few = kind == FLOAT32 ? found.floats : tokens == 1 ? found.one : found.team;
  const int64_t team = few == found.team ? TEAM : 1, held = (tokens + team - 1) / team * team;
  static thread_local Room room;
  Tokens numbers(room.get(Tokens::size(held + 1, spans)), held, team, spans, kind == BFLOAT16);
  float *line = (float *)(numbers.sum + held);
  for (int64_t m = 0; x && m < held; m++) numbers.read(m, x + std::min(m, tokens - 1) * inputs * wide, kind, inputs, line);
  Parts left(panels, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    int64_t panel, stop;
    while (left.take(panel, stop))
      for (; panel < stop; panel++) {
        if (!x) {
          const Rows to{y + panel * ROWS * spans * SPAN * wide, rows - panel * ROWS, spans, wide};
          (kind == FLOAT32 ? found.open_floats : found.open)(w, panel, 0, spans, to);
          continue;
        }
        const int64_t n = std::min<int64_t>(ROWS, rows - panel * ROWS);
        for (int64_t first = 0; first < tokens; first += team) {
          float sums[TEAM * ROWS];
          few(w, numbers, panel, first, sums);
          for (int64_t m = 0; m < std::min(team, tokens - first); m++) {
            for (int64_t i = 0; i < n; i++) sums[m * ROWS + i] *= w.size(panel * ROWS + i);
            narrow(sums + m * ROWS, y + ((first + m) * rows + panel * ROWS) * wide, kind, n);
          }
        }
      }
  }
}

#ifdef __AMX_BF16__
/// Many tokens: bfloat16 x [tokens, inputs] -> y [tokens, rows].
EXPORT void lowbit_trellis_tiles(const uint16_t *x, uint16_t *y, int64_t tokens, int64_t rows, int64_t inputs, const uint8_t *words,
                                 int64_t rule, int64_t bits, const float *scale, int64_t shared, int64_t threads) {
  constexpr int64_t turn = SPAN / STEP;
  const int64_t spans = (inputs + SPAN - 1) / SPAN;
  const Matrix w{words, rows, spans, scale, shared != 0};
  const Open<Tiles> open = kernels(rule, bits).open_tiles;
  const auto order = [&](const uint16_t *from, char *to) {
    for (int64_t k = 0; k < inputs; k++) {
      const int64_t place = k % SIDE * WIDE + k % SPAN / SIDE, step = k / SPAN * turn + place / STEP;
      std::memcpy(to + step * TILE_BYTES + place % STEP * 2, from + k, 2);
    }
  };
  const auto opened = [&](int64_t panel, int64_t from, int64_t to, char *room) { open(w, panel, from / turn, to / turn, Tiles{room}); };
  many_tokens<true>(x, y, tokens, rows, inputs, spans * turn, threads, order, opened, [](int64_t, float *) { return false; });
}
#endif
