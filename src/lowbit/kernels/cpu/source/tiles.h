// tiles - the matrix registers of AMX: eight tiles of up to 16 rows of 64 bytes, and products of them.
//
// Permission to use them is the process's and asked for when the library is loaded (_build.py).
#pragma once
#ifdef __AMX_INT8__
#include <cstdint>

namespace {

/// Rows and columns of all eight tiles, for the thread that loads it.
struct Shapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t high, int64_t wide) { rows[tile] = (uint8_t)high, bytes[tile] = (uint16_t)wide; }
  void load() const { asm volatile("ldtilecfg %0" ::"m"(*this)); }
  static void release() { asm volatile("tilerelease"); }
};

template <int T> inline void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> inline void tile_load(const void *p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T> inline void tile_store(void *p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
/// C += A B: signed bytes of A times unsigned bytes of B, four a lane.
template <int C, int A, int B> inline void tile_bytes() { asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }
/// The same with signed bytes of B.
template <int C, int A, int B> inline void tile_signed() { asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }
/// C += A B: bfloat16 times bfloat16, two a lane.
template <int C, int A, int B> inline void tile_halves() { asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }

} // namespace
#endif
