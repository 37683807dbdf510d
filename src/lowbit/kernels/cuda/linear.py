"""linear - y = x W.T for integers of 2 to 6 and 8 bits and tables of 16 values on Hopper and later, in CUDA C++ (linear.cu).

In / Out  codes of layout "dense", scales [N, G], zeros uint8 -> fragments (see Layout); x [tokens, in] -> y [tokens, out].
Idea      The bytes lie in memory as the tensor cores want them in registers: weights stream once, 16 bytes a lane, through
          a private ring of shared memory, are cut into halves by 1.2 to 1.7 instructions each and multiplied. The stream
          starts before the kernel that makes x has ended. Above DECODE_TOKENS tokens: decode once, then
          the vendor's product, or both in one launch (_prefill).
Layout    Tiles of 16 rows x chunks of 128 columns. Lane 4r + c (r 0..7, c 0..3) holds of rows r and r + 8 the columns
          32u + 16t + 8p + 2c + e (u 0..3, t, p, e 0..1): 32 pairs in order (u, t, p, row half), the pair is e. A word of 32
          bits holds 16 / bits pairs: pair i has e = 0 at bit bits * i, e = 1 at bit 16 + bits * i.
          Tables: pair i at bits 8 i and 8 i + 4, so that looking up four places in a row gives two pairs.
          low: [tiles, chunks, vectors, lane, 4 words]. 3 and 5 bits: the last two of a lane's words in high: [tiles, chunks,
          lane, 2 words]. 3, 5, 6 bits: as many codes lie whole in half a word as it holds, at bits WHOLE. The last two pairs
          of 3 and 5 bits lie in the bit that is left, SPARE, of 3 and 5 words each, lowest bit first; of 6 bits the last
          eight in the four bits left of words 3i .. 3i + 2: pair 24 + 2i has its lower four bits in the first, pair 25 + 2i
          in the second, their upper two bits lie beside each other in the third.
          meta: int16 [tiles, chunks, groups of a chunk, r, (scale r, scale r + 8, zero r, zero r + 8)], the last two only if
          asymmetric; with one scale per row [tiles, r, ...].
Source    Marlin (2408.11743) for magic numbers and fragment order; the layout, the column order and the schedule are our own.
Figures   H200, in a CUDA graph, weights past the L2, 4096x4096 / 14336x4096 / 4096x14336 in us; 1 token: int4-g128 4.7 / 9.5 /
          9.9, int3-g128 4.1 / 9.3 / 9.4, int2-g128 3.9 / 8.4 / 8.6, where reading the bytes takes 4.4 / 9.0 / 9.0, 3.9 / 7.4 /
          7.4 and 3.5 / 5.9 / 5.9; int5-g128 5.6 / 12.9 / 11.3, int6-g128 7.0 / 14.2 / 11.9, int8-g128 8.1 / 17.7 / 17.4,
          nf4-g64 8.1 / 22.7 / 20.8 (nf4 and 4096x4096 of 6 and 8 bits have changed since). 16 tokens: int4-g128 5.2 / 12.2 /
          13.0, int8-g128 6.7 / 19.8 / 20.6, nf4-g64 8.4 / 24.1 / 23.3; 64 tokens, int4-g128: 11.0 / 22.6 / 25.8.
Traps     bfloat16 holds 128 + u exactly for 7 bits only: 8 bits go through (128 + low 7 bits) - (128 or 256).
"""

import torch

from lowbit.formats import Format
from lowbit.kernels.cuda import _build
from lowbit.kernels.cuda._fragments import kind, linear, matrix, prepare, product, refusal, restore

__all__ = ["kind", "linear", "matrix", "prepare", "product", "refusal", "restore", "supports"]
RANK = 30


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    """ "" when this kernel takes the layer, else the reason."""
    return _build.not_hopper(device) or _build.missing() or refusal(format, shape, dtype)
