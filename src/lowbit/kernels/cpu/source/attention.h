// attention - what attention to held keys and values is asked for; attention.cpp answers. All numbers are 8 bytes, as attention.py has them.
#pragma once
#include <cstdint>

/// Tokens that are floats in the kind of the call: `count` rows [width] a head; strides of batch and heads in bytes.
struct Plain {
  const char *at;
  int64_t count, batch, head;
};

/// Tokens of integer codes [rows of codes, scales, zeros a token]; strides of batch and heads in numbers of each. bits 0: none.
/// zero null: half the range. fixed: a scale of all tokens, for each head or (fixed_step 0) for all. mean: of `centred` tokens
/// each. basis [width, width], for each head or (basis_step 0) for all: codes mean x * basis.
struct Packed {
  const uint8_t *codes;
  int64_t codes_batch, codes_head;
  const uint16_t *scale, *zero;
  int64_t parts_batch, parts_head, groups, bits;
  const float *fixed;
  int64_t fixed_step;
  const uint16_t *mean;
  int64_t mean_batch, mean_head, centred;
  const float *basis;
  int64_t basis_step;
};

struct Held {
  Plain first, last;
  Packed pages;
  int64_t width;
};

/// heads: of keys; `group` query heads read each. packed: tokens in pages. counts [batch][3]: tokens of first, pages, last; null: all.
struct Attention {
  Held keys, values;
  int64_t packed;
  const int32_t *counts;
  int64_t batch, heads, group, kind;
  double scale;
};

/// q [batch, heads * group, width of keys] -> y [.., width of values], both of `kind`.
void attend(const Attention &asked, const char *q, char *y, int64_t threads);
