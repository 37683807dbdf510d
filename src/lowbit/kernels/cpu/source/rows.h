// rows - sixteen rows of bytes as vectors: a word of each row in its lane, or a byte of four rows in each lane.
#pragma once
#include "lanes.h"

namespace {

#ifdef __AVX512VNNI__

#define LOW_HIGH(bits)                                                                     \
  inline Ints zip_low##bits(Ints a, Ints b) { return _mm512_unpacklo_epi##bits(a, b); }                      \
  inline Ints zip_high##bits(Ints a, Ints b) { return _mm512_unpackhi_epi##bits(a, b); }

/// 16 bytes of each of sixteen rows: vector i has those of rows i, 4 + i, 8 + i, 12 + i.
INLINE inline void pieces(const uint8_t *p, int64_t stride, Ints v[4]) {
  const auto at = [&](int row) { return _mm_loadu_si128((const __m128i *)(p + row * stride)); };
  EACH(i, 4) {
    const Ints two = _mm512_inserti32x4(_mm512_castsi128_si512(at(i)), at(4 + i), 1);
    v[i] = _mm512_inserti32x4(_mm512_inserti32x4(two, at(8 + i), 2), at(12 + i), 3);
  }
}

/// Quarters of vectors: quarter i of v[j] becomes quarter j of v[i].
INLINE inline void turn_quarters(Ints v[4]) {
  const Ints a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[0], v[1], 0xEE);
  const Ints c = _mm512_shuffle_i32x4(v[2], v[3], 0x44), d = _mm512_shuffle_i32x4(v[2], v[3], 0xEE);
  v[0] = _mm512_shuffle_i32x4(a, c, 0x88), v[1] = _mm512_shuffle_i32x4(a, c, 0xDD);
  v[2] = _mm512_shuffle_i32x4(b, d, 0x88), v[3] = _mm512_shuffle_i32x4(b, d, 0xDD);
}

#else

#define LOW_HIGH(bits)                                                                                          \
  inline Ints zip_low##bits(Ints x, Ints y) { return {_mm256_unpacklo_epi##bits(x.a, y.a), _mm256_unpacklo_epi##bits(x.b, y.b)}; }  \
  inline Ints zip_high##bits(Ints x, Ints y) { return {_mm256_unpackhi_epi##bits(x.a, y.a), _mm256_unpackhi_epi##bits(x.b, y.b)}; }

INLINE inline void pieces(const uint8_t *p, int64_t stride, Ints v[4]) {
  const auto at = [&](int row) { return _mm_loadu_si128((const __m128i *)(p + row * stride)); };
  EACH(i, 4) {
    v[i].a = _mm256_inserti128_si256(_mm256_castsi128_si256(at(i)), at(4 + i), 1);
    v[i].b = _mm256_inserti128_si256(_mm256_castsi128_si256(at(8 + i)), at(12 + i), 1);
  }
}

INLINE inline void turn_quarters(Ints v[4]) {
  const Ints a = v[0], b = v[1], c = v[2], d = v[3];
  v[0] = {_mm256_permute2x128_si256(a.a, b.a, 0x20), _mm256_permute2x128_si256(c.a, d.a, 0x20)};
  v[1] = {_mm256_permute2x128_si256(a.a, b.a, 0x31), _mm256_permute2x128_si256(c.a, d.a, 0x31)};
  v[2] = {_mm256_permute2x128_si256(a.b, b.b, 0x20), _mm256_permute2x128_si256(c.b, d.b, 0x20)};
  v[3] = {_mm256_permute2x128_si256(a.b, b.b, 0x31), _mm256_permute2x128_si256(c.b, d.b, 0x31)};
}

#endif

/// Every second number of a, then of b, in each quarter: the lower ones side by side, the higher ones.
LOW_HIGH(8)
LOW_HIGH(16)
LOW_HIGH(32)
LOW_HIGH(64)
#undef LOW_HIGH

/// What `pieces` gave -> word i of the sixteen rows in v[i], a row a lane.
INLINE inline void turn_words(Ints v[4]) {
  const Ints a = zip_low32(v[0], v[1]), b = zip_high32(v[0], v[1]), c = zip_low32(v[2], v[3]), d = zip_high32(v[2], v[3]);
  v[0] = zip_low64(a, c), v[1] = zip_high64(a, c), v[2] = zip_low64(b, d), v[3] = zip_high64(b, d);
}

/// What `pieces` gave -> in v[i] the bytes of rows 4 i .. 4 i + 3: lane j has byte j of the four.
INLINE inline void turn_bytes(Ints v[4]) {
  const Ints a = zip_low8(v[0], v[1]), b = zip_high8(v[0], v[1]), c = zip_low8(v[2], v[3]), d = zip_high8(v[2], v[3]);
  v[0] = zip_low16(a, c), v[1] = zip_high16(a, c), v[2] = zip_low16(b, d), v[3] = zip_high16(b, d);
  turn_quarters(v);
}

} // namespace
