"""The GPU linear kernels against the float64 product of the decoded matrix: all widths, ragged shapes, poisoned outputs,
repeats, CUDA graphs, torch.compile. Needs an NVIDIA GPU.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from lowbit import formats
from lowbit.kernels import dispatch, packing
from lowbit.kernels.cuda import linear as fragments
from lowbit.kernels.triton import linear as planes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
KERNELS = {"cuda": fragments, "triton": planes}
TOLERANCE = {torch.bfloat16: 3e-3, torch.float16: 5e-4}


class Layer:
    """One random matrix, prepared for a kernel on the GPU, and its exact values."""

    def __init__(self, kernel: ModuleType, text: str, rows: int, inputs: int, dtype: torch.dtype) -> None:
        self.kernel, self.shape, self.dtype = kernel, (rows, inputs), dtype
        w = torch.randn(rows, inputs, device="cuda")
        self.q = formats.parse(text).fit(w, search=False).quantize(w)
        self.format = self.q.format
        reason = kernel.supports(self.format, self.shape, w.device, dtype, 1)
        if reason:
            pytest.skip(reason)
        packed, parts = packing.split(self.format, packing.pack(self.q), self.shape)
        self.prepared: dict[str, Tensor] = kernel.prepare(self.format, packed, parts, self.shape)
        self.exact = self.q.decode().double()

    def inputs(self, tokens: int) -> Tensor:
        return torch.randn(tokens, self.shape[1], device="cuda").to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        poison = torch.full((x.shape[0], self.shape[0]), float("nan"), device="cuda", dtype=x.dtype)
        del poison  # the next tensor of this size gets its memory
        y: Tensor = self.kernel.linear(x, self.prepared, self.format, self.shape)
        return y

    def check(self, tokens: int) -> None:
        x = self.inputs(tokens)
        y, exact = self(x), x.double() @ self.exact.T
        assert y.shape == exact.shape and y.dtype == x.dtype
        error = float((y.double() - exact).norm() / exact.norm())
        assert error < TOLERANCE[self.dtype] * (1.6 if tokens > 64 else 1), (tokens, error)
        typical = exact.norm() / exact.shape[1] ** 0.5  # of a row: one row's own may be near zero by chance
        worst = float((y.double() - exact).norm(dim=0).max() / typical)
        assert worst < 8 * TOLERANCE[self.dtype], (tokens, worst)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("text", ["int4-g128", "int4-g64-asym"])
def test_every_number_of_tokens(name: str, text: str) -> None:
    layer = Layer(KERNELS[name], text, 272, 1024, torch.bfloat16)
    for tokens in (1, 2, 3, 8, 9, 15, 16, 17, 33, 64, 65, 128):
        layer.check(tokens)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", ["g128", "g32-asym", "row", "row-asym", "g256-asym"])
def test_every_format(name: str, dtype: torch.dtype, bits: int, group: str) -> None:
    layer = Layer(KERNELS[name], f"int{bits}-{group}", 64, 1024, dtype)
    for tokens in (1, 20) if dtype == torch.bfloat16 else (5, 100):
        layer.check(tokens)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("text", "rows", "inputs"), [
    ("int4-row", 8, 8), ("int4-g32", 40, 96), ("int4-g64-asym", 1000, 1088), ("int3-row-asym", 24, 520),
    ("int2-g128", 136, 384), ("int8-row", 4097, 1032), ("int4-g128", 4096, 14336), ("int4-g128", 1024, 4096),
    ("int4-g128", 128, 28672), ("nf4-g64", 272, 1024), ("e2m1-g32", 40, 96), ("nf4-row", 4096, 4096), ("mxfp4", 64, 4096),
])  # fmt: skip
def test_ragged_and_large_shapes(name: str, text: str, rows: int, inputs: int) -> None:
    layer = Layer(KERNELS[name], text, rows, inputs, torch.bfloat16)
    for tokens in (1, 16, 64):
        layer.check(tokens)


@pytest.mark.parametrize("name", KERNELS)
def test_repeats_are_bit_equal(name: str) -> None:
    layer = Layer(KERNELS[name], "int4-g128", 1024, 4096, torch.bfloat16)
    for tokens in (1, 16):
        x = layer.inputs(tokens)
        first = layer(x)
        assert all(torch.equal(layer(x), first) for _ in range(20))


@pytest.mark.parametrize("name", KERNELS)
def test_a_chain_in_a_cuda_graph(name: str) -> None:
    """Launches overlap, so each one must wait for the x that the one before it writes."""
    layer = Layer(KERNELS[name], "int4-g128", 1024, 1024, torch.bfloat16)
    x = layer.inputs(2) / 32
    layer(layer(x))
    graph, fixed = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        y = fixed
        for _ in range(12):
            y = layer(y) / 32
    for _ in range(5):
        fresh = layer.inputs(2)
        fixed.copy_(fresh)
        graph.replay()
        expected = fresh
        for _ in range(12):
            expected = layer(expected) / 32
        assert torch.equal(y, expected)


@pytest.mark.parametrize("name", KERNELS)
def test_torch_compile(name: str) -> None:
    layer = Layer(KERNELS[name], "int4-g128-asym", 128, 512, torch.bfloat16)
    kernel = f"{name}.linear"

    def block(x: Tensor) -> Tensor:
        return torch.relu(dispatch.linear(x, layer.prepared, kernel, layer.format, layer.shape)) * 2

    x = layer.inputs(3)
    compiled = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))
    assert dispatch.pick(layer.format, layer.shape, x.device, x.dtype) == "cuda.linear"


@pytest.mark.parametrize("name", KERNELS)
def test_restore_on_the_gpu(name: str) -> None:
    layer = Layer(KERNELS[name], "int3-g64-asym", 80, 320, torch.bfloat16)
    packed, parts = layer.kernel.restore(layer.prepared, layer.format, layer.shape)
    expected, expected_parts = packing.split(layer.format, packing.pack(layer.q), layer.shape)
    assert torch.equal(packed, expected)
    assert all(torch.equal(parts[k].float(), expected_parts[k].float()) for k in parts)
