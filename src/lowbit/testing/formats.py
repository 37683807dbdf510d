"""formats - what every format must pass.

In / Out  the name of a format -> nothing, or an AssertionError that says what is wrong.
Idea      A fitted grid has few values: the nearest is found by trying all of them in float64. Bits are counted on the tensors
          that would be stored. Codes that tell several weights have too many values to try: a search must beat chance there,
          and may find other values when it rounds its own again, but near ones.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit import formats
from lowbit.core.errors import FormatError, ShapeError
from lowbit.formats import Format, Grid
from lowbit.kernels import packing


def matrix(out: int = 24, inputs: int = 256, seed: int = 0) -> Tensor:
    """Weights of a usual size with a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inputs, generator=generator) * 0.02
    weight[::5, ::37] *= 8
    return weight


def sized(format: Format, out: int = 24, inputs: int = 256) -> Tensor:
    """`matrix`; for codes of tiles, which take long to find, a small one."""
    return matrix(format.step[0], 2 * format.step[1]) if format.step[0] > 1 else matrix(out, inputs)


def alone(format: Format) -> bool:
    """Whether a code tells one weight."""
    return format.step == (1, 1, 1)


def check_name(name: str) -> None:
    """The name is the format."""
    format = formats.parse(name)
    assert str(format) == name and formats.parse(str(format)) == format
    assert "Unknown word 'nosuchword'" in _refusal(FormatError, lambda: formats.parse(f"{name}-nosuchword"))


def check_requantizing(name: str) -> None:
    """Values of a grid are their own nearest values, bit by bit; those of several weights move less than rounding moved."""
    format = formats.parse(name)
    weight = sized(format)
    for search in (False, True):
        grid = format.fit(weight, search=search)
        once = grid.quantize(weight)
        again = grid.quantize(once.decode())
        if not alone(format):
            moved, lost = (again.decode() - once.decode()).norm(), (once.decode() - weight).norm()
            assert moved < 0.5 * lost, f"{name}: rounded again, values move by {moved / lost:.2f} of the first error"
            continue
        assert torch.equal(once.decode(), again.decode()), f"{name}: values move when they are rounded again"
        assert torch.equal(once.codes, again.codes), f"{name}: codes change when values are rounded again"


def check_nearest(name: str) -> None:
    """Inside its range every weight is within half a gap; outside it gets the end."""
    format = formats.parse(name)
    if not alone(format):
        return _check_better_than_chance(format)
    for search in (False, True):
        weight = matrix(8, 128 if format.group[1] <= 128 else 256)
        grid = format.fit(weight, search=search)
        codes = torch.arange(format.dtype.codes, dtype=torch.int32).to(torch.uint8)
        every = torch.stack([grid.decode(code.expand(weight.shape)) for code in codes], -1).double()
        errors = (every - weight[..., None]).abs().nan_to_num(torch.inf)
        found = (grid.quantize(weight).decode() - weight).double().abs()
        assert (found <= errors.amin(-1) * (1 + 1e-4) + 1e-7 * weight.abs().max()).all(), f"{name}: not the nearest value"


def _check_better_than_chance(format: Format) -> None:
    """No step of weights has a nearer value among random codes."""
    weight = sized(format)
    grid, target = format.fit(weight), format.begin(weight)[1]
    high, wide, _ = format.step

    def errors(codes: Tensor) -> Tensor:
        off = (grid.inner(codes) - target).square()
        return off.view(off.shape[0] // high, high, -1, wide).sum((1, 3))

    codes = grid.encode(weight)
    generator = torch.Generator().manual_seed(2)
    for _ in range(16):
        tried = torch.randint(format.dtype.codes, codes.shape, generator=generator).to(torch.uint8)
        assert (errors(codes) <= errors(tried) * (1 + 1e-5)).all(), f"{format}: random codes are nearer"


def check_ragged(name: str) -> None:
    """A group that does not divide the inputs is an error that says so; blocks are cut short at the edges."""
    format = formats.parse(name)
    rows, columns = format.group
    if rows == 1 and columns:
        said = _refusal(ShapeError, lambda: format.fit(matrix(4, columns + 4)))
        assert f"group {columns} does not divide {columns + 4} inputs" in said
        return
    if not alone(format):
        high, wide, _ = format.step
        assert "a code holds" in _refusal(ShapeError, lambda: format.core.fit(matrix(high, wide + wide // 2)))
        return
    for shape in ((5, 36), (rows + 3, columns + 5)):
        weight = matrix(*shape)
        grid = format.fit(weight)
        assert tuple(grid.scale.shape) == format.groups(shape)
        assert grid.quantize(weight).decode().shape == weight.shape


def check_rows(name: str) -> None:
    """Zero, constant, tiny and huge rows give finite values; zeros stay about zero; NaN and infinity are refused."""
    format = formats.parse(name)
    for size in (0.0, 1e-30, 1e-6, 0.37, 3000.0, 1e30):
        for search in (False, True):
            weight = torch.full_like(sized(format, 16), size)
            found = format.fit(weight, search=search).quantize(weight).decode()
            assert found.isfinite().all(), f"{name}: rows of {size} give NaN or infinity"
            if size == 0 or (1e-3 < size < 1e4 and not format.sides):
                far = (found - size).abs().max()
                assert far <= 0.42 * size + 1e-4, f"{name}: rows of {size} become {found[0, 0].item()}"
    mixed = sized(format)
    mixed[-1] = 0
    assert format.fit(mixed).quantize(mixed).decode().isfinite().all()
    for bad in (float("nan"), float("inf")):
        weight = sized(format)
        weight[3, 7] = bad
        assert "NaN or Inf" in _refusal(FormatError, functools.partial(format.fit, weight))


def check_tensors(name: str, device: str = "cpu") -> None:
    """The same result for any float type and stride, nearly so on another device; inputs stay as they were."""
    format = formats.parse(name)
    weight = sized(format).bfloat16()
    importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(1))
    before, cared = weight.clone(), importance.clone()
    first = format.fit(weight, importance).quantize(weight)
    assert torch.equal(weight, before) and torch.equal(importance, cared), f"{name}: the input was changed"
    for other in (weight.float(), weight.t().contiguous().t()):
        second = format.fit(other, importance).quantize(other)
        assert torch.equal(first.codes, second.codes), f"{name}: other codes for the same numbers"
        assert all(torch.equal(first.parts[k].float(), second.parts[k].float()) for k in first.parts)
    here, there = format.fit(weight, importance), format.fit(weight.to(device), importance.to(device))
    moved = there.decode(first.codes.to(device)).cpu()
    assert torch.allclose(here.decode(first.codes), moved), f"{name}: {device} decodes otherwise"


def check_search(name: str) -> None:
    """The search never loses to the plain rule in the error that it minimises; importance may be [in] or [out, in]."""
    format = formats.parse(name)
    weight = sized(format)
    importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(1)) ** 4 + 1e-3

    def loss(grid: Grid, h: Tensor) -> float:
        return float(((grid.quantize(weight).decode() - weight).square() * h).sum())

    for h in (torch.ones_like(importance), importance):
        assert loss(format.fit(weight, h), h) <= loss(format.fit(weight, search=False), h) * 1.001, f"{name}: search loses"
    whole = format.fit(weight, importance.expand_as(weight))
    assert torch.allclose(format.fit(weight, importance).scale, whole.scale), f"{name}: [in] and [out, in] differ"
    assert loss(format.fit(weight, importance), importance) <= loss(format.fit(weight), importance) * 1.001


def check_bits(name: str) -> None:
    """bits_per_weight is what packed codes and parts take; an integer zero counts its own bits."""
    for shape in ((24, 256), (130, 1280)):
        format = formats.parse(name)
        weight = sized(format, *shape)
        quantized = format.fit(weight, search=False).quantize(weight)
        bits = 8 * quantized.packed().nbytes
        stored = packing.pack(quantized)
        for part, tensor in quantized.parts.items():
            bits += (
                tensor.numel() * int(format.dtype.bits) if part == "zero" and format.zero == "int" else 8 * stored[part].nbytes
            )
        promised = round(format.bits_per_weight(quantized.shape) * weight.numel(), 3)
        assert bits == promised, f"{name}: {bits} bits are stored, {promised} promised"


def check_packing(name: str) -> None:
    """The way to bytes and back keeps codes."""
    format = formats.parse(name)
    weight = sized(format)
    quantized = format.fit(weight, search=False).quantize(weight)
    back = formats.Quantized.unpack(format, quantized.packed(), quantized.parts, quantized.shape)
    assert torch.equal(back.codes, quantized.codes) and torch.equal(back.decode(), quantized.decode())


def check_rescale(name: str) -> None:
    """Scales that were stored once are stored again as they are."""
    format = formats.parse(name)
    grid = format.fit(sized(format))
    rule = formats.shelf.get(grid.format.rule)
    if hasattr(rule, "rescale"):
        again = Grid(grid.format, rule.rescale(grid.format, grid.parts, grid.scale), grid.shape)
        assert torch.equal(again.scale, grid.scale) and again.parts.keys() == grid.parts.keys()
        assert all(again.parts[k].dtype == grid.parts[k].dtype for k in grid.parts)


def _refusal(kind: type[Exception], act: Callable[[], object]) -> str:
    """The message of the error that `act` must end with."""
    try:
        act()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")


def check_format(name: str) -> None:
    """All of the above."""
    for check in (
        check_name, check_requantizing, check_nearest, check_ragged, check_rows, check_tensors, check_search, check_bits,
        check_packing, check_rescale,
    ):  # fmt: skip
        check(name)
