"""attention - one new token of each sequence over packed keys and values on x86, in C++ (source/attention.cpp).

In / Out  as lowbit.kernels.attention says; tokens packed in 2, 4 or 8 bits, with scales of each token or a constant one, plain,
          less means, or in a turned basis, beside tokens that are floats; float32 and bfloat16.
Idea      Codes are opened tile by tile in the first cache and multiplied as bytes: queries, and weights times scales of values,
          become whole numbers of 16 bits with one scale (float32: 24), so that no code becomes a float and no sum crosses
          lanes. Heads that share keys share what is opened; threads share sequences, heads and slices of the past.
Traps     A group of channels with a scale is a whole piece of 16 bytes. Outliers, keys as they are before RoPE, groups along
          tokens, pools of blocks, masks and several new tokens go to the reference.
"""

import ctypes
import functools

import torch
from torch import Tensor

from lowbit.kernels import pages
from lowbit.kernels.attention import Case, Held
from lowbit.kernels.cpu import _build
from lowbit.kernels.pages import Half

RANK = 20
BITS = {"int2": 2, "int4": 4, "int8": 8}
PIECE = 16
"""Bytes of a row that are opened together."""


def _fields(told: str) -> list[tuple[str, type]]:
    """Of a struct: whole numbers, and addresses, whose names begin with "*"."""
    return [(name.strip("*"), ctypes.c_void_p if "*" in name else ctypes.c_int64) for name in told.split()]


class Floats(ctypes.Structure):
    """Plain of attention.h."""

    _fields_ = _fields("*at count batch head")


class Codes(ctypes.Structure):
    """Packed of attention.h."""

    _fields_ = _fields(
        "*codes codes_batch codes_head *scale *zero parts_batch parts_head groups bits *fixed fixed_step "
        "*mean mean_batch mean_head centred *basis basis_step"
    )


class Side(ctypes.Structure):
    """Held of attention.h."""

    _fields_ = (("first", Floats), ("last", Floats), ("pages", Codes), *_fields("width"))


class Asked(ctypes.Structure):
    """Attention of attention.h."""

    _fields_ = (("keys", Side), ("values", Side), *_fields("packed *counts batch heads group kind"), ("scale", ctypes.c_double))


def missing() -> str:
    return _build.missing()


def supports(case: Case) -> str:
    if case.tokens != 1 or case.masked or case.paged:
        told = " and a mask" if case.masked else " in a pool of blocks" if case.paged else ""
        return f"{case.tokens} new tokens{told}; one without either is taken"
    for half, width in zip((case.keys, case.values), case.width, strict=True):
        told = _refusal(half, width)
        if told:
            return told
    return _build.refusal(case.device, case.dtype) or _build.missing()


def _refusal(half: Half, width: int) -> str:
    grid = half.grid
    if grid is None or grid.element not in BITS or grid.zero == "int" or grid.sides or grid.scale not in {"half", "bf16"}:
        return f"{half.format or 'floats'}: 2, 4 and 8 bits without or with a float zero are taken"
    if half.along != "token" or half.outliers or half.before:
        return f"{half}: rows of tokens, without outliers and behind RoPE, are taken"
    wide = PIECE * 8 // BITS[grid.element]
    group = grid.group[1] or width
    return (
        "" if width % group == 0 and group % wide == 0 else f"groups of {group} of {width} channels; multiples of {wide} only"
    )


def attend(q: Tensor, keys: Held, values: Held, scale: float, mask: Tensor | None, counts: Tensor | None) -> Tensor:
    batch, heads, _, _ = q.shape
    q = q.contiguous()
    y = q.new_empty(batch, heads, 1, values.width)
    counts = None if counts is None else counts.to(torch.int32).contiguous()
    (key_side, key_kept), (value_side, value_kept) = (_side(held, q.dtype) for held in (keys, values))
    shared = keys.first.shape[1]
    asked = Asked(
        key_side, value_side, keys.packed, _build.address(counts), batch, shared, heads // shared, _build.KINDS[q.dtype], scale
    )
    threads = _build.threads(batch * shared * len(keys) * keys.width * 2)
    _build.function("lowbit_attend", "pppi")(ctypes.addressof(asked), q.data_ptr(), y.data_ptr(), threads)
    del key_kept, value_kept
    return y


def _side(held: Held, dtype: torch.dtype) -> tuple[Side, list[Tensor]]:
    """What the C++ is told of keys or values, and tensors that must live as long."""
    kept: list[Tensor] = []

    def told(x: Tensor) -> Floats:
        x = _rows(x.to(dtype))
        kept.append(x)
        size = x.element_size()
        return Floats(x.data_ptr(), x.shape[2], x.stride(0) * size, x.stride(1) * size)

    return Side(told(held.first), told(held.last), _codes(held, kept) if held.packed else Codes(), held.width), kept


def _codes(held: Held, kept: list[Tensor]) -> Codes:
    half, grid, found = held.half, held.half.grid, {name: _rows(page) for name, page in held.pages.items()}
    assert grid is not None  # noqa: S101 - for the type checker
    found |= {name: found[name].to(torch.bfloat16) for name in ("scale", "zero", "mean") if name in found}
    constants = {name: tensor.float().contiguous() for name, tensor in held.constants.items() if name in {"scale", "basis"}}
    basis = constants.get("basis", _hadamard(held.width) if half.rotated else None)
    fixed = constants["scale"].reshape(-1) if half.static else None
    kept += [tensor for tensor in (*found.values(), basis, fixed) if tensor is not None]
    parts, mean, codes = found.get("scale"), found.get("mean"), found[""]
    return Codes(
        codes.data_ptr(), *(4 * n for n in codes.stride()[:2]), _build.address(parts), _build.address(found.get("zero")),
        *(parts.stride()[:2] if parts is not None else (0, 0)), held.width // (grid.group[1] or held.width),
        BITS[grid.element], _build.address(fixed), int(fixed is not None and len(fixed) > 1), _build.address(mean),
        *(mean.stride()[:2] if mean is not None else (0, 0)), half.step, _build.address(basis),
        held.width**2 if basis is not None and basis.dim() == 3 else 0,
    )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """x [batch, heads, n, m], its rows one behind the other."""
    return x if x.shape[2] == 0 or (x.stride(3), x.stride(2)) == (1, x.shape[3]) else x.contiguous()


@functools.cache
def _hadamard(width: int) -> Tensor:
    """The basis of a turned half: x times it is x in the basis."""
    return pages.into_basis(torch.eye(width)).contiguous()
