// integers - codes of 1 to 6 and 8 bits as they lie in memory, and how they are unpacked.
//
// Tiles of 16 rows: a lane is a row, its four bytes are four inputs. A chunk is 32 inputs of a tile, 64 bytes for each bit of
// a code, in planes of 4, 2 and 1 bits; chunks of the four tiles of a panel lie side by side (integers.py).
#pragma once
#include "inputs.h"

namespace {

struct Matrix {
  const uint8_t *codes;
  const void *scale;
  const void *zero;
  bool float_zero;
  float middle;
  int64_t rows, inputs, group;
  int bits, scale_kind;
};

constexpr int TILE = 16, CHUNK = 32;
/// Rows are padded to whole panels.
constexpr int PANEL = 64, TILES = PANEL / TILE;

/// Moved to the left, or to the right if negative.
INLINE inline Reg moved(Reg v, int bits) { return bits > 0 ? left(v, bits) : bits < 0 ? right(v, -bits) : v; }

/// `bits` bits of each byte, from bit `from` on. GFNI takes any bits of a byte to any places at once.
INLINE inline Reg field(Reg v, int from, int bits) {
#ifdef __GFNI__
  if (from > 0) {
    uint64_t taken = 0;
    for (int i = 0; i < bits; i++) taken |= 1ull << (from + i) << 8 * (7 - i);
    return _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64((int64_t)taken), 0);
  }
#endif
  return both(moved(v, -from), reg(0x01010101 * ((1 << bits) - 1)));
}

/// Codes of a chunk as bytes: q[i] has inputs 4i .. 4i + 3 of REG_LANES rows, here for i = 2 pair and the next.
template <int BITS> INLINE inline void unpack(const uint8_t *p, int pair, Reg q[2]) {
  if constexpr (BITS == 8) {
    EACH(j, 2) q[j] = reg_at(p + 64 * (2 * pair + j));
    return;
  }
  if constexpr ((BITS & 4) != 0) {
    const Reg v = reg_at(p + 64 * pair);
    EACH(j, 2) q[j] = field(v, 4 * j, 4);
    p += 256;
  }
  if constexpr ((BITS & 2) != 0) {
    constexpr int place = BITS & 4;
    const Reg mask = reg(0x03030303 << place), both_pairs = reg_at(p + pair / 2 * 64);
    EACH(j, 2) {
      const int from = (2 * pair + j) % 4 * 2;
      q[j] = place ? join(q[j], moved(both_pairs, place - from), mask) : field(both_pairs, from, 2);
    }
    p += 128;
  }
  if constexpr ((BITS & 1) != 0) {
    constexpr int place = BITS & 6;
    const Reg mask = reg(0x01010101 << place), all = reg_at(p);
    EACH(j, 2) {
      const int from = 2 * pair + j;
      q[j] = place ? join(q[j], moved(all, place - from), mask) : field(all, from, 1);
    }
  }
}

/// The scales of REG_LANES rows for a group. at: their place.
inline RegF scales(const Matrix &w, int64_t at) {
  return w.scale_kind == FLOAT32 ? regf_at((const float *)w.scale + at) : regf_of_halves((const uint16_t *)w.scale + at);
}

/// The zero points of REG_LANES rows for a group, in codes.
inline RegF zeros(const Matrix &w, int64_t at) {
  if (w.zero == nullptr) return regf(w.middle);
  return w.float_zero ? regf_of_halves((const uint16_t *)w.zero + at) : real(reg_of_bytes((const uint8_t *)w.zero + at));
}

/// Ask for the codes of a chunk of a panel, AHEAD of this one.
template <int BITS> INLINE inline void ask(const uint8_t *codes) {
  EACH(i, TILES * BITS) _mm_prefetch((const char *)codes + i * 64 + AHEAD, _MM_HINT_T1);
}

/// The codes of a panel and block as bytes: [quads of inputs][tiles][64].
template <int BITS> void open(const Matrix &w, const Cut &cut, int64_t panel, int64_t block, uint8_t *to) {
  const int64_t start = cut.start(block);
  const uint8_t *p = w.codes + (panel * w.inputs + start) / CHUNK * TILES * 64 * BITS;
  for (int64_t k = start; k < cut.stop(block); k += CHUNK) {
    ask<BITS>(p);
    for (int tile = 0; tile < TILES; tile++, p += 64 * BITS) {
      EACH(pair, 4) {
        for (int part = 0; part < 64; part += 4 * REG_LANES) {
          Reg q[2];
          unpack<BITS>(p + part, pair, q);
          EACH(j, 2) store(to + ((k - start) / 4 + 2 * pair + j) * PANEL * 4 + tile * 64 + part, q[j]);
        }
      }
    }
  }
}

using Open = void (*)(const Matrix &, const Cut &, int64_t, int64_t, uint8_t *);
Open open_of(int bits) {
  constexpr Open found[] = {open<1>, open<2>, open<3>, open<4>, open<5>, open<6>, nullptr, open<8>};
  return found[bits - 1];
}

} // namespace
