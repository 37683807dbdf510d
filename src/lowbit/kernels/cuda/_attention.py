"""_attention - one new token of each sequence attends to packed keys and values; Hopper and later, in CUDA C++ (attention.cu).

In / Out  q [sequences, heads, width] -> [sequences, heads, width] = softmax(scale * q K.T) V over the first `lengths` tokens.
Idea      The codes are the left operands of both products and become halves by one to two instructions each; up to 8 heads
          that share keys are the right operand. Scales and zeros of keys go to the scores, those of values to the weights.
          The past is cut into `splits` spans; the last block of a head to arrive adds the parts in their order. Two warps of
          a block bring keys and values in few large copies; the others find them in shared memory as they lay in the store.
Source    FlashDecoding for the split, FlashAttention-4 for following the maximum loosely; layout and products are our own.
Traps     Weights are float16 times the scales of values: those must stay below 255 and their product above 1e-7 to count.
          Zeros and scales are bfloat16, pages hold a multiple of 8 tokens, behind a table a power of 2 from 16 on.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import ShapeError
from lowbit.kernels.cuda import _build
from lowbit.kernels.cuda._build import Pointer

FLOAT8 = 0
"""`bits` of float8 e4m3."""
WIDTHS = (64, 128)
PAGES = tuple(1 << n for n in range(4, 16))
GROUP = 8
"""Heads that share keys at most."""
LOG2E = 1.4426950408889634
WARPS, TEAMS, ROOM, BATCHED = 12, 3, 192 << 10, 512
"""Warps of a block that multiply, teams of them that take stages of the ring in turn, bytes of codes in the ring, and tokens
whose scales come at once."""


@dataclass(frozen=True)
class Side:
    """Keys or values: codes [pages, key heads, page, bytes], scale and zero bfloat16 [pages, key heads, page], or one scale,
    float32 [1] or [key heads], of all tokens.

    bits: 2, 4, 8 of unsigned integers, lowest first in each byte, value = (code - zero) * scale; without a zero half the range
    is one. FLOAT8: e4m3 * scale.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    zero: Tensor | None = None

    @property
    def fixed(self) -> int:
        """0: a scale a token, 1: one for all, 2: one a head."""
        return 0 if self.scale.dim() > 1 else min(len(self.scale), 2)


@dataclass(frozen=True)
class Plain:
    """Tokens kept as floats, in the type of the query: first and last ones, [sequences, key heads, n, width] each."""

    first: tuple[Tensor, Tensor]
    last: tuple[Tensor, Tensor]


def missing(device: torch.device) -> str:
    """Why the kernel cannot run on a device, or ""."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"device {device.type} is not an NVIDIA GPU"
    if torch.cuda.get_device_capability(device)[0] < 9:
        return "the GPU is older than Hopper (compute capability 9.0)"
    return _build.missing()


def unfit(dtype: torch.dtype, width: int, heads: tuple[int, int], bits: tuple[int, int]) -> str:
    """Why the kernel does not take such heads (of queries, of keys) and bits (of keys, of values) on any device, or ""."""
    if dtype not in {torch.bfloat16, torch.float16}:
        return f"queries are {dtype}, not bfloat16 or float16"
    if width not in WIDTHS:
        return f"heads of {width} channels; 64 or 128 are taken"
    if not set(bits) <= {2, 4, 8, FLOAT8} or (2 in bits and width == 64):
        return f"{' and '.join(map(str, bits))} bits in heads of {width} channels are not taken"
    if heads[0] % heads[1] or heads[0] // heads[1] > GROUP:
        return f"{heads[0]} heads on {heads[1]} of keys; 1 to {GROUP} may share one"
    return ""


def attend(
    q: Tensor,
    keys: Side,
    values: Side,
    scale: float,
    counts: Tensor | None = None,
    table: Tensor | None = None,
    plain: Plain | None = None,
    turned: tuple[bool, bool] = (False, False),
) -> Tensor:
    """q [sequences, heads, width]. counts int32 [sequences, 3]: tokens of first, packed and last, None: all. table int32
    [sequences, pages]: which pages of the stores are a sequence's (None: page n is all of sequence n). turned: whether keys and
    values are packed in the Hadamard basis of a head. Raises ShapeError.
    """
    sequences, heads, width = q.shape
    shared, page = keys.codes.shape[1], keys.codes.shape[2]
    reason = unfit(q.dtype, width, (heads, shared), (keys.bits, values.bits))
    if page % 8 or (table is not None and page not in PAGES):
        reason = f"pages of {page} tokens are not a multiple of 8, or, behind a table, a power of 2 from 16 on"
    if reason:
        raise ShapeError(f"attention to packed keys: {reason}. Decode them first.")
    out, group, packed = torch.empty_like(q), heads // shared, page if table is None else page * table.shape[1]
    ring = ring_of(keys.bits, values.bits, width)
    splits, span = spans(sequences * shared, packed, ring.tokens, _processors(q.device))
    splits += plain is not None
    part = torch.empty(sequences * heads * splits * (width + 4), device=q.device)
    kernel = _build.kernel(
        "attention.cu", "attend", _macros(q.dtype, width, keys, values, turned, plain is not None, ring), q.device.index or 0
    )
    floats = (None,) * 4 if plain is None else (*plain.first, *plain.last)
    tensors = (
        q, keys.codes, keys.scale, keys.zero, values.codes, values.scale, values.zero, table, counts, *floats, out, part,
        _build.counters(q.device, sequences * shared),
    )  # fmt: skip
    room = (0, 0) if plain is None else (plain.first[0].shape[2], plain.last[0].shape[2])
    pages = (page, page.bit_length() - 1, 0 if table is None else table.shape[1])
    numbers = (group, *pages, span, room[0], packed, room[1], _build.float_bits(scale * LOG2E))
    pointers = (Pointer(0 if t is None else t.data_ptr()) for t in tensors)
    kernel.launch((splits, shared, sequences), threads(), (*pointers, *numbers), ring.bytes, overlap=True)
    return out


def threads() -> int:
    """Of a block: two warps more bring keys and values."""
    return 32 * (WARPS + 2)


def spans(pairs: int, tokens: int, stage: int, places: int) -> tuple[int, int]:
    """Splits of each of `pairs` pasts of `tokens` tokens, and tokens of a split: as many as run at once, none smaller than a
    stage a team."""
    wanted = max(1, min(places // pairs, -(-tokens // (stage * TEAMS))))
    span = max(1, -(-tokens // (wanted * stage))) * stage
    return -(-tokens // span), span


@dataclass(frozen=True)
class Ring:
    """What a block keeps in shared memory: `depth` stages of `tokens` tokens of which a warp takes 16 * tiles; scales and zeros
    of `batch` stages come at once. bytes: of all of it."""

    tiles: int
    tokens: int
    depth: int
    batch: int
    bytes: int


@functools.cache
def ring_of(key_bits: int, value_bits: int, width: int) -> Ring:
    tiles = {8: 1, 4: 2, 2: 4}[max(key_bits or 8, value_bits or 8)]
    tokens = 16 * tiles * (WARPS // TEAMS)
    stage = tokens * width * ((key_bits or 8) + (value_bits or 8)) // 8
    depth, batch = ROOM // stage // TEAMS * TEAMS, max(1, BATCHED // tokens)
    slots = (depth + batch - 2) // batch + 1
    size = depth * (stage + 16) + slots * (8 * batch * tokens + 8) + 16 + 32 * width
    return Ring(tiles, tokens, depth, batch, max(size, WARPS * 8 * (width + 4) * 4))  # the warps' parts lie there at the end


@functools.cache
def _known(
    dtype: torch.dtype,
    width: int,
    bits: tuple[int, int],
    zeros: tuple[bool, bool],
    fixed: tuple[int, int],
    turned: tuple[bool, bool],
    plain: bool,
    ring: Ring,
) -> _build.Macros:
    values = {
        "HALF": 1, "NT": 0, "QUERY": int(dtype == torch.float16), "WIDTH": width, "KBITS": bits[0], "VBITS": bits[1],
        "KZERO": int(zeros[0]), "VZERO": int(zeros[1]), "KFIXED": fixed[0], "VFIXED": fixed[1],
        "KTURNED": int(turned[0]), "VTURNED": int(turned[1]),
        "FLOATS": int(plain), "TILES": ring.tiles, "WARPS": WARPS, "TEAMS": TEAMS, "DEPTH": ring.depth,
        "BATCH": ring.batch,
    }  # fmt: skip
    return tuple(values.items())


def _macros(
    dtype: torch.dtype, width: int, keys: Side, values: Side, turned: tuple[bool, bool], plain: bool, ring: Ring
) -> _build.Macros:
    zeros = (keys.zero is not None, values.zero is not None)
    return _known(dtype, width, (keys.bits, values.bits), zeros, (keys.fixed, values.fixed), turned, plain, ring)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
