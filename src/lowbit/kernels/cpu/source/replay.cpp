// replay - calls of the functions of this library, one after the other (_replay.py).
#include "work.h"

#include <utility>

namespace {

constexpr int NUMBERS = 24;

/// A call: addresses and whole numbers in their order, then floats in theirs. System V passes each kind in registers of its own
/// and what numbers are left on the stack, which the caller clears: so every function can be called as the longest one.
struct Call {
  void *run;
  int64_t numbers[NUMBERS];
  double reals[2];
};

template <int... AT> void make(const Call &call, std::integer_sequence<int, AT...>) {
  ((void (*)(decltype((void)AT, int64_t())..., double, double))call.run)(call.numbers[AT]..., call.reals[0], call.reals[1]);
}

} // namespace

EXPORT void lowbit_replay(const Call *calls, int64_t count) {
  for (int64_t i = 0; i < count; i++) make(calls[i], std::make_integer_sequence<int, NUMBERS>());
}
