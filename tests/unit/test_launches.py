"""What the CUDA kernels are launched with can be launched: grids, threads and shared memory within a Hopper GPU's limits, for
every format, shape and number of tokens. No GPU needed.
"""

import itertools

import pytest
import torch

from lowbit import formats
from lowbit.kernels.cuda import (
    _activations,
    _attention,
    _build,
    _product,
    _viterbi,
    byte_act,
    int4_act,
    linear,
    trellis,
    vectors,
)
from lowbit.kernels.cuda._product import Kind

KINDS: dict[str, Kind] = {
    **{
        text: linear.kind(formats.parse(text))
        for text in [f"int{b}-{g}{z}" for b in (2, 3, 4, 5, 6, 8) for g in ("row", "g32", "g64", "g128") for z in ("", "-asym")]
        + ["nf4-row", "nf4-g64", "mxfp4"]
    },
    **{f"trellis{bits}": trellis.kind(formats.parse(f"trellis{bits}")) for bits in (2, 3, 4)},
    **{text: vectors.kind(formats.parse(text)) for text in ("e8p2", "aqlm2x8")},
    **{f"{text} by bytes": int4_act.kind(formats.parse(text)) for text in ("int4-g128", "int4-g64", "int4-row")},
    "bytes in blocks": byte_act.IN_BLOCKS,
    **{f"bytes{kind}": found for kind, found in byte_act.KINDS.items()},
}
ROWS = (8, 16, 40, 64, 128, 272, 1000, 1024, 2048, 4096, 4097, 4224, 6144, 8448, 14336, 28672, 128256, 262144)
INPUTS = (8, 64, 96, 128, 520, 1024, 1088, 2048, 4096, 8192, 11008, 14336, 16384, 28672, 53248)
TOKENS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 63, 64)


@pytest.mark.parametrize("name", KINDS)
def test_products(name: str) -> None:
    kind = KINDS[name]
    for rows, inputs, tokens in itertools.product(ROWS, INPUTS, TOKENS):
        chunks = -(-inputs // (256 if kind.inputs else 128))
        how, place = _product.tiles(kind, tokens, rows, chunks), (rows, inputs, tokens)
        threads, shared = 32 * how.beside * how.along, _product.shared_bytes(kind, tokens, chunks, how)
        grid = _product.grid(tokens, rows, how)
        assert not _build.impossible(grid, threads, shared), place
        # what linear.cu wants of its macros
        assert not how.wide or (how.high == 1 and how.beside % 4 == 0), place
        assert threads >= 8 * _product.eights(tokens) or not (kind.inputs or kind.codec or kind.vectors), place
        span, buffers = _product.spans(chunks, how)
        assert span % how.along == 0 and (buffers == 1 or span // how.along >= how.stages - 1 >= 1), place
        assert (buffers == 2) == (span < -(-chunks // how.slices)), place  # the kernel finds it so
        assert grid[1] == how.slices and (how.slices - 1) * -(-chunks // how.slices) < chunks, place  # no block without columns
        covered = grid[0] * 16 * how.high * how.beside
        assert rows <= covered < rows + 16 * how.high * how.beside, place


def test_attention() -> None:
    bits = (2, 4, 8, _attention.FLOAT8)
    for keys, values, width in itertools.product(bits, bits, _attention.WIDTHS):
        if _attention.unfit(torch.bfloat16, width, (8, 8), (keys, values)):
            continue
        ring = _attention.ring_of(keys, values, width)
        assert ring.depth > _attention.TEAMS and ring.depth % _attention.TEAMS == 0 and ring.batch * ring.tokens % 8 == 0
        for pairs, tokens in itertools.product((1, 3, 8, 64, 132, 133, 2048), (0, 8, 16, 776, 4096, 32768, 131072)):
            splits, span = _attention.spans(pairs, tokens, ring.tokens, 132)
            place = (keys, values, width, pairs, tokens)
            assert splits * span >= tokens and (splits - 1) * span < max(tokens, 1), place
            assert not _build.impossible((splits + (tokens == 0), pairs, 1), _attention.threads(), ring.bytes + 256), place


def test_rounding_of_inputs_and_search_of_codes() -> None:
    lengths = (16, 64, 1024, 4096, 4112, 14336, 28672, _activations.LONGEST)
    for inputs, tokens, row in itertools.product(lengths, (1, 132, 4096), (False, True)):
        threads, shared = _activations.block(tokens, inputs, row)
        assert not _build.impossible((1, 1, 1), threads, shared)
        assert _activations.vectors(inputs, threads) * 8 * threads >= inputs
    for least, halves in ((4, False), (7, True)):
        for roots in (1 << n for n in range(least, 16)):
            cut = _viterbi.cut(roots, halves)
            assert not _build.impossible((1, 1, 1), cut.threads, cut.shared(roots)) and cut.together % cut.sides == 0


def test_what_cannot_be_launched_is_said() -> None:
    assert "0 x 1 x 1 blocks" in _build.impossible((0, 1, 1), 32, 0)
    assert "70000" in _build.impossible((1, 70000, 1), 32, 0)
    assert "2048 threads" in _build.impossible((1, 1, 1), 2048, 0)
    assert "240000 bytes" in _build.impossible((1, 1, 1), 32, 240000)
    assert not _build.impossible((1 << 20, 65535, 1), 1024, 226 << 10)
