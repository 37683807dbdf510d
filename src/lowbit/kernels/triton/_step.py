"""_step - what stands around the linears when a decoder writes one token: three kernels a layer, each a launch, and two.

norm      hidden += what the last linear gave; y = RMSNorm(hidden)
attend    rotate the new query and key, write the new key and value into the cache, attend to all of it
gate      silu(gate) * up
enter     hidden = the embedding of the token; y = RMSNorm(hidden)
take      the likeliest token, put where the next step reads it

Idea      A launch costs about as much as the work of such a kernel, so few kernels do all of it, and each lets the next one
          start at once: a linear then reads its weights while the kernel before it still works on its inputs.
          attend: a program takes a key-value head and a slice of the past, as many slices as there are tiles of tokens; each
          writes its part of the softmax sum, the last one of a head to arrive adds them in the order of slices. The new token
          is in the first slice, out of registers. What other tokens wrote (the first tile of keys and values, the position,
          its angles) is read before the wait for the product that gives the new ones.
          take: the last of the programs to arrive has what all of them found.
Source    Flash-Decoding for the slices; Programmatic dependent launch: CUDA C++ Programming Guide.
Traps     `count` is zero before a call and after it. Norms round to the type of the model before their weight, as transformers
          does; rotation is in float32 and rounded once, where transformers rounds three times.
          A kernel that lets the next one start has not written yet: before the wait nothing may be read that this step writes.
          `enter` starts late, when all of the step before has ended: so whatever follows it may read what that one wrote.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SLICES = 16
"""Programs that share the past of one key-value head."""
TOKENS = 64
"""Tokens that a program takes at once."""
LOGITS = 1024
"""Of which a program finds the greatest."""


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
def _enter(
    token, table, hidden, weight, y, N: tl.constexpr, EPS: tl.constexpr, B: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Grid (1,). table [vocab, N]."""
    n = tl.arange(0, B)
    keep = n < N
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(table + tl.load(token).to(tl.int64) * N + n, mask=keep, other=0.0)
    tl.store(hidden + n, x, mask=keep)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / N + EPS)
    w = tl.load(weight + n, mask=keep, other=0.0)
    tl.store(y + n, w * (wide * scale).to(y.dtype.element_ty), mask=keep)


@triton.jit
def _take(
    logits, best, place, count, token, position, written, number, V: tl.constexpr, B: tl.constexpr, P: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of B logits,). best float32, place int32 [blocks]. P: blocks, to the next power of two."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    n = block * B + tl.arange(0, B)
    _begin(PDL)
    x = tl.load(logits + n, mask=n < V, other=-float("inf")).to(tl.float32)
    top = tl.max(x, 0)
    tl.store(best + block, top)
    tl.store(place + block, tl.min(tl.where(x == top, n, V), 0))
    tl.debug_barrier()
    if tl.atomic_add(count, 1, sem="acq_rel") == blocks - 1:
        b = tl.arange(0, P)
        tops = tl.load(best + b, mask=b < blocks, other=-float("inf"), cache_modifier=".cg")
        places = tl.load(place + b, mask=b < blocks, other=V, cache_modifier=".cg")
        found = tl.min(tl.where(tops == tl.max(tops, 0), places, V), 0).to(tl.int64)
        at = tl.load(number)
        tl.store(token, found)
        tl.store(written + at, found)
        tl.store(number, at + 1)
        tl.store(position, tl.load(position) + 1)
        tl.store(count, 0)


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
def _rotated(base, c, s, rows, d, keep, D: tl.constexpr):
    """Rows of `base` [any, D] turned by the angles of the position, c and s [1, D]; float32 [rows, D]."""
    swapped = (d + D // 2) % D
    x = tl.load(base + rows * D + d, mask=keep, other=0.0).to(tl.float32)
    other = tl.load(base + rows * D + swapped, mask=keep, other=0.0).to(tl.float32)
    return x * c + tl.where(d < D // 2, -other, other) * s


@triton.jit
def _seen(q, k, v, there, top, total, acc, scale):
    """The running sum of softmax with one tile of tokens more: greatest score, sum of weights, weighted values."""
    scores = tl.where(there[None, :], tl.dot(q, tl.trans(k), input_precision="ieee") * scale, -1e30)
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.where(there[None, :], tl.exp(scores - higher[:, None]), 0.0)
    fade = tl.exp(top - higher)
    acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return higher, total * fade + tl.sum(weights, 1), acc


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
    """Grid (H key-value heads, S slices). qkv: H * G queries, H keys, H values of D; keys, values [H, room, D]; cos, sin
    [room, D]. part float32 [H, S, BG, D], stats float32 [H, S, 2, BG]. LIMIT: tiles of a slice at most (interpreter), 0: as it
    has.
    """
    head, part_of = tl.program_id(0), tl.program_id(1)
    g, d, t = tl.arange(0, BG), tl.arange(0, D), tl.arange(0, BT)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    past = tl.load(position).to(tl.int32)
    share = (((past + S - 1) // S + BT - 1) // BT) * BT
    busy = tl.maximum((past + share - 1) // tl.maximum(share, 1), 1)
    if part_of < busy:
        base = head.to(tl.int64) * room * D
        start = part_of * share
        stop = tl.minimum(start + share, past)
        there = start + t < stop
        at = base + (start + t)[:, None] * D + d[None, :]
        k = tl.load(keys + at, mask=there[:, None], other=0.0)
        v = tl.load(values + at, mask=there[:, None], other=0.0)
        c = tl.load(cos + past * D + d)[None, :].to(tl.float32)
        s = tl.load(sin + past * D + d)[None, :].to(tl.float32)
        if PDL:
            tl.extra.cuda.gdc_wait()
        queries = (g < G)[:, None] & (d >= 0)[None, :]
        q = _rotated(qkv, c, s, (head * G + g)[:, None], tl.broadcast_to(d[None, :], (BG, D)), queries, D)
        q = q.to(y.dtype.element_ty)
        one = tl.zeros((1, D), tl.int32)
        new_key = _rotated(qkv, c, s, one + H * G + head, one + d[None, :], one == 0, D).to(y.dtype.element_ty)
        new_value = tl.load(qkv + (H * G + H + head) * D + d)[None, :]
        first = part_of == 0
        if first:
            tl.store(keys + base + past * D + d[None, :], new_key)
            tl.store(values + base + past * D + d[None, :], new_value)
        new_score = tl.sum(q.to(tl.float32) * new_key.to(tl.float32), 1) * scale
        top = tl.where(first, new_score, -1e30)
        total = tl.where(first, 1.0, 0.0) + tl.zeros((BG,), tl.float32)
        acc = tl.where(first, new_value.to(tl.float32), 0.0) + tl.zeros((BG, D), tl.float32)
        top, total, acc = _seen(q, k, v, there, top, total, acc, scale)
        for i in range(1, LIMIT if LIMIT else (tl.maximum(stop - start, 0) + BT - 1) // BT):
            token = start + i * BT + t
            there = token < stop
            at = base + token[:, None] * D + d[None, :]
            k = tl.load(keys + at, mask=there[:, None], other=0.0)
            v = tl.load(values + at, mask=there[:, None], other=0.0)
            top, total, acc = _seen(q, k, v, there, top, total, acc, scale)
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


def _options(x: Tensor, warps: int, late: bool = False) -> dict[str, object]:
    """How to launch: early, unless `late`, and with so many warps on a GPU, plainly in the interpreter."""
    if not x.is_cuda:
        return {"PDL": False}
    early = torch.cuda.get_device_capability(x.device)[0] >= 9
    return {"PDL": early, "num_warps": warps, **({"launch_pdl": True} if early and not late else {})}


def enter(token: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """token int64 [1, 1], table [vocab, n] -> its row [1, n], and weight * row / sqrt(mean(row^2) + eps)."""
    n = table.shape[1]
    hidden = torch.empty(1, n, dtype=table.dtype, device=table.device)
    y = torch.empty_like(hidden)
    _enter[(1,)](
        token, table, hidden, weight, y, N=n, EPS=eps, B=triton.next_power_of_2(n), **_options(hidden, 8, late=True)
    )  # fmt: skip
    return hidden, y


class Taking:
    """The choice of the likeliest token, the first of equal ones. vocab: logits."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._blocks = -(-vocab // LOGITS)
        self._best = torch.empty(self._blocks, device=device)
        self._place = torch.empty(self._blocks, dtype=torch.int32, device=device)
        self._count = torch.zeros(1, dtype=torch.int32, device=device)

    def __call__(self, logits: Tensor, token: Tensor, position: Tensor, written: Tensor, number: Tensor) -> None:
        """logits [1, vocab] -> token [1, 1], written[number]; position and number are one more. All int64."""
        _take[(self._blocks,)](
            logits, self._best, self._place, self._count, token, position, written, number, V=logits.shape[1], B=LOGITS,
            P=triton.next_power_of_2(self._blocks), **_options(logits, 4),
        )  # fmt: skip


def norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """hidden [tokens, n] += delta, in place; weight * hidden / sqrt(mean(hidden^2) + eps)."""
    tokens, n = hidden.shape
    y = torch.empty_like(hidden)
    _norm[(tokens,)](
        hidden, hidden if delta is None else delta, weight, y, N=n, EPS=eps, ADD=delta is not None,
        B=triton.next_power_of_2(n), **_options(hidden, 8),
    )  # fmt: skip
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [1, in], weight [out, in], bias [out] -> [1, out]."""
    return torch.nn.functional.linear(x, weight, bias)


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
        """qkv [1, (query + 2 key-value heads) * width], cos and sin [any, width], position int64 -> [1, query heads * width].

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
