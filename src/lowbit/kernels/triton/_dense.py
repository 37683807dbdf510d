"""_dense - Triton kernels over planes of scalar integer codes: product with activations, and decoding to a dense matrix.

In / Out  x [M, K] half, low int16 [KB, T, N, BW], high int16 [KB, N, BW] (3 bits only), scale [G, N], zero uint8 [G, N]
          -> y [M, N], or the matrix itself [N, K].
Idea      One 16-bit word holds one code of each of P planes of BW columns, so a plane is a contiguous run of columns with one
          scale: the product of a plane with its slice of x is scaled once, in float32. Two neighbouring words fill a register:
          `(w >> shift) & mask | magic` gives a pair of halves 128 + u (1024 + u in float16), less 128 + zero is exact.
          The weights are the left operand of the matrix product, so that Hopper takes them from registers.
          Split over K: each program writes its partial sum, the last one to arrive adds all of them in order of index.
Source    Marlin (2408.11743) for the magic numbers; Triton's interpreter runs the same code with MODE 0 (plain shifts).
Traps     Triton's interpreter (3.6 to 3.9): loop bounds must be constexpr with numpy >= 2.4; products of bfloat16 are wrong, so
          MODE 0 multiplies in float32; its rounding to bfloat16 truncates.
"""

import triton
import triton.language as tl


@triton.jit
def _wait_for_inputs():
    """Let the next kernel start, and wait until the kernels before this one have written x (Hopper and later)."""
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()


@triton.jit
def _take(at, keep, ALL: tl.constexpr):
    """The values at pointers `at`; 0 where `keep` is false, unless ALL are there."""
    if ALL:
        return tl.load(at)
    else:
        return tl.load(at, mask=keep, other=0)


@triton.jit
def _plane(like, low, high, z, J: tl.constexpr, BITS: tl.constexpr, MODE: tl.constexpr, PLANES: tl.constexpr):
    """Plane J of a tile of words [BN, BW] as element values u - z of the type that `like` points to; MODE 0: float32.

    z: uint8 [BN, 1].
    """
    if MODE == 0:
        if BITS == 3:
            code = ((low.to(tl.int32) >> (2 * (J % 8))) & 3) | (((high.to(tl.int32) >> J) & 1) << 2)
        else:
            code = (low.to(tl.int32) >> (BITS * J)) & ((1 << BITS) - 1)
        return (code - z.to(tl.int32)).to(tl.float32)
    elif MODE == 2:
        zero = tl.broadcast_to(z.to(tl.float32) + 8388608.0, low.shape)
        return tl.inline_asm_elementwise(PLANES[J], "=r,r,r,r", [low, zero], dtype=like.dtype.element_ty, is_pure=True, pack=2)
    else:
        magic = (z.to(tl.int16) | (0x4300 if like.dtype.element_ty == tl.bfloat16 else 0x6400)).to(tl.int16)
        zero = tl.broadcast_to(magic, low.shape)
        if BITS == 3:
            words = [low, high, zero]
            return tl.inline_asm_elementwise(PLANES[J], "=r,r,r,r", words, dtype=like.dtype.element_ty, is_pure=True, pack=2)
        else:
            return tl.inline_asm_elementwise(
                PLANES[J], "=r,r,r", [low, zero], dtype=like.dtype.element_ty, is_pure=True, pack=2
            )


@triton.jit
def product(
    x, low, high, scale, zero, y, part, count, M, N: tl.constexpr, K: tl.constexpr, KB: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, ASYM: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr, SK: tl.constexpr,
    EARLY: tl.constexpr, MODE: tl.constexpr, PLANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y [M, N] = x @ W.T. Grid (row tiles, SK, token tiles). EARLY: scale weights before the product instead of sums after."""
    P: tl.constexpr = 16 if BITS == 3 else 16 // BITS
    T: tl.constexpr = 2 if BITS == 3 else 1
    tile, slice_, tokens = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    FULL: tl.constexpr = N % BN == 0 and KB % SK == 0
    rows = tile * BN + tl.arange(0, BN)
    words = tl.arange(0, BW)
    m = tokens * BM + tl.arange(0, BM)
    acc = tl.zeros((BN, BM), tl.float32)
    if PDL:
        _wait_for_inputs()
    for i in range((KB + SK - 1) // SK):
        block = i * SK + slice_
        live = tl.where(block < KB, rows, N) < N
        at = rows[:, None] * BW + words[None, :]
        if BITS == 3:
            upper = _take(high + block * (N * BW) + at, live[:, None], FULL)
        for t in tl.static_range(T):
            lower = _take(low + (block * T + t) * (N * BW) + at, live[:, None], FULL)
            if BITS != 3:
                upper = lower
            for p in tl.static_range(P // T):
                column = (block * P + t * (P // T) + p) * BW
                group = 0 if GROUP == 0 else column // GROUP
                k = column + words
                if K % (P * BW) == 0 and FULL:
                    given = tl.broadcast_to(m[None, :], (BW, BM)) < M
                else:
                    given = tl.where(k[:, None] < K, m[None, :], M) < M
                xt = tl.load(x + m[None, :] * K + k[:, None], mask=given, other=0.0)
                s = _take(scale + group * N + rows, live, FULL)
                if ASYM:  # noqa: SIM108
                    z = _take(zero + group * N + rows, live, FULL)[:, None]
                else:
                    z = tl.full((BN, 1), 1 << (BITS - 1), tl.uint8)
                w = _plane(x, lower, upper, z, t * (P // T) + p, BITS, MODE, PLANES)
                if MODE == 0:
                    xt = xt.to(tl.float32)
                if EARLY:
                    acc = tl.dot((w * s.to(w.dtype)[:, None]).to(w.dtype), xt, acc)
                else:
                    acc += tl.dot(w, xt) * s.to(tl.float32)[:, None]
    _finish(acc, y, part, count, tile, slice_, rows, m, M, N, BN, BM, SK)


@triton.jit
def _finish(
    acc, y, part, count, tile, slice_, rows, m, M, N: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, SK: tl.constexpr
):  # fmt: skip
    """Write the tile, or its partial sum and, as the last program of the row tile, the total."""
    keep = tl.where(rows[:, None] < N, m[None, :], M) < M
    out = y + m[None, :] * N + rows[:, None]
    if SK == 1:
        tl.store(out, acc.to(y.dtype.element_ty), mask=keep)
    else:
        at = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
        tl.store(part + (tile * SK + slice_) * (BN * BM) + at, acc)
        tl.debug_barrier()
        arrived = tl.atomic_add(count + tile, 1, sem="acq_rel")
        if arrived == SK - 1:
            total = tl.zeros((BN, BM), tl.float32)
            for i in range(SK):
                total += tl.load(part + (tile * SK + i) * (BN * BM) + at, cache_modifier=".cg")
            tl.store(out, total.to(y.dtype.element_ty), mask=keep)
            tl.store(count + tile, 0)


@triton.jit
def matrix(
    low, high, scale, zero, w, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, ASYM: tl.constexpr,
    BN: tl.constexpr, BW: tl.constexpr, MODE: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """w [N, K] = decode(W), rounded to the type of w. Grid (row tiles, blocks of columns)."""
    P: tl.constexpr = 16 if BITS == 3 else 16 // BITS
    T: tl.constexpr = 2 if BITS == 3 else 1
    block = tl.program_id(1)
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = rows < N
    words = tl.arange(0, BW)
    at = rows[:, None] * BW + words[None, :]
    if BITS == 3:
        upper = tl.load(high + block * (N * BW) + at, mask=inside[:, None], other=0)
    for t in tl.static_range(T):
        lower = tl.load(low + (block * T + t) * (N * BW) + at, mask=inside[:, None], other=0)
        if BITS != 3:
            upper = lower
        for p in tl.static_range(P // T):
            column = (block * P + t * (P // T) + p) * BW
            group = 0 if GROUP == 0 else column // GROUP
            s = tl.load(scale + group * N + rows, mask=inside, other=0.0)
            if ASYM:
                z = tl.load(zero + group * N + rows, mask=inside, other=0)[:, None]
            else:
                z = tl.full((BN, 1), 1 << (BITS - 1), tl.uint8)
            values = _plane(w, lower, upper, z, t * (P // T) + p, BITS, MODE, PLANES)
            k = column + words
            out = (values.to(tl.float32) * s.to(tl.float32)[:, None]).to(w.dtype.element_ty)
            tl.store(w + rows.to(tl.int64)[:, None] * K + k[None, :], out, mask=tl.where(rows[:, None] < N, k[None, :], K) < K)
