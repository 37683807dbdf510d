// integers_tiles - whole-number codes times tokens in matrix registers.
//
// Bytes of x times codes as bytes (Tiled): exact, and the sums leave their tiles after each block. From more tokens on a panel is
// opened to bfloat16 (by_halves), and the sums stay.
#pragma once
#include "halves.h"
#include "integers_pairs.h"
#ifdef __AMX_INT8__

namespace {

/// Tokens from which on tiles multiply bytes, and from which on bfloat16 weights. A tile holds 64 inputs: half of it is empty
/// where groups are no multiples and not paired.
struct From {
  int64_t bytes, halves;
  explicit From(const Matrix &w) : bytes(w.group % 64 ? 6 : 3), halves(pairs(w) ? MOST_PAIRED + 1 : w.group % 64 ? 9 : 48) {}
};

/// Tokens in tiles: their bytes are the rows of one tile where all fit (STACKED), else of one for each byte.
constexpr int ROWS = 16;

inline Shapes shapes(const Inputs &x) {
  Shapes found;
  for (int i = 0; x.paired && i < 8; i++) found.set(i, ROWS, 64);
  if (x.paired) return found;
  const int64_t rows = x.team * (x.team * x.parts <= ROWS ? x.parts : 1);
  for (int i = 0; i < 4; i++) found.set(i, rows, 64);
  for (int i = 4; i < 6; i++) found.set(i, rows, 4 * x.side);
  for (int i = 6; i < 8; i++) found.set(i, x.side, 64);
  return found;
}

/// A panel times all tokens. The sums of a block are taken out of their tiles while those of the next are multiplied.
template <int PARTS, bool STACKED> struct Tiled {
  const Matrix &w;
  const Inputs &x;
  const Cut &cut;
  int64_t panel, tokens;
  float *y;
  /// Tiles of rows that are multiplied at once, and tiles of each.
  static constexpr int APART = STACKED ? 1 : PARTS, HIGH = APART == 1 ? 4 : APART == 2 ? 2 : 1;
  alignas(64) int32_t sums[2][4 * ROWS * TILE];
  /// What waits: where its sums are, whose they are.
  const int32_t *held = nullptr;
  int64_t block = 0, token = 0, first = 0;

  /// Multiply HIGH tiles of rows from q on.
  INLINE void multiply(const uint8_t *q, const int32_t *rows, int64_t steps) {
    const int64_t size = x.team * x.side, wide = 4 * x.side;
    EACH(i, 4) zero(i);
    for (int64_t step = 0; step < steps; step++, q += x.side * PANEL * 4, rows += size * PARTS) {
      tile_load<4>(rows, wide), tile_load<6>(q, PANEL * 4), tile_bytes<0, 4, 6>();
      if constexpr (APART == 1) {
        tile_load<7>(q + 64, PANEL * 4), tile_bytes<1, 4, 7>();
        tile_load<6>(q + 128, PANEL * 4), tile_bytes<2, 4, 6>();
        tile_load<7>(q + 192, PANEL * 4), tile_bytes<3, 4, 7>();
      } else {
        tile_load<5>(rows + size, wide), tile_bytes<1, 5, 6>();
        if constexpr (APART == 2) tile_load<7>(q + 64, PANEL * 4), tile_bytes<2, 4, 7>(), tile_bytes<3, 5, 7>();
        else tile_load<4>(rows + 2 * size, wide), tile_bytes<2, 4, 6>();
      }
    }
  }
  INLINE static void zero(int i) { i == 0 ? tile_zero<0>() : i == 1 ? tile_zero<1>() : i == 2 ? tile_zero<2>() : tile_zero<3>(); }

  INLINE void drain() {
    if (!held) return;
    const int64_t n = std::min(x.team, tokens - token), stride = x.team * TILE, groups = w.inputs / w.group;
    const int64_t place = (panel * groups + block / cut.a_group) * PANEL;
    for (int i = 0; i < HIGH; i++) {
      const Floats scale = scales(w, place + (first + i) * TILE), zero = zeros(w, place + (first + i) * TILE);
      const int32_t *at = held + i * PARTS * stride;
      float *to = y + token * PANEL + (first + i) * TILE;
      const float *all_sums = x.sums + token * x.blocks + block;
      for (int64_t m = 0; m < n; m++, at += TILE, to += PANEL, all_sums += x.blocks) {
        Floats all = real(PARTS == 1 ? load(at) : plus(left(load(at), 8), load(at + stride)));
        if (PARTS == 3) all = fuse(all, fill(256.0f), real(load(at + 2 * stride)));
        store(to, fuse(unfuse(zero, fill(*all_sums), all), scale, load(to)));
      }
    }
  }

  void add(int64_t next_block, const uint8_t *q) {
    const int64_t start = cut.start(next_block), steps = (cut.stop(next_block) - start) / (4 * x.side);
    for (int64_t next = 0; next < tokens; next += x.team)
      for (int i = 0; i < TILES; i += HIGH) {
        multiply(q + 64 * i, x.rows(next, start), steps);
        drain();
        int32_t *to = sums[held == sums[0]];
        const int64_t stride = x.team * TILE * (STACKED ? PARTS : 1);
        tile_store<0>(to, 64), tile_store<1>(to + stride, 64), tile_store<2>(to + 2 * stride, 64);
        if (APART != 3) tile_store<3>(to + 3 * stride, 64);
        held = to, block = next_block, token = next, first = i;
      }
  }
};

/// An open panel, block by block, times all tokens: y [tokens][PANEL].
template <int PARTS, bool STACKED>
void by_bytes(const Matrix &w, const Inputs &x, const Cut &cut, int64_t panel, int64_t tokens, uint8_t *q, float *y) {
  Tiled<PARTS, STACKED> sums{w, x, cut, panel, tokens, y};
  for (int64_t block = 0; block < cut.blocks; block++) {
    open_of(w.bits)(w, cut, panel, block, q);
    sums.add(block, q);
  }
  sums.drain();
}
inline void by_bytes(const Matrix &w, const Inputs &x, const Cut &cut, int64_t panel, int64_t tokens, uint8_t *q, float *y) {
  const bool stacked = x.team * x.parts <= ROWS;
  const auto by = x.parts == 1   ? by_bytes<1, true>
                  : x.parts == 2 ? (stacked ? by_bytes<2, true> : by_bytes<2, false>)
                                 : (stacked ? by_bytes<3, true> : by_bytes<3, false>);
  by(w, x, cut, panel, tokens, q, y);
}

/// A panel from `start` to `stop` as pairs of bfloat16, [steps][tiles][16 pairs of inputs][16 rows]. plain: without the scale.
template <int BITS> void open_halves(const Matrix &w, int64_t panel, int64_t start, int64_t stop, bool plain, char *to) {
  const int64_t groups = w.inputs / w.group;
  const uint8_t *p = w.codes + (panel * w.inputs + start) / CHUNK * TILES * 64 * BITS;
  Floats scale[TILES], offset[TILES];
  for (int64_t k = start, until = 0; k < stop; k += CHUNK) {
    if (k >= until) {
      until = (k / w.group + 1) * w.group;
      EACH(i, TILES) {
        const int64_t place = (panel * groups + k / w.group) * PANEL + i * TILE;
        scale[i] = plain ? fill(1.0f) : scales(w, place), offset[i] = unfuse(zeros(w, place), scale[i], fill(0.0f));
      }
    }
    ask<BITS>(p);
    EACH(tile, TILES) {
      EACH(pair, 4) {
        Reg q[2];
        unpack<BITS>(p, pair, q);
        EACH(j, 2) {
          const Ints byte = fill(255);
          Floats v[4];
          EACH(b, 4) v[b] = fuse(real(b == 3 ? right(q[j], 24) : both(b ? right(q[j], 8 * b) : q[j], byte)), scale[tile], offset[tile]);
          store(to + (4 * pair + 2 * j) * 64, rounded_pairs(v[0], v[1]));
          store(to + (4 * pair + 2 * j + 1) * 64, rounded_pairs(v[2], v[3]));
        }
      }
      p += 64 * BITS, to += TILE_BYTES;
    }
  }
}
using OpenHalves = void (*)(const Matrix &, int64_t, int64_t, int64_t, bool, char *);
OpenHalves open_halves_of(int bits) {
  constexpr OpenHalves found[] = {open_halves<1>, open_halves<2>, open_halves<3>, open_halves<4>, open_halves<5>, open_halves<6>, nullptr, open_halves<8>};
  return found[bits - 1];
}

/// bfloat16 x [tokens, inputs] -> y [tokens, rows], through bfloat16 weights; a scale for a whole row follows the sum.
void by_halves(const Matrix &w, const uint16_t *x, uint16_t *y, int64_t tokens, int64_t inputs, int64_t threads) {
  const bool plain = w.group == w.inputs;
  const auto open = [&](int64_t panel, int64_t from, int64_t to, char *room) { open_halves_of(w.bits)(w, panel, from * STEP, to * STEP, plain, room); };
  const auto sizes = [&](int64_t panel, float *each) {
    for (int i = 0; plain && i < TILES; i++) store(each + i * TILE, scales(w, panel * PANEL + i * TILE));
    return plain;
  };
  many_tokens<false>(x, y, tokens, w.rows, inputs, w.inputs / STEP, threads, Straight{inputs}, open, sizes);
}

} // namespace
#endif
