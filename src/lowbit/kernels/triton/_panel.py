"""_panel - one panel of at most 128 columns rounded with feedback, a kernel instead of 128 rounds of launches.

In / Out  weight, moved [P, out] float32 (columns in the order of the factor, the last is rounded first), lower [P, P],
          group int32 [P], scale, zero [G, out] -> codes (element values) and values [P, out].
Idea      A program holds BR rows of the panel in registers. Step k takes column k out by a masked sum, rounds it, and adds
          (weight - value) times row k of the factor to the columns that are still to come.
          Integers round to even by adding and subtracting 1.5 * 2**23; other elements by counting the midpoints below.
Source    GPTQ (2210.17323), the loop over columns; LDL order: QuIP (2307.13304).
Figures   research trial, H200: 112 us for 4096 rows x 128 columns; the same loop in torch 17 ms.
Traps     Triton's `/` is not rounded correctly; div_rn is, so codes equal those of the plain loop up to the order of sums.
"""

import triton
import triton.language as tl


@triton.jit
def rounded(
    weight, moved, lower, group, scale, zero, levels, codes, values, OUT, N: tl.constexpr, P: tl.constexpr, BR: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks,). N: columns of the panel, P: the next power of two. LEVELS: length of the table, 0 for integers."""
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    p = tl.arange(0, P)
    at = p[None, :] * OUT + r[:, None]
    keep = tl.where(p[None, :] < N, r[:, None], OUT) < OUT
    inside = r < OUT
    w = tl.load(weight + at, mask=keep, other=0.0)
    x = tl.load(moved + at, mask=keep, other=0.0)
    q = tl.zeros((BR, P), tl.float32)
    v = tl.zeros((BR, P), tl.float32)
    for i in range(N):
        k = N - 1 - i
        here = p == k
        row = tl.load(lower + k * N + p, mask=p < k, other=0.0)
        g = tl.load(group + k)
        s = tl.load(scale + g * OUT + r, mask=inside, other=1.0)
        wanted = tl.sum(tl.where(here[None, :], x, 0.0), 1)
        original = tl.sum(tl.where(here[None, :], w, 0.0), 1)
        unit = tl.math.div_rn(wanted, s)
        z = tl.zeros((BR,), tl.float32)
        if ZERO:
            z = tl.load(zero + g * OUT + r, mask=inside, other=0.0)
            unit += z
        if LEVELS:
            code = tl.zeros((BR,), tl.float32) + tl.load(levels)
            for j in range(1, LEVELS):
                below, above = tl.load(levels + j - 1), tl.load(levels + j)
                code = tl.where(unit > (below + above) * 0.5, above, code)
        else:
            code = tl.minimum(tl.maximum(unit, LOW), HIGH) + 12582912.0
            code = code - 12582912.0
        value = (code - z) * s
        x += (original - value)[:, None] * row[None, :]
        q = tl.where(here[None, :], code[:, None], q)
        v = tl.where(here[None, :], value[:, None], v)
    tl.store(codes + at, q, mask=keep)
    tl.store(values + at, v, mask=keep)
