// halves - many tokens: a panel of the matrix is opened to bfloat16 piece by piece, and matrix registers multiply it with all tokens.
//
// Both sides are tiles of 1 KiB, one after the other, since rows 8 KiB apart share the sets of the caches. The sums stay in
// memory between pieces, float32. A matrix whose rows come one by one is on the left of its product (TURNED), one with a row
// in each lane on the right.
#pragma once
#include "rows.h"
#include "tiles.h"
#include "work.h"
#ifdef __AMX_BF16__

namespace {

/// Inputs of a tile, bytes of a tile, rows of a tile and of a panel.
constexpr int64_t STEP = 32, TILE_BYTES = 1024, SIXTEEN = 16, HEIGHT = 64, HIGH_TILES = HEIGHT / SIXTEEN;
/// Tokens that share a panel, and steps of a panel that are open at once.
constexpr int64_t TOGETHER_TOKENS = 128, DEPTH = 32;

/// Two vectors rounded to bfloat16, the first in the lower half of each lane.
inline Ints rounded_pairs(Floats low, Floats high) {
  const Ints half = fill(0x8000), upper = _mm512_broadcast_i32x4(_mm_set_epi8(15, 14, 15, 14, 11, 10, 11, 10, 7, 6, 7, 6, 3, 2, 3, 2));
  return _mm512_mask_shuffle_epi8(plus(as_ints(high), half), 0x3333333333333333, plus(as_ints(low), half), upper);
}

/// Tokens as tiles: [tiles of 16 tokens][steps][16 tokens][32 inputs], or [16 pairs of inputs][16 tokens] (TURNED).
template <bool TURNED> struct Halves {
  int64_t tokens, steps;
  char *at;

  static int64_t tiles(int64_t tokens) { return (tokens + SIXTEEN - 1) / SIXTEEN; }
  static size_t size(int64_t tokens, int64_t steps) { return tiles(tokens) * steps * TILE_BYTES; }
  char *tile(int64_t number, int64_t step) const { return at + (number * steps + step) * TILE_BYTES; }

  /// A tile of tokens. x: of all tokens. order: where input k of a token lies among `steps` steps.
  template <class Order> void read(int64_t number, const uint16_t *x, int64_t inputs, const Order &order) const {
    std::memset(tile(number, 0), 0, steps * TILE_BYTES);
    for (int64_t row = 0; row < std::min(SIXTEEN, tokens - number * SIXTEEN); row++)
      order(x + (number * SIXTEEN + row) * inputs, tile(number, 0) + row * 2 * STEP);
    if constexpr (TURNED)
      for (int64_t step = 0; step < steps; step++) {
        uint8_t *p = (uint8_t *)tile(number, step);
        Ints v[4][4];
        EACH(i, 4) pieces(p + 16 * i, 64, v[i]), turn_words(v[i]);
        EACH(i, 16) store(p + 64 * i, v[i / 4][i % 4]);
      }
  }
};

/// A panel times all tokens. sums: [tiles of tokens][HIGH_TILES] tiles.
template <bool TURNED> struct Multiplied {
  const Halves<TURNED> &x;
  float *sums;

  static size_t size(int64_t tokens) { return Halves<TURNED>::tiles(tokens) * HIGH_TILES * TILE_BYTES; }
  static void begin() {
    Shapes shapes;
    for (int i = 0; i < 8; i++) shapes.set(i, SIXTEEN, 64);
    shapes.load();
  }

  template <int C> INLINE static void start(const char *at, bool first) { first ? tile_zero<C>() : tile_load<C>(at, 64); }

  /// Two tiles of tokens and two of rows.
  void four(const char *rows, int64_t from, int64_t steps, int64_t number, int64_t high) const {
    const int64_t next = x.steps * TILE_BYTES, one = TURNED ? HIGH_TILES * TILE_BYTES : TILE_BYTES;
    char *to = (char *)sums + (number * HIGH_TILES + high) * TILE_BYTES;
    char *c[4] = {to, to + TILE_BYTES, to + HIGH_TILES * TILE_BYTES, to + (HIGH_TILES + 1) * TILE_BYTES};
    start<0>(c[0], from == 0), start<1>(c[1], from == 0), start<2>(c[2], from == 0), start<3>(c[3], from == 0);
    const char *a = x.tile(number, from), *b = rows + high * TILE_BYTES;
    for (int64_t step = 0; step < steps; step++, a += TILE_BYTES, b += HIGH_TILES * TILE_BYTES) {
      tile_load<4>(a, 64), tile_load<6>(b, 64), product<0, 4, 6>();
      tile_load<7>(b + TILE_BYTES, 64), product<1, 4, 7>();
      tile_load<5>(a + next, 64), product<2, 5, 6>(), product<3, 5, 7>();
    }
    tile_store<0>(c[0], 64), tile_store<1>(c[1], 64), tile_store<2>(c[2], 64), tile_store<3>(c[3], 64);
  }

  /// A tile of tokens and all rows.
  void row(const char *rows, int64_t from, int64_t steps, int64_t number) const {
    char *to = (char *)sums + number * HIGH_TILES * TILE_BYTES;
    start<0>(to, from == 0), start<1>(to + TILE_BYTES, from == 0);
    start<2>(to + 2 * TILE_BYTES, from == 0), start<3>(to + 3 * TILE_BYTES, from == 0);
    const char *a = x.tile(number, from), *b = rows;
    for (int64_t step = 0; step < steps; step++, a += TILE_BYTES, b += HIGH_TILES * TILE_BYTES) {
      tile_load<4>(a, 64), tile_load<6>(b, 64), product<0, 4, 6>();
      tile_load<7>(b + TILE_BYTES, 64), product<1, 4, 7>();
      tile_load<6>(b + 2 * TILE_BYTES, 64), product<2, 4, 6>();
      tile_load<7>(b + 3 * TILE_BYTES, 64), product<3, 4, 7>();
    }
    tile_store<0>(to, 64), tile_store<1>(to + TILE_BYTES, 64), tile_store<2>(to + 2 * TILE_BYTES, 64), tile_store<3>(to + 3 * TILE_BYTES, 64);
  }

  template <int C, int X, int W> INLINE static void product() {
    if constexpr (TURNED) tile_halves<C, W, X>();
    else tile_halves<C, X, W>();
  }

  /// rows: [steps][HIGH_TILES] tiles of the panel, for the inputs of the steps from `from` on.
  void add(const char *rows, int64_t from, int64_t steps) const {
    const int64_t tiles = x.tiles(x.tokens);
    for (int64_t number = 0; number + 1 < tiles; number += 2)
      for (int64_t high = 0; high < HIGH_TILES; high += 2) four(rows, from, steps, number, high);
    if (tiles % 2) row(rows, from, steps, tiles - 1);
  }

  /// y: of the first token and the panel's first row. n: rows that there are. sizes: of each of 64, or null.
  void write(uint16_t *y, int64_t stride, int64_t n, const float *sizes) const {
    for (int64_t m = 0; m < x.tokens; m++) {
      alignas(64) float all[HEIGHT];
      for (int64_t high = 0; high < HIGH_TILES; high++) {
        const float *tile = sums + ((m / SIXTEEN) * HIGH_TILES + high) * (TILE_BYTES / 4);
        if constexpr (TURNED)
          for (int i = 0; i < SIXTEEN; i++) all[high * SIXTEEN + i] = tile[i * SIXTEEN + m % SIXTEEN];
        else store(all + high * SIXTEEN, load(tile + m % SIXTEEN * SIXTEEN));
      }
      for (int i = 0; sizes && i < HEIGHT; i++) all[i] *= sizes[i];
      narrow(all, y + m * stride, BFLOAT16, n);
    }
  }
};

/// bfloat16 x [tokens, inputs] -> y [tokens, rows].
/// order(from, to): a token into its tile; open(panel, from, to, room): steps of a panel; sizes(panel, room): what its rows are
/// multiplied with at the end, or false.
template <bool TURNED, class Order, class Open, class Sizes>
void many_tokens(const uint16_t *x, uint16_t *y, int64_t tokens, int64_t rows, int64_t inputs, int64_t steps, int64_t threads,
                 const Order &order, const Open &open, const Sizes &sizes) {
  using M = Multiplied<TURNED>;
  static thread_local Room shared;
  const int64_t most = std::min(tokens, TOGETHER_TOKENS), opened = DEPTH * HIGH_TILES * TILE_BYTES;
  char *tiles = shared.get(Halves<TURNED>::size(most, steps));
  for (int64_t first = 0; first < tokens; first += most) {
    const Halves<TURNED> all{std::min(most, tokens - first), steps, tiles};
    Parts tiles_left(all.tiles(all.tokens), threads), panels_left((rows + HEIGHT - 1) / HEIGHT, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      static thread_local Room room;
      char *mine = room.get(opened + M::size(most));
      const M sums{all, (float *)(mine + opened)};
      int64_t start, stop;
      while (tiles_left.take(start, stop))
        for (; start < stop; start++) all.read(start, x + first * inputs, inputs, order);
#pragma omp barrier
      M::begin();
      while (panels_left.take(start, stop))
        for (; start < stop; start++) {
          for (int64_t from = 0; from < steps; from += DEPTH) {
            const int64_t to = std::min(from + DEPTH, steps);
            open(start, from, to, mine);
            sums.add(mine, from, to - from);
          }
          float each[HEIGHT];
          const float *with = sizes(start, each) ? each : nullptr;
          sums.write(y + first * rows + start * HEIGHT, rows, std::min(HEIGHT, rows - start * HEIGHT), with);
        }
      Shapes::release();
    }
  }
}

/// Inputs of a token in their order.
struct Straight {
  int64_t inputs;
  void operator()(const uint16_t *from, char *to) const {
    for (int64_t k = 0; k < inputs; k += STEP) std::memcpy(to + k / STEP * TILE_BYTES, from + k, std::min(STEP, inputs - k) * 2);
  }
};

} // namespace
#endif
