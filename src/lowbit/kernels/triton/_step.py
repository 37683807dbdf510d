"""_step - what stands between the linears when a decoder writes one token: three kernels a layer, each a launch.

norm      hidden += what the last linear gave; y = RMSNorm(hidden)
attend    rotate the new query and key, write the new key and value into the cache, attend to all of it
gate      silu(gate) * up

Idea      A launch costs about as much as the work of such a kernel, so few kernels do all of it, and each lets the next one
          start at once: a linear then reads its weights while the kernel before it still works on its inputs.
          attend: a program takes a key-value head and a slice of the past, as many slices as there are tiles of tokens; each
          writes its part of the softmax sum, the last one of a head to arrive adds them in the order of slices. The new token
          is in the first slice, out of registers.
Source    Flash-Decoding for the slices; Programmatic dependent launch: CUDA C++ Programming Guide.
Traps     `count` is zero before a call and after it. Norms round to the type of the model before their weight, as transformers
          does; rotation is in float32 and rounded once, where transformers rounds three times.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SLICES = 16
"""Programs that share the past of one key-value head."""
TOKENS = 64
"""Tokens that a program takes at once."""


@triton.jit
def _begin(PDL: tl.constexpr):
    """Let the next kernel start, and wait until the kernels before this one have written (Hopper and later)."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _norm(hidden, delta, weight, y, N: tl.constexpr, EPS: tl.constexpr, ADD: tl.constexpr, B: tl.constexpr, PDL: tl.constexpr):
    """Grid (tokens,)."""
    n = tl.arange(0, B)
    at = tl.program_id(0) * N + n
    keep = n < N
    w = tl.load(weight + n, mask=keep, other=0.0)
    _begin(PDL)
    x = tl.load(hidden + at, mask=keep, other=0.0)
    if ADD:
        x += tl.load(delta + at, mask=keep, other=0.0)
        tl.store(hidden + at, x, mask=keep)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / N + EPS)
    tl.store(y + at, w * (wide * scale).to(y.dtype.element_ty), mask=keep)


@triton.jit
def _gate(both, y, N: tl.constexpr, B: tl.constexpr, PDL: tl.constexpr):
    """Grid (blocks of B,). both: gate and up side by side, one token."""
    n = tl.program_id(0) * B + tl.arange(0, B)
    _begin(PDL)
    gate = tl.load(both + n, mask=n < N, other=0.0)
    up = tl.load(both + N + n, mask=n < N, other=0.0)
    wide = gate.to(tl.float32)
    tl.store(y + n, (wide / (1.0 + tl.exp(-wide))).to(gate.dtype) * up, mask=n < N)


@triton.jit
def _rotated(base, cos, sin, rows, d, keep, D: tl.constexpr):
    """Rows of `base` [any, D] turned by the angles of the position; float32 [rows, D]."""
    swapped = (d + D // 2) % D
    x = tl.load(base + rows * D + d, mask=keep, other=0.0).to(tl.float32)
    other = tl.load(base + rows * D + swapped, mask=keep, other=0.0).to(tl.float32)
    c, s = tl.load(cos + d).to(tl.float32), tl.load(sin + d).to(tl.float32)
    return x * c + tl.where(d < D // 2, -other, other) * s


@triton.jit
def _combine(y, part, stats, head, busy, G: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, S: tl.constexpr):
    """The sum of what the slices of one key-value head have; every load of it is on its way at once."""
    g, d, s = tl.arange(0, BG), tl.arange(0, D), tl.arange(0, S)
    there = (s < busy)[:, None]
    at = (head * S + s)[:, None] * 2 * BG + g[None, :]
    tops = tl.load(stats + at, mask=there, other=-1e30, cache_modifier=".cg")
    shares = tl.exp(tops - tl.max(tops, 0)[None, :])
    totals = tl.sum(tl.load(stats + at + BG, mask=there, other=0.0, cache_modifier=".cg") * shares, 0)
    for i in tl.static_range(G):
        share = tl.sum(tl.where((g == i)[None, :], shares, 0.0), 1)
        total = tl.sum(tl.where(g == i, totals, 0.0), 0)
        rows = part + ((head * S + s)[:, None] * BG + i) * D + d[None, :]
        found = tl.load(rows, mask=tl.broadcast_to(there, (S, D)), other=0.0, cache_modifier=".cg")
        tl.store(y + (head * G + i) * D + d, (tl.sum(found * share[:, None], 0) / total).to(y.dtype.element_ty))


@triton.jit
def _attend(
    qkv, cos, sin, position, keys, values, y, part, stats, count, scale, room, H: tl.constexpr, G: tl.constexpr,
    D: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr, S: tl.constexpr, LIMIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (H key-value heads, S slices). qkv: H * G queries, H keys, H values of D; keys, values [H, room, D].

    part float32 [H, S, BG, D], stats float32 [H, S, 2, BG]. LIMIT: tiles of a slice at most (interpreter), 0: as it has.
    """
    head, part_of = tl.program_id(0), tl.program_id(1)
    g, d, t = tl.arange(0, BG), tl.arange(0, D), tl.arange(0, BT)
    _begin(PDL)
    past = tl.load(position).to(tl.int32)
    share = (((past + S - 1) // S + BT - 1) // BT) * BT
    busy = tl.maximum((past + share - 1) // tl.maximum(share, 1), 1)
    if part_of < busy:
        queries = (g < G)[:, None] & (d >= 0)[None, :]
        q = _rotated(qkv, cos, sin, (head * G + g)[:, None], tl.broadcast_to(d[None, :], (BG, D)), queries, D)
        q = q.to(y.dtype.element_ty)
        base = head.to(tl.int64) * room * D
        one = tl.zeros((1, D), tl.int32)
        new_key = _rotated(qkv, cos, sin, one + H * G + head, one + d[None, :], one == 0, D).to(y.dtype.element_ty)
        new_value = tl.load(qkv + (H * G + H + head) * D + d)[None, :]
        first = part_of == 0
        if first:
            tl.store(keys + base + past * D + d[None, :], new_key)
            tl.store(values + base + past * D + d[None, :], new_value)
        new_score = tl.sum(q.to(tl.float32) * new_key.to(tl.float32), 1) * scale
        top = tl.where(first, new_score, -1e30)
        total = tl.where(first, 1.0, 0.0) + tl.zeros((BG,), tl.float32)
        acc = tl.where(first, new_value.to(tl.float32), 0.0) + tl.zeros((BG, D), tl.float32)
        start = part_of * share
        stop = tl.minimum(start + share, past)
        for i in range(LIMIT if LIMIT else (tl.maximum(stop - start, 0) + BT - 1) // BT):
            token = start + i * BT + t
            there = token < stop
            at = base + token[:, None] * D + d[None, :]
            k = tl.load(keys + at, mask=there[:, None], other=0.0)
            v = tl.load(values + at, mask=there[:, None], other=0.0)
            scores = tl.where(there[None, :], tl.dot(q, tl.trans(k), input_precision="ieee") * scale, -1e30)
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.where(there[None, :], tl.exp(scores - higher[:, None]), 0.0)
            fade = tl.exp(top - higher)
            total = total * fade + tl.sum(weights, 1)
            acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            top = higher
        out = y + (head * G + g)[:, None] * D + d[None, :]
        if busy == 1:
            tl.store(out, (acc / total[:, None]).to(y.dtype.element_ty), mask=queries)
        else:
            slot = head * S + part_of
            tl.store(stats + slot * 2 * BG + g, top)
            tl.store(stats + slot * 2 * BG + BG + g, total)
            tl.store(part + slot * BG * D + g[:, None] * D + d[None, :], acc, mask=queries)
            tl.debug_barrier()
            arrived = tl.atomic_add(count + head, 1, sem="acq_rel")
            if arrived == busy - 1:
                _combine(y, part, stats, head, busy, G, D, BG, S)
                tl.store(count + head, 0)


def _options(x: Tensor, warps: int) -> dict[str, object]:
    """How to launch: early and with so many warps on a GPU, plainly in the interpreter."""
    if not x.is_cuda:
        return {"PDL": False}
    early = torch.cuda.get_device_capability(x.device)[0] >= 9
    return {"PDL": early, "num_warps": warps, **({"launch_pdl": True} if early else {})}


def norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """hidden [tokens, n] += delta, in place; weight * hidden / sqrt(mean(hidden^2) + eps)."""
    tokens, n = hidden.shape
    y = torch.empty_like(hidden)
    _norm[(tokens,)](
        hidden, hidden if delta is None else delta, weight, y, N=n, EPS=eps, ADD=delta is not None,
        B=triton.next_power_of_2(n), **_options(hidden, 8),
    )  # fmt: skip
    return y


def gate(both: Tensor) -> Tensor:
    """both [1, 2 n] -> silu(first half) * second half [1, n]."""
    n = both.shape[1] // 2
    y = torch.empty(1, n, dtype=both.dtype, device=both.device)
    _gate[(-(-n // 1024),)](both, y, N=n, B=1024, **_options(both, 4))
    return y


class Attention:
    """The attention of one token in every layer of a model. heads: (query, key-value). width: of a head."""

    def __init__(self, heads: tuple[int, int], width: int, scale: float, device: torch.device) -> None:
        self.heads, self.width, self.scale = heads, width, scale
        self._rows = max(16, triton.next_power_of_2(heads[0] // heads[1]))
        slots = heads[1] * SLICES * self._rows
        self._part = torch.empty(slots * width, device=device)
        self._stats = torch.empty(slots * 2, device=device)
        self._count = torch.zeros(heads[1], dtype=torch.int32, device=device)

    def __call__(self, qkv: Tensor, cos: Tensor, sin: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """qkv [1, (query + 2 key-value heads) * width], cos and sin [width], position int64 [1] -> [1, query heads * width].

        keys, values [key-value heads, room, width] hold the tokens before the position; the new one is written there.
        """
        queries, pairs = self.heads
        y = torch.empty(1, queries * self.width, dtype=qkv.dtype, device=qkv.device)
        _attend[(pairs, SLICES)](
            qkv, cos, sin, position, keys, values, y, self._part, self._stats, self._count, self.scale, keys.shape[1], H=pairs,
            G=queries // pairs, D=self.width, BG=self._rows, BT=TOKENS, S=SLICES,
            LIMIT=0 if qkv.is_cuda else -(-keys.shape[1] // (SLICES * TOKENS)), **_options(qkv, 4),
        )  # fmt: skip
        return y
