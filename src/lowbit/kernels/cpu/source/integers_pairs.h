// integers_pairs - codes of 4 bits in groups of 32 times few tokens in matrix registers.
//
// A tile holds 64 inputs and leaves its registers in 16 steps, however little it holds. So two groups share one: the rows of x have
// nought where the other group is, and both bytes of four tokens times two groups are all its rows. The sums are exact.
#pragma once
#include "halves.h"
#include "integers.h"
#ifdef __AMX_INT8__

namespace {

/// Tokens that are multiplied together, and tokens up to which this is quicker than bfloat16 weights.
constexpr int PAIRED = 4;
constexpr int64_t MOST_PAIRED = 16;

/// Whether the groups of a matrix can be paired.
inline bool pairs(const Matrix &w) {
  return w.bits == 4 && w.middle == 8 && w.group == CHUNK && w.inputs % (2 * CHUNK) == 0 && !w.zero && w.scale_kind == BFLOAT16;
}

/// A chunk of codes of 4 bits, less 8, as signed bytes: eight rows of a tile. Nibbles with their first bit turned and repeated.
INLINE inline void open_signed(const uint8_t *p, uint8_t *to) {
  const Reg low = _mm512_set1_epi64(0x0102040808080808), high = _mm512_set1_epi64(0x1020408080808080);
  EACH(i, 4) {
    const Reg v = reg_at(p + 64 * i);
    store(to + 128 * i, _mm512_gf2p8affine_epi64_epi8(v, low, 0xF8));
    store(to + 128 * i + 64, _mm512_gf2p8affine_epi64_epi8(v, high, 0xF8));
  }
}

/// PAIRED tokens from `token` on times a panel: y [PAIRED][PANEL]. A turn is one tile: it takes out sums that were stored two turns
/// ago, stores those of four turns ago, multiplies, and opens codes for the turn after the next. Both ends go on with the
/// last pair, and sums that are nought.
inline void paired(const Matrix &w, const Inputs &x, int64_t panel, int64_t token, float *y) {
  constexpr int64_t BYTES = TILES * 256;
  /// 4 KiB together: a load waits for stores at the same place of another 4 KiB.
  struct Rings {
    uint8_t q[2][TILE_BYTES];
    int32_t sums[2][TILE_BYTES / 4];
  };
  alignas(4096) static thread_local Rings rings;
  Rings &ring = rings;
  const int64_t groups = w.inputs / 32, last = groups / 2 - 1;
  const uint8_t *codes = w.codes + panel * groups * BYTES;
  const uint16_t *sizes = (const uint16_t *)w.scale + panel * groups * PANEL;
  const int8_t *first = x.pairs(token);
  Floats found[TILES][PAIRED];
  EACH(i, TILES * PAIRED) found[i / PAIRED][i % PAIRED] = fill(0.0f);
  const auto open = [&](int64_t pair, int tile, uint8_t *to) INLINE {
    const uint8_t *p = codes + std::min(pair, last) * 2 * BYTES + tile * 256;
    EACH(i, 8) _mm_prefetch((const char *)p + i / 4 * BYTES + i % 4 * 64 + AHEAD, _MM_HINT_T1);
    open_signed(p, to), open_signed(p + BYTES, to + TILE_BYTES / 2);
  };
  const auto drain = [&](int64_t pair, int tile, const int32_t *at) INLINE {
    const uint16_t *size = sizes + std::max<int64_t>(pair, 0) * 2 * PANEL + tile * TILE;
    EACH(i, 2 * PAIRED) {
      const int32_t *high = at + (i / PAIRED * 2 * PAIRED + i % PAIRED) * TILE;
      Floats &to = found[tile][i % PAIRED];
      to = fuse(real(dot16(load(high + PAIRED * TILE), load(high), fill(256))), halves(size + i / PAIRED * PANEL), to);
    }
  };
  std::memset(ring.sums, 0, sizeof ring.sums);
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  open(0, 0, ring.q[0]), open(0, 1, ring.q[1]);
  for (int64_t pair = 0;; pair++) {
    const int8_t *rows = first + std::min(pair, last) * TILE_BYTES;
    tile_load<4>(rows, 64);
    EACH(i, 16) _mm_prefetch((const char *)rows + TILE_BYTES + i * 64, _MM_HINT_T0);
    const auto turn = [&](auto number) INLINE {
      constexpr int i = number, far = (i + 2) % 4, b = 5 + i % 3;
      drain(pair - (i < 2 ? 2 : 1), far, ring.sums[i % 2]);
      tile_store<i>(ring.sums[i % 2], 64), tile_zero<i>();
      tile_load<b>(ring.q[i % 2], 64), tile_signed<i, 4, b>();
      open(pair + (i < 2 ? 0 : 1), far, ring.q[i % 2]);
    };
    turn(std::integral_constant<int, 0>()), turn(std::integral_constant<int, 1>());
    if (pair > last + 1) break;
    turn(std::integral_constant<int, 2>()), turn(std::integral_constant<int, 3>());
  }
  EACH(i, TILES * PAIRED) {
    store(y + i % PAIRED * PANEL + i / PAIRED * TILE, times(found[i / PAIRED][i % PAIRED], fill(x.scale[token + i % PAIRED])));
  }
}

} // namespace
#endif
