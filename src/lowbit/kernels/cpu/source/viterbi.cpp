// viterbi - the search of trellis codes (lowbit/dtypes/_viterbi.py says what for): one sequence a thread.
//
// State s = root << F | fresh bits; its predecessors are the states j * R + root, j below B = 2^F. Sixteen neighbouring roots are
// the lanes of a vector: B loads of costs, their least and which one it was (a byte a root and step, the way back), and then the
// 16 B states behind them, whose costs are stored for the next step. Two rows of costs and the table of values stay in the
// second cache; no sum leaves float32.
#include "lanes.h"
#include "work.h"

namespace {

constexpr float FAR = 1e30f;

struct Trellis {
  const float *table; // [V][states]
  int64_t length, fresh, width;
  int64_t states() const { return (int64_t)1 << length; }
  int64_t branches() const { return (int64_t)1 << fresh; }
  int64_t roots() const { return (int64_t)1 << (length - fresh); }
};

/// least + |value - x|^2 of sixteen states.
template <int V> INLINE inline Floats cost_of(const Trellis &code, int64_t state, const Floats *x, Floats least) {
  EACH(v, V) {
    const Floats miss = minus(load(code.table + v * code.states() + state), x[v]);
    least = fuse(miss, miss, least);
  }
  return least;
}

/// One step from the costs `old` (null: from `start`, a cost for each root) to `costs`; way: which predecessor was the least.
template <int F, int V>
void step(const Trellis &code, const float *x, const float *old, const float *start, float *costs, uint8_t *way) {
  constexpr int B = 1 << F;
  const int64_t roots = code.roots();
  alignas(64) int32_t lanes[16 * (B > 16 ? 1 : B)];
  for (int i = 0; i < 16 * (B > 16 ? 1 : B); i++) lanes[i] = i >> F;
  Floats point[V];
  EACH(v, V) point[v] = fill(x[v]);
  for (int64_t root = 0; root < roots; root += 16) {
    Floats least = load(old ? old + root : start + root);
    if (old) {
      Ints which = fill(0);
      for (int j = 1; j < B; j++) {
        const Floats other = load(old + j * roots + root);
        which = where_less(other, least, fill(j), which);
        least = lesser(other, least);
      }
      store_bytes(way + root, which);
    }
    float *to = costs + root * B;
    if constexpr (B <= 16) {
      EACH(k, B) store(to + 16 * k, cost_of<V>(code, root * B + 16 * k, point, pick(least, load(lanes + 16 * k))));
    } else {
      alignas(64) float each[16];
      store(each, least);
      for (int r = 0; r < 16; r++)
        for (int k = 0; k < B; k += 16) store(to + r * B + k, cost_of<V>(code, (root + r) * B + k, point, fill(each[r])));
    }
  }
}

using Step = void (*)(const Trellis &, const float *, const float *, const float *, float *, uint8_t *);
template <int V> Step chosen(int64_t fresh) {
  constexpr Step all[] = {step<1, V>, step<2, V>, step<3, V>, step<4, V>, step<5, V>, step<6, V>, step<7, V>, step<8, V>};
  return all[fresh - 1];
}

/// What a thread needs: a cost for each root, two rows of costs, the way back of `steps` steps.
struct Search {
  const Trellis code;
  const Step one;
  float *start, *costs[2];
  uint8_t *ways;
  static size_t size(const Trellis &code, int64_t steps) { return 4 * code.roots() + 8 * code.states() + steps * code.roots(); }
  Search(const Trellis &code, char *at)
      : code(code), one(code.width == 1 ? chosen<1>(code.fresh) : chosen<2>(code.fresh)), start((float *)at),
        costs{start + code.roots(), start + code.roots() + code.states()}, ways((uint8_t *)(costs[1] + code.states())) {}

  /// The costs after all steps; x(t): the values of step t.
  template <class Values> const float *forward(int64_t steps, const Values &x) {
    for (int64_t t = 0; t < steps; t++)
      one(code, x(t), t ? costs[t & 1] : nullptr, start, costs[1 - (t & 1)], ways + t * code.roots());
    return costs[steps & 1];
  }
  /// The state one step before `state`, which is that of step t.
  int64_t before(int64_t t, int64_t state) const {
    const int64_t root = state >> code.fresh;
    return ways[t * code.roots() + root] * code.roots() + root;
  }

  /// Fresh bits of a near ring for x [steps, V].
  void ring(const float *x, int64_t steps, int64_t warm, uint8_t *found) {
    const int64_t width = code.width, roots = code.roots();
    std::fill(start, start + roots, 0.0f);
    const float *ends = forward(2 * warm, [&](int64_t t) { return x + (t < warm ? steps - warm + t : t - warm) * width; });
    int64_t state = std::min_element(ends, ends + code.states()) - ends;
    for (int64_t t = 2 * warm - 1; t > warm; t--) state = before(t, state);
    const int64_t joint = state >> code.fresh;
    std::fill(start, start + roots, FAR);
    start[joint] = 0;
    ends = forward(steps, [&](int64_t t) { return x + t * width; });
    state = joint;
    for (int64_t j = 1; j < code.branches(); j++)
      if (ends[j * roots + joint] < ends[state]) state = j * roots + joint;
    for (int64_t t = steps - 1; t >= 0; t--) {
      found[t] = (uint8_t)(state & (code.branches() - 1));
      if (t) state = before(t, state);
    }
  }
};

} // namespace

/// x [count, steps, width], table [width, 2^length] -> found [count, steps].
EXPORT void lowbit_viterbi(const float *x, const float *table, uint8_t *found, int64_t length, int64_t fresh, int64_t width,
                           int64_t count, int64_t steps, int64_t warm, int64_t threads) {
  const Trellis code{table, length, fresh, width};
  Parts left(count, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Room room;
    Search search(code, room.get(Search::size(code, std::max(steps, 2 * warm))));
    int64_t first, last;
    while (left.take(first, last))
      for (; first < last; first++) search.ring(x + first * steps * width, steps, warm, found + first * steps);
  }
}
