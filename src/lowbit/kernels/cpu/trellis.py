"""trellis - trellis codes whose values are sums of the bytes of a product (mul1, mul2, trellis_int), computed in C++ on x86.

In / Out  stored codes, scales of a matrix or a row -> words (see Layout); x [tokens, in] -> y [tokens, out].
Idea      Lanes are tiles: a vector of 16-bit lanes holds the states of 32 tiles at one step, cut out of their streams by a
          funnel shift. Products, the sum of their bytes and a dot product with 16-bit x take 9 instructions for 32 weights; up
          to four tokens share all but the last. bfloat16 x becomes 16 bits with one scale a token (3e-5), and slope and offset
          of the values follow the sums: values before their rounding to half precision (2e-4). float32 x is multiplied by the
          rounded values. Above 16 tokens (float32: 4) panels of rows are decoded into x's dtype for a plain product; where the
          processor has AMX, above 4 bfloat16 tokens into its tiles.
Layout    words int16 [panels of 64 rows, slices, spans of 128 inputs, words, 4, 8]: a slice is an eighth of a tile's steps, its
          rows s and s + 8; [4, 8] tiles have the same word of their streams side by side, first code highest. Rows and inputs
          are padded.
Source    QTIP (2406.11235) for the codes; the kernel is our own.
Figures   4096x4096, one thread of an EPYC (Zen 4), bfloat16 x at 1 / 4 / 16 / 128 tokens, ms: trellis2 0.88 / 1.43 / 5.9 / 26,
          nn.Linear in bfloat16 3.5 / 3.3 / 5.2 / 21.5; decoded.py, which looks states up: 30 / 31 / 40 / 59. With AVX2 alone
          1.0 / 2.0. AMX at 2.5 GHz 1.2 / 1.6 / 3.2 / 7.3, nn.Linear 2.5 / 2.6 / 3.0 / 7.1. Relative error against float64,
          Gaussian x: 3e-7 (float32), 1.7e-3 (bfloat16: the rounding of y; in AMX's tiles 2.3e-3).
Traps     Other rules, scales of groups and rates that are not compiled: decoded.py.
"""

import torch
from torch import Tensor

from lowbit.dtypes._mul1 import mul1, mul2
from lowbit.dtypes._trellis import SIDE, Trellis
from lowbit.dtypes.trellis_int import rule as masked
from lowbit.formats import Format, Parts
from lowbit.kernels import packing
from lowbit.kernels.cpu import _build

RANK = 18
DECODE_TOKENS = {torch.bfloat16: 16, torch.float32: 4}
FEW, ARGUMENTS = "lowbit_trellis", "ppiiiipiipii"
TEAM, TILES = 4, "lowbit_trellis_tiles"
"""From more than TEAM bfloat16 tokens on matrix registers multiply decoded tiles, where there are any."""
PANEL = 1 << 21
ROWS, SPAN, SLICES, HIGH, WIDE = 64, 128, 8, 4, 8
RULES = ((mul1, 16, (1, 2, 3, 4)), (mul2, 16, (3, 4, 5, 7)), (masked, 16, (2, 3, 4)), (mul1, 12, (2, 3, 4)))
"""Rules, bits of a state and of a step, by the number that trellis.cpp has for the rule."""
SCALES = {"fp32": torch.float32, "fp16": torch.float16, "half": torch.bfloat16, "bf16": torch.bfloat16}


def missing() -> str:
    return _build.missing()


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    reason = _build.refusal(device, dtype)
    if reason:
        return reason
    if _rule(format) is None:
        return f"{format.element} is no trellis code of bytes summed that is compiled"
    if format.scale not in SCALES or format.group[0] > 1 or format.group[1] not in {0, shape[1]}:
        return f"{format}: one plain scale a row or for all only"
    return _build.missing()


def _rule(format: Format) -> int | None:
    """The number of the rule of a format's code; None: another rule or rate."""
    element = format.dtype
    if not isinstance(element, Trellis):
        return None
    known = ((n, bits) for n, (rule, length, bits) in enumerate(RULES) if (rule, length) == (element.rule, element.length))
    return next((number for number, bits in known if element.bits in bits), None)


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The stream of a tile is one number, its first code highest: codes from last to first, words from last to first."""
    tiles = _turned(format, packed, shape).view(torch.int16).view(shape[0] // SIDE, shape[1] // SIDE, SLICES, -1)
    tiles = tiles.flip(2, 3)
    tiles = torch.nn.functional.pad(tiles, (0, 0, 0, 0, 0, -tiles.shape[1] % WIDE, 0, -tiles.shape[0] % HIGH))
    cube = tiles.unflatten(1, (-1, WIDE)).unflatten(0, (-1, HIGH))
    return {"words": _build.settled(cube.permute(0, 4, 2, 5, 1, 3).contiguous()), "scale": parts["scale"].float()}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    tiles = prepared["words"].permute(0, 4, 2, 5, 1, 3).flatten(2, 3).flatten(0, 1)
    tiles = tiles[: shape[0] // SIDE, : shape[1] // SIDE].flip(2, 3).contiguous()
    packed = tiles.view(shape[0] // SIDE, -1).view(torch.int32)
    return _turned(format, packed, shape), {"scale": prepared["scale"].to(SCALES[format.scale])}


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
    matrix = _matrix(prepared["words"], prepared["scale"], format, shape)

    def product(x: Tensor, y: Tensor, tokens: int) -> None:
        if tokens > TEAM:
            return _product(x.view(tokens, -1), y.view(tokens, -1), prepared, format, shape)
        run, where = _build.function(FEW, ARGUMENTS, prepared), (_build.address(x), _build.address(y))
        run(*where, _build.KINDS[x.dtype], tokens, *matrix, _build.threads(shape[0] * shape[1]))

    return _build.bound(product, shape)


def _product(x: Tensor, y: Tensor, prepared: Parts, format: Format, shape: tuple[int, int]) -> None:
    words, scale = prepared["words"], prepared["scale"]
    if x.shape[0] > TEAM and x.dtype == torch.bfloat16 and _build.has(TILES):
        run, threads = _build.function(TILES, "ppiiipiipii"), _build.threads(shape[0] * shape[1])
        run(_build.address(x), _build.address(y), x.shape[0], *_matrix(words, scale, format, shape), threads)
        return
    if x.shape[0] <= DECODE_TOKENS[x.dtype]:
        _call(x, y, words, scale, format, shape)
        return
    inputs = words.shape[2] * SPAN
    turned = torch.nn.functional.pad(x, (0, inputs - shape[1])).unflatten(1, (-1, WIDE, SIDE)).transpose(2, 3).flatten(1)
    step = max(1, PANEL // (inputs * ROWS)) * ROWS
    for start in range(0, shape[0], step):
        rows = min(step, shape[0] - start)
        panel = torch.empty(rows, inputs, dtype=x.dtype)
        sizes = scale if len(scale) == 1 else scale[start:]
        _call(None, panel, words[start // ROWS :], sizes, format, (rows, shape[1]))
        y[:, start : start + rows] = turned @ panel.t()


def _call(x: Tensor | None, y: Tensor, words: Tensor, scale: Tensor, format: Format, shape: tuple[int, int]) -> None:
    run, threads = _build.function(FEW, ARGUMENTS), _build.threads(shape[0] * shape[1])
    where = _build.address(x), _build.address(y)
    run(*where, _build.KINDS[y.dtype], 0 if x is None else x.shape[0], *_matrix(words, scale, format, shape), threads)


def _matrix(words: Tensor, scale: Tensor, format: Format, shape: tuple[int, int]) -> tuple[int | None, ...]:
    """What the C++ is told of a matrix."""
    return *shape, _build.address(words), _rule(format), int(format.dtype.bits), _build.address(scale), int(len(scale) == 1)
