"""dtypes - what every element must pass.

In / Out  the name of an element -> nothing, or an AssertionError that says what is wrong.
Idea      Elements have at most 256 codes: the nearest value is found by trying all of them, in float64, on a sweep that holds
          every value, every midpoint, their neighbours in float32, both zeros, subnormals, infinities and random numbers.
          Where codes tell several weights together (`step`) one number has no nearest value: values must come back from encode
          (those of codes in two stages nearly), and other numbers nearer than zero.
"""

import math

import torch
from torch import Tensor

from lowbit import dtypes


def sweep(name: str, seed: int = 0) -> Tensor:
    """Numbers on which an element may fail, float32 [any]; no NaN."""
    element = dtypes.get(name)
    values = _finite(name)[0].sort().values
    middles = ((values[1:] + values[:-1]) / 2).float()
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, math.inf, -math.inf])
    points = torch.cat([values.float(), middles])
    around = [torch.nextafter(points, torch.tensor(end)) for end in (-math.inf, math.inf)]
    noise = torch.randn(4096, generator=torch.Generator().manual_seed(seed)) * element.maximum
    decades = noise * torch.logspace(-9, 1, len(noise))
    return torch.cat([points, *around, special, noise, decades])


def check_codes(name: str) -> None:
    """Every code has a value, comes back from it, and the range is that of the values."""
    element = dtypes.get(name)
    values, codes = _finite(name)
    assert element.name == name
    assert element.codes <= 2 ** math.ceil(element.bits), f"{name}: {element.codes} codes do not fit {element.bits} bits"
    assert element.decode(codes).dtype == torch.float32
    assert torch.equal(element.encode(values.float()), codes), f"{name}: a code does not come back from its value"
    assert (values.min().item(), values.max().item()) == (element.minimum, element.maximum)


def check_nearest(name: str) -> None:
    """No other value is nearer than the one that a number gets; beyond the range it is the end of the range."""
    element, x = dtypes.get(name), sweep(name)
    values = _finite(name)[0]
    found = element.decode(element.encode(x)).double()
    inside = x.double().clamp(element.minimum, element.maximum)
    least = (inside[:, None] - values).abs().amin(1)
    wrong = (inside - found).abs() > least
    assert not wrong.any(), f"{name}: {x[wrong][:4].tolist()} became {found[wrong][:4].tolist()}, others are nearer"


def check_round(name: str) -> None:
    """round is decode after encode, and changes no code."""
    element, x = dtypes.get(name), sweep(name)
    rounded, codes = element.round(x), element.encode(x)
    assert torch.equal(rounded, element.decode(codes)), f"{name}: round differs from encode"
    assert torch.equal(element.encode(rounded), codes), f"{name}: rounded numbers get other codes"


def check_tensors(name: str) -> None:
    """Any float type, shape and stride; the input stays as it was; the types of results are those of the contract."""
    element = dtypes.get(name)
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * element.maximum
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        given = x.to(kind)
        before = given.clone()
        codes = element.encode(given)
        assert codes.dtype == torch.uint8 and codes.shape == given.shape
        assert torch.equal(codes, element.encode(given.float())), f"{name}: {kind} gives other codes"
        assert torch.equal(element.encode(given.t()), codes.t()), f"{name}: strides change codes"
        assert element.round(given.float()).dtype == element.decode(codes).dtype == torch.float32
        element.round(given)
        assert torch.equal(given, before), f"{name}: the input was changed"
    assert element.encode(x[:0]).shape == (0, 10) and element.decode(codes[0, 0]).shape == ()


def check_steps(name: str) -> None:
    """Codes that tell several weights: shapes by `step`, the range, and what `_check_errors` says."""
    element = dtypes.get(name)
    high, wide, count = element.step
    assert element.name == name
    assert element.codes <= 2 ** math.ceil(element.bits), f"{name}: {element.codes} codes do not fit {element.bits} bits"
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(element.codes, (2, 3 * count), generator=random).to(torch.uint8)
    values = element.decode(codes)
    assert values.dtype == torch.float32 and values.shape == (2 * high, 3 * wide)
    assert element.minimum <= values.min().item() and values.max().item() <= element.maximum
    found = element.encode(values)
    assert found.dtype == torch.uint8 and found.shape == codes.shape and int(found.max()) < element.codes
    greedy = getattr(element, "greedy", False)  # a second code for what the first left: another sum may be found for a value
    assert greedy or torch.equal(element.decode(found), values), f"{name}: values of codes do not come back"
    assert torch.equal(element.decode(codes[1:, count:]), values[high:, wide:]), f"{name}: a step depends on its neighbours"
    _check_errors(name, values, element.decode(found))


def _check_errors(name: str, values: Tensor, back: Tensor) -> None:
    """Most values of codes come back; others are nearer than zero; round is decode after encode and changes no input."""
    element = dtypes.get(name)
    given = (torch.randn(values.shape, generator=torch.Generator().manual_seed(1)) * values.square().mean().sqrt()).half()
    before = given.clone()
    rounded = element.round(given.float())
    assert torch.equal(rounded, element.decode(element.encode(given))), f"{name}: round differs from encode"
    assert torch.equal(given, before), f"{name}: the input was changed"
    error = (rounded - given.float()).square().mean()
    assert error < given.float().square().mean(), f"{name}: zero is nearer"
    moved = (back - values).square().mean()
    assert (back == values).float().mean() > 0.5 and moved < error / 2, f"{name}: values of codes do not come back"


def check_element(name: str) -> None:
    """All that holds for elements of this kind."""
    alone = dtypes.get(name).step == (1, 1, 1)
    for check in (check_codes, check_nearest, check_round, check_tensors) if alone else (check_steps,):
        check(name)


def _finite(name: str) -> tuple[Tensor, Tensor]:
    """The finite values of an element, float64, and their codes."""
    element = dtypes.get(name)
    codes = torch.arange(element.codes, dtype=torch.int32).to(torch.uint8)
    values = element.decode(codes).double()
    kept = values.isfinite()
    return values[kept], codes[kept]
