"""kernels - what every file of lowbit.kernels passes: the law of reference/, on whatever formats and shapes it takes.

check_contract  it tells its rank, and says in words why it refuses what it refuses
check_product   it equals the decoded matrix in float64, for 0 to 128 tokens, ragged sizes, x with strides; x is untouched,
                y written whole
check_rounded   with inputs that it rounds itself it equals the decoded matrix on inputs that are rounded by the law
check_restore   what it prepared gives back the very bytes
check_op        it runs as `lowbit::linear`: schema, fake kernel, gradient of x, torch.compile
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lowbit import formats
from lowbit.formats import Format, Quantized
from lowbit.kernels import activation as acting
from lowbit.kernels import dispatch, packing

FORMATS = (
    "int4-g128", "int4-g32-asym", "int4-row", "int3-g64", "int3-g128-asym", "int2-g32", "int2-g32-asym", "int8-row", "int8-g64",
    "int6-row", "int5-g32-asym", "int4-g64-floatzero", "int4-g64-fp16", "nf4-g64", "fp8-row", "fp8-tensor", "fp8-b128x128",
    "nvfp4", "mxfp4", "mxfp6", "mxfp8", "ternary-g64", "binary-g64",
)  # fmt: skip
ROUNDED = ("int8-token", "int8-tensor-static", "int4-token-clip0.9", "fp8-token")
SHAPES = ((16, 128), (48, 256), (144, 384), (100, 128), (256, 1152))
TOKENS = (0, 1, 2, 3, 5, 15, 16, 17, 128)
ERRORS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Relative error that a dtype's roundings of x, W and y explain."""


def cases(name: str, device: torch.device) -> Iterator[tuple[Format, tuple[int, int], torch.dtype]]:
    """What the kernel takes, of all formats, shapes and dtypes."""
    for text in FORMATS:
        for shape in SHAPES:
            for dtype in ERRORS:
                format = formats.parse(text)
                if not dispatch.get(name).supports(format, shape, device, dtype, 1):
                    yield format, shape, dtype


def matrix(format: Format, shape: tuple[int, int], device: torch.device) -> Quantized:
    """A random matrix in a format."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    found = format.fit(weight, None, False).quantize(weight)
    return Quantized(format, found.codes.to(device), {k: v.to(device) for k, v in found.parts.items()}, shape)


def prepared(name: str, quantized: Quantized) -> dict[str, Tensor]:
    """What the kernel makes of a matrix."""
    packed, parts = packing.split(quantized.format, packing.pack(quantized), quantized.shape)
    found: dict[str, Tensor] = dispatch.get(name).prepare(quantized.format, packed, parts, quantized.shape)
    return found


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch gives out holds NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_contract(name: str, device: str = "cpu") -> None:
    kernel = dispatch.get(name)
    assert isinstance(kernel.RANK, int), f"{name}: RANK is no whole number"
    for text in FORMATS:
        told = kernel.supports(formats.parse(text), SHAPES[0], torch.device(device), torch.bfloat16, 1)
        assert isinstance(told, str), f"{name}: supports({text}) gives {told!r}, not a reason"
    ranked = [n for n, _ in dispatch.explain(formats.parse("int4-g128"), SHAPES[0], torch.device(device), torch.bfloat16)]
    assert name in ranked, f"{name}: dispatch does not know it"


def check_product(name: str, device: str = "cpu") -> None:
    kernel = dispatch.get(name)
    for format, shape, dtype in cases(name, torch.device(device)):
        quantized = matrix(format, shape, torch.device(device))
        weights, dense = prepared(name, quantized), quantized.decode().double()
        for tokens in TOKENS:
            if kernel.supports(format, shape, torch.device(device), dtype, max(tokens, 1)):
                continue
            wide = torch.randn(tokens, shape[1] + 8, dtype=dtype, device=device)
            x, before = wide[:, : shape[1]], wide.clone()
            with poisoned():
                y = dispatch.linear(x, weights, name, format, shape)
            assert y.shape == (tokens, shape[0]) and y.dtype == dtype, f"{name}: {format} gives {y.shape} of {y.dtype}"
            assert torch.equal(wide, before), f"{name}: {format} changes x"
            if tokens:
                error = _relative(y, x.double() @ dense.t())
                assert error < ERRORS[dtype], f"{name}: {format} {shape} {dtype} {tokens} tokens: relative error {error:.2e}"


def check_rounded(name: str, device: str = "cpu") -> None:
    """Nothing where the kernel rounds no inputs, or this machine cannot run it."""
    kernel, place = dispatch.get(name), torch.device(device)
    for text, format, shape in itertools.product(ROUNDED, map(formats.parse, FORMATS), SHAPES[1:3]):
        activation = acting.parse(text)
        if not hasattr(kernel, "takes") or kernel.takes(activation, format, shape, place):
            continue
        quantized, stored = matrix(format, shape, place), torch.tensor([0.03], device=device) if activation.stored else None
        weights = prepared(name, quantized) | ({} if stored is None else {acting.STORED: stored})
        for tokens, dtype in itertools.product((1, 17, 130), ERRORS):
            x = torch.randn(tokens, shape[1], device=device).to(dtype)
            y = dispatch.linear(x, weights, name, format, shape, activation)
            error = _relative(y, acting.fake(x.double().float(), activation, stored).double() @ quantized.decode().double().t())
            assert y.dtype == dtype and error < ERRORS[dtype] * 2, f"{name}: {format} {text} {dtype} {tokens}: {error:.2e}"


def check_restore(name: str, device: str = "cpu") -> None:
    for format, shape, _ in cases(name, torch.device(device)):
        quantized = matrix(format, shape, torch.device(device))
        packed, parts = packing.split(format, packing.pack(quantized), shape)
        again, again_parts = dispatch.get(name).restore(prepared(name, quantized), format, shape)
        assert again.dtype == packed.dtype and torch.equal(again, packed), f"{name}: {format} {shape}: other codes come back"
        assert again_parts.keys() == parts.keys(), f"{name}: {format}: parts {sorted(again_parts)} for {sorted(parts)}"
        for part, tensor in parts.items():
            same = again_parts[part].dtype == tensor.dtype and torch.equal(bits(again_parts[part]), bits(tensor))
            assert same, f"{name}: {format} {shape}: another {part} comes back"


def check_op(name: str, device: str = "cpu") -> None:
    found = next(cases(name, torch.device(device)), None)
    if found is None:
        return
    format, shape, dtype = found
    quantized = matrix(format, shape, torch.device(device))
    weights = prepared(name, quantized)
    x = torch.randn(2, 3, shape[1], dtype=dtype, device=device)
    arguments = (x, list(weights.values()), ",".join(weights), name, str(format), *shape, "")
    torch.library.opcheck(torch.ops.lowbit.linear.default, arguments)
    x.requires_grad_()
    dispatch.linear(x, weights, name, format, shape).sum().backward()
    expected = quantized.decode().sum(0).to(dtype).expand_as(x)
    assert x.grad is not None and _relative(x.grad, expected) < ERRORS[dtype] * 2, f"{name}: {format}: wrong gradient of x"
    compiled = torch.compile(
        lambda t: dispatch.linear(t, weights, name, format, shape) + 1, backend="aot_eager", fullgraph=True
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), dispatch.linear(x, weights, name, format, shape) + 1, rtol=0, atol=0)


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor: 8-bit floats cannot be compared as they are."""
    return tensor.contiguous().flatten().view(torch.uint8)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
