"""dispatch - picks the kernel that runs a layer, says why the others do not, and binds them as one op of torch.

Idea      Among the kernels that take (format, shape, device, dtype, tokens) the one of highest RANK runs. A layer is prepared
          for one of them; a call that it does not take (many tokens, another dtype) goes to another of the same FORM, at last
          to the reference on the restored bytes: slower, never wrong.
          Kernels know grids alone: what stands around one (lowbit.sides) is done here, before and after. Inputs that are
          rounded (lowbit.kernels.activation) are so inside the sides, as the grid meets them; a side's product takes floats.
          `lowbit::linear` is bound by torch.library.Library with a fake kernel, so torch.compile sees one opaque op.
"""

import functools
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from lowbit import formats, kernels, sides
from lowbit.core.errors import KernelUnavailable
from lowbit.core.shelf import Shelf
from lowbit.formats import Format, Parts
from lowbit.kernels import activation as acting
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation

REFERENCE = "reference.dequantize"
GPU = ("cuda", "triton")
"""The folders whose kernels run on a GPU."""
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


def missing(name: str) -> str:
    """Why this machine can never run a kernel; "" where it can, or where it does not say."""
    if name.partition(".")[0] in GPU and not torch.cuda.is_available():
        return "this machine has no GPU that torch can use"
    try:
        return str(getattr(get(name), "missing", str)())
    except KernelUnavailable as error:
        return str(error.__cause__ or error)


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
def rounding(format: Format, shape: tuple[int, int], device: torch.device, activation: Activation) -> str:
    """The kernel that multiplies codes of x with codes of W; "" where the product is emulated on the rounded x."""
    plain = replace(activation, beyond=0.0)
    for name in ranked()[0]:
        found = get(name)
        takes = hasattr(found, "takes") and (hasattr(found, "columns") or not activation.beyond)
        if takes and not found.takes(plain, format.core, shape, device):
            return name
    return ""


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
    prepared: Parts = get(kernel).prepare(format.core, packed, _inner(parts, format), shape)
    return prepared | {name: parts[name] for name in _side_parts(format)}


def restore(kernel: str, prepared: Parts, format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    """The way back: packed codes and parts, exactly."""
    packed, parts = get(kernel).restore(_inner(prepared, format), format.core, shape)
    return packed, parts | {name: prepared[name] for name in _side_parts(format)}


@functools.cache
def _side_parts(format: Format) -> tuple[str, ...]:
    """The names of the parts of a format's sides."""
    return tuple(part for side in format.sides for part in sides.get(side).parts)


def _inner(tensors: Parts, format: Format) -> Parts:
    """Those of the grid alone."""
    around = {*_side_parts(format), acting.STORED}
    return {name: tensor for name, tensor in tensors.items() if name not in around}


def linear(
    x: Tensor, prepared: Parts, kernel: str, format: Format, shape: tuple[int, int], activation: Activation | None = None
) -> Tensor:
    """x [..., in] -> x @ W.T [..., out], without bias. prepared: what `kernel` prepared for this matrix, and
    the stored scale of its inputs where `activation`, how they are rounded, has one.

    The op costs 6 us more than a plain call, so it is used only where torch must know of it: compiling and differentiating.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        told = str(activation or "")
        y: Tensor = torch.ops.lowbit.linear(x, list(prepared.values()), ",".join(prepared), kernel, str(format), *shape, told)
        return y
    return _run(x, prepared, kernel, format, shape, activation)


def bind(
    prepared: Parts, kernel: str, format: Format, shape: tuple[int, int], activation: Activation | None = None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`linear` of one matrix, and a bias or None added, as layers call it outside of compiling and differentiating: what stays
    the same is looked up once. Weights that come from memory drive Python out of the caches after each call."""
    module, plain = get(kernel), activation is None and not format.sides
    bound = module.bound(prepared, format, shape) if plain and hasattr(module, "bound") else None

    def call(x: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor | None = bound(x, bias) if bound else None
        if y is not None:
            return y
        y = _run(x, prepared, kernel, format, shape, activation)
        return y if bias is None else y + bias

    return call


def _run(
    x: Tensor, prepared: Parts, kernel: str, format: Format, shape: tuple[int, int], activation: Activation | None
) -> Tensor:
    flat = x.reshape(-1, shape[1])
    if flat.shape[0] == 0:
        return x.new_empty(*x.shape[:-1], shape[0])
    return _inside(format.sides, flat, prepared, kernel, format, shape, activation).reshape(*x.shape[:-1], shape[0])


def _inside(
    around: tuple[str, ...],
    x: Tensor,
    prepared: Parts,
    kernel: str,
    format: Format,
    shape: tuple[int, int],
    activation: Activation | None,
) -> Tensor:
    """y of the matrix inside the outermost of the sides `around`, and so on inwards to the grid."""
    if around:
        side = sides.get(around[-1])
        turns = getattr(get(kernel), "turned", None) if len(around) == 1 and activation is not None else None
        if turns is not None and activation is not None and not turns(side, x, activation):
            fused: Tensor = get(kernel).rounded(x, prepared, format.core, shape, activation, side)
            return fused
        y = _inside(around[:-1], side.before(x, prepared), prepared, kernel, format, shape, activation)
        return side.after(y, x, prepared)
    if activation is not None:
        if hasattr(get(kernel), "rounded"):
            return _rounded(x, prepared, kernel, format, shape, activation)
        x = acting.fake(x, activation, prepared.get(acting.STORED))
    runner = _runner(kernel, format, shape, x.device, x.dtype, x.shape[0])
    if runner is not None:
        found: Tensor = runner.linear(x, prepared, format.core, shape)
        return found
    restored = get(kernel).restore(_inner(prepared, format), format.core, shape)
    product: Tensor = get(REFERENCE).product(x, *restored, format.core, shape)
    return product


def _rounded(x: Tensor, prepared: Parts, kernel: str, format: Format, shape: tuple[int, int], activation: Activation) -> Tensor:
    """y by a kernel that rounds x itself; columns that keep their floats go beside it."""
    module, kept = get(kernel), acting.outliers(x, activation)
    inside = x if kept is None else x.masked_fill(kept, 0)
    y: Tensor = module.rounded(inside, prepared, format.core, shape, activation)
    if kept is not None:
        index = kept.nonzero()[:, 0]
        y = y.addmm(x[:, index], module.columns(prepared, format.core, index).to(x.dtype).t())
    return y


@functools.cache
def _parse(text: str) -> Format:
    return formats.parse(text)


def _op(
    x: Tensor, weights: Sequence[Tensor], names: str, kernel: str, format: str, rows: int, columns: int, activation: str
) -> Tensor:
    """`linear` as the dispatcher of torch takes it: `names` of `weights` joined by commas, format and activation as text."""
    prepared = dict(zip(names.split(","), weights, strict=True))
    return _run(x, prepared, kernel, _parse(format), (rows, columns), acting.parse(activation) if activation else None)


def _fake(
    x: Tensor, weights: Sequence[Tensor], names: str, kernel: str, format: str, rows: int, columns: int, activation: str
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, weights, *ctx.rest = inputs
    ctx.save_for_backward(*weights)


def _backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
    """The gradient of x alone: packed weights do not train, and rounding of x passes gradients straight through."""
    names, kernel, text, *shape, _ = ctx.rest
    weights, format = ctx.saved_tensors, _parse(text)
    packed, parts = restore(kernel, dict(zip(names.split(","), weights, strict=True)), format, tuple(shape))
    dense = formats.Quantized(format, packing.codes(format, packed, tuple(shape)), parts, tuple(shape)).decode()
    return gradient @ dense.to(gradient.dtype), [None] * len(weights), *[None] * len(ctx.rest)


_library = torch.library.Library("lowbit", "DEF")
_library.define(
    "linear(Tensor x, Tensor[] weights, str names, str kernel, str format, int rows, int columns, str activation) -> Tensor"
)
_library.impl("linear", _op, "CompositeExplicitAutograd")
torch.library.register_fake("lowbit::linear", _fake)
torch.library.register_autograd("lowbit::linear", _backward, setup_context=_remember)
