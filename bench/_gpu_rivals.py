"""_gpu_rivals - other libraries' products with the same packed matrix on an NVIDIA GPU, as gpu_linear.py calls them.

Idea      A rival takes the codes and scales of lowbit's own matrix in its layout, so that one exact product checks all; one
          that has weights of its own says which they are. Its package is imported when it is asked for: ImportError is the
          reason why it is left out, ValueError why it does not take a format.
          vLLM's kernels need two files of its wheel alone, in a folder "vllm" on the path: _C*.so (Marlin, Machete, CUTLASS)
          and _vllm_fa3_C*.so (FlashAttention 3).
          torchao's int4 weights are torch's own product (`tinygemm`).
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _gpu_timing import copies
from torch import Tensor
from triton.errors import TritonError

from lowbit import dtypes
from lowbit.formats import Quantized

UINT4B8 = 4 << 8 | 8 << 17 | 1 << 50
"""vLLM's number of the type "4 bits less 8": mantissa, bias, and IEEE's way with NaN."""

FAILURES = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError, KeyError, TritonError)
"""What a rival of another version, or on another GPU, ends with; its place in a table stays empty then."""


@dataclass(frozen=True)
class Subject:
    """What is timed: calls with x [tokens, in], a copy of the weights each; the type of x; W [out, in] if not q's."""

    calls: list[Callable[[Tensor], Tensor]]
    dtype: torch.dtype = torch.bfloat16
    weight: Tensor | None = None


def four_bits(q: Quantized, groups: set[int]) -> int:
    """The group of a symmetric int4 format. Raises ValueError for others."""
    if q.format.element != "int4" or q.format.zero or q.format.group[1] not in groups:
        raise ValueError(f"takes int4 in groups of {sorted(groups)}, symmetric")
    return q.format.group[1]


def cublas(q: Quantized, count: int) -> Subject:
    """bfloat16 weights and the vendor's product."""
    dense = q.decode().bfloat16()
    weights = [dense.clone() for _ in range(copies(2 * dense.numel()))]
    return Subject([partial(torch.nn.functional.linear, weight=w) for w in weights])


def tinygemm(q: Quantized, count: int) -> Subject:
    """torch._weight_int4pack_mm, bfloat16."""
    group, scale = four_bits(q, {32, 64, 128, 256}), q.grid.scale.bfloat16()
    pairs = torch.stack([scale, torch.zeros_like(scale)], -1).transpose(0, 1).contiguous()
    codes = (q.codes[:, ::2] << 4) | q.codes[:, 1::2]
    weights = [torch._convert_weight_to_int4pack(codes, 8) for _ in range(count)]
    return Subject([lambda x, w=w: torch._weight_int4pack_mm(x, w, group, pairs) for w in weights])  # type: ignore[misc]


def gemlite(q: Quantized, count: int) -> Subject:
    """GemLite's Triton kernels with its tuned configurations for the H100, float16."""
    import gemlite as rival

    if q.format.dtype.bits not in {2, 4, 8} or not q.format.group[1] or q.format.rule not in {"symmetric", "asymmetric"}:
        raise ValueError("takes integers of 2, 4 and 8 bits in groups")
    rival.load_config(str(Path(rival.__file__).parent / "configs" / "h100.json"))
    rows, inputs = q.shape
    bits, half = int(q.format.dtype.bits), rival.DType.FP16
    zeros = torch.full_like(q.grid.scale, float(1 << (bits - 1))) if q.grid.zero is None else q.parts["zero"].float()
    layers = []
    for _ in range(count):
        layer = rival.GemLiteLinear(bits, q.format.group[1], inputs, rows, input_dtype=half, output_dtype=half)
        layer.pack(q.codes, q.grid.scale.half(), zeros.half(), None)
        layers.append(layer)
    return Subject([partial(_gemlite, layer) for layer in layers], torch.float16)


def _gemlite(layer: Any, x: Tensor) -> Tensor:
    """The path that GemLite takes by itself, but for 64 tokens, where it has no tuned configuration."""
    kind = "GEMV_REVSPLITK" if x.shape[0] == 1 else "GEMM_SPLITK" if x.shape[0] <= 64 else "GEMM"
    y: Tensor = layer.forward_manual(x, kind)
    return y


def bitsandbytes(q: Quantized, count: int) -> Subject:
    """NF4 in blocks of 64 along the rows."""
    rival: Any = importlib.import_module("bitsandbytes")

    if q.format.element != "nf4" or q.format.group != (1, 64) or q.format.scale == "double":
        raise ValueError("takes nf4-g64")
    codes = ((q.codes[:, ::2] << 4) | q.codes[:, 1::2]).reshape(-1, 1)
    table = dtypes.get("nf4").decode(torch.arange(16, dtype=torch.uint8, device=codes.device))
    calls: list[Callable[[Tensor], Tensor]] = []
    for _ in range(count):
        absmax = q.grid.scale.float().flatten()
        state = rival.functional.QuantState(absmax, q.shape, table, 64, "nf4", torch.bfloat16)
        calls.append(partial(_bitsandbytes, rival.matmul_4bit, codes.clone(), state))
    return Subject(calls)


def _bitsandbytes(product: Any, codes: Tensor, state: Any, x: Tensor) -> Tensor:
    y: Tensor = product(x, codes.t(), quant_state=state)
    return y


def exllamav3(q: Quantized, count: int) -> Subject:
    """EXL3 of as many bits, both Hadamard turns included; random codes of its own, since its places are others."""
    from exllamav3.modules.quant.exl3 import LinearEXL3

    if not q.format.element.startswith("trellis") or int(q.format.dtype.bits) != q.format.dtype.bits:
        raise ValueError("takes trellis codes")
    (rows, inputs), bits, device = q.shape, int(q.format.dtype.bits), q.codes.device
    layers = []
    codes = torch.randint(-(1 << 15), 1 << 15, (inputs // 16, rows // 16, 16 * bits), dtype=torch.int16, device=device)
    one, mark = partial(torch.ones, dtype=torch.float16, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    for _ in range(count):
        layers.append(LinearEXL3(None, inputs, rows, suh=one(inputs), svh=one(rows), trellis=codes.clone(), mul1=mark))
    return Subject([partial(_exl3, layer) for layer in layers], torch.float16, layers[0].get_weight_tensor().t())


def _exl3(layer: Any, x: Tensor) -> Tensor:
    y: Tensor = layer.forward(x, {})
    return y


@functools.cache
def vllm(name: str = "_C") -> Any:
    """The operators of one library of vLLM's wheel: "_C" (products) or "_vllm_fa3_C" (attention)."""
    found = importlib.util.find_spec("vllm")
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    libraries = [file for place in places for up in ("", "vllm_flash_attn/") for file in sorted(place.glob(f"{up}{name}*.so"))]
    if not libraries:
        raise ImportError(f"vLLM's {name} is not here")
    for library in libraries:
        try:
            torch.ops.load_library(library)
        except OSError as reason:
            raise ImportError(str(reason)) from reason
    return getattr(torch.ops, name)


def named(operator: Any, **given: Any) -> Any:
    """A call by the names of an operator's arguments, None for the others: they change from version to version."""
    return operator(*[given.get(argument.name) for argument in operator.default._schema.arguments])


def along_inputs(codes: Tensor) -> Tensor:
    """Codes [out, in] of 4 bits -> int32 [in / 8, out], the first lowest (GPTQ's arrangement)."""
    eights = codes.t().long().unflatten(0, (-1, 8))
    words = sum(eights[:, i] << 4 * i for i in range(8))
    assert isinstance(words, Tensor)  # noqa: S101 - for the type checker
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()


def marlin(q: Quantized, count: int) -> Subject:
    """Marlin of vLLM, bfloat16."""
    four_bits(q, {64, 128})
    ops, (rows, inputs), device = vllm(), q.shape, q.codes.device
    nothing = torch.empty(0, dtype=torch.int32, device=device)
    words = named(
        ops.gptq_marlin_repack, b_q_weight=along_inputs(q.codes), perm=nothing, size_k=inputs, size_n=rows, num_bits=4,
        is_a_8bit=False,
    )  # fmt: skip
    order = [i + 8 * j for i in range(8) for j in range(8)]
    scale = q.grid.scale.bfloat16().t().reshape(-1, 64)[:, order].reshape(-1, rows).contiguous()
    room = torch.zeros(torch.cuda.get_device_properties(device).multi_processor_count * 4, dtype=torch.int32, device=device)

    def call(x: Tensor, held: Tensor) -> Tensor:
        y: Tensor = named(
            ops.marlin_gemm, a=x, b_q_weight=held, b_scales=scale, workspace=room, b_type_id=UINT4B8, b_q_type_id=UINT4B8,
            size_m=x.shape[0], size_n=rows, size_k=inputs, is_k_full=True, use_atomic_add=False, use_fp32_reduce=True,
            is_zp_float=False,
        )  # fmt: skip
        return y

    return Subject([partial(call, held=words.clone()) for _ in range(count)])


def machete(q: Quantized, count: int) -> Subject:
    """Machete of vLLM, bfloat16."""
    ops, group, half = vllm(), four_bits(q, {64, 128}), torch.bfloat16
    plain = along_inputs(q.codes).t().contiguous().t()
    words = named(ops.machete_prepack_B, B=plain, a_type=half, b_type=UINT4B8, group_scales_type=half)
    scale = q.grid.scale.to(half).t().contiguous()

    def call(x: Tensor, held: Tensor) -> Tensor:
        y: Tensor = named(ops.machete_mm, A=x, B=held, b_type=UINT4B8, group_scales=scale, group_size=group)
        return y

    return Subject([partial(call, held=strided(words)) for _ in range(count)])


def strided(words: Tensor) -> Tensor:
    """A copy that lies in memory as the original does."""
    return words.clone(memory_format=torch.preserve_format)


RIVALS: dict[str, Callable[[Quantized, int], Subject]] = {
    "cublas": cublas, "tinygemm": tinygemm, "gemlite": gemlite, "marlin": marlin, "machete": machete,
    "bitsandbytes": bitsandbytes, "exllamav3": exllamav3,
}  # fmt: skip
