"""formats - what every format must pass.

In / Out  the name of a format -> nothing, or an AssertionError that says what is wrong.
Idea      A fitted grid has few values: the nearest is found by trying all of them in float64. Bits are counted on the tensors
          that would be stored.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit import formats
from lowbit.core.errors import FormatError, ShapeError
from lowbit.formats import Grid


def matrix(out: int = 24, inputs: int = 256, seed: int = 0) -> Tensor:
    """Weights of a usual size with a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inputs, generator=generator) * 0.02
    weight[::5, ::37] *= 8
    return weight


def check_name(name: str) -> None:
    """The name is the format."""
    format = formats.parse(name)
    assert str(format) == name and formats.parse(str(format)) == format
    assert "Unknown word 'nosuchword'" in _refusal(FormatError, lambda: formats.parse(f"{name}-nosuchword"))


def check_requantizing(name: str) -> None:
    """Values of a grid are their own nearest values, bit by bit."""
    for search in (False, True):
        grid = formats.parse(name).fit(matrix(), search=search)
        once = grid.quantize(matrix())
        again = grid.quantize(once.decode())
        assert torch.equal(once.decode(), again.decode()), f"{name}: values move when they are rounded again"
        assert torch.equal(once.codes, again.codes), f"{name}: codes change when values are rounded again"


def check_nearest(name: str) -> None:
    """Inside its range every weight is within half a gap; outside it gets the end."""
    for search in (False, True):
        weight = matrix(8, 128 if formats.parse(name).group[1] <= 128 else 256)
        grid = formats.parse(name).fit(weight, search=search)
        codes = torch.arange(grid.format.dtype.codes, dtype=torch.int32).to(torch.uint8)
        every = grid.format.dtype.decode(codes).double()
        every = every[every.isfinite()].expand(*weight.shape, -1)
        if grid.full_zero is not None:
            every = every - grid.full_zero.double()[..., None]
        errors = (every * grid.full_scale.double()[..., None] - weight[..., None]).abs()
        found = (grid.quantize(weight).decode() - weight).double().abs()
        assert (found <= errors.amin(-1) * (1 + 1e-4) + 1e-7 * weight.abs().max()).all(), f"{name}: not the nearest value"


def check_ragged(name: str) -> None:
    """A group that does not divide the inputs is an error that says so; blocks are cut short at the edges."""
    format = formats.parse(name)
    rows, columns = format.group
    if rows == 1 and columns:
        said = _refusal(ShapeError, lambda: format.fit(matrix(4, columns + 4)))
        assert f"group {columns} does not divide {columns + 4} inputs" in said
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
            weight = torch.full((16, 256), size)
            found = format.fit(weight, search=search).quantize(weight).decode()
            assert found.isfinite().all(), f"{name}: rows of {size} give NaN or infinity"
            if size == 0 or 1e-3 < size < 1e4:
                far = (found - size).abs().max()
                assert far <= 0.42 * size + 1e-4, f"{name}: rows of {size} become {found[0, 0].item()}"
    mixed = torch.cat([matrix(15), torch.zeros(1, 256)])
    assert format.fit(mixed).quantize(mixed).decode().isfinite().all()
    for bad in (float("nan"), float("inf")):
        weight = matrix()
        weight[3, 7] = bad
        assert "NaN or Inf" in _refusal(FormatError, functools.partial(format.fit, weight))


def check_tensors(name: str, device: str = "cpu") -> None:
    """The same result for any float type and stride, nearly so on another device; inputs stay as they were."""
    format, weight = formats.parse(name), matrix().bfloat16()
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1))
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
    format, weight = formats.parse(name), matrix()
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) ** 4 + 1e-3

    def loss(grid: Grid, h: Tensor) -> float:
        return float(((grid.quantize(weight).decode() - weight).square() * h).sum())

    for h in (torch.ones(256), importance):
        assert loss(format.fit(weight, h), h) <= loss(format.fit(weight, search=False), h) * 1.001, f"{name}: search loses"
    whole = format.fit(weight, importance.expand_as(weight))
    assert torch.allclose(format.fit(weight, importance).scale, whole.scale), f"{name}: [in] and [out, in] differ"
    assert loss(format.fit(weight, importance), importance) <= loss(format.fit(weight), importance) * 1.001


def check_bits(name: str) -> None:
    """bits_per_weight is what packed codes and parts take; an integer zero counts its own bits."""
    for shape in ((24, 256), (130, 1280)):
        format, weight = formats.parse(name), matrix(*shape)
        quantized = format.fit(weight, search=False).quantize(weight)
        bits = 8 * quantized.packed().nbytes
        for part, tensor in quantized.parts.items():
            bits += tensor.numel() * int(format.dtype.bits) if part == "zero" and format.zero == "int" else 8 * tensor.nbytes
        promised = round(format.bits_per_weight(shape) * weight.numel(), 3)
        assert bits == promised, f"{name}: {bits} bits are stored, {promised} promised"


def check_packing(name: str) -> None:
    """The way to bytes and back keeps codes."""
    format, weight = formats.parse(name), matrix()
    quantized = format.fit(weight, search=False).quantize(weight)
    back = formats.Quantized.unpack(format, quantized.packed(), quantized.parts, quantized.shape)
    assert torch.equal(back.codes, quantized.codes) and torch.equal(back.decode(), quantized.decode())


def check_rescale(name: str) -> None:
    """Scales that were stored once are stored again as they are."""
    grid = formats.parse(name).fit(matrix())
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
