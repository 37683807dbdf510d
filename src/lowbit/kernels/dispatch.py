"""dispatch - picks the kernel that runs a layer, says why the others do not, and binds them as one op of torch.

Idea      Among the kernels that take (format, shape, device, dtype, tokens) the one of highest RANK runs. A layer is prepared
          for one of them; a call that it does not take (many tokens, another dtype) goes to another of the same FORM, at last
          to the reference on the restored bytes: slower, never wrong.
          Kernels know grids alone: what stands around one (lowbit.sides) is done here, before and after.
          `lowbit::linear` is bound by torch.library.Library with a fake kernel, so torch.compile sees one opaque op.
"""

import functools
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from lowbit import formats, kernels, sides
from lowbit.core.errors import KernelUnavailable
from lowbit.core.shelf import Shelf
from lowbit.formats import Format, Parts
from lowbit.kernels import packing

REFERENCE = "reference.dequantize"
LINEAR, ATTENTION = "linear", "attention"
"""The ops. What an op's files are called begins with its name, but those of `linear`, which are all others."""


@functools.cache
def shelves() -> dict[str, Shelf]:
    """The folders of kernels by name, as "cpu"."""
    found = [m.name for m in pkgutil.iter_modules(kernels.__path__) if m.ispkg]
    return {name: Shelf(f"{kernels.__name__}.{name}", "kernel") for name in sorted(found)}


def names(op: str = LINEAR) -> list[str]:
    """All kernels of an op as "folder.file"; imports none of them."""
    found = [(folder, file) for folder, shelf in shelves().items() for file in shelf.names()]
    return [f"{folder}.{file}" for folder, file in found if file.startswith(ATTENTION) == (op == ATTENTION)]


def summary(name: str) -> str:
    """The first line of a kernel's header."""
    folder, _, file = name.partition(".")
    return shelves()[folder].summary(file)


@functools.cache
def get(name: str) -> ModuleType:
    """The module of the kernel called `name`. Raises KernelUnavailable when this machine lacks what it imports."""
    folder, _, file = name.partition(".")
    if folder not in shelves():
        raise KernelUnavailable(f"Unknown kernel '{name}'. Known: {', '.join(names())}.")
    try:
        return shelves()[folder].get(file)
    except ImportError as error:
        raise KernelUnavailable(f"{name}: {error}. Install what it needs.") from error


@functools.cache
def ranked(op: str = LINEAR) -> tuple[list[str], dict[str, str]]:
    """The kernels of an op that import here, best first, and the others with the reason."""
    ranks: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name in names(op):
        try:
            ranks[name] = get(name).RANK
        except KernelUnavailable as error:
            missing[name] = str(error.__cause__ or error)
    return sorted(ranks, key=lambda name: (-ranks[name], name)), missing


def form(name: str) -> str:
    """What a kernel's `prepare` gives: kernels of one form can run each other's layers."""
    return str(getattr(get(name), "FORM", name))


def explain(
    format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int = 1
) -> list[tuple[str, str]]:
    """Every kernel, best first, with "" when it takes the layer, else the reason why not; the first "" is the one that runs."""
    known, missing = ranked()
    return [(n, get(n).supports(format.core, shape, device, dtype, tokens)) for n in known] + sorted(missing.items())


@functools.lru_cache(maxsize=4096)
def pick(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int = 1) -> str:
    """The name of the kernel that runs. Raises KernelUnavailable when none does, with every reason."""
    told = explain(format, shape, device, dtype, tokens)
    for name, reason in told:
        if not reason:
            return name
    reasons = "; ".join(f"{name}: {reason}" for name, reason in told)
    raise KernelUnavailable(f"{format} {list(shape)} on {device} with {dtype}: {reasons}. Use another dtype or device.")


@functools.lru_cache(maxsize=4096)
def _runner(
    prepared_by: str, format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int
) -> ModuleType | None:
    """The kernel that runs a call on what `prepared_by` prepared; None: the reference on the restored bytes."""
    wanted = form(prepared_by)
    for name in ranked()[0]:
        if form(name) == wanted and not get(name).supports(format.core, shape, device, dtype, tokens):
            return get(name)
    return None


def prepare(kernel: str, format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> Parts:
    """The tensors that `kernel` wants for a matrix, and those of its sides as they are."""
    around = _side_parts(format)
    inner = {name: tensor for name, tensor in parts.items() if name not in around}
    prepared: Parts = get(kernel).prepare(format.core, packed, inner, shape)
    return prepared | {name: parts[name] for name in around}


def restore(kernel: str, prepared: Parts, format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    """The way back: packed codes and parts, exactly."""
    around = _side_parts(format)
    inner = {name: tensor for name, tensor in prepared.items() if name not in around}
    packed, parts = get(kernel).restore(inner, format.core, shape)
    return packed, parts | {name: prepared[name] for name in around}


@functools.cache
def _side_parts(format: Format) -> tuple[str, ...]:
    """The names of the parts of a format's sides."""
    return tuple(part for side in format.sides for part in sides.get(side).parts)


def behind(x: Tensor, prepared: Parts, format: Format, product: Callable[[Tensor, Parts], Tensor]) -> Tensor:
    """`product` of x [..., in] behind the sides that a format has ahead, with what is prepared for the matrix there."""
    flat, entered = x.reshape(-1, x.shape[-1]), []
    for word in reversed(format.ahead):
        entered.append(flat)
        flat = sides.get(word).before(flat, prepared)
    parts = {part for word in format.ahead for part in sides.get(word).parts}
    y = product(flat.reshape(x.shape) if format.ahead else x, {name: t for name, t in prepared.items() if name not in parts})
    for word, outer in zip(format.ahead, reversed(entered), strict=True):
        y = sides.get(word).after(y.reshape(-1, y.shape[-1]), outer, prepared).reshape(y.shape)
    return y


def linear(x: Tensor, prepared: Parts, kernel: str, format: Format, shape: tuple[int, int]) -> Tensor:
    """x [..., in] -> x @ W.T [..., out], without bias; what layers call. prepared: what `kernel` prepared for this matrix.

    The op costs 6 us more than a plain call, so it is used only where torch must know of it: compiling and differentiating.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        y: Tensor = torch.ops.lowbit.linear(x, list(prepared.values()), ",".join(prepared), kernel, str(format), *shape)
        return y
    return _run(x, prepared, kernel, format, shape)


def _run(x: Tensor, prepared: Parts, kernel: str, format: Format, shape: tuple[int, int]) -> Tensor:
    flat = x.reshape(-1, shape[1])
    if flat.shape[0] == 0:
        return x.new_empty(*x.shape[:-1], shape[0])
    return _inside(format.sides, flat, prepared, kernel, format, shape).reshape(*x.shape[:-1], shape[0])


def _inside(around: tuple[str, ...], x: Tensor, prepared: Parts, kernel: str, format: Format, shape: tuple[int, int]) -> Tensor:
    """y of the matrix inside the outermost of the sides `around`, and so on inwards to the grid."""
    if around:
        side = sides.get(around[-1])
        y = _inside(around[:-1], side.before(x, prepared), prepared, kernel, format, shape)
        return side.after(y, x, prepared)
    runner = _runner(kernel, format, shape, x.device, x.dtype, x.shape[0])
    if runner is not None:
        found: Tensor = runner.linear(x, prepared, format.core, shape)
        return found
    inner = {name: tensor for name, tensor in prepared.items() if name not in _side_parts(format)}
    product: Tensor = get(REFERENCE).product(x, *get(kernel).restore(inner, format.core, shape), format.core, shape)
    return product


@functools.cache
def _parse(text: str) -> Format:
    return formats.parse(text)


def _op(x: Tensor, weights: Sequence[Tensor], names: str, kernel: str, format: str, rows: int, columns: int) -> Tensor:
    """`linear` as the dispatcher of torch takes it: `names` of `weights` joined by commas, the format as text."""
    return _run(x, dict(zip(names.split(","), weights, strict=True)), kernel, _parse(format), (rows, columns))


def _fake(x: Tensor, weights: Sequence[Tensor], names: str, kernel: str, format: str, rows: int, columns: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, weights, *ctx.rest = inputs
    ctx.save_for_backward(*weights)


def _backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
    """The gradient of x alone: packed weights do not train."""
    names, kernel, text, *shape = ctx.rest
    weights, format = ctx.saved_tensors, _parse(text)
    packed, parts = restore(kernel, dict(zip(names.split(","), weights, strict=True)), format, tuple(shape))
    dense = formats.Quantized(format, packing.codes(format, packed, tuple(shape)), parts, tuple(shape)).decode()
    return gradient @ dense.to(gradient.dtype), [None] * len(weights), None, None, None, None, None


_library = torch.library.Library("lowbit", "DEF")
_library.define("linear(Tensor x, Tensor[] weights, str names, str kernel, str format, int rows, int columns) -> Tensor")
_library.impl("linear", _op, "CompositeExplicitAutograd")
torch.library.register_fake("lowbit::linear", _fake)
torch.library.register_autograd("lowbit::linear", _backward, setup_context=_remember)
