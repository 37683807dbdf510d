"""gpu_attention - decode attention over packed keys and values on an NVIDIA GPU beside attention to bfloat16 ones.

    python bench/gpu_attention.py [--contexts 8192,32768,131072] [--sequences 8] [--kinds int8,int4,int2,fp8] [--rivals no]

32 heads of 128 channels on 8 of keys; a floor is 2.5 us + bytes / 4.66 TB/s. Ours is checked first: its relative error against
float64 attention to the decoded numbers stands in its row, and above 2 % there is none. Rivals: torch's attention to bfloat16,
by cuDNN and by FlashAttention 2, and FlashAttention 3 (_gpu_rivals.py) to bfloat16 and float8.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import _gpu_rivals
import torch
from _gpu_timing import copies, floor, microseconds, right
from _rows import keep
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowbit.kernels.cuda import _attention
from lowbit.kernels.cuda._attention import FLOAT8, Side

KINDS = {"int8": 8, "int4": 4, "int2": 2, "fp8": FLOAT8}
FLASH3 = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16}
HEADS, SHARED, WIDTH = 32, 8, 128
SCALE = WIDTH**-0.5


def side(sequences: int, tokens: int, bits: int) -> Side:
    """Random codes; integers with a zero a token, as the cache's policies have."""
    shape = (sequences, SHARED, tokens)
    scale = (torch.rand(shape, device="cuda") * 0.1 + 0.05).bfloat16()
    if bits == FLOAT8:
        codes = torch.randn(*shape, WIDTH, device="cuda").mul_(30).to(torch.float8_e4m3fn).view(torch.uint8)
        return Side(codes, scale / 10, bits)
    codes = torch.randint(0, 256, (*shape, WIDTH * bits // 8), device="cuda", dtype=torch.uint8)
    zero = (torch.rand(shape, device="cuda") * 2 + (1 << bits) / 2 - 1).bfloat16()
    return Side(codes, scale / (1 << bits), bits, zero)


def decoded(side: Side, sequence: int) -> Tensor:
    """Its numbers of one sequence, float64 [key heads, tokens, width]."""
    codes, scale = side.codes[sequence], side.scale[sequence].double()[..., None]
    if side.bits == FLOAT8:
        return codes.view(torch.float8_e4m3fn).double() * scale
    assert side.zero is not None  # noqa: S101
    parts = torch.stack([(codes >> shift) & ((1 << side.bits) - 1) for shift in range(0, 8, side.bits)], -1)
    return (parts.flatten(-2).double() - side.zero[sequence].double()[..., None]) * scale


def error(q: Tensor, k: Tensor, v: Tensor, found: Tensor) -> float:
    """Of the first sequence, whose keys and values are float64 [key heads, tokens, width]."""
    wanted = ((q[0].double().view(SHARED, -1, WIDTH) @ k.transpose(1, 2) * SCALE).softmax(-1) @ v).view(HEADS, WIDTH)
    return float((found[0].double() - wanted).norm() / wanted.norm())


def ours(kind: str, sequences: int, tokens: int) -> tuple[float, float, float]:
    """Microseconds, bytes read, error."""
    bits = KINDS[kind]
    size = 2 * sequences * SHARED * tokens * (WIDTH * (bits or 8) / 8 + (2 if bits == FLOAT8 else 4))
    stores = [(side(sequences, tokens, bits), side(sequences, tokens, bits)) for _ in range(copies(size))]
    q = torch.randn(sequences, HEADS, WIDTH, device="cuda").bfloat16() * 2
    calls = [partial(_attention.attend, q, keys, values, SCALE) for keys, values in stores]
    off = error(q, decoded(stores[0][0], 0), decoded(stores[0][1], 0), calls[0]())
    if not right(f"{kind} {sequences} x {tokens}", off, 0.02):
        raise RuntimeError("the numbers are wrong")
    return microseconds(calls, least=20), size, off


def flash3(dtype: torch.dtype, sequences: int, tokens: int) -> tuple[float, float, float]:
    """FlashAttention 3 as vLLM has it, to keys and values of one scale; its plan is made once, as vLLM does for all layers."""
    attend = _gpu_rivals.vllm("_vllm_fa3_C")
    size, shape = 2.0 * dtype.itemsize * sequences * SHARED * tokens * WIDTH, (sequences, tokens, SHARED, WIDTH)
    stores = [[torch.randn(shape, device="cuda").to(dtype) for _ in (0, 1)] for _ in range(copies(size))]
    q = torch.randn(sequences, HEADS, WIDTH, device="cuda").to(dtype)
    whole = {"window_size_left": -1, "window_size_right": -1, "is_causal": False, "num_splits": 0, "sm_margin": 0}
    whole |= {"max_seqlen_q": 1, "max_seqlen_k": tokens}
    lengths = torch.full((sequences,), tokens, dtype=torch.int32, device="cuda")
    starts = torch.arange(sequences + 1, dtype=torch.int32, device="cuda")
    plan = _gpu_rivals.named(
        attend.get_scheduler_metadata, batch_size=sequences, num_heads=HEADS, num_heads_k=SHARED, headdim=WIDTH,
        headdim_v=WIDTH, qkv_dtype=dtype, seqused_k=lengths, cu_seqlens_q=starts, max_seqlen_k_new=0, has_softcap=False,
        **whole,
    )  # fmt: skip
    one = torch.ones(sequences, SHARED, device="cuda")
    scales = {"q_descale": one, "k_descale": one, "v_descale": one} if dtype.itemsize == 1 else {}
    call = partial(
        _gpu_rivals.named, attend.fwd, q=q, seqused_k=lengths, cu_seqlens_q=starts, softmax_scale=SCALE, softcap=0.0,
        is_rotary_interleaved=False, scheduler_metadata=plan, cp_world_size=1, cp_rank=0, **scales, **whole,
    )  # fmt: skip
    calls = [partial(call, k=k, v=v) for k, v in stores]
    k, v = (stores[0][i][0].transpose(0, 1).double() for i in (0, 1))
    off = error(q, k, v, calls[0]()[0])
    if not right(f"flash3 {dtype} {sequences} x {tokens}", off, 0.1):  # it rounds what keys weigh to float8 too
        raise RuntimeError("the numbers are wrong")
    return microseconds(calls, least=20), size, off


def rival(backend: SDPBackend, sequences: int, tokens: int) -> tuple[float, float, float]:
    """torch's attention to bfloat16 keys and values."""
    size = 4.0 * sequences * SHARED * tokens * WIDTH
    shape = (sequences, SHARED, tokens, WIDTH)
    stores = [[torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in (0, 1)] for _ in range(copies(size))]
    q = torch.randn(sequences, HEADS, 1, WIDTH, device="cuda").bfloat16()

    def call(k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=SCALE, enable_gqa=True)

    calls: list[Callable[[], Tensor]] = [partial(call, *store) for store in stores]
    return microseconds(calls, least=20), size, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--contexts", default="8192,32768,131072")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--rivals", choices=("yes", "no"), default="yes")
    asked = parser.parse_args()
    rivals = {"cudnn bf16": SDPBackend.CUDNN_ATTENTION, "flash bf16": SDPBackend.FLASH_ATTENTION}
    for tokens in map(int, asked.contexts.split(",")):
        subjects: dict[str, Callable[[int, int], tuple[float, float, float]]] = {
            kind: partial(ours, kind) for kind in asked.kinds.split(",")
        }
        if asked.rivals == "yes":
            subjects |= {name: partial(rival, backend) for name, backend in rivals.items()}
            subjects |= {f"flash3 {name}": partial(flash3, dtype) for name, dtype in FLASH3.items()}
        for name, subject in subjects.items():
            try:
                time, size, off = subject(asked.sequences, tokens)
            except _gpu_rivals.FAILURES as reason:
                print(f"{name}: left out, {reason}"[:300], file=sys.stderr)
                continue
            least = floor(size)
            keep("gpu_attention", kind=name, sequences=asked.sequences, tokens=tokens, us=round(time, 1),
                 floor_us=round(least, 1), ratio=round(time / least, 2), error=float(f"{off:.1e}"))  # fmt: skip
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
