// lanes - sixteen lanes of 32 bits: one zmm of AVX-512, or two ymm of AVX2. All kernels are written in these words once.
// Where registers are counted, a kernel is written in single ones (Reg, RegF: REG_LANES lanes).
//
// A vector in memory is 64 bytes in both, so what is prepared for one instruction set is what the other reads.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

#define INLINE __attribute__((always_inline))

/// A loop that is written out, so that arrays of vectors stay in registers.
#define EACH(i, count) _Pragma("GCC unroll 96") for (int i = 0; i < (count); i++)

inline int32_t word(const void *p) {
  int32_t found;
  std::memcpy(&found, p, 4);
  return found;
}

#ifdef __AVX512VNNI__

using Ints = __m512i;
using Floats = __m512;
using Reg = Ints;
using RegF = Floats;
constexpr int REG_LANES = 16;

inline Ints load(const void *p) { return _mm512_loadu_si512(p); }
inline void store(void *p, Ints v) { _mm512_storeu_si512(p, v); }
inline Ints fill(int32_t v) { return _mm512_set1_epi32(v); }
inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
/// a | (b & mask)
inline Ints join(Ints a, Ints b, Ints mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xF8); }
inline Ints plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints left(Ints a, int n) { return _mm512_slli_epi32(a, n); }
inline Ints right(Ints a, int n) { return _mm512_srli_epi32(a, n); }
inline Ints times(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
/// sum + the four products of unsigned bytes of u and signed bytes of s; BITS: of u
template <int BITS> inline Ints dot(Ints sum, Ints u, Ints s) { return _mm512_dpbusd_epi32(sum, u, s); }
/// Dot products that sums of 16 bits hold before they must be widened; 0: sums have 32 bits anyway.
template <int BITS> constexpr int NARROW = 0;
template <int BITS> inline Reg narrow_dot(Reg sum, Reg u, Reg s) { return dot<BITS>(sum, u, s); }
template <int FACTOR> inline Reg widened(Reg sum, Reg narrow) { return sum; }
/// The words of 16 bits, two in a lane.
inline Ints fill16(int16_t v) { return _mm512_set1_epi16(v); }
inline Ints plus16(Ints a, Ints b) { return _mm512_add_epi16(a, b); }
inline Ints plus8(Ints a, Ints b) { return _mm512_add_epi8(a, b); }
/// The lower and the upper half of products; upper: of unsigned numbers.
inline Ints low16(Ints a, Ints b) { return _mm512_mullo_epi16(a, b); }
inline Ints high16(Ints a, Ints b) { return _mm512_mulhi_epu16(a, b); }
/// The sum of the two bytes of each word.
inline Ints pairs(Ints a) { return _mm512_maddubs_epi16(a, fill16(0x0101)); }
/// The lower 16 bits of (a then b) >> N, word by word
template <int N> inline Ints window(Ints a, Ints b) { return _mm512_shrdi_epi16(b, a, N); }
/// sum + the two products of signed words
inline Ints dot16(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
/// Four lanes, again and again.
inline Ints four(const void *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)); }
inline Floats real(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Ints whole(Floats a) { return _mm512_cvtps_epi32(a); }
inline Floats as_floats(Ints a) { return _mm512_castsi512_ps(a); }
inline Ints bytes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
inline Ints shorts(const uint16_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }

inline Floats fill(float v) { return _mm512_set1_ps(v); }
inline Floats load(const float *p) { return _mm512_loadu_ps(p); }
inline Reg reg(int32_t v) { return fill(v); }
inline Reg reg_at(const void *p) { return load(p); }
inline RegF regf(float v) { return fill(v); }
inline RegF regf_at(const float *p) { return load(p); }
inline Reg reg_of_bytes(const uint8_t *p) { return bytes(p); }
inline RegF regf_of_halves(const uint16_t *p) { return as_floats(left(shorts(p), 16)); }
inline void store(float *p, Floats v) { _mm512_storeu_ps(p, v); }
inline Floats minus(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
/// a b + c
inline Floats fuse(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
/// c - a b
inline Floats unfuse(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline float total(Floats a) { return _mm512_reduce_add_ps(a); }
inline Ints as_ints(Floats a) { return _mm512_castps_si512(a); }
inline Floats lesser(Floats a, Floats b) { return _mm512_min_ps(a, b); }
/// then where a < b, otherwise where not
inline Ints where_less(Floats a, Floats b, Ints then, Ints otherwise) {
  return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, then);
}
/// then where a is a number, otherwise where it is NaN
inline Ints where_number(Floats a, Ints then, Ints otherwise) {
  return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), otherwise, then);
}
/// The low word of each lane.
inline void store_shorts(uint16_t *p, Ints a) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(a)); }
/// The lanes of a with the numbers `at`.
inline Floats pick(Floats a, Ints at) { return _mm512_permutexvar_ps(at, a); }
/// The low byte of each lane.
inline void store_bytes(uint8_t *p, Ints a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }
inline Floats greater(Floats a, Floats b) { return _mm512_max_ps(a, b); }
/// Rounded to half precision and back.
inline Floats halved(Floats a) { return _mm512_cvtph_ps(_mm512_cvtps_ph(a, 0)); }

#else

using Reg = __m256i;
using RegF = __m256;
constexpr int REG_LANES = 8;

inline Reg reg(int32_t v) { return _mm256_set1_epi32(v); }
inline Reg reg_at(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
inline void store(void *p, Reg v) { _mm256_storeu_si256((__m256i *)p, v); }
inline Reg both(Reg a, Reg b) { return _mm256_and_si256(a, b); }
inline Reg join(Reg a, Reg b, Reg mask) { return _mm256_or_si256(a, both(b, mask)); }
inline Reg plus(Reg a, Reg b) { return _mm256_add_epi32(a, b); }
inline Reg left(Reg a, int n) { return _mm256_slli_epi32(a, n); }
inline Reg right(Reg a, int n) { return _mm256_srli_epi32(a, n); }
inline RegF real(Reg a) { return _mm256_cvtepi32_ps(a); }
inline Reg reg_of_bytes(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
inline RegF regf(float v) { return _mm256_set1_ps(v); }
inline RegF regf_at(const float *p) { return _mm256_loadu_ps(p); }
inline RegF regf_of_halves(const uint16_t *p) {
  return _mm256_castsi256_ps(left(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
inline void store(float *p, RegF v) { _mm256_storeu_ps(p, v); }
inline RegF times(RegF a, RegF b) { return _mm256_mul_ps(a, b); }
inline RegF fuse(RegF a, RegF b, RegF c) { return _mm256_fmadd_ps(a, b, c); }
inline RegF unfuse(RegF a, RegF b, RegF c) { return _mm256_fnmadd_ps(a, b, c); }

struct Ints {
  __m256i a, b;
};
struct Floats {
  __m256 a, b;
};
#define HALVES(what) {what(x.a), what(x.b)}

inline Ints load(const void *p) {
  return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
inline void store(void *p, Ints v) {
  _mm256_storeu_si256((__m256i *)p, v.a);
  _mm256_storeu_si256((__m256i *)p + 1, v.b);
}
inline Ints fill(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
inline Ints both(Ints x, Ints y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline Ints either(Ints x, Ints y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline Ints join(Ints x, Ints y, Ints mask) { return either(x, both(y, mask)); }
inline Ints plus(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints left(Ints x, int n) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
inline Ints right(Ints x, int n) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }
inline Ints times(Ints x, Ints y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }

/// Up to seven bits the sum of two products fits into 16 bits (127 * 128 * 2); eight are multiplied as 16-bit numbers.
template <int BITS> inline __m256i dot(__m256i sum, __m256i u, __m256i s) {
  if constexpr (BITS < 8) return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
  const __m256i even = _mm256_set1_epi16(255);
  const __m256i first = _mm256_madd_epi16(_mm256_and_si256(u, even), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i second = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(first, second));
}
template <int BITS> inline Ints dot(Ints sum, Ints u, Ints s) { return {dot<BITS>(sum.a, u.a, s.a), dot<BITS>(sum.b, u.b, s.b)}; }
/// Dot products that sums of 16 bits hold before they must be widened: each adds up to 2 * 128 codes. 0: of 32 bits anyway.
template <int BITS> constexpr int NARROW = BITS < 5 ? 8 : BITS == 5 ? 4 : BITS == 6 ? 2 : 0;
template <int BITS> inline Reg narrow_dot(Reg sum, Reg u, Reg s) {
  if constexpr (NARROW<BITS> == 0) return dot<BITS>(sum, u, s);
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, s));
}
/// sum + FACTOR times the two words of each lane of `narrow`
template <int FACTOR> inline Reg widened(Reg sum, Reg narrow) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(FACTOR)));
}
inline Ints fill16(int16_t v) { return {_mm256_set1_epi16(v), _mm256_set1_epi16(v)}; }
inline Ints plus16(Ints x, Ints y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
inline Ints plus8(Ints x, Ints y) { return {_mm256_add_epi8(x.a, y.a), _mm256_add_epi8(x.b, y.b)}; }
inline Ints low16(Ints x, Ints y) { return {_mm256_mullo_epi16(x.a, y.a), _mm256_mullo_epi16(x.b, y.b)}; }
inline Ints high16(Ints x, Ints y) { return {_mm256_mulhi_epu16(x.a, y.a), _mm256_mulhi_epu16(x.b, y.b)}; }
inline Ints pairs(Ints x) {
  const __m256i ones = _mm256_set1_epi16(0x0101);
  return {_mm256_maddubs_epi16(x.a, ones), _mm256_maddubs_epi16(x.b, ones)};
}
template <int N> inline __m256i window(__m256i a, __m256i b) { return _mm256_or_si256(_mm256_slli_epi16(a, 16 - N), _mm256_srli_epi16(b, N)); }
template <int N> inline Ints window(Ints x, Ints y) { return {window<N>(x.a, y.a), window<N>(x.b, y.b)}; }
inline Ints dot16(Ints sum, Ints x, Ints y) { return plus(sum, {_mm256_madd_epi16(x.a, y.a), _mm256_madd_epi16(x.b, y.b)}); }
inline Ints four(const void *p) {
  const __m256i found = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
  return {found, found};
}
inline Floats real(Ints x) { return HALVES(_mm256_cvtepi32_ps); }
inline Ints whole(Floats x) { return HALVES(_mm256_cvtps_epi32); }
inline Floats as_floats(Ints x) { return HALVES(_mm256_castsi256_ps); }
inline Ints bytes(const uint8_t *p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)), _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)))};
}
inline Ints shorts(const uint16_t *p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p + 1))};
}

inline Floats fill(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
inline Floats load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float *p, Floats v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
inline Floats minus(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Floats plus(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats times(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats fuse(Floats x, Floats y, Floats z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline Floats unfuse(Floats x, Floats y, Floats z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
inline float total(Floats x) {
  const __m256 sum = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline Ints as_ints(Floats x) { return HALVES(_mm256_castps_si256); }
inline Floats lesser(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline __m256i where_less(__m256 x, __m256 y, __m256i then, __m256i otherwise) {
  return _mm256_blendv_epi8(otherwise, then, _mm256_castps_si256(_mm256_cmp_ps(x, y, _CMP_LT_OQ)));
}
inline Ints where_less(Floats x, Floats y, Ints then, Ints otherwise) {
  return {where_less(x.a, y.a, then.a, otherwise.a), where_less(x.b, y.b, then.b, otherwise.b)};
}
inline __m256i where_number(__m256 x, __m256i then, __m256i otherwise) {
  return _mm256_blendv_epi8(otherwise, then, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q)));
}
inline Ints where_number(Floats x, Ints then, Ints otherwise) {
  return {where_number(x.a, then.a, otherwise.a), where_number(x.b, then.b, otherwise.b)};
}
inline void store_shorts(uint16_t *p, Ints x) {
  _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8));
}
inline __m256 pick(Floats x, __m256i at) {
  const __m256 low = _mm256_permutevar8x32_ps(x.a, at), high = _mm256_permutevar8x32_ps(x.b, at);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
inline Floats pick(Floats x, Ints at) { return {pick(x, at.a), pick(x, at.b)}; }
inline void store_bytes(uint8_t *p, Ints x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8);
  _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline Floats greater(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Floats halved(Floats x) { return {_mm256_cvtph_ps(_mm256_cvtps_ph(x.a, 0)), _mm256_cvtph_ps(_mm256_cvtps_ph(x.b, 0))}; }
#undef HALVES

#endif


/// Sixteen floats stored as bfloat16.
inline Floats halves(const uint16_t *p) { return as_floats(left(shorts(p), 16)); }

/// The nearest bfloat16 in the upper half of each lane, ties to even; NaN stays NaN.
inline Ints nearest_halves(Floats x) {
  const Ints bits = as_ints(x), odd = both(right(bits, 16), fill(1)), quiet = either(bits, fill(64 << 16));
  return where_number(x, plus(bits, plus(odd, fill(0x7FFF))), quiet);
}
inline void store_halves(uint16_t *p, Floats x) { store_shorts(p, right(nearest_halves(x), 16)); }
inline Floats rounded_halves(Floats x) { return as_floats(both(nearest_halves(x), fill((int32_t)0xFFFF0000))); }

/// e^x to 2e-7 of it; what lies below e^-87 or above e^88 is that. NaN stays NaN: of two, min and max give the second then.
inline Floats exponential(Floats x) {
  x = lesser(fill(88.0f), greater(fill(-87.0f), x));
  const Ints n = whole(times(x, fill(1.44269504f)));
  const Floats r = unfuse(real(n), fill(-2.12194440e-4f), unfuse(real(n), fill(0.693359375f), x));
  Floats p = fill(1.9875691500e-4f);
  constexpr float rest[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  EACH(i, 5) p = fuse(p, r, fill(rest[i]));
  p = plus(fuse(p, times(r, r), r), fill(1.0f));
  return as_floats(plus(as_ints(p), left(n, 23)));
}

} // namespace
