"""gpu_bytes - weights of 8 and 4 bits times 8-bit inputs on an NVIDIA GPU, rounding included, beside rivals' products.

    python bench/gpu_bytes.py [--tokens 1,16,64,256,1024,4096] [--shapes 4096x4096,...] [--torchao]

Rows: ours (rounding and product), ours without rounding, rounding alone, rounding behind a Hadamard matrix of all inputs;
torch's products alone, _scaled_mm with one scale and with a scale a row (sums leaving the tensor cores or not), _int_mm, and
CUTLASS as vLLM has it; where asked for, torchao's layer, which rounds its inputs too and takes seconds to compile. Products are
checked against float64: what is off by more than 2 % gets no row. Elements int4 (int4-g128 times int8, CUTLASS: times float8)
and blocks (fp8-b128x128 times fp8-g128): no products of torch.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import _gpu_rivals
import _matrices
import torch
from _gpu_timing import copies, floor, microseconds, right
from _rows import keep
from torch import Tensor

from lowbit import formats
from lowbit.kernels import activation as acting
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation
from lowbit.kernels.cuda import _activations, _product, byte_act, int4_act
from lowbit.kernels.cuda._activations import E4M3, INT8
from lowbit.kernels.cuda._product import DECODE_TOKENS, Kind

Call = Callable[[], Tensor]
ALONE = {"int4": ("int4-g128", "int8-token", int4_act), "blocks": ("fp8-b128x128", "fp8-g128", byte_act)}
"""Weights, inputs and the kernel."""


def contenders(
    element: str, with_torchao: bool, shape: tuple[int, int], tokens: int
) -> Iterator[tuple[str, list[Call], Tensor | None]]:
    """Name, calls over enough weights to go past the cache, and what they should give."""
    kind = byte_act.ELEMENTS[element]
    format = formats.parse("int8-row" if element == "int8" else "fp8-row")
    activation = Activation(formats.parse("int8-token" if element == "int8" else "fp8-token"))
    q = format.fit(torch.randn(shape, device="cuda"), search=False).quantize(torch.randn(shape, device="cuda"))
    packed, parts = packing.split(format, packing.pack(q), shape)
    first = byte_act.prepare(format, packed, parts, shape)
    weights = [first] + [{k: t.clone() for k, t in first.items()} for _ in range(copies(shape[0] * shape[1]) - 1)]
    x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
    codes, scale = _activations.quantize(x, kind)
    exact = (codes.double() * scale.double()[:, None]) @ q.decode().double().T
    run = byte_act.way(kind, tokens)
    ready = _activations.quantize(x, kind, ordered=int(run is byte_act._few))[0]
    yield "ours", [partial(byte_act.rounded, x, w, format, shape, activation) for w in weights], exact
    yield "ours without rounding", [partial(run, ready, scale, w, kind, shape, x.dtype) for w in weights], exact
    inputs = [x.clone() for _ in range(copies(2 * x.numel()) if tokens > 256 else 2)]
    yield "rounding", [partial(_codes, x, kind, 0) for x in inputs], None
    if not _activations.refusal(x, shape[1]):
        yield "rounding behind Hadamard", [partial(_codes, x, kind, shape[1]) for x in inputs], None
    own, one = byte_act._scale(first).float(), torch.ones((), device="cuda")
    if element == "int8" and tokens > 16:
        yield "torch._int_mm", [partial(torch._int_mm, codes, w["low"].t()) for w in weights], None
    if element == "e4m3":
        scaled = partial(torch._scaled_mm, codes, out_dtype=torch.bfloat16)
        yield "torch._scaled_mm", [partial(scaled, w["low"].t(), scale_a=one, scale_b=one) for w in weights], None
        by_row = partial(scaled, scale_a=scale[:, None], scale_b=own[None])
        for name, fast in (("torch._scaled_mm by rows", False), ("torch._scaled_mm by rows, sums in the tensor cores", True)):
            yield name, [partial(by_row, w["low"].t(), use_fast_accum=fast) for w in weights], exact
    yield from tried(f"cutlass {element}", partial(cutlass, codes, scale, own, weights), exact)
    if with_torchao:
        yield from tried(f"torchao {element}", partial(torchao, x, q, kind), exact)


def tried(what: str, rival: Callable[[], list[Call]], exact: Tensor) -> Iterator[tuple[str, list[Call], Tensor | None]]:
    """A rival's calls, or a word why there are none; its name is the first word of `what`."""
    try:
        calls = rival()
    except _gpu_rivals.FAILURES as reason:
        print(f"{what}: left out, {reason}"[:300], file=sys.stderr)
        return
    yield what.split()[0], calls, exact


def cutlass(codes: Tensor, scale: Tensor, own: Tensor, weights: list[dict[str, Tensor]]) -> list[Call]:
    """vLLM's product of bytes with a scale a token and a row."""
    product = _gpu_rivals.vllm().cutlass_scaled_mm

    def call(w: Tensor) -> Tensor:
        y = torch.empty(len(codes), len(w), dtype=torch.bfloat16, device=w.device)
        product(y, codes, w.t(), scale[:, None], own[:, None], None)
        return y

    return [partial(call, w["low"]) for w in weights]


def cutlass_int4(x: Tensor, q: formats.Quantized) -> tuple[Callable[[], list[Call]], Tensor]:
    """vLLM's product of int4 weights and float8 inputs, and what it should give: it rounds code times scale to float8."""
    (codes, scale), wide = _activations.quantize(x, E4M3), q.grid.scale.float().abs()  # of its own: no sign
    own = wide.amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    small = (wide / own / 8).to(torch.float8_e4m3fn)  # 8 times as much must fit
    steps = ((q.codes.float() - 8).unflatten(1, (small.shape[1], -1)) * small.float()[..., None]).to(torch.float8_e4m3fn)
    exact = (codes.double() * scale.double()[:, None]) @ (steps.double().flatten(1) * own.double() * 8).T

    def calls() -> list[Call]:
        ops = _gpu_rivals.vllm()
        plain = _gpu_rivals.along_inputs(q.codes ^ 8).t().contiguous().t()
        packed, groups = ops.cutlass_encode_and_reorder_int4b(plain), ops.cutlass_pack_scale_fp8(small.t().contiguous())
        product = partial(
            _gpu_rivals.named, ops.cutlass_w4a8_mm, A=codes, group_scales=groups, group_size=q.format.group[1],
            channel_scales=own * 8, token_scales=scale[:, None],
        )  # fmt: skip
        return [partial(product, B=_gpu_rivals.strided(packed)) for _ in range(copies(q.codes.numel() / 2))]

    return calls, exact


def torchao(x: Tensor, q: formats.Quantized, kind: int) -> list[Call]:
    """torchao's linear layer that rounds its inputs a token at a time; it rounds weights anew, to nearly the same."""
    from torchao import quantization as rival

    way = rival.Int8DynamicActivationInt8WeightConfig() if kind == INT8 else rival.Float8DynamicActivationFloat8WeightConfig(
        granularity=rival.PerRow()
    )  # fmt: skip
    layers = []
    for _ in range(copies(q.shape[0] * q.shape[1])):
        layer = torch.nn.Linear(q.shape[1], q.shape[0], bias=False, dtype=torch.bfloat16, device=x.device)
        layer.weight.data.copy_(q.decode())
        rival.quantize_(layer, way)
        layers.append(layer)
    torch._dynamo.reset()  # one program for all layers of a shape, none for the shapes before
    run = torch.compile(lambda weight: torch.nn.functional.linear(x, weight))
    return [partial(run, layer.weight) for layer in layers]


def alone(element: str, shape: tuple[int, int], tokens: int) -> Iterator[tuple[str, list[Call], Tensor | None]]:
    """The same for weights with scales inside a row."""
    text, inputs, kernel = ALONE[element]
    activation, q = acting.parse(inputs), _matrices.quantized(text, torch.randn(shape, device="cuda"))
    packed, parts = packing.split(q.format, packing.pack(q), shape)
    first = kernel.prepare(q.format, packed, parts, shape)
    size = sum(t.numel() * t.element_size() for t in first.values())
    weights = [first] + [{k: t.clone() for k, t in first.items()} for _ in range(copies(size) - 1)]
    x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
    exact = acting.fake(x.float(), activation).double() @ q.decode().double().T
    yield "ours", [partial(kernel.rounded, x, w, q.format, shape, activation) for w in weights], exact
    if tokens <= DECODE_TOKENS and element == "int4":
        codes, scale = _activations.quantize(x, INT8, ordered=int4_act.FOR_NIBBLES)
        run = partial(_product_of, codes, scale, int4_act.kind(q.format), shape)
        yield "ours without rounding", [partial(run, w) for w in weights], exact
    if element == "int4":
        yield from tried("cutlass int4", *cutlass_int4(x, q))


def _product_of(codes: Tensor, scale: Tensor, kind: Kind, shape: tuple[int, int], prepared: dict[str, Tensor]) -> Tensor:
    y = torch.empty(len(codes), shape[0], dtype=torch.bfloat16, device=codes.device)
    _product.launch(codes, prepared, y, kind, (shape[0], shape[1] // 2), beside=scale)
    return y


def _codes(x: Tensor, kind: int, size: int) -> Tensor:
    return _activations.quantize(x, kind, size=size)[0]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", default="1,16,64,256,1024,4096")
    parser.add_argument("--shapes", default="4096x4096,14336x4096,4096x14336")
    parser.add_argument("--elements", default="int8,e4m3,int4,blocks")
    parser.add_argument("--torchao", action="store_true", help="its layer too")
    asked = parser.parse_args()
    for element, text, tokens in product(asked.elements.split(","), asked.shapes.split(","), map(int, asked.tokens.split(","))):
        rows, inputs = map(int, text.split("x"))
        least = floor(rows * inputs * (0.515625 if element == "int4" else 1) + 2.0 * tokens * (rows + inputs))
        found = (partial(alone, element) if element in ALONE else partial(contenders, element, asked.torchao))(
            (rows, inputs), tokens
        )
        for name, calls, exact in found:
            try:
                error = float((calls[0]().double() - exact).norm() / exact.norm()) if exact is not None else 0.0
            except _gpu_rivals.FAILURES as failure:
                print(f"{name} {element} {text} {tokens}: {failure}"[:300], file=sys.stderr)
                continue
            if not right(f"{name} {element} {text} {tokens}", error, 0.02):
                continue
            time = microseconds(calls, rounds=7, least=100 if tokens <= 64 else 12)
            keep("gpu_bytes", kernel=name, element=element, rows=rows, inputs=inputs, tokens=tokens, us=round(time, 2),
                 floor_us=round(least, 2), error=float(f"{error:.1e}"))  # fmt: skip
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
