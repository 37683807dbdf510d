"""_narrow - a matrix with the side `nested` read at fewer bits, as plain integers.

Idea      At the width R of its codes: the codes. Between 4 and R: their top bits, each with the middle of the values that share
          them. At 4: the codes that the side tells (sides/nested.py). Below: the top bits of those.
          With k values to a top code u the middle is scale k (u - zero), zero = (2^(b-1) - (k - 1) / 2) / k: exact in bfloat16.
"""

import torch
from torch import Tensor

from lowbit import sides
from lowbit.core.errors import FormatError
from lowbit.formats import Quantized, parse
from lowbit.formats._scales import load, store
from lowbit.sides.nested import Nested

LEAST, COARSE = 2, 4


def side_of(quantized: Quantized) -> Nested | None:
    """The side that lets a matrix be read at fewer bits; None where it has none, others too, or too few bits."""
    format = quantized.format
    found = sides.get(format.sides[0]) if len(format.sides) == 1 else None
    fits = format.rule == "symmetric" and format.dtype.bits > COARSE
    return found if isinstance(found, Nested) and fits else None


def narrow(quantized: Quantized, bits: int) -> Quantized:
    """The matrix read at `bits`. Raises FormatError where it has one precision, or not this one."""
    side, format, rate = side_of(quantized), quantized.format, int(quantized.format.dtype.bits)
    if side is None:
        raise FormatError(f"bits={bits}: {format} has one precision. Leave bits out.")
    if not LEAST <= bits <= rate:
        raise FormatError(f"bits={bits}: {format} is read at {LEAST} to {rate} bits. Use one of these.")
    words = format.core.text.split("-")[1:]
    grid = Quantized(format.core, quantized.codes, {"scale": quantized.parts["scale"]}, quantized.shape)
    if bits == rate:
        return grid
    if bits > COARSE:
        return _top(grid, rate, bits, words)
    codes = (side.coarse(grid.decode(), quantized.parts) + (1 << COARSE - 1)).to(torch.uint8)
    plain = parse("-".join([f"int{COARSE}", f"g{side.group}"]))
    coarse = Quantized(plain, codes, {"scale": quantized.parts["nested_scale"]}, quantized.shape)
    if bits == COARSE:
        return coarse
    return _top(coarse, COARSE, bits, [f"g{side.group}"])


def followed(quantized: Quantized) -> Tensor:
    """The matrix [out, in] that those behind it are calibrated behind: of several precisions the one that errs, 4 bits."""
    return (quantized if side_of(quantized) is None else narrow(quantized, COARSE)).decode()


def _top(quantized: Quantized, rate: int, bits: int, words: list[str]) -> Quantized:
    """The top `bits` of codes of `rate` bits, each the middle of what it stands for."""
    together = 1 << rate - bits
    scale = store(load(quantized.parts["scale"], "half") * together, "half")
    zero = torch.full_like(scale, ((1 << rate - 1) - (together - 1) / 2) / together, dtype=torch.bfloat16)
    plain = parse("-".join([f"int{bits}", *words, "floatzero"]))
    return Quantized(plain, quantized.codes >> rate - bits, {"scale": scale, "zero": zero}, quantized.shape)
