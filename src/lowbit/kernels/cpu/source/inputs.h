// inputs - x as whole numbers in signed bytes, the highest first, with one scale a token: two bytes hold a bfloat16 x to 3e-5,
// three a float32 x to 1e-7, one codes that the caller has found.
#pragma once
#include "lanes.h"
#include "work.h"

namespace {

/// What the greatest input becomes: near the greatest number of one, two and three bytes, less what a float rounds up.
constexpr int32_t RANGES[] = {127, 127 * 256 + 127, 127 * 65536};
/// Inputs summed as integers before a scale: 255 * (127 * 256 + 128) * BLOCK stays below 2^31.
constexpr int64_t BLOCK = 256;

/// How inputs are cut: groups that share a scale of the matrix, and blocks of them.
struct Cut {
  int64_t group, blocks, a_group;
  Cut(int64_t inputs, int64_t group) : group(group), blocks(0), a_group((group + BLOCK - 1) / BLOCK) {
    blocks = inputs / group * a_group;
  }
  int64_t start(int64_t block) const { return block / a_group * group + block % a_group * BLOCK; }
  int64_t stop(int64_t block) const { return std::min(start(block) + BLOCK, (block / a_group + 1) * group); }
};

/// Tokens as whole numbers, `team` of them side by side: [teams][bytes][quads of inputs][team], so that those who multiply
/// together read one stream; for matrix registers [teams][inputs / 4 / side][bytes][team][side quads], a row a token, and where two
/// groups of 32 share a tile (paired) [teams][pairs of groups][2][bytes][team][64], nought in the half of the other group.
/// sums: of each block, for zero points; starts: `less` of them taken off, where it is not 0.
struct Inputs {
  int64_t inputs, blocks, team, side;
  int parts;
  bool paired;
  int32_t less, *quads, *starts;
  float *scale, *sums;

  /// Bytes for an input: three, or two twice.
  static constexpr int64_t ROOM = 4;
  static size_t size(int64_t tokens, int64_t inputs, int64_t blocks) { return tokens * (ROOM * inputs + 8 * blocks + 4); }

  /// tokens: whole teams. side: 0 without matrix registers. room: of `size` bytes.
  Inputs(char *room, int64_t tokens, int64_t inputs, int64_t blocks, int64_t team, int64_t side, int parts, bool paired, int32_t less)
      : inputs(inputs), blocks(blocks), team(team), side(side), parts(parts), paired(paired), less(less) {
    quads = (int32_t *)room;
    scale = (float *)(room + tokens * ROOM * inputs);
    sums = scale + tokens;
    starts = less ? (int32_t *)(sums + tokens * blocks) : nullptr;
  }

  /// The quad of input k of the first token of the team of `token`.
  const int32_t *at(int64_t token, int part, int64_t k) const { return quads + (token / team * parts + part) * inputs / 4 * team + k / 4 * team; }

  /// The rows of the team of `token` from input k on: bytes by tokens.
  int32_t *rows(int64_t token, int64_t k) const { return quads + (token / team * (inputs / 4) + k / 4) * parts * team; }

  /// The rows of the first pair of groups, of the team of `token`.
  int8_t *pairs(int64_t token) const { return (int8_t *)quads + token / team * 2 * parts * team * inputs; }

  void put_pairs(int64_t token, int part, const int8_t *codes) {
    const int64_t half = parts * team * 64;
    int8_t *to = pairs(token) + (part * team + token % team) * 64;
    for (int64_t k = 0; k < inputs; k += 64, to += 2 * half) {
      std::memcpy(to, codes + k, 32), std::memset(to + 32, 0, 32);
      std::memset(to + half, 0, 32), std::memcpy(to + half + 32, codes + k + 32, 32);
    }
  }

  void put(int64_t token, int part, const int8_t *codes) {
    if (paired) return put_pairs(token, part, codes);
    for (int64_t k = 0; side && k < inputs; k += 4 * side)
      std::memcpy(rows(token, k) + (part * team + token % team) * side, codes + k, 4 * side);
    if (side) return;
    int32_t *to = (int32_t *)at(token, part, 0) + token % team;
    for (int64_t quad = 0; quad < inputs / 4; quad++) to[quad * team] = word(codes + 4 * quad);
  }

  /// Codes that are paired have no zero point.
  void add_up(int64_t token, const Cut &cut, const int8_t *codes) {
    if (paired) return;
    for (int64_t block = 0; block < cut.blocks; block++) {
      int32_t sum = 0;
      for (int part = 0; part < parts; part++) {
        int32_t some = 0;
        for (int64_t k = cut.start(block); k < cut.stop(block); k++) some += codes[part * inputs + k];
        sum = 256 * sum + some;
      }
      sums[token * blocks + block] = (float)sum;
      if (starts) starts[token * blocks + block] = -less * sum;
    }
  }

  /// Codes of one byte, and their scale. room: of `inputs` bytes.
  void take(int64_t token, const int8_t *codes, float size, int64_t n, const Cut &cut, int8_t *room) {
    std::memcpy(room, codes, n);
    std::memset(room + n, 0, inputs - n);
    scale[token] = size;
    put(token, 0, room);
    add_up(token, cut, room);
  }

  /// The bits of the largest magnitude, NaN above all.
  static float peak_of(const float *x, int64_t n) {
    int32_t bits = 0;
    for (int64_t k = 0; k < n; k++) bits = std::max(bits, word(x + k) & 0x7FFFFFFF);
    float peak;
    std::memcpy(&peak, &bits, 4);
    return peak;
  }

  /// Floats rounded to one byte, as lowbit.kernels.activation has int8-token, to the bit. room: of `inputs` bytes.
  void round_to_byte(int64_t token, const float *x, float clip, int64_t n, const Cut &cut, int8_t *room) {
    const float peak = peak_of(x, n) * clip, size = peak == 0 ? 1 : peak / 127.5f;
    for (int64_t k = 0; k < n; k++) {
      const float v = __builtin_nearbyintf(x[k] / size), low = v < -128 ? -128 : v;
      room[k] = (int8_t)(int32_t)(low > 127 ? 127 : low);
    }
    std::memset(room + n, 0, inputs - n);
    scale[token] = size;
    put(token, 0, room);
    add_up(token, cut, room);
  }

  /// Floats, rounded here. Infinity and NaN reach every output through the scale. room: of 3 * `inputs` bytes.
  void round(int64_t token, const float *x, int64_t n, const Cut &cut, int8_t *room) {
    const float peak = peak_of(x, n);
    const bool small = peak < 1e-30f;
    const float range = (float)RANGES[parts - 1], inverse = small ? 0 : range / peak;
    scale[token] = small ? 0 : peak / range;
    if (parts == 2) split<2>(x, inverse, n, room);
    else split<3>(x, inverse, n, room);
    for (int part = 0; part < parts; part++) {
      std::memset(room + part * inputs + n, 0, inputs - n);
      put(token, part, room + part * inputs);
    }
    add_up(token, cut, room);
  }

  template <int PARTS> void split(const float *x, float inverse, int64_t n, int8_t *room) const {
    int8_t *high = room, *middle = room + inputs, *low = room + (PARTS - 1) * inputs;
    for (int64_t k = 0; k < n; k++) {
      const float v = x[k] * inverse;
      int32_t code = (int32_t)(v + (v < 0 ? -0.5f : 0.5f));
      if (PARTS == 3) {
        const int32_t top = (code + 128 * 257) >> 16;
        high[k] = (int8_t)top;
        code -= top * 65536;
      }
      const int32_t next = (code + 128) >> 8;
      (PARTS == 3 ? middle : high)[k] = (int8_t)next;
      low[k] = (int8_t)(code - 256 * next);
    }
  }
};

} // namespace
