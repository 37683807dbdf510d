"""dense - a little-endian bit stream along the inputs, rows padded to whole int32 words.

Layout    Element i of a row is bits i*b .. i*b + b - 1 of the row's stream, least significant bit first; elements straddle
          words for b = 3, 5, 6, 7. packed int32 [rows, ceil(n * b / 32)]; bits beyond the last element are 0.
Idea      Eight codes are one int64 word. Three steps close the gaps between them: pairs to 2b bits, pairs of pairs to 4b bits,
          halves to 8b bits; then the first b bytes of the word are the stream. Unpacking runs the steps backwards.
Source    compressed-tensors >= 0.18 `pack-quantized`; MLX affine weights (as uint32); 6 bits: `mxfp6-pack-quantized`.
Traps     compressed-tensors <= 0.17.1 wrote 3, 5, 6 and 7 bits with floor(32 / b) codes a word. Little-endian machines only.
"""

import math

import torch
from torch import Tensor

BITS = (1, 2, 3, 4, 5, 6, 7, 8)
WORD = torch.int32


def pack(codes: Tensor, bits: float) -> Tensor:
    """codes uint8 [rows, n], each below 2**bits -> int32 [rows, ceil(n * bits / 32)]."""
    rows, n = codes.shape
    b, words, eights = int(bits), packed_shape(rows, n, bits)[1], math.ceil(n / 8)
    padded = torch.nn.functional.pad(codes, (0, 8 * eights - n)).flatten().contiguous()
    x = (padded.clone() if padded.storage_offset() % 8 else padded).view(torch.int64)
    if b < 8:
        for half, lane in _steps(b):
            low = _lanes(lane, half)
            x = (x & low) | ((x >> (lane // 2 - half)) & (low << half))
    stream = x.view(torch.uint8).view(rows, eights, 8)[:, :, :b].flatten(1)[:, : 4 * words]
    packed = codes.new_zeros(rows, 4 * words)
    packed[:, : stream.shape[1]] = stream
    return packed.view(torch.int32)


def unpack(packed: Tensor, bits: float, n: int) -> Tensor:
    """packed int32 [rows, ceil(n * bits / 32)] -> codes uint8 [rows, n]."""
    rows, b = packed.shape[0], int(bits)
    stream = packed.contiguous().view(torch.uint8)
    eights = math.ceil(n / 8)
    missing = eights * b - stream.shape[1]
    stream = torch.nn.functional.pad(stream, (0, missing)) if missing > 0 else stream[:, : eights * b]
    wide = stream.new_zeros(rows, eights, 8)
    wide[:, :, :b] = stream.reshape(rows, eights, b)
    x = wide.view(torch.int64)[:, :, 0]
    if b < 8:
        for half, lane in reversed(_steps(b)):
            low = _lanes(lane, half)
            x = (x & low) | ((x & (low << half)) << (lane // 2 - half))
    return x.flatten().view(torch.uint8).view(rows, 8 * eights)[:, :n].contiguous()


def packed_shape(rows: int, n: int, bits: float) -> tuple[int, int]:
    """Shape of what `pack` gives."""
    return rows, math.ceil(n * int(bits) / 32)


def _steps(bits: int) -> list[tuple[int, int]]:
    """(bits of each half, bits of the lane that holds two halves) of the three steps."""
    return [(bits, 16), (2 * bits, 32), (4 * bits, 64)]


def _lanes(lane: int, bits: int) -> int:
    """The 64-bit mask of the lowest `bits` bits of every lane, as a signed number."""
    mask = sum(((1 << bits) - 1) << start for start in range(0, 64, lane))
    return mask - (1 << 64) if mask >> 63 else mask
