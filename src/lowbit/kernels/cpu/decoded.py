"""decoded - codes that mean floats (tables, vectors of eight, trellises), decoded row by row in C++ (source/decoded.cpp).

In / Out  stored codes, scales, tables, books -> the same, but trellises with the codes of a tile from last to first;
          x [tokens, in] -> y [tokens, out].
Idea      Sixteen rows and a span of inputs become floats that stay in the first cache: sixteen codes of a table by one
          permutation, eight weights of a lattice or a sum of books by a load or two, a trellis by its values of all states
          (those that trellis.py does not compute).
          Above 16 tokens panels of rows are decoded into x's dtype for a plain product.
Figures   Relative error against float64, Gaussian x: 3e-7 (float32), 1.7e-3 (bfloat16, up to 16 tokens: the rounding of y).
Traps     Arithmetic takes longer than reading; but for tables and short books the decoding bounds the speed. Not for scales
          with a factor for the whole tensor (nvfp4), nor for orders of vectors other than eight.
"""

import functools

import torch
from torch import Tensor

from lowbit.dtypes import _e8, e8p
from lowbit.dtypes._trellis import Trellis
from lowbit.formats import Format, Parts, _books
from lowbit.kernels import packing
from lowbit.kernels.cpu import _build

RANK = 15
DECODE_TOKENS = 16
PANEL = 1 << 21
TABLE, VECTORS, TRELLIS = range(3)
SCALES = {**_build.KINDS, torch.float16: 3, torch.uint8: 4}
RULES = {"table", "gaussian", "lut", "aqlm", "mxfp"}


def missing() -> str:
    return _build.missing()


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    reason = _build.refusal(device, dtype)
    if reason:
        return reason
    if family(format) is None or format.rule not in RULES or format.scale not in {"half", "bf16", "fp16", "fp32", "e8m0"}:
        return f"{format} is no table of up to 16 values, no vector of eight and no trellis with plain scales"
    if format.group[0] > 1 or shape[1] % 16 or format.group[1] % 16:
        return f"{shape[1]} inputs in groups of {format.group[1]}; multiples of 16 only"
    return _build.missing()


def family(format: Format) -> int | None:
    """Which of the three the codes of a format are; None: none of them."""
    element = format.dtype
    if isinstance(element, Trellis):
        return TRELLIS
    if format.rule == "aqlm" or isinstance(element, e8p.Lattice):
        return VECTORS
    table = element.step == (1, 1, 1) and format.layout == "dense" and element.bits in {2, 3, 4}
    return TABLE if table and not format.element.startswith("int") else None


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    codes = _turned(format, packed, shape) if family(format) == TRELLIS else packed
    return {"codes": codes.contiguous(), **parts}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    parts = {name: tensor for name, tensor in prepared.items() if name != "codes"}
    codes = prepared["codes"]
    return _turned(format, codes, shape) if family(format) == TRELLIS else codes, parts


def _turned(format: Format, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """The codes of each tile from last to first."""
    codes = packing.codes(format, packed, shape)
    return packing.pack_codes(format, codes.unflatten(1, (-1, format.step[2])).flip(2).flatten(1))


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    x = x.contiguous()
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype)
    _product(x, y, prepared, format, shape)
    return y


def bound(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> _build.Bound:
    def product(x: Tensor, y: Tensor, tokens: int) -> None:
        _product(x.view(tokens, -1), y.view(tokens, -1), prepared, format, shape)

    return _build.bound(product, shape)


def _product(x: Tensor, y: Tensor, prepared: Parts, format: Format, shape: tuple[int, int]) -> None:
    if x.shape[0] <= DECODE_TOKENS:
        _call(x, y, prepared, format, shape, 0)
        return
    height = format.step[0]
    step = max(1, PANEL // (shape[1] * 16)) * 16
    for start in range(0, shape[0], step):
        rows = min(step, shape[0] - start)
        panel = torch.empty(rows, shape[1], dtype=x.dtype)
        _call(None, panel, _from(prepared, format, start, height), format, (rows, shape[1]), 0)
        y[:, start : start + rows] = x @ panel.t()


def _from(prepared: dict[str, Tensor], format: Format, start: int, height: int) -> dict[str, Tensor]:
    """What belongs to the rows from `start` on."""
    found = {**prepared, "codes": prepared["codes"][start // height :]}
    found |= {"scale": prepared["scale"][start:]} if "scale" in prepared and format.group[0] == 1 else {}
    return found | ({"table": prepared["table"][start:]} if "table" in prepared else {})


def _call(x: Tensor | None, y: Tensor, prepared: Parts, format: Format, shape: tuple[int, int], zero: int) -> None:
    element, codes = format.dtype, prepared["codes"]
    kind, width, first, more = family(format), 1, 0, 0
    values, extra, mask = None, None, 0
    if kind == TABLE and "table" not in prepared:
        values = _table(format.element)
    elif kind == TRELLIS:
        width, mask = element.width, (1 << element.length) - 1  # type: ignore[attr-defined]
        values = _states(format.element)
    elif kind == VECTORS:
        values, extra, first, more = _vectors(format, prepared)
    scale = prepared.get("scale", _ONE)
    shared = int(format.group[0] == 0 or "scale" not in prepared)
    run = _build.function("lowbit_decoded", "ppiiiipiiiiiiipppipiiiii")
    run(
        _build.address(x), _build.address(y), _build.KINDS[y.dtype], 0 if x is None else x.shape[0], *shape,
        _build.address(codes), codes.numel() * codes.element_size(), codes.stride(0) * codes.element_size(), kind,
        int(element.bits), width, first, more, _build.address(values), _build.address(extra),
        _build.address(prepared.get("table")), mask, _build.address(scale), SCALES[scale.dtype], scale.shape[-1],
        format.group[1], shared, _build.threads(shape[0] * shape[1]),
    )  # fmt: skip


_ONE = torch.ones(1, 1)


@functools.cache
def _table(name: str) -> Tensor:
    """The values of all codes of an element, again and again up to 16."""
    from lowbit import dtypes

    element = dtypes.get(name)
    values = element.decode(torch.arange(element.codes, dtype=torch.uint8)[None])[0]
    return values.repeat(16 // element.codes)


@functools.cache
def _states(name: str) -> Tensor:
    """The values of all states of a trellis [states, width], float32."""
    from lowbit import dtypes

    table: Tensor = dtypes.get(name)._code(torch.device("cpu")).table  # type: ignore[attr-defined]
    return table.float().contiguous()


def _vectors(format: Format, prepared: Parts) -> tuple[Tensor, Tensor | None, int, int]:
    """The one or two books that a step adds up, float32, and the bytes of their codes."""
    if format.rule == "aqlm":
        books, bits = _books.sizes(format)
        wide = prepared["codebooks"].float()
        return wide[0], wide[1] if books > 1 else None, bits // 8, bits // 8 if books > 1 else 0
    rate = format.dtype.rate  # type: ignore[attr-defined]
    return (*_lattice(rate), 2, rate - 2)


@functools.cache
def _lattice(rate: int) -> tuple[Tensor, Tensor | None]:
    points = _e8.points(torch.device("cpu")).contiguous()
    if rate == 2:
        return points, None
    second = _e8.short(torch.device("cpu")) if rate == 3 else points
    return points, (second / e8p.FACTORS[rate]).contiguous()
