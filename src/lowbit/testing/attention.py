"""attention - what every kernel of lowbit.kernels.attention passes: on what it takes, it equals softmax over decoded floats.

check_contract  it tells its rank, and says in words why it refuses what it refuses
check_result    in float64 by torch's own attention over the decoded keys and values: one new token and several, with and
                without sinks, pages and recent tokens, masks, rows of different length, blocks of a pool
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lowbit.kernels import attention, dispatch, pages
from lowbit.kernels.attention import Case, Held
from lowbit.kernels.pages import Half

HALVES = {
    "floats": (Half(), Half()),
    "int8": (Half("int8-row-floatzero"),) * 2,
    "int4": (Half("int4-row-floatzero"),) * 2,
    "int4-g32": (Half("int4-g32-floatzero"),) * 2,
    "int2": (Half("int2-row-floatzero"),) * 2,
    "fp8": (Half("e4m3-row"),) * 2,
    "turned": (Half("int4-row-floatzero", rotated=True),) * 2,
    "centred": (Half("int4-row-floatzero", centred=64, rotated=True), Half("int4-row-floatzero", rotated=True)),
    "channel": (Half("int2-g32-floatzero", "channel"), Half("int2-g32-floatzero")),
    "before": (Half("int4-g32-floatzero", "channel", rotated=True, before=True), Half("int4-row-floatzero")),
    "static": (Half("e4m3-row", static="head"), Half("int8-row", static="tensor")),
    "outliers": (Half("int4-row-floatzero", rotated=True, outliers=2), Half("int4-row-floatzero", outliers=1)),
}
"""Keys and values of many kinds."""
SIZES = ((0, 64, 1), (4, 0, 5), (4, 192, 33), (3, 1216, 40))
"""Tokens in first, pages and last."""
ERRORS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
BATCH, HEADS, WIDTH = 2, (4, 2), 64


def held(half: Half, sizes: tuple[int, int, int], dtype: torch.dtype, device: str, seed: int = 0) -> Held:
    """Random tokens of two key heads."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, HEADS[1], sum(sizes), WIDTH, generator=source)
    x[..., 5] += 4
    first, packed, last = x.to(device, dtype).split(sizes, 2)
    constants: dict[str, Tensor] = {}
    if half.static:
        constants = {"scale": torch.tensor([0.06, 0.04][: 1 + (half.static == "head")]).to(device)}
    if half.before:
        constants = {"frequencies": (10000.0 ** -(torch.arange(24) / 24)).to(device)}
    made = pages.encode(half, packed, sizes[0], constants) if sizes[1] else {}
    return Held(half, first, made, last, constants)


def in_blocks(told: Held, seed: int = 1) -> Held:
    """The same pages as blocks of a pool in any order, with blocks between them that nobody reads."""
    if not told.pages:
        return told
    steps = max(1, 64 // told.half.step)
    count = told.packed // (steps * told.half.step)
    order = torch.randperm(BATCH * count + 3, generator=torch.Generator().manual_seed(seed))[: BATCH * count]
    pool = {}
    for name, page in told.pages.items():
        blocks = page.unflatten(2, (count, steps)).transpose(1, 2).flatten(0, 1)
        pool[name] = blocks.new_zeros(BATCH * count + 3, *blocks.shape[1:])
        pool[name][order.to(page.device)] = blocks
    table = order.view(BATCH, count).to(told.first.device, torch.int32)
    return replace(told, pages=pool, table=table)


def law(q: Tensor, keys: Held, values: Held, scale: float, seen: Tensor) -> Tensor:
    """Attention over decoded floats. seen: bool or added floats [batch or 1, heads or 1, new, tokens]."""
    k, v = (h.read().double().repeat_interleave(HEADS[0] // HEADS[1], 1) for h in (keys, values))
    mask = seen if seen.dtype == torch.bool else seen.double()
    return torch.nn.functional.scaled_dot_product_attention(q.double(), k, v, attn_mask=mask, scale=scale)


def case(name: str, dtype: torch.dtype, device: str, new: int, masked: bool = False, paged: bool = False) -> Case:
    return Case(*HALVES[name], (WIDTH, WIDTH), HEADS, torch.device(device), dtype, new, masked, paged)


def causal(new: int, total: int) -> Tensor:
    """What new tokens see when no mask says otherwise."""
    return torch.ones(new, total, dtype=torch.bool).tril(total - new)[None, None]


def masks(new: int, total: int) -> Iterator[tuple[str, Tensor | None, Tensor | None, Tensor]]:
    """Kinds of masks: name, mask, counts, and what both mean."""
    seen = causal(new, total)
    yield "causal", None, None, seen
    padded = seen.expand(BATCH, 1, new, total).clone()
    padded[0, :, :, : min(9, total - new)] = False
    yield "bool", padded, None, padded
    added = torch.randn(BATCH, HEADS[0], new, total, generator=torch.Generator().manual_seed(3))
    yield "floats", added, None, added


def ragged(new: int, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Counts of rows of different length, and what their new tokens see."""
    first, packed, last = sizes
    counts = torch.tensor([[first, packed, last], [first, packed // 128 * 64, max(new, last - 3)]], dtype=torch.int32)
    seen = torch.zeros(BATCH, 1, new, sum(sizes), dtype=torch.bool)
    for row, (a, b, c) in enumerate(counts.tolist()):
        seen[row, :, :, :a] = True
        seen[row, :, :, first : first + b] = True
        seen[row, 0, :, first + packed : first + packed + c] = causal(new, c)[0, 0]
    return counts, seen


def check_contract(name: str, device: str = "cpu") -> None:
    kernel = dispatch.get(name)
    assert isinstance(kernel.RANK, int), f"{name}: RANK is no whole number"
    for kind in HALVES:
        told = kernel.supports(case(kind, torch.bfloat16, device, 1))
        assert isinstance(told, str), f"{name}: supports({kind}) gives {told!r}, not a reason"
    assert name in [n for n, _ in attention.explain(case("int4", torch.bfloat16, device, 1))]


def check_result(name: str, device: str = "cpu") -> None:
    """Every kind of keys and values, size, mask and dtype that it takes."""
    taken = 0
    for kind, sizes, new, dtype, paged in _cases():
        keys, values = (held(half, sizes, dtype, device, seed) for seed, half in enumerate(HALVES[kind]))
        keys, values = (in_blocks(keys), in_blocks(values)) if paged else (keys, values)
        q = torch.randn(BATCH, HEADS[0], new, WIDTH, generator=torch.Generator().manual_seed(7)).to(device, dtype)
        counts, seen = ragged(new, sizes)
        for told, mask, count, meant in [*masks(new, sum(sizes)), ("counts", None, counts, seen)]:
            if dispatch.get(name).supports(case(kind, dtype, device, new, mask is not None, paged and sizes[1] > 0)):
                continue
            taken += 1
            on = [None if t is None else t.to(device) for t in (mask, count)]
            found = dispatch.get(name).attend(q, keys, values, 0.125, *on)
            expected = law(q, keys, values, 0.125, meant.to(device))
            error = float((found.double() - expected).norm() / expected.norm())
            place = f"{name}: {kind}, {sizes} tokens, {new} new, {told}, {dtype}, {'paged' if paged else 'contiguous'}"
            assert found.shape == q.shape and found.dtype == dtype, place
            assert error < ERRORS[dtype], f"{place}: relative error {error:.1e}"
    assert taken, f"{name} takes none of the cases"


def _cases() -> Iterator[tuple[str, tuple[int, int, int], int, torch.dtype, bool]]:
    for kind in HALVES:
        for sizes, new in ((SIZES[0], 1), (SIZES[1], 3), (SIZES[2], 1), (SIZES[2], 3)):
            yield kind, sizes, new, torch.float32, False
        yield kind, SIZES[2], 1, torch.bfloat16, False
        yield kind, SIZES[3], 1, torch.float16, True
        yield kind, SIZES[2], 2, torch.float32, True
        yield kind, SIZES[3], 1, torch.float16, True
