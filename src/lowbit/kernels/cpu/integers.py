"""integers - whole-number codes of 1 to 8 bits with a scale for each row and group, in C++ on x86 (source/integers.cpp).

In / Out  codes of layout "dense" or "trits", scales, zeros -> planes (see Layout); x [tokens, in] -> y [tokens, out].
Idea      x becomes whole numbers with one scale a token, 16 bits for bfloat16 and 24 for float32, and its bytes are multiplied
          one after the other (vpdpbusd): every product and sum of a group is exact. A lane is a row, so that nothing is summed
          across lanes. Up to 16 tokens unpack codes in registers, four at a time; more share panels of unpacked bytes. Inputs
          rounded to int8 are one byte (integers_act.py).
          Where the processor has AMX, tiles multiply the bytes from 3 tokens on (6 in groups of 32), and from 48 (9) on
          bfloat16 x meets panels of weights rounded to bfloat16, but for a scale of a whole row, which follows the sum. Two
          groups of int4-g32 share a tile from 3 to 16 tokens.
Layout    planes uint8 [panels of 64 rows, chunks of 32 inputs, tiles of 16 rows, bits, 64]: a panel is one stream from memory.
          Byte 4 r + b of a plane is row r, inputs 4 i + b for several i: a code of 4 bits and more has its lowest four at bits
          4 (i % 2) of plane i // 2; then, where the width has them, two bits at 2 (i % 4) of two planes, one bit at i of one.
          7 bits are widened to 8: plane i whole. scale, zero [panels, groups, 64]. Rows are padded to 64, inputs to 32.
Figures   Relative error against float64, Gaussian x: 2e-7 (float32), 1.7e-3 (bfloat16: the rounding of y). 4096x4096 in the
          last cache, one thread of an EPYC (Zen 4), bfloat16 x at 1 and 4 tokens, ms: int4-g32 0.20 and 0.70, int3-g128 0.25
          and 0.69, int2-g128 0.17 and 0.62; x in int8 0.16 and 0.37, 0.20 and 0.35, 0.13 and 0.32. With AVX2 (Zen 3) int4-g32
          0.47 and 1.6, int2-g128 0.34 and 1.2. bfloat16 weights: 2.3e-3. AMX at 2.5 GHz, 4 / 16 / 128 tokens, ms: int4-g128
          0.60 / 1.0 / 4.8, int4-g32 0.53 / 1.8 / 4.9, nn.Linear in bfloat16 2.6 / 3.0 / 7.1.
Traps     A bfloat16 x is rounded to 1/32639 of the greatest of its token: an input of 1000 times the others' size costs them
          9 bits of 15. Not for e8m0 and two-level scales.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.kernels import packing
from lowbit.kernels.cpu import _build

RANK = 20
TILE, CHUNK, PANEL = 16, 32, 64
SCALES = {"half", "bf16", "fp16", "fp32"}
NAME, ARGUMENTS = "lowbit_integers", "pppiiiipipipididi"


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    if dtype not in _build.KINDS:
        return f"x is {dtype}; float32 and bfloat16 only"
    return refuses(format, shape, device)


def refuses(format: Format, shape: tuple[int, int], device: torch.device) -> str:
    """Why it cannot run a matrix of this format; "" where it can."""
    if device.type != "cpu":
        return f"device {device.type}; CPUs only"
    if not format.element.startswith(("int", "ternary", "binary")):
        return f"element {format.element} is no whole number"
    if format.scale not in SCALES or format.rule not in {"symmetric", "asymmetric", "float_zero", "ternary", "binary"}:
        return f"scales of {format} are no plain floats"
    if format.group[1] % CHUNK and format.group[1] != shape[1]:
        return f"groups of {format.group[1]}; multiples of {CHUNK} only"
    return _build.missing()


def missing() -> str:
    return _build.missing()


def width(format: Format) -> int:
    """Bits of a code in memory."""
    return {"ternary": 2, "binary": 1, "int7": 8}.get(format.element) or int(format.dtype.bits)


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    scale = parts["scale"] if parts["scale"].dtype == torch.bfloat16 else parts["scale"].float()
    if format.element == "binary":
        scale = scale * 2
    found = planes(packing.codes(format, packed, shape), width(format))
    prepared = {"planes": _build.settled(found), "scale": _build.settled(_panels(scale, format, shape))}
    return {**prepared, "zero": _panels(parts["zero"], format, shape)} if "zero" in parts else prepared


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    parts: Parts = {name: _rows(prepared[name], format, shape) for name in ("scale", "zero") if name in prepared}
    if format.element == "binary":
        parts["scale"] = parts["scale"] / 2
    if format.scale == "fp16":
        parts["scale"] = parts["scale"].half()
    return packing.pack_codes(format, codes(prepared["planes"], width(format), shape)), parts


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    return _product(x, prepared, format, shape, 0.0)


def bound(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> _build.Bound:
    matrix, size = _matrix(prepared, format, shape), prepared["planes"].numel()

    def product(x: Tensor, y: Tensor, tokens: int) -> None:
        run = _build.function(NAME, ARGUMENTS, prepared)
        where = _build.address(x), None, _build.address(y)
        run(*where, _build.KINDS[x.dtype], tokens, *matrix, 0.0, _build.threads(size * tokens))

    return _build.bound(product, shape)


def to_byte(x: Tensor, clip: float, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """y of x rounded to int8-token with `clip`, float32 or bfloat16; the rounding is part of the call."""
    return _product(x, prepared, format, shape, clip)


def integer(codes: Tensor, scale: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """codes of x int8 [tokens, in], scale float32 [tokens, 1] -> y float32 [tokens, out]; sums are exact."""
    y = torch.empty(codes.shape[0], shape[0])
    _call(codes.contiguous(), scale.contiguous(), y, _build.CODES, prepared, format, shape, 0.0)
    return y


def _product(x: Tensor, prepared: Parts, format: Format, shape: tuple[int, int], clip: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype)
    _call(x, None, y, _build.KINDS[x.dtype], prepared, format, shape, clip)
    return y


def _call(
    x: Tensor,
    x_scale: Tensor | None,
    y: Tensor,
    kind: int,
    prepared: Parts,
    format: Format,
    shape: tuple[int, int],
    clip: float,
) -> None:
    run, threads = _build.function(NAME, ARGUMENTS, prepared), _build.threads(prepared["planes"].numel() * x.shape[0])
    run(*map(_build.address, (x, x_scale, y)), kind, x.shape[0], *_matrix(prepared, format, shape), clip, threads)


def _matrix(prepared: Parts, format: Format, shape: tuple[int, int]) -> tuple[int | float | None, ...]:
    """What the C++ is told of a matrix."""
    scale, zero = prepared["scale"], prepared.get("zero")
    float_zero = int(zero is not None and zero.dtype != torch.uint8)
    return (
        *shape, _build.address(prepared["planes"]), width(format), _build.address(scale), _build.KINDS[scale.dtype],
        _build.address(zero), float_zero, _middle(format), format.group[1],
    )  # fmt: skip


def _middle(format: Format) -> float:
    """The code of the value 0."""
    return {"ternary": 1.0, "binary": 0.5}.get(format.element, format.dtype.codes / 2)


def _panels(part: Tensor, format: Format, shape: tuple[int, int]) -> Tensor:
    """[R, G] -> [panels, G, 64], rows that share a value each with its own, padded with 0."""
    rows = part.repeat_interleave(format.group[0] or shape[0], 0)[: shape[0]]
    rows = torch.nn.functional.pad(rows, (0, 0, 0, -shape[0] % PANEL))
    return rows.view(-1, PANEL, rows.shape[1]).transpose(1, 2).contiguous()


def _rows(panels: Tensor, format: Format, shape: tuple[int, int]) -> Tensor:
    """The way back."""
    rows = panels.transpose(1, 2).reshape(-1, panels.shape[1])[: shape[0]]
    return rows[:: format.group[0] or shape[0]].contiguous()


def planes(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [out, in] -> planes uint8 [panels, chunks, tiles, bits, 64]."""
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % CHUNK, 0, -codes.shape[0] % PANEL))
    cube = codes.view(-1, PANEL // TILE, TILE, codes.shape[1] // CHUNK, CHUNK // 4, 4)
    q = cube.permute(0, 3, 1, 4, 2, 5).flatten(4)
    if bits == 8:
        return q.contiguous()
    return torch.cat([_gathered(q >> place, wide) for wide, place in _cuts(bits)], 3)


def codes(planes: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """The way back."""
    q = planes
    if bits < 8:
        parts = planes.split([wide for wide, _ in _cuts(bits)], 3)
        q = torch.zeros(*planes.shape[:3], CHUNK // 4, 64, dtype=torch.uint8)
        for part, (wide, place) in zip(parts, _cuts(bits), strict=True):
            q |= _scattered(part, wide) << place
    rows: Tensor = q.unflatten(4, (TILE, 4)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
    return rows[: shape[0], : shape[1]].contiguous()


def _cuts(bits: int) -> list[tuple[int, int]]:
    """(planes, lowest bit) of the parts that a code is cut into: 4, 2 and 1 bits."""
    return [(wide, bits & (8 - 2 * wide)) for wide in (4, 2, 1) if bits & wide]


def _gathered(q: Tensor, wide: int) -> Tensor:
    """The lowest `wide` bits of q [.., 8, 64] side by side: [.., wide, 64]."""
    fields = (q & ((1 << wide) - 1)).unflatten(3, (wide, 8 // wide))
    return torch.stack([fields[:, :, :, :, i] << i * wide for i in range(8 // wide)]).sum(0, dtype=torch.uint8)


def _scattered(plane: Tensor, wide: int) -> Tensor:
    fields = [plane >> i * wide & ((1 << wide) - 1) for i in range(8 // wide)]
    return torch.stack(fields, 4).flatten(3, 4)
