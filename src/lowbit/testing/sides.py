"""sides - what everything that stands around a grid must pass.

In / Out  the name of a side -> nothing, or an AssertionError that says what is wrong.
"""

import torch
from torch import Tensor

from lowbit import formats, sides
from lowbit.kernels import dispatch, packing

SHAPE = (128, 384)


def matrix(seed: int = 0) -> Tensor:
    """Weights with a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(SHAPE, generator=generator) * 0.02
    weight[::5, ::37] *= 8
    return weight


def check_bits(name: str) -> None:
    """`bits` is what its parts take; `parts` names them all."""
    side, weight = sides.get(name), matrix()
    parts = side.fit(weight)
    assert set(parts) == set(side.parts), f"{name}: fit gives {sorted(parts)}, parts says {sorted(side.parts)}"
    stored = sum(8 * t.nbytes for t in parts.values())
    assert side.bits(SHAPE) == stored, f"{name}: {stored} bits are stored, {side.bits(SHAPE)} promised"


def check_round_trip(name: str) -> None:
    """What is left for the grid, and the side again, are the matrix, but for the `rounding` that a side says."""
    side, weight = sides.get(name), matrix()
    parts = side.fit(weight)
    back = side.decode(side.into(weight, parts), parts)
    share = getattr(side, "rounding", 2e-3)
    assert torch.allclose(back, weight, atol=share * float(weight.abs().max())), f"{name}: off by {(back - weight).abs().max()}"


def check_law(name: str) -> None:
    """`before` and `after` around the inner matrix give what the decoded matrix gives."""
    side, weight = sides.get(name), matrix()
    parts = side.fit(weight)
    inner, x = side.into(weight, parts).double(), torch.randn(7, SHAPE[1], dtype=torch.float64)
    y = side.after(side.before(x, parts) @ inner.T, x, parts)
    expected = x @ side.decode(inner, parts).double().T
    assert torch.allclose(y, expected, atol=1e-4 * float(expected.abs().max())), f"{name}: off by {(y - expected).abs().max()}"


def check_within(name: str) -> None:
    """Inputs changed inside the side: the decoded matrix on `within`, and what the side makes of the difference."""
    side, weight = sides.get(name), matrix()
    if getattr(side, "ahead", False):
        return  # the pipeline changes inputs before it rounds them
    parts = side.fit(weight)
    grid, x = side.into(weight, parts).double(), torch.randn(7, SHAPE[1], dtype=torch.float64)
    y = side.after(side.before(x, parts).round() @ grid.T, x, parts)
    changed = sides.within((name,), x, parts, torch.round)
    found = changed @ side.decode(grid, parts).double().T + sides.beside((name,), x - changed, parts, SHAPE[0])
    assert torch.allclose(found, y, atol=1e-4 * float(y.abs().max())), f"{name}: off by {(found - y).abs().max()}"


def check_moment(name: str) -> None:
    """A basis leaves the loss of outputs as it is: tr(E H ET) inside and outside."""
    side, weight = sides.get(name), matrix().double()
    if not isinstance(side, sides.Basis):
        return
    parts = side.fit(weight)
    x = torch.randn(500, SHAPE[1], dtype=torch.float64)
    moment, error = x.T @ x / 500, torch.randn(SHAPE, dtype=torch.float64)
    inside = side.into(error, parts).double()
    found = (inside @ side.moment(moment, parts) * inside).sum()
    assert torch.allclose(found, (error @ moment * error).sum(), rtol=1e-3), f"{name}: the loss changes"


def check_format(name: str) -> None:
    """A format with the side is fitted, packed, unpacked and run; its bits are those stored."""
    format, weight = formats.parse(f"int4-g128-{name}"), matrix()
    quantized = format.fit(weight).quantize(weight)
    stored = packing.pack(quantized)
    assert 8 * packing.bytes_of(stored) == round(format.bits_per_weight(SHAPE) * weight.numel()), f"{name}: other bits"
    again = packing.unpack(format, stored, SHAPE)
    assert torch.equal(again.decode(), quantized.decode()), f"{name}: other values after packing"
    x = torch.randn(5, SHAPE[1])
    packed, parts = packing.split(format, stored, SHAPE)
    prepared = dispatch.prepare(dispatch.REFERENCE, format, packed, parts, SHAPE)
    y = dispatch.linear(x, prepared, dispatch.REFERENCE, format, SHAPE)
    assert torch.allclose(y, x @ quantized.decode().T, atol=1e-4), f"{name}: the layer gives something else"


def check_side(name: str) -> None:
    """All of the above."""
    for check in (check_bits, check_round_trip, check_law, check_within, check_moment, check_format):
        check(name)
