"""linear.cu on the CPU (emulated/cuda_on_cpu.h), against the float64 product of the decoded matrix. Needs g++."""

import ctypes
import math
import shutil
from pathlib import Path

import pytest
import torch
from unit.emulated import on_cpu
from unit.emulated.on_cpu import pointer

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import _fragments, _product, linear, trellis, vectors
from lowbit.kernels.cuda._product import Kind, Tiles

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
ENTRY = """
extern "C" void run_product(int gx, int gy, int gz, const u8* x, const u8* low, const u8* high, const u8* meta, u16* y,
                            const float* token_scale, float* part, int* count, int tokens, int rows, int inputs, int chunks,
                            int span) {
    run({gx, gy, gz}, 1, THREADS, [=] {
        product(x, low, high, meta, y, token_scale, part, count, tokens, rows, inputs, chunks, span);
    });
}
extern "C" void run_matrix(int gx, int gy, const u8* low, const u8* high, const u8* meta, const float* beside, u16* out,
                           int rows, int inputs, int chunks) {
    run({gx, gy, 1}, 1, 128, [=] { matrix(low, high, meta, beside, out, rows, inputs, chunks); });
}
"""


def compiled(folder: Path, kind: Kind, dtype: torch.dtype, how: Tiles, tokens: int) -> ctypes.CDLL:
    return on_cpu.compiled(folder, "linear.cu", dict(_product.macros(kind, dtype, how, tokens)), ENTRY)


# one of each: narrow and wide products, blocks of 7 and 2 tiles, a split over a cluster, spans of x, every width, group, zero
# and type; ragged shapes
CASES = [
    ("int4-g128", torch.bfloat16, 40, 640, 1, Tiles(2, 1, 2, 1, 3)),
    ("int4-g32-asym", torch.float16, 72, 672, 3, Tiles(1, 2, 1, 2, 3, 2)),
    ("int4-g128", torch.bfloat16, 80, 1280, 13, Tiles(1, 4, 2, 2, 3, 2, True)),
    ("int3-g64-asym", torch.bfloat16, 72, 704, 20, Tiles(1, 4, 1, 2, 2, 1, True)),
    ("int3-g128", torch.bfloat16, 120, 512, 1, Tiles(1, 7, 2, 1, 4)),
    ("int4-g128", torch.bfloat16, 225, 768, 1, Tiles(1, 7, 4, 1, 2)),
    ("int2-g64-asym", torch.float16, 48, 2304, 2, Tiles(1, 2, 16, 1, 2)),
    ("int3-g128", torch.bfloat16, 60, 1408, 1, Tiles(1, 3, 10, 1, 2)),
    ("int3-row-asym", torch.float16, 48, 392, 2, Tiles(1, 1, 2, 1, 3)),
    ("int2-row", torch.bfloat16, 64, 520, 9, Tiles(2, 1, 2, 1, 2)),
    ("int2-g64-asym", torch.bfloat16, 40, 640, 1, Tiles(1, 3, 1, 1, 6)),
    ("int5-g128", torch.bfloat16, 48, 384, 1, Tiles(1, 3, 2, 1, 3)),
    ("int5-g64-asym", torch.float16, 64, 320, 20, Tiles(1, 4, 1, 1, 2, 1, True, True)),
    ("int6-g128-asym", torch.bfloat16, 40, 384, 3, Tiles(2, 1, 2, 1, 2)),
    ("int6-row", torch.float16, 32, 256, 9, Tiles(1, 2, 1, 1, 2, 1)),
    ("int2-g32", torch.float16, 48, 320, 8, Tiles(2, 1, 2, 1, 2, 1)),
    ("int8-g128-asym", torch.float16, 64, 384, 70, Tiles(1, 4, 1, 1, 3, 2, True, True)),
    ("int8-row-asym", torch.bfloat16, 50, 264, 2, Tiles(1, 1, 2, 1, 2)),
    ("nf4-g64", torch.bfloat16, 48, 320, 3, Tiles(2, 1, 2, 1, 2)),
    ("e2m1-g32", torch.float16, 64, 288, 18, Tiles(1, 4, 1, 1, 2, 1, True, True)),
    ("mxfp4", torch.bfloat16, 32, 160, 1, Tiles(1, 1, 2, 1, 2)),
]


@pytest.mark.parametrize(("text", "dtype", "rows", "inputs", "tokens", "how"), CASES)
def test_linear_cu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    tokens: int,
    how: Tiles,
) -> None:
    format = formats.parse(text)
    w = torch.randn(rows, inputs)
    q = format.fit(w, search=False).quantize(w)
    packed, parts = packing.split(format, packing.pack(q), q.shape)
    prepared = linear.prepare(format, packed, parts, q.shape)
    library, chunks = compiled(tmp_path, linear.kind(format), dtype, how, tokens), prepared["low"].shape[1]
    weights, beside = (
        [pointer(prepared.get(name)) for name in ("low", "high", "meta")],
        pointer(_fragments.beside(prepared, dtype)),
    )
    assert _product.shared_bytes(linear.kind(format), tokens, chunks, how) <= _product.SHARED
    x = torch.randn(tokens, inputs).to(dtype)
    exact = x.double() @ q.decode().double().T
    grid = _product.grid(tokens, rows, how)
    part = torch.full((math.prod(grid) * 128 * _product.eights(tokens) * how.high * how.beside,), float("nan"))
    count = torch.zeros(grid[0] * grid[2], dtype=torch.int32)
    for when in ("late", "at once"):
        if when == "at once":
            monkeypatch.setenv("EAGER", "1")
        y = torch.full((tokens, rows), float("nan"), dtype=dtype)
        span, _ = _product.spans(chunks, how)
        parts = (pointer(part), pointer(count))
        library.run_product(*grid, pointer(x), *weights, pointer(y), beside, *parts, tokens, rows, inputs, chunks, span)
        assert not count.any()
        error = float((y.double() - exact).norm() / exact.norm())
        assert error < (3.5e-3 if dtype == torch.bfloat16 else 6e-4) * (1.3 if beside.value else 1), when
    decoded = torch.full((rows, inputs), float("nan"), dtype=dtype)
    library.run_matrix(-(-chunks // 4), -(-rows // 16), *weights, beside, pointer(decoded), rows, inputs, chunks)
    if "table" not in prepared:
        assert torch.equal(decoded, q.decode().to(dtype))
    torch.testing.assert_close(decoded.float(), q.decode(), rtol=2**-7 if dtype == torch.bfloat16 else 2**-10, atol=1e-7)


@pytest.mark.parametrize(("bits", "dtype", "rows", "inputs", "tokens", "how"), [
    (2, torch.bfloat16, 48, 272, 1, Tiles(2, 1, 2, 1, 2)), (3, torch.bfloat16, 64, 416, 20, Tiles(1, 4, 1, 2, 2, 1, True)),
    (4, torch.bfloat16, 32, 128, 9, Tiles(1, 1, 2, 1, 2)), (3, torch.float16, 16, 144, 3, Tiles(1, 1, 2, 1, 2)),
    (2, torch.float16, 32, 640, 8, Tiles(1, 1, 1, 1, 2, 1)), (4, torch.bfloat16, 112, 256, 2, Tiles(1, 7, 2, 1, 2)),
])  # fmt: skip
def test_linear_cu_with_trellis_codes(
    tmp_path: Path, bits: int, dtype: torch.dtype, rows: int, inputs: int, tokens: int, how: Tiles
) -> None:
    format = formats.parse(f"trellis{bits}-plain")
    codes = torch.randint(0, 1 << bits, format.codes_shape((rows, inputs)), dtype=torch.uint8)
    q = formats.Quantized(format, codes, {"scale": torch.tensor([[0.37]])}, (rows, inputs))
    packed, parts = packing.split(format, packing.pack(q), q.shape)
    assert not trellis.refusal(format, q.shape, dtype)
    prepared = trellis.prepare(format, packed, parts, q.shape)
    again, scale = trellis.restore(prepared, format, q.shape)
    assert torch.equal(again, packed) and torch.equal(scale["scale"], parts["scale"])
    library, chunks = compiled(tmp_path, trellis.kind(format), dtype, how, tokens), prepared["low"].shape[1]
    weights = [pointer(prepared.get(name)) for name in ("low", "high", "none")]
    x = torch.randn(tokens, inputs).to(dtype)
    given = x if _product.takes_as_it_is(tokens, how) else trellis._less(x)
    exact = x.double() @ q.decode().double().T
    grid, (span, _) = _product.grid(tokens, rows, how), _product.spans(chunks, how)
    part = torch.full((math.prod(grid) * 128 * _product.eights(tokens) * how.high * how.beside,), float("nan"))
    count, y = torch.zeros(grid[0], dtype=torch.int32), torch.full((tokens, rows), float("nan"), dtype=dtype)
    ends = (pointer(y), pointer(prepared["scale"]), pointer(part), pointer(count))
    library.run_product(*grid, pointer(given), *weights, *ends, tokens, rows, inputs, chunks, span)
    assert float((y.double() - exact).norm() / exact.norm()) < 3e-3
    decoded = torch.full((rows, inputs), float("nan"), dtype=torch.float16)
    library.run_matrix(-(-chunks // 4), -(-rows // 16), *weights, None, pointer(decoded), rows, inputs, chunks)
    assert torch.equal(decoded, format.dtype.decode(codes).half())


@pytest.mark.parametrize(("text", "dtype", "rows", "inputs", "tokens", "how"), [
    ("e8p2-plain", torch.bfloat16, 40, 352, 1, Tiles(2, 1, 2, 1, 2, copies=8)),
    ("e8p2-plain", torch.bfloat16, 80, 2112, 3, Tiles(1, 2, 16, 1, 2, copies=8)),
    ("e8p2-plain", torch.bfloat16, 80, 2112, 8, Tiles(1, 4, 8, 2, 2, copies=8)),
    ("e8p2-plain", torch.float16, 64, 416, 20, Tiles(1, 4, 1, 2, 2, 1, True)),
    ("aqlm2x8", torch.bfloat16, 40, 640, 9, Tiles(1, 1, 2, 2, 3, 2)),
    ("aqlm2x8", torch.bfloat16, 80, 288, 3, Tiles(1, 5, 2, 1, 2, copies=8)),
])  # fmt: skip
def test_linear_cu_with_codes_of_eight_weights(
    tmp_path: Path, text: str, dtype: torch.dtype, rows: int, inputs: int, tokens: int, how: Tiles
) -> None:
    torch.manual_seed(0)
    format = formats.parse(text)
    q = format.fit(torch.randn(rows, inputs), search=False).quantize(torch.randn(rows, inputs))
    codes = torch.randint(0, 256, q.codes.shape, dtype=torch.uint8)  # every entry of the books
    q = formats.Quantized(format, codes, q.parts, (rows, inputs))
    packed, parts = packing.split(format, packing.pack(q), q.shape)
    assert not vectors.refusal(format, q.shape, dtype)
    prepared = vectors.prepare(format, packed, parts, q.shape)
    again, parts_again = vectors.restore(prepared, format, q.shape)
    assert torch.equal(again, packed) and all(torch.equal(parts_again[name], part) for name, part in parts.items())
    kind, chunks = vectors.kind(format), prepared["low"].shape[1]
    library = compiled(tmp_path, kind, dtype, how, tokens)
    weights = [pointer(prepared.get(name)) for name in ("low", "high", "meta")]
    assert _product.shared_bytes(kind, tokens, chunks, how) <= _product.SHARED
    x = torch.randn(tokens, inputs).to(dtype)
    given = x if _product.takes_as_it_is(tokens, how) else vectors.ordered(x)
    exact = x.double() @ q.decode().double().T
    grid, (span, _) = _product.grid(tokens, rows, how), _product.spans(chunks, how)
    part = torch.full((math.prod(grid) * 128 * _product.eights(tokens) * how.high * how.beside,), float("nan"))
    count, y = torch.zeros(grid[0], dtype=torch.int32), torch.full((tokens, rows), float("nan"), dtype=dtype)
    ends = (pointer(y), pointer(prepared.get("scale")), pointer(part), pointer(count))
    library.run_product(*grid, pointer(given), *weights, *ends, tokens, rows, inputs, chunks, span)
    assert float((y.double() - exact).norm() / exact.norm()) < 3e-3
    decoded = torch.full((rows, inputs), float("nan"), dtype=torch.float16)
    library.run_matrix(-(-chunks // 4), -(-rows // 16), *weights, None, pointer(decoded), rows, inputs, chunks)
    wanted = q.decode() * vectors.LESS / prepared.get("scale", torch.ones(1))
    if text == "e8p2-plain":
        assert torch.equal(decoded, (q.decode() / parts["scale"]).half())
    torch.testing.assert_close(decoded.float(), wanted, rtol=2e-3, atol=2e-3)
