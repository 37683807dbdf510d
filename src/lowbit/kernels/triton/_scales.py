"""_scales - the integer scale and zero of each group that lose least, every candidate tried in registers; and their refit.

In / Out  x [groups, N] float32, importance [groups of a row, N] -> scale (and zero) [groups] float32, as they can be stored.
Idea      What lowbit.formats._search does with a pass over memory for each candidate: codes at the candidate, its own best
          scale by the parabola of the loss, rounded to what is stored; the best of all, refitted. A program holds its groups.
          refit: codes stay; one small product and one launch a group do what lowbit.solvers.descent does in thirty.
Source    lowbit/formats/_search.py, symmetric.py and asymmetric.py are the law.
Traps     Of two extremes of the same size the sign of the plain scale is open; both signs are tried. Sums have another order,
          so of two candidates that lose the same the other one may win.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048
"""Weights that a program of the search holds."""
ROWS = 32
"""Rows that a program refits."""
FAR = 512
"""Columns that get what all errors add to them by one product."""


@triton.jit
def _stored(scale, TYPE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
    """The scale that is stored for `scale`."""
    size = tl.minimum(tl.maximum(tl.abs(scale), LEAST), MOST).to(TYPE).to(tl.float32)
    return tl.where(scale < 0, -size, size)


@triton.jit
def _improved(
    x, h, scale, low, high, TYPE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr
):  # fmt: skip
    """The stored scale that is best for the codes at `scale`, and its loss. low, high: of the codes less the zero."""
    unit = tl.minimum(tl.maximum(x * (1.0 / scale)[:, None], low[:, None]), high[:, None])
    codes = (unit + 12582912.0) - 12582912.0
    rest = tl.fma(-codes, tl.broadcast_to(scale[:, None], codes.shape), x)
    weighted = codes * h
    a, b = tl.sum(weighted * rest, 1), tl.sum(weighted * codes, 1)
    best = _stored(tl.where(b > 0, scale + a / b, scale), TYPE, LEAST, MOST)
    move = best - scale
    return best, tl.sum(rest * rest * h, 1) + move * (move * b - 2 * a)


@triton.jit
def searched(
    x, importance, scale, zero, COUNT, GROUPS, N: tl.constexpr, B: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    ASYM: tl.constexpr, WAYS: tl.constexpr, FACTORS: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr,
    REFITS: tl.constexpr, TYPE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Grid (programs of B groups,). LOW, HIGH: ends of the element, 0 .. steps if ASYM. WAYS: signs, or shifts of the zero."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    n = tl.arange(0, N)
    keep = (i < COUNT)[:, None]
    w = tl.load(x + i.to(tl.int64)[:, None] * N + n[None, :], mask=keep, other=0.0)
    h = tl.load(importance + (i % GROUPS)[:, None] * N + n[None, :], mask=keep, other=0.0)
    least, greatest = tl.min(w, 1), tl.max(w, 1)
    plain = tl.zeros((B,), tl.float32)
    if ASYM:
        least, greatest = tl.minimum(least, 0.0), tl.maximum(greatest, 0.0)
        base = tl.where(greatest > least, (greatest - least) / HIGH, 1.0)
        ratio = -least / _stored(base, TYPE, LEAST, MOST)
        plain = tl.minimum(tl.maximum((ratio + 12582912.0) - 12582912.0, 0.0), HIGH)
    else:
        largest = tl.where(-least > greatest, least, greatest)
        base = tl.where(largest == 0, 1.0, largest / LOW)
    best, chosen = base, plain
    loss = tl.full((B,), float("inf"), tl.float32)
    for c in range(FACTORS * WAYS):
        share, way = FIRST - STEP * (c // WAYS), c % WAYS
        z = plain
        tried = base * share
        if ASYM:
            shift = tl.where(way == 0, 0.0, tl.where(way == 1, -1.0, 1.0))
            z = tl.minimum(tl.maximum(plain + shift, 0.0), HIGH)
        else:
            tried = tried * (1 - 2 * way)
        found, error = _improved(w, h, _stored(tried, TYPE, LEAST, MOST), LOW - z, HIGH - z, TYPE, LEAST, MOST)
        better = error < loss
        best, chosen, loss = tl.where(better, found, best), tl.where(better, z, chosen), tl.where(better, error, loss)
    for _ in range(REFITS):
        found, error = _improved(w, h, best, LOW - chosen, HIGH - chosen, TYPE, LEAST, MOST)
        best, loss = tl.where(error < loss, found, best), tl.minimum(error, loss)
    tl.store(scale + i, best, mask=i < COUNT)
    if ASYM:
        tl.store(zero + i, chosen, mask=i < COUNT)


@triton.jit
def refitted(
    units, pulled, errors, changes, curve, scale, OUT, N: tl.constexpr, BR: tl.constexpr, TYPE: tl.constexpr,
    LEAST: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Grid (programs of BR rows,). The scale of one group of N columns of every row, what the errors then are, and by how much
    they change."""
    r, n = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, N)
    inside = r < OUT
    at = n[:, None] * OUT + r[None, :]
    keep = tl.broadcast_to(inside[None, :], (N, BR))
    u = tl.load(units + at, mask=keep, other=0.0)
    gain = tl.sum(u * tl.load(pulled + at, mask=keep, other=0.0), 0)
    bend, old = tl.load(curve + r, mask=inside, other=0.0), tl.load(scale + r, mask=inside, other=1.0)
    move = _stored(tl.where(bend > 0, old + gain / bend, old), TYPE, LEAST, MOST) - old
    move = tl.where(move * (move * bend - 2 * gain) < 0, move, 0.0)
    tl.store(scale + r, old + move, mask=inside)
    tl.store(changes + at, -u * move[None, :], mask=keep)
    tl.store(errors + at, tl.load(errors + at, mask=keep, other=0.0) - u * move[None, :], mask=keep)


TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def search(
    x: Tensor, h: Tensor, ends: tuple[float, float], ways: int, asymmetric: bool, factors: tuple[float, ...], refits: int,
    stored: tuple[torch.dtype, float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Scale and zero [rows, groups] of x [rows, groups, n], h [groups, n]. stored: type of scales, least and greatest."""
    rows, groups, n = x.shape
    scale = torch.empty(rows, groups, device=x.device)
    zero = torch.empty_like(scale) if asymmetric else scale
    block = max(1, ELEMENTS // n)
    searched[(-(-rows * groups // block),)](
        x, h, scale, zero, rows * groups, groups, N=n, B=block, LOW=ends[0], HIGH=ends[1], ASYM=asymmetric, WAYS=ways,
        FACTORS=len(factors), FIRST=factors[0], STEP=factors[0] - factors[1], REFITS=refits, TYPE=TYPES[stored[0]],
        LEAST=stored[1], MOST=stored[2],
    )  # fmt: skip
    return scale, zero


def refit(units: Tensor, moment: Tensor, errors: Tensor, scale: Tensor, stored: tuple[torch.dtype, float, float]) -> None:
    """The best scale [G, out] of each group, one after the other, in place, and the errors [in, out] that it leaves.

    units [in, out]: codes less zeros. moment [in, in].
    """
    (inputs, out), groups = units.shape, len(scale)
    n = inputs // groups
    blocks = moment.view(groups, n, groups, n).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    grouped = units.view(groups, n, out)
    curve = (grouped * torch.bmm(blocks, grouped)).sum(1)
    together = max(1, FAR // n)
    changes = torch.empty_like(units[: together * n])
    for first in range(0, groups, together):
        start, last = first * n, min(first + together, groups)
        far = moment[start : last * n] @ errors
        for g in range(first, last):
            part, near = slice(g * n, g * n + n), slice(g * n - start, g * n - start + n)
            pulled = far[near]
            if g > first:
                pulled = torch.addmm(pulled, moment[part, start : g * n], changes[: near.start])
            refitted[(-(-out // ROWS),)](
                units[part], pulled, errors[part], changes[near], curve[g], scale[g], out, N=n, BR=ROWS, TYPE=TYPES[stored[0]],
                LEAST=stored[1], MOST=stored[2],
            )  # fmt: skip
