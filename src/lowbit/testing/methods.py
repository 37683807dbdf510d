"""methods - what every method must pass by itself; what it does to a whole model is the pipeline's suite.

In / Out  the name of a method -> nothing, or an AssertionError that says what is wrong.
"""

import inspect
import math
import sys

import torch

from lowbit import formats, methods, statistics
from lowbit.core.errors import FormatError
from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.statistics import Collecting, Stats
from lowbit.testing.solvers import layer

LINES = 200


def solvers() -> list[str]:
    """The methods that round."""
    return [name for name in methods.shelf.names() if methods.verb(methods.get(name)) == "solve"]


def check_declaration(name: str) -> None:
    """A frozen dataclass with defaults, one verb at most, statistics that exist, a header, at most 200 lines."""
    method = methods.get(name)
    made = method()
    assert vars(method)["__dataclass_params__"].frozen, f"{name}: the dataclass is not frozen"
    verbs = [v for v in ("rewrite", "solve", "tune") if hasattr(method, v)]
    assert len(verbs) <= 1, f"{name}: {len(verbs)} verbs"
    for need in made.needs:
        assert need in statistics.shelf, f"{name} needs '{need}', which is no statistic"
    source = inspect.getsource(sys.modules[method.__module__])
    assert source.count("\n") <= LINES, f"{name}: {source.count(chr(10))} lines, room for {LINES}"
    header = inspect.getdoc(sys.modules[method.__module__]) or ""
    missing = [word for word in ("In / Out", "Idea", "Source") if f"\n{word}" not in header]
    assert header.startswith(f"{name} - ") and not missing, f"{name}: the header lacks {missing or 'its first line'}"
    assert method.__doc__ and "(" not in method.__doc__.split(":")[0], f"{name}: say what the fields mean"


def _stats(method: Method, tokens: int, dead: bool = False, inputs: int = 256) -> Stats:
    """Statistics of `tokens` synthetic tokens, the reference stream slightly off; dead: input 3 is always 0."""
    x = layer(inputs=inputs)[1][:tokens]
    if dead:
        x[:, 3] = 0
    collecting = Collecting(tuple(method.needs), inputs, torch.device("cpu"))
    collecting.add(x, x * 1.01 if collecting.reference else None)
    return collecting.stats()


def _format(method: Method, bits: int) -> Format:
    """A format of `bits` that the method takes."""
    try:
        format = formats.parse(f"int{bits}-g64")
        method.solve(torch.ones(2, 256), Stats(), format)  # type: ignore[attr-defined]
    except FormatError:
        format = formats.parse(f"int{bits}-g64-asym")
    return format


def _solved(name: str, bits: int, tokens: int = 4096, dead: bool = False) -> tuple[torch.Tensor, Quantized]:
    method = methods.get(name)()
    weight = layer()[0]
    return weight, method.solve(weight, _stats(method, tokens, dead), _format(method, bits))  # type: ignore[attr-defined]


def check_near_identity(name: str) -> None:
    """8 bits change next to nothing; what comes back is whole and finite, the weight is untouched."""
    weight, quantized = _solved(name, 8)
    assert torch.equal(weight, layer()[0]), f"{name}: the weight was changed in place"
    assert quantized.codes.shape == weight.shape, f"{name}: codes {list(quantized.codes.shape)}"
    assert quantized.codes.dtype == torch.uint8, f"{name}: codes {quantized.codes.dtype}"
    decoded = quantized.decode()
    # correlated inputs let a solver move weights beyond the nearest value, so the bound is wide for single weights
    off = float((decoded - weight).norm() / weight.norm())
    assert math.isfinite(off) and off < 0.05, f"{name}: int8 is {off:.3f} away"


def check_report(name: str) -> None:
    """The report has a finite relative error, at 4 bits below 5 %; two calls give the same bytes."""
    _, quantized = _solved(name, 4)
    error = quantized.report.get("error")
    assert isinstance(error, float) and 0 <= error < 0.05, f"{name}: error {error}"
    _, again = _solved(name, 4)
    assert torch.equal(quantized.codes, again.codes), f"{name}: two calls give other codes"
    assert all(torch.equal(v, again.parts[k]) for k, v in quantized.parts.items()), f"{name}: two calls give other scales"


def check_hard_inputs(name: str) -> None:
    """A dead input, few tokens, one token, none: finite weights near the old ones, and what had to give is said."""
    method = methods.get(name)()
    for tokens, dead in ((4096, True), (100, False), (1, False), (0, False)):
        weight, quantized = _solved(name, 4, tokens, dead)
        decoded = quantized.decode()
        off = float((decoded - weight).norm() / weight.norm())
        assert math.isfinite(off) and off < 0.5, f"{name}, {tokens} tokens: {off:.3f} away"
        column = float((decoded[:, 3] - weight[:, 3]).norm() / weight[:, 3].norm())
        assert not dead or column < 0.3, f"{name}: the weights of a dead input are {column:.3f} away"
        said = "fallback" in quantized.report
        assert said or not method.needs or tokens >= weight.shape[1], f"{name}: {tokens} tokens, and the report is silent"
    empty = method.solve(weight, Stats(), _format(method, 4))  # type: ignore[attr-defined]
    assert bool(torch.isfinite(empty.decode()).all()), f"{name}: not finite without statistics"
