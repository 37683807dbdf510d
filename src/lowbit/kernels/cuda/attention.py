"""attention - one new token a sequence over packed keys and values on Hopper and later GPUs, in CUDA C++ (attention.cu).

In / Out  as lowbit.kernels.attention says; tokens packed with one scale a token and head, or a constant one, in 2, 4, 8
          bits or float8.
Idea      See _attention.py. Floats before and after the pages are one more block of the same launch; a turned basis is taken by
          the query, and left by the output, in the kernel.
Figures   H200, 8 sequences of 32768 tokens, 32 heads of 128 channels on 8: int8 130, float8 129, int4 73, int2 50 us, of which
          reading the bytes takes 121, 120, 64, 35; cuDNN on bfloat16 245. Measured on pages alone, without floats beside them,
          turned bases or counts.
"""

import torch
from torch import Tensor

from lowbit.kernels.attention import Case, Held
from lowbit.kernels.cuda import _attention
from lowbit.kernels.cuda._attention import FLOAT8, Plain, Side
from lowbit.kernels.pages import Half

RANK = 30
BITS = {"int2": 2, "int4": 4, "int8": 8, "e4m3": FLOAT8}


def supports(case: Case) -> str:
    return _attention.missing(case.device) or refusal(case)


def refusal(case: Case) -> str:
    """Why the kernel does not take a case on any device, or ""."""
    if case.tokens != 1 or case.masked:
        return f"{case.tokens} new tokens{' and a mask' if case.masked else ''}; one without a mask is taken"
    for half in (case.keys, case.values):
        if (
            half.grid is None
            or half.grid.element not in BITS
            or half.grid.zero == "int"
            or half.grid.sides
            or half.grid.scale not in {"half", "bf16"}
        ):
            return f"{half.format or 'floats'}: 2, 4, 8 bits without or with a float zero, or float8, are taken"
        if (
            half.along != "token"
            or half.grid.group not in {(1, 0), (1, case.width[0])}
            or half.centred
            or half.outliers
            or half.before
            or half.learned
        ):
            return f"{half}: a scale for each token, and nothing beside it, is taken"
    if case.width[0] != case.width[1]:
        return f"keys of {case.width[0]} channels, values of {case.width[1]}"
    bits = (_bits(case.keys), _bits(case.values))
    return _attention.unfit(case.dtype, case.width[0], case.heads, bits)


def _bits(half: Half) -> int:
    assert half.grid is not None  # noqa: S101 - for the type checker
    return BITS[half.grid.element]


def attend(q: Tensor, keys: Held, values: Held, scale: float, mask: Tensor | None, counts: Tensor | None) -> Tensor:
    floats = keys.first.shape[2] + keys.last.shape[2]
    plain = Plain(
        *(
            (a.to(q.dtype).contiguous(), b.to(q.dtype).contiguous())
            for a, b in ((keys.first, values.first), (keys.last, values.last))
        )
    )
    found = _attention.attend(
        q[:, :, 0].contiguous(), _side(keys), _side(values), scale, counts, keys.table, plain if floats else None,
        (keys.half.rotated, values.half.rotated),
    )  # fmt: skip
    return found[:, :, None]


def _side(held: Held) -> Side:
    bits = _bits(held.half)
    fixed = held.constants["scale"].float().reshape(-1).contiguous() if held.half.static else None
    if not held.packed:
        heads = held.first.shape[1]
        none = held.first.new_empty(0, heads, 0, 0, dtype=torch.bfloat16)
        zero = none if held.half.grid is not None and held.half.grid.zero else None
        return Side(none, none if fixed is None else fixed, bits, zero)
    pages = {name: tensor.contiguous() for name, tensor in held.pages.items()}
    zero = pages["zero"].to(torch.bfloat16) if "zero" in pages else None
    return Side(pages[""], pages["scale"].to(torch.bfloat16) if fixed is None else fixed, bits, zero)
