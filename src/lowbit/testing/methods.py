"""methods - what every method must pass by itself; what it does to a whole model is the pipeline's suite.

In / Out  the name of a method -> nothing, or an AssertionError that says what is wrong.
"""

import copy
import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lowbit import formats, methods, statistics
from lowbit.core.errors import FormatError
from lowbit.formats import Format, Quantized
from lowbit.methods import Block, Method, Model
from lowbit.solvers import whole
from lowbit.statistics import Collecting, Stats, Weighed
from lowbit.testing.solvers import layer

LINES = 200


def solvers() -> list[str]:
    """The methods that round."""
    return [name for name in methods.shelf.names() if methods.verb(methods.get(name)) == "solve"]


def tuners() -> list[str]:
    """The methods that train a block."""
    return [name for name in methods.shelf.names() if methods.verb(methods.get(name)) == "tune"]


def finishers() -> list[str]:
    """The methods that train a whole model."""
    return [name for name in methods.shelf.names() if methods.verb(methods.get(name)) == "finish"]


def check_declaration(name: str) -> None:
    """A frozen dataclass with defaults, one verb at most, statistics that exist, a header, at most 200 lines."""
    method = methods.get(name)
    made = method()
    assert vars(method)["__dataclass_params__"].frozen, f"{name}: the dataclass is not frozen"
    verbs = [v for v in methods.VERBS if hasattr(method, v)]
    assert len(verbs) <= 1, f"{name}: {len(verbs)} verbs"
    for example in method.takes.examples if method.takes else ():
        assert not made.refusal(formats.parse(example)), f"{name} names {example} as one that it takes, and refuses it"
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
    stats, found = collecting.stats(), dict[str, Tensor]()
    slopes = torch.randn(len(x), layer(inputs=inputs)[0].shape[0], generator=torch.Generator().manual_seed(5))
    for need in statistics.gradients(method.needs):
        watcher = statistics.shelf.get(need).collector((slopes.shape[1], inputs), torch.device("cpu"))
        for window, gradient in zip(x.split(64), slopes.split(64), strict=True):
            watcher.add(window, gradient)
        found[need] = watcher.result()
    weighed = Weighed(tuple(method.needs), found, inputs, torch.device("cpu"))
    weighed.add(x)
    return Stats(stats.tokens, stats.values | found | weighed.values())


def _format(method: Method, bits: int) -> Format:
    """A format of `bits` that the method takes: plain integers, with a zero, or with the sides that it asks for."""
    own = formats.parse(method.format) if getattr(method, "format", "") else None  # type: ignore[attr-defined]
    around = "".join(f"-{side}" for side in own.sides) if own else ""
    related = re.sub(r"[\d.]+", str(bits), str(own), count=1)
    for text in (f"int{bits}-g64", f"int{bits}-g64-asym", f"int{bits}-g64{around}", *([related] if own else [])):
        try:
            format = formats.parse(text)
            method.solve(torch.randn(16, 256), Stats(), format)  # type: ignore[attr-defined]
            return format
        except FormatError:
            continue
    raise AssertionError(f"{method}: takes none of the formats of integers")


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


class _Layer(nn.Module):
    """A block in small: norm, two linears, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128, bias=False), nn.Linear(128, 64)

    def forward(self, hidden: Tensor, gain: float) -> Tensor:
        out: Tensor = hidden + gain * self.down(nn.functional.silu(self.up(self.norm(hidden))))
        return out


def solved_block(format: Format, seed: int = 0) -> tuple[Block, list[Tensor], list[Tensor]]:
    """A block with rounded matrices, 12 windows that enter it in two batches, and what should leave."""
    torch.manual_seed(seed)
    module = _Layer().requires_grad_(False)
    inputs = [torch.randn(count, 32, 64) for count in (8, 4)]
    targets = [module(x, gain=2.0) for x in inputs]
    linears = {"up": module.up, "down": module.down}
    block = Block(3, "model.layers.3", module, linears, dict.fromkeys(linears, format), (), (), lambda h: module(h, 2.0))
    block.kwargs = {"gain": 2.0}
    for name, linear in linears.items():
        block.originals[name] = linear.weight.data
        block.quantized[name] = format.fit(linear.weight, search=False).quantize(linear.weight)
        linear.weight = nn.Parameter(block.quantized[name].decode(), requires_grad=False)
    return block, inputs, targets


def _set(name: str, changes: Mapping[str, float]) -> Method:
    """A method with those of the changes that are fields of it."""
    method = methods.get(name)()
    known = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    return dataclasses.replace(method, **{k: v for k, v in changes.items() if k in known})  # type: ignore[type-var]


def _tuned(name: str, format: Format, **changes: float) -> tuple[Block, float, float]:
    """A tuned block, and its mean squared error with what it was and what is stored now."""
    method = _set(name, changes)
    block, inputs, targets = solved_block(format)
    start = copy.deepcopy(block.module)
    with torch.no_grad():  # as the pipeline calls it
        method.tune(block, inputs, targets)  # type: ignore[attr-defined]
        for linear, quantized in block.quantized.items():
            block.linears[linear].weight.data = quantized.decode()
        errors = [
            sum(float((module(x, gain=2.0) - y).square().sum()) for x, y in zip(inputs, targets, strict=True))
            for module in (start, block.module)
        ]
    return block, errors[0], errors[1]


def _trainable(name: str) -> Format:
    """A format that a tuner or finisher takes."""
    return next(f for f in map(formats.parse, ("int3-g64-asym", "int3-g64")) if not methods.get(name)().refusal(f))


def check_tuner(name: str) -> None:
    """Few gentle steps make the block better; the formats stay; two runs give the same bytes; absurd steps change nothing."""
    format = _trainable(name)
    block, before, after = _tuned(name, format, steps=20, batch=4)
    assert after < before, f"{name}: the error was {before:.4g}, it is {after:.4g}"
    assert block.report["after"] < block.report["before"], f"{name}: it says {block.report}"
    assert {q.format for q in block.quantized.values()} == {format}, f"{name}: another format"
    assert all(bool(torch.isfinite(q.decode()).all()) for q in block.quantized.values()), f"{name}: not finite"
    assert not any(p.requires_grad for p in block.module.parameters()), f"{name}: gradients are left on"
    again, *_ = _tuned(name, format, steps=20, batch=4)
    for linear, quantized in block.quantized.items():
        other = again.quantized[linear]
        assert torch.equal(quantized.codes, other.codes), f"{name}: two runs give other codes"
        assert all(torch.equal(v, other.parts[k]) for k, v in quantized.parts.items()), f"{name}: two runs, other scales"
    _, before, after = _tuned(name, format, steps=3, batch=4, rate=1e6)
    assert after == before, f"{name}: the error was {before:.4g}; steps that are too large made it {after:.4g}"


def _whole(format: Format) -> tuple[Model, Callable[[Model], float]]:
    """Two quantized blocks with a head, 12 windows of tokens, and a function that tells how far the model is off, in nats."""
    torch.manual_seed(0)
    names, blocks, originals = ["layers.0", "layers.1"], [_Layer(), _Layer()], dict[str, Tensor]()
    book, head = torch.randn(50, 64), torch.randn(50, 64) * 0.3
    tokens = [torch.randint(50, (count, 32)) for count in (8, 4)]
    entering = [book[batch] for batch in tokens]
    wanted = [blocks[1](blocks[0](x, gain=2.0), gain=2.0).detach() for x in entering]
    matrices = {}
    for name, block in zip(names, blocks, strict=True):
        block.requires_grad_(False)
        for leaf in ("up", "down"):
            weight = block.get_parameter(f"{leaf}.weight")
            originals[f"{name}.{leaf}"] = weight.data
            matrices[f"{name}.{leaf}"] = format.fit(weight.data, search=False).quantize(weight.data)
            weight.data = torch.zeros_like(weight)
    model = Model(
        list[nn.Module](blocks), names, [{"gain": 2.0}] * 2, matrices, {}, originals.get, tokens, entering, wanted,
        lambda row, hidden: hidden @ head.T,
    )  # fmt: skip

    def off(model: Model) -> float:
        values = {f"{name}.weight": q.decode for name, q in model.quantized.items()}
        stack = whole.Stack(model.blocks, model.names, model.kwargs)
        batches = zip(tokens, entering, wanted, strict=True)
        with torch.no_grad():
            return sum(float(whole.divergence(model.logits, stack.run(x, values), y, t)) * len(t) for t, x, y in batches) / 12

    return model, off


def check_finisher(name: str) -> None:
    """Few gentle steps bring a model nearer to the original; the formats stay; two runs agree; absurd steps change nothing."""
    format, changes = _trainable(name), {"steps": 20, "batch": 4}
    found = list[Model]()
    for _ in range(2):
        model, off = _whole(format)
        before = off(model)
        with torch.no_grad():  # as the pipeline calls it
            _set(name, changes).finish(model)  # type: ignore[attr-defined]
        found.append(model)
    after, report = off(model), model.report
    assert after < before, f"{name}: the divergence was {before:.4g}, it is {after:.4g}"
    assert report["after"] < report["before"], f"{name}: it says {report}"
    assert {q.format for q in model.quantized.values()} == {format}, f"{name}: another format"
    assert not any(p.requires_grad for b in model.blocks for p in b.parameters()), f"{name}: gradients are left on"
    for matrix, quantized in model.quantized.items():
        other = found[0].quantized[matrix]
        assert torch.equal(quantized.codes, other.codes), f"{name}: two runs give other codes"
        assert all(torch.equal(v, other.parts[k]) for k, v in quantized.parts.items()), f"{name}: two runs, other parts"
    model, off = _whole(format)
    with torch.no_grad():
        _set(name, {"steps": 3, "batch": 4, "rate": 1e6}).finish(model)  # type: ignore[attr-defined]
    assert off(model) == before, f"{name}: steps that are too large changed the model"
