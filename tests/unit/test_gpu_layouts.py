"""What the GPU kernels prepare holds the same codes, scales and zeros: restore is the way back, bit by bit. No GPU needed."""

import pytest
import torch

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import _fragments as fragments
from lowbit.kernels.triton import linear as planes

CASES = [
    (f"int{bits}-{group}{asym}", rows, inputs)
    for bits in (2, 3, 4, 8)
    for group, rows, inputs in (("g128", 48, 512), ("g64", 17, 192), ("g32", 33, 96), ("row", 24, 200), ("g256", 16, 512))
    for asym in ("", "-asym")
]


@pytest.mark.parametrize("text", ["nf4-g64", "e2m1-g32", "sf4-row", "mxfp4"])
def test_places_in_a_table_come_back(text: str) -> None:
    q = formats.parse(text).fit(torch.randn(33, 320), search=False).quantize(torch.randn(33, 320))
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    assert not fragments.refusal(q.format, q.shape, torch.bfloat16) and planes.refusal(q.format, torch.bfloat16)
    packed_again, parts_again = fragments.restore(fragments.prepare(q.format, packed, parts, q.shape), q.format, q.shape)
    assert torch.equal(packed_again, packed) and torch.equal(parts_again["scale"].float(), parts["scale"].float())


@pytest.mark.parametrize(
    ("kernel", "text", "rows", "inputs"),
    [(kernel, *case) for kernel in (planes, fragments) for case in CASES]
    + [(fragments, text, 33, 320) for text in ("int5-g64", "int5-row-asym", "int6-g32", "int6-g64-asym")],
)
def test_restore_is_the_way_back(kernel, text: str, rows: int, inputs: int) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(rows)
    w = torch.randn(rows, inputs)
    q = formats.parse(text).fit(w, search=False).quantize(w)
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    prepared = kernel.prepare(q.format, packed, parts, q.shape)
    packed_again, parts_again = kernel.restore(prepared, q.format, q.shape)
    assert torch.equal(packed_again, packed)
    assert parts_again.keys() == parts.keys()
    assert all(torch.equal(parts_again[name].float(), parts[name].float()) for name in parts)


def test_a_fragment_lies_where_the_header_says() -> None:
    codes = torch.randint(0, 16, (32, 256), dtype=torch.uint8)
    pairs = fragments._pairs(codes)
    tile, chunk, r, c, u, t, p, half, e = 1, 1, 5, 2, 3, 1, 0, 1, 1
    row, column = 16 * tile + 8 * half + r, 128 * chunk + 32 * u + 8 * c + 4 * t + 2 * p + e
    assert pairs[tile, chunk, 4 * r + c, ((u * 2 + t) * 2 + p) * 2 + half, e] == codes[row, column]
    word = fragments._words(pairs, 4)[tile, chunk, 4 * r + c, u * 2 + t]
    assert (int(word) >> (4 * (2 * p + half) + 16 * e)) & 15 == codes[row, column]


def test_places_in_a_table_lie_pair_by_pair() -> None:
    pairs = torch.randint(0, 16, (2, 1, 32, 32, 2), dtype=torch.uint8)
    words = fragments._words(fragments._neighbours(pairs), 4)
    for word, i, e in ((0, 0, 1), (3, 2, 0), (7, 3, 1)):
        assert (int(words[1, 0, 9, word]) >> (8 * i + 4 * e)) & 15 == pairs[1, 0, 9, 4 * word + i, e]


def test_three_bits_lie_where_the_header_says() -> None:
    pairs = torch.randint(0, 8, (1, 1, 32, 32, 2), dtype=torch.uint8)
    words = fragments._spread_words(pairs, 3)[0, 0].long()
    assert (words[7, 2] >> (16 + 9)) & 7 == pairs[0, 0, 7, 13, 1]  # the fourth of five in word 2
    assert sum((int(words[9, 3 + bit]) >> 12 & 1) << bit for bit in range(3)) == pairs[0, 0, 9, 31, 0]


@pytest.mark.parametrize(("text", "shape", "fact"), [
    ("int4-g16", (64, 128), "group 1x16"),
    ("int7-g128", (64, 128), "element int7"),
    ("int4-g32", (64, 36 * 32 + 0), ""),
])  # fmt: skip
def test_a_refusal_says_why(text: str, shape: tuple[int, int], fact: str) -> None:
    found = fragments.refusal(formats.parse(text), shape, torch.bfloat16)
    assert fact in found and bool(fact) == bool(found)
    assert bool(planes.refusal(formats.parse(text), torch.bfloat16)) == bool(fact)
