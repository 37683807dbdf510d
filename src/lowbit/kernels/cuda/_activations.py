"""_activations - rows of x to int8 or float8 and a scale a row in one launch, turned first if wanted (activations.cu).

In / Out  x [tokens, inputs] bfloat16 or float16 -> codes [tokens, inputs] int8 or float8 e4m3, scale float32 [tokens]; or x
          rounded to them.
Idea      A block has a row in its registers: read once, written once. The butterflies cost shuffles and a few passes through
          shared memory, so that turning costs little beside the launch.
Source    Kronecker's order of the factors is that of lowbit.sides._hadamard, the law of the codes lowbit.kernels.activation.
Traps     Values are turned in float32 and rounded once; sides turn in the type of x.
"""

import functools
import math

import torch
from torch import Tensor

from lowbit.kernels.cuda import _build, _product
from lowbit.sides import _hadamard

INT8, E4M3 = 1, 2
"""Kinds of bytes, as linear.cu has them (ACT)."""
THREADS = 512
"""Of a block where a multiprocessor has few rows; with one row, that is long, twice as many."""
FEW_THREADS, VECTORS = 128, 8
"""Of a block at least, and eights of inputs of a thread at most, where it has many: blocks live side by side, so that some read
while others write."""
LIVE = 2048
"""Threads of a multiprocessor at most."""
LONGEST = 8 * THREADS * 8
"""Inputs at most."""
ODD = 64
"""Largest odd factor of a Hadamard order, with its twos."""


def refusal(x: Tensor, size: int = 0) -> str:
    """Why rows of x cannot be taken (size: of Hadamard blocks), or ""."""
    if x.dtype not in {torch.bfloat16, torch.float16}:
        return f"activations are {x.dtype}, not bfloat16 or float16"
    if x.shape[-1] % 16 or x.shape[-1] > LONGEST:
        return f"{x.shape[-1]} inputs are not a multiple of 16 up to {LONGEST}"
    if size and (x.shape[-1] % size or not _orders(size)):
        return f"blocks of {size} in {x.shape[-1]} inputs"
    return ""


def quantize(
    x: Tensor,
    kind: int,
    clip: float = 1.0,
    ordered: int = 0,
    size: int = 0,
    factors: Tensor | None = None,
    grouped: bool = False,
    decoded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Codes and scales of x [tokens, inputs]. size: of Hadamard blocks (0: none). factors float16 [inputs]: come before it.

    ordered: 0 as they come; 1: within each 64 columns codes stand as linear.cu reads rows of bytes, inputs a multiple of 64; 2:
    within each 16 as it reads 4-bit codes (byte k of the first eight, byte k of the others, and so on).
    grouped: a scale for each 128 inputs of a token, [inputs / 128, tokens]; inputs a multiple of that.
    decoded: codes times scales in x's type, which is what `fake` gives, instead of codes.
    """
    tokens, inputs = x.shape
    dtype = x.dtype if decoded else torch.int8 if kind == INT8 else torch.float8_e4m3fn
    codes = torch.empty(tokens, inputs, dtype=dtype, device=x.device)
    scale = torch.empty((inputs // 128, tokens) if grouped else tokens, dtype=torch.float32, device=x.device)
    twos, odd, matrix = _parts(size, x.device)
    threads, shared = block(tokens, inputs, twos > 8 or odd > 1)
    macros = (
        ("HALF", int(x.dtype == torch.float16)), ("NT", 0), ("ACT", kind), ("THREADS", threads),
        ("VECTORS", vectors(inputs, threads)), ("TWOS", twos), ("ODD", odd),
        ("SIGNED", int(factors is not None)), ("GROUPED", int(grouped)), ("ORDERED", ordered),
        ("DECODED", int(decoded)),
    )  # fmt: skip
    kernel = _build.kernel("activations.cu", "quantize", macros, x.device.index or 0)
    pointers = map(_product.address, (x.contiguous(), codes, scale, factors, matrix))
    unit = 1 / math.sqrt(1 << twos)
    arguments = (*pointers, inputs, _build.float_bits(clip), _build.float_bits(unit))
    kernel.launch((tokens, 1, 1), threads, arguments, shared, overlap=True)
    return codes, scale


def block(tokens: int, inputs: int, row: bool) -> tuple[int, int]:
    """Threads of a block and its bytes of shared memory. row: the whole row passes through shared memory."""
    threads = THREADS
    if tokens <= _product.PROCESSORS and inputs > 8 * THREADS:
        threads *= 2
    room = LIVE * _product.PROCESSORS
    while tokens * threads > room and threads > FEW_THREADS and vectors(inputs, threads // 2) <= VECTORS:
        threads //= 2
    return threads, 128 + (4 * inputs if row else 0)


def vectors(inputs: int, threads: int) -> int:
    """Eights of inputs that a thread has."""
    return -(-inputs // (8 * threads))


@functools.cache
def _orders(size: int) -> tuple[int, int]:
    """Log2 of the power of two, and the other factor, of a Hadamard order that the kernel can turn; () if it cannot."""
    factors = _hadamard.factors(size)
    dense = [factor for factor in factors if factor & (factor - 1)]
    if not factors or len(dense) > 1:
        return ()  # type: ignore[return-value]
    odd = dense[0] if dense else 1
    return ((size // odd).bit_length() - 1, odd) if odd <= ODD else ()  # type: ignore[return-value]


@functools.cache
def _parts(size: int, device: torch.device) -> tuple[int, int, Tensor | None]:
    """The kernel's two factors of an order, and the matrix of the odd one."""
    if not size:
        return 0, 1, None
    twos, odd = _orders(size)
    return twos, odd, _hadamard._matrix(odd, device, torch.float32) if odd > 1 else None
