// work - what all kernels share: floats in and out, work shared out among threads, memory that a thread keeps.
#pragma once
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

/// Bytes of a matrix that are asked for ahead: what the processor asks for by itself ends with each page.
constexpr int64_t AHEAD = 8192;

/// How floats are stored. Numbers known to Python (_library.py).
enum Kind { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

inline float widened(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float found;
  std::memcpy(&found, &bits, 4);
  return found;
}

/// Nearest, ties to even. NaN stays NaN.
inline uint16_t narrowed(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 64);
  return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline void widen(const void *from, int kind, float *to, int64_t n) {
  if (kind == FLOAT32) std::memcpy(to, from, n * 4);
  else
    for (int64_t i = 0; i < n; i++) to[i] = widened(((const uint16_t *)from)[i]);
}

inline void narrow(const float *from, void *to, int kind, int64_t n) {
  if (kind == FLOAT32) std::memcpy(to, from, n * 4);
  else
    for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i] = narrowed(from[i]);
}

/// Memory that grows and stays with its thread, on a cache line. Freed when the thread ends.
class Room {
  char *at = nullptr;
  size_t size = 0;

public:
  ~Room() { std::free(at); }
  char *get(size_t wanted) {
    if (wanted > size) {
      std::free(at);
      size = (wanted + 4095) / 4096 * 4096;
      at = (char *)std::aligned_alloc(4096, size);
    }
    return at;
  }
};

/// Parts of work: each thread takes those of a range of its own one after the other, as they lie in memory, then what others
/// have left, so that a core that others use does less.
class Parts {
  static constexpr int64_t MOST = 64;
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t stop;
  };
  Range ranges[MOST];
  const int64_t owners, step;

public:
  Parts(int64_t count, int64_t threads, int64_t least = 1)
      : owners(std::min(threads, MOST)), step(std::max(least, count / (owners * 64))) {
    for (int64_t i = 0; i < owners; i++) ranges[i].next = count * i / owners, ranges[i].stop = count * (i + 1) / owners;
  }
  bool take(int64_t &start, int64_t &stop) {
    for (int64_t i = 0; i < owners; i++) {
      Range &range = ranges[(omp_get_thread_num() + i) % owners];
      if (range.next.load() >= range.stop) continue;
      start = range.next.fetch_add(step), stop = std::min(start + step, range.stop);
      if (start < range.stop) return true;
    }
    return false;
  }
};

} // namespace
