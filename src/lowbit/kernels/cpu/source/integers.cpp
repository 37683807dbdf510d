// integers - y = x W.T for whole-number codes of 1 to 6 and 8 bits with a scale for each row and group.
//
// dot() multiplies unsigned codes (integers.h) with signed bytes of x, of which there are PARTS (inputs.h). Few tokens share the
// unpacking in registers; many share a panel of unpacked bytes in the second cache, or matrix registers (integers_tiles.h).
#ifndef __AVX512VNNI__
// Sums of 16 bits are added in the order of the source, or GCC keeps all products of a turn at once and spills them.
#pragma GCC optimize("no-tree-reassoc", "no-tree-ter")
#endif
#include "integers_tiles.h"

namespace {

/// Tokens that multiply a panel together, and registers of rows: as many sums as there are registers for. TEAM: tokens that
/// share codes unpacked in registers, with SUMS sums.
#ifdef __AVX512VNNI__
constexpr int HIGH = 4, WIDE = 6, TEAM = 4, SUMS = 16;
#else
constexpr int HIGH = 2, WIDE = 4, TEAM = 4, SUMS = 8;
#endif
/// Up to FEW tokens unpack codes in registers; more share an open panel, SLAB at most.
constexpr int64_t FEW = 16, SLAB = 192;
/// Inputs of a panel that are open at once, in the second cache.
constexpr int64_t SPAN = 4096;

/// Sums of M tokens times R registers of rows along a block. Where products of few bits have room in 16 bits (TURN of them),
/// sums are narrow first and widened in turns, the first two bytes of x put together on the way; else each byte has its own.
template <int BITS, int PARTS, int M, int R> struct Sums {
  static constexpr int TURN = NARROW<BITS>;
  Reg whole[R][M], low[R][M], own[R][M][PARTS];

  /// starts: of each token, null: 0.
  INLINE void begin(const int32_t *starts, int64_t stride) {
    EACH(i, R * M) {
      const Reg zero = reg(0), start = starts ? reg(starts[i % M * stride]) : zero;
      if (TURN) whole[i / M][i % M] = start;
      if (TURN && PARTS == 3) low[i / M][i % M] = zero;
      if (!TURN) EACH(part, PARTS) own[i / M][i % M][part] = part == PARTS - 1 ? start : zero;
    }
  }

  /// p: the codes of a chunk, x: its quads for each byte.
  INLINE void add(const uint8_t *p, const int32_t *const x[PARTS]) {
    Reg some[R][M][PARTS];
    EACH(i, R * M * PARTS) some[i / PARTS / M][i / PARTS % M][i % PARTS] = TURN ? reg(0) : own[i / PARTS / M][i / PARTS % M][i % PARTS];
    EACH(pair, 4) {
      EACH(r, R) {
        Reg q[2];
        unpack<BITS>(p + r * REG_LANES / TILE * 64 * BITS + r * REG_LANES % TILE * 4, pair, q);
        EACH(i, 2 * M) {
          EACH(part, PARTS) {
            Reg &to = some[r][i % M][part];
            to = narrow_dot<BITS>(to, q[i / M], reg(x[part][2 * M * pair + i]));
          }
        }
      }
      if (TURN && (2 * pair + 2) % std::max(TURN, 1) == 0) {
        EACH(i, R * M) widen(i / M, i % M, some[i / M][i % M]);
      }
    }
    if (!TURN) EACH(i, R * M * PARTS) own[i / PARTS / M][i / PARTS % M][i % PARTS] = some[i / PARTS / M][i / PARTS % M][i % PARTS];
  }

  INLINE void widen(int r, int m, Reg narrow[PARTS]) {
    Reg &to = whole[r][m];
    to = PARTS == 1 ? widened<1>(to, narrow[0]) : widened<1>(widened<256>(to, narrow[0]), narrow[PARTS > 1]);
    if (PARTS == 3) low[r][m] = widened<1>(low[r][m], narrow[PARTS - 1]);
    EACH(part, PARTS) narrow[part] = reg(0);
  }

  INLINE RegF total(int r, int m) const {
    const Reg *all = own[r][m];
    const RegF found = real(TURN ? whole[r][m] : PARTS > 1 ? plus(left(all[0], 8), all[PARTS > 1]) : all[0]);
    return PARTS < 3 ? found : fuse(found, regf(256.0f), real(TURN ? low[r][m] : all[PARTS - 1]));
  }
};

/// M tokens, a team, from `token` on times a panel: y [M][PANEL].
template <int BITS, int PARTS, int M> void few(const Matrix &w, const Inputs &x, int64_t panel, int64_t token, float *y) {
  constexpr int REGS = PANEL / REG_LANES, R = std::min(4, std::max(1, SUMS / M / PARTS));
  constexpr int64_t tile_bytes = 64 * BITS, chunk_bytes = TILES * tile_bytes;
  using S = Sums<BITS, PARTS, M, R>;
  const int64_t groups = w.inputs / w.group;
  const uint8_t *p = w.codes + panel * (w.inputs / CHUNK) * chunk_bytes;
  const int32_t *quads[PARTS];
  EACH(part, PARTS) quads[part] = x.at(token, part, 0);
  RegF found[REGS][M];
  EACH(i, REGS * M) found[i / M][i % M] = regf(0);
  int64_t block = token * x.blocks;
  for (int64_t group = 0, k = 0; group < groups; group++)
    for (const int64_t end = k + w.group; k < end; block++) {
      const int32_t *starts = x.starts ? x.starts + block : nullptr;
      const int64_t chunks = (std::min(k + BLOCK, end) - k) / CHUNK;
      const auto add = [&](S &sums, int64_t chunk, int first) INLINE {
        const int32_t *at[PARTS];
        EACH(part, PARTS) at[part] = quads[part] + chunk * (CHUNK / 4 * M);
        const uint8_t *codes = p + chunk * chunk_bytes;
        if (first == 0) ask<BITS>(codes);
        sums.add(codes + first * REG_LANES / TILE * tile_bytes + first * REG_LANES % TILE * 4, at);
      };
      const auto finish = [&](const S &sums, int first) INLINE {
        EACH(r, R) {
          const int64_t place = (panel * groups + group) * PANEL + (first + r) * REG_LANES;
          const RegF scale = scales(w, place);
          EACH(m, M) {
            RegF all = sums.total(r, m);
            if (!x.starts) all = unfuse(zeros(w, place), regf(x.sums[block + m * x.blocks]), all);
            found[first + r][m] = fuse(all, scale, found[first + r][m]);
          }
        }
      };
      if constexpr (S::TURN > 0) {
        /// A chunk of all rows before the next: codes are read in the order of memory.
        S sums[REGS / R];
        for (int i = 0; i < REGS / R; i++) sums[i].begin(starts, x.blocks);
        for (int64_t chunk = 0; chunk < chunks; chunk++)
          for (int i = 0; i < REGS / R; i++) add(sums[i], chunk, i * R);
        for (int i = 0; i < REGS / R; i++) finish(sums[i], i * R);
      } else {
        for (int first = 0; first < REGS; first += R) {
          S sums;
          sums.begin(starts, x.blocks);
          for (int64_t chunk = 0; chunk < chunks; chunk++) add(sums, chunk, first);
          finish(sums, first);
        }
      }
      k += chunks * CHUNK, p += chunks * chunk_bytes;
      EACH(part, PARTS) quads[part] += chunks * (CHUNK / 4 * M);
    }
  EACH(i, REGS * M) store(y + i % M * PANEL + i / M * REG_LANES, times(found[i / M][i % M], regf(x.scale[token + i % M])));
}

/// Add M tokens times HIGH registers of rows, a quad of an open panel.
template <int BITS, int M> INLINE inline void product(const uint8_t *panel, const int32_t *x, Reg sum[M][HIGH]) {
  Reg q[HIGH];
  EACH(j, HIGH) q[j] = reg_at(panel + 4 * REG_LANES * j);
  EACH(m, M) {
    const Reg v = reg(x[m]);
    EACH(j, HIGH) sum[m][j] = narrow_dot<BITS>(sum[m][j], q[j], v);
  }
}

/// The same for many quads.
template <int BITS, int M> INLINE inline void products(const uint8_t *panel, const int32_t *x, int64_t quads, Reg sum[M][HIGH]) {
  constexpr int turn = NARROW<BITS>, step = std::max(turn, 1);
  for (int64_t quad = 0; quad < quads; quad += step, panel += step * PANEL * 4, x += step * WIDE) {
    if constexpr (turn == 0) {
      product<BITS, M>(panel, x, sum);
    } else {
      Reg some[M][HIGH];
      EACH(i, M * HIGH) some[i / HIGH][i % HIGH] = reg(0);
      EACH(i, turn) product<BITS, M>(panel + i * PANEL * 4, x + i * WIDE, some);
      EACH(i, M * HIGH) sum[i / HIGH][i % HIGH] = widened<1>(sum[i / HIGH][i % HIGH], some[i / HIGH][i % HIGH]);
    }
  }
}

/// Add M tokens times an open panel and block to y [M][PANEL].
template <int BITS, int PARTS, int M>
void multiply(const Matrix &w, const Inputs &x, const Cut &cut, int64_t panel, int64_t block, int64_t token, const uint8_t *q, float *y) {
  const int64_t start = cut.start(block), quads = (cut.stop(block) - start) / 4, group = block / cut.a_group;
  for (int first = 0; first < PANEL; first += HIGH * REG_LANES) {
    Reg sum[M][HIGH];
    EACH(i, M * HIGH) sum[i / HIGH][i % HIGH] = reg(0);
    products<BITS, M>(q + first * 4, x.at(token, 0, start), quads, sum);
    if constexpr (PARTS > 1) {
      EACH(i, M * HIGH) sum[i / HIGH][i % HIGH] = left(sum[i / HIGH][i % HIGH], 8);
      products<BITS, M>(q + first * 4, x.at(token, 1, start), quads, sum);
    }
    const auto add = [&](float size, bool whole) INLINE {
      EACH(j, HIGH) {
        const int64_t row = first + j * REG_LANES, place = (panel * (w.inputs / w.group) + group) * PANEL + row;
        const RegF scale = scales(w, place), zero = zeros(w, place);
        EACH(m, M) {
          float *at = y + m * PANEL + row;
          RegF all = times(real(sum[m][j]), regf(size));
          if (whole) all = unfuse(zero, regf(x.sums[(token + m) * x.blocks + block]), all);
          store(at, fuse(all, scale, regf_at(at)));
        }
      }
    };
    add(PARTS == 3 ? 256 : 1, true);
    if constexpr (PARTS == 3) {
      EACH(i, M * HIGH) sum[i / HIGH][i % HIGH] = reg(0);
      products<BITS, M>(q + first * 4, x.at(token, 2, start), quads, sum);
      add(1, false);
    }
  }
}

using Few = void (*)(const Matrix &, const Inputs &, int64_t, int64_t, float *);
using Multiply = void (*)(const Matrix &, const Inputs &, const Cut &, int64_t, int64_t, int64_t, const uint8_t *, float *);

template <int PARTS, int M> Few few_of(int bits) {
  constexpr Few found[] = {few<1, PARTS, M>, few<2, PARTS, M>, few<3, PARTS, M>, few<4, PARTS, M>,
                           few<5, PARTS, M>, few<6, PARTS, M>, nullptr,           few<8, PARTS, M>};
  return found[bits - 1];
}
template <int PARTS> Few few_of(int bits, int64_t tokens) {
  return tokens == 1 ? few_of<PARTS, 1>(bits) : tokens == 2 ? few_of<PARTS, 2>(bits) : few_of<PARTS, TEAM>(bits);
}
template <int BITS, int PARTS> Multiply multiply_of(int64_t tokens) {
#ifdef __AVX512VNNI__
  constexpr Multiply found[] = {multiply<BITS, PARTS, 1>, multiply<BITS, PARTS, 2>, multiply<BITS, PARTS, 3>,
                                multiply<BITS, PARTS, 4>, multiply<BITS, PARTS, 5>, multiply<BITS, PARTS, 6>};
#else
  constexpr Multiply found[] = {multiply<BITS, PARTS, 1>, multiply<BITS, PARTS, 2>, multiply<BITS, PARTS, 3>, multiply<BITS, PARTS, 4>};
#endif
  return found[tokens - 1];
}
/// Widths that are multiplied in the same way share the code.
template <int PARTS> Multiply multiply_of(int bits, int64_t tokens) {
  if constexpr (NARROW<4> > 0) {
    if (bits < 5) return multiply_of<4, PARTS>(tokens);
    if (bits < 7) return multiply_of<6, PARTS>(tokens);
  }
  return multiply_of<8, PARTS>(tokens);
}

/// What a call is about.
struct Call {
  const Matrix &w;
  const Cut &cut;
  Inputs &x;
  const char *from;
  const float *from_scale;
  char *to;
  int64_t tokens, inputs;
  int kind;
  float clip;

  int64_t width() const { return kind == INT8 ? 1 : kind == FLOAT32 ? 4 : 2; }

  void read(int64_t token, char *room) const {
    const char *at = from + token * inputs * width();
    int8_t *codes = (int8_t *)room + 4 * x.inputs;
    if (kind == INT8) return x.take(token, (const int8_t *)at, from_scale[token], inputs, cut, codes);
    widen(at, kind, (float *)room, inputs);
    if (clip > 0) return x.round_to_byte(token, (const float *)room, clip, inputs, cut, codes);
    x.round(token, (const float *)room, inputs, cut, codes);
  }

  void write(int64_t token, int64_t panel, const float *y) const {
    const int64_t n = std::min<int64_t>(PANEL, w.rows - panel * PANEL), at = token * w.rows + panel * PANEL;
    if (kind == BFLOAT16) narrow(y, (uint16_t *)to + at, kind, n);
    else std::memcpy((float *)to + at, y, n * 4);
  }

  Few few() const {
#ifdef __AMX_INT8__
    if (x.paired) return paired;
#endif
    return x.parts == 1 ? few_of<1>(w.bits, x.team) : x.parts == 2 ? few_of<2>(w.bits, x.team) : few_of<3>(w.bits, x.team);
  }

  void few_tokens(int64_t panel) const {
    const Few few = this->few();
    for (int64_t first = 0; first < tokens; first += x.team) {
      float y[TEAM * PANEL];
      few(w, x, panel, first, y);
      for (int64_t m = first; m < std::min(first + x.team, tokens); m++) write(m, panel, y + (m - first) * PANEL);
    }
  }

  void many_tokens(int64_t panel, char *room) const {
    float *y = (float *)room;
    uint8_t *q = (uint8_t *)(y + tokens * PANEL);
    std::memset(y, 0, tokens * PANEL * 4);
    multiply_all(panel, q, y);
    for (int64_t m = 0; m < tokens; m++) {
      for (int j = 0; j < PANEL; j++) y[m * PANEL + j] *= x.scale[m];
      write(m, panel, y + m * PANEL);
    }
  }

  void multiply_all(int64_t panel, uint8_t *q, float *y) const {
#ifdef __AMX_INT8__
    if (x.side) return by_bytes(w, x, cut, panel, tokens, q, y);
#endif
    for (int64_t first = 0; first < cut.blocks; first += SPAN / BLOCK) {
      const int64_t last = std::min(first + SPAN / BLOCK, cut.blocks), start = cut.start(first);
      for (int64_t block = first; block < last; block++) open_of(w.bits)(w, cut, panel, block, q + (cut.start(block) - start) * PANEL);
      for (int64_t m = 0; m < tokens; m += WIDE) {
        const int64_t n = std::min<int64_t>(WIDE, tokens - m);
        const Multiply multiply = x.parts == 1   ? multiply_of<1>(w.bits, n)
                                  : x.parts == 2 ? multiply_of<2>(w.bits, n)
                                                 : multiply_of<3>(w.bits, n);
        for (int64_t block = first; block < last; block++)
          multiply(w, x, cut, panel, block, m, q + (cut.start(block) - start) * PANEL, y + m * PANEL);
      }
    }
  }

  void run(int64_t threads) const {
    const int64_t panels = (w.rows + PANEL - 1) / PANEL;
    Parts tokens_left(tokens, threads), panels_left(panels, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      static thread_local Room room;
      const bool many = tokens > FEW || x.side;
      char *mine = room.get(std::max<int64_t>(x.inputs * 7, many ? (tokens * 4 + SPAN) * PANEL : 0));
      int64_t start, stop;
      while (tokens_left.take(start, stop))
        for (; start < stop; start++) read(start, mine);
#pragma omp barrier
#ifdef __AMX_INT8__
      if (x.side || x.paired) shapes(x).load();
#endif
      while (panels_left.take(start, stop))
        for (; start < stop; start++) many ? many_tokens(start, mine) : few_tokens(start);
#ifdef __AMX_INT8__
      if (x.side || x.paired) Shapes::release();
#endif
    }
  }
};

} // namespace

/// x [tokens, inputs] of `kind` -> y [tokens, rows], in the kind of x, float32 for codes of x. group: 0 = a scale for a row.
/// clip: share of the range when x is rounded to one byte; 0: it is not.
EXPORT void lowbit_integers(const char *x, const float *x_scale, char *y, int64_t kind, int64_t tokens, int64_t rows, int64_t inputs,
                            const uint8_t *codes, int64_t bits, const void *scale, int64_t scale_kind, const void *zero,
                            int64_t float_zero, double middle, int64_t group, double clip, int64_t threads) {
  const int64_t padded = (inputs + CHUNK - 1) / CHUNK * CHUNK;
  const Matrix w{codes, scale, zero, float_zero != 0, (float)middle, rows, padded, group ? group : padded, (int)bits, (int)scale_kind};
  const Cut cut(padded, w.group);
#ifdef __AMX_INT8__
  const From from(w);
  const bool whole = kind == BFLOAT16 && clip == 0, paired = whole && tokens > 2 && pairs(w);
  if (whole && tokens >= from.halves) return by_halves(w, (const uint16_t *)x, (uint16_t *)y, tokens, inputs, threads);
  const auto side_of = [&](int64_t n) { return n < from.bytes || paired ? 0 : w.group % 64 ? 8 : 16; };
#else
  constexpr bool paired = false;
  const auto side_of = [](int64_t) { return 0; };
#endif
  static thread_local Room room;
  const int64_t width = kind == INT8 ? 1 : kind == FLOAT32 ? 4 : 2, out = kind == BFLOAT16 ? 2 : 4;
  for (int64_t start = 0; start < tokens; start += SLAB) {
    const int64_t n = std::min(SLAB, tokens - start), side = side_of(n), teams = (n + 15) / 16;
    const int64_t team = side ? (n + teams - 1) / teams : n > FEW ? WIDE : n > 2 ? TEAM : n, held = (n + team - 1) / team * team;
    const int parts = kind == INT8 || clip > 0 ? 1 : kind == BFLOAT16 ? 2 : 3;
    /// A code for 0 that is a whole number is taken off before the products; else, and from three bytes, after them.
    const int32_t less = paired || zero || parts == 3 || w.middle != (int32_t)w.middle || n > FEW || side ? 0 : (int32_t)w.middle;
    Inputs numbers(room.get(Inputs::size(held, padded, cut.blocks)), held, padded, cut.blocks, team, side, parts, paired, less);
    Call{w, cut, numbers, x + start * inputs * width, x_scale + start, y + start * rows * out, n, inputs, (int)kind, (float)clip}
        .run(threads);
  }
}
