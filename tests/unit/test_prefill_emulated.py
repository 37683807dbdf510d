"""prefill.cu on the CPU (emulated/cuda_on_cpu.h), against the float64 product of the decoded matrix. Needs g++."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from unit.emulated import on_cpu
from unit.emulated.on_cpu import pointer

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import _build, _fragments, _prefill, linear, trellis
from lowbit.kernels.cuda._prefill import Cut
from lowbit.kernels.cuda._product import Kind

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
ENTRY = """
extern "C" void run_prefill(int blocks, const u8* x, int tokens, int inputs, const u8* low, const u8* high, const u8* meta,
                            u16* y, const float* beside, float* parts, int* count, int rows, int chunks, int grain) {
    const TensorMap map = {x, tokens, inputs, TOKENS / SHARE, 64};
    run({1, blocks, 1}, SHARE, THREADS, [=] {
        prefill(map, low, high, meta, y, beside, parts, count, tokens, rows, chunks, grain);
    });
}
"""


def compiled(folder: Path, kind: Kind, dtype: torch.dtype, how: Cut) -> ctypes.CDLL:
    return on_cpu.compiled(folder, "prefill.cu", dict(_prefill.macros(kind, dtype, how)), ENTRY)


# tiles of fewer tokens than on a GPU, so that a CPU ends; clusters: shares of whole tiles, of some, of parts of one
@pytest.mark.parametrize(("text", "dtype", "rows", "inputs", "tokens", "how", "clusters", "grain"), [
    ("int4-g128", torch.bfloat16, 200, 640, 40, Cut(16, 4, 3), 4, 1),
    ("int4-g128", torch.bfloat16, 130, 1024, 20, Cut(16, 4, 2), 9, 1),
    ("int3-g64-asym", torch.bfloat16, 72, 448, 16, Cut(16, 4, 4, 1), 3, 1),
    ("int8-row", torch.float16, 300, 264, 20, Cut(16, 8, 4), 3, 1),
    ("int2-g32-asym", torch.float16, 64, 128, 3, Cut(16, 4, 2, 1), 1, 1),
    ("nf4-g64", torch.bfloat16, 60, 320, 17, Cut(16, 4, 3), 5, 1),
    ("trellis3-plain", torch.bfloat16, 80, 272, 18, Cut(16, 4, 3), 2, 1),
    ("int4-g64", torch.bfloat16, 520, 320, 50, Cut(16, 4, 3), 3, 3),
    ("int8-row", torch.float16, 130, 264, 40, Cut(16, 4, 2, 1), 4, 3),
    ("int4-g128", torch.bfloat16, 130, 1024, 20, Cut(16, 4, 4, 1, 2), 3, 8),
    ("int4-g128", torch.bfloat16, 260, 768, 40, Cut(16, 8, 6, 2, 2), 2, 6),
    ("int3-g64-asym", torch.bfloat16, 72, 448, 90, Cut(16, 4, 5, 1, 2), 2, 4),
    ("trellis3-plain", torch.bfloat16, 80, 512, 18, Cut(32, 4, 8, 2, 2), 1, 4),
])  # fmt: skip
def test_prefill_cu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    tokens: int,
    how: Cut,
    clusters: int,
    grain: int,
) -> None:
    format, codec = formats.parse(text), text.startswith("trellis")
    if codec:
        codes = torch.randint(0, 1 << int(format.dtype.bits), format.codes_shape((rows, inputs)), dtype=torch.uint8)
        q = formats.Quantized(format, codes, {"scale": torch.tensor([[0.37]])}, (rows, inputs))
    else:
        w = torch.randn(rows, inputs)
        q = format.fit(w, search=False).quantize(w)
    module = trellis if codec else linear
    packed, stored = packing.split(format, packing.pack(q), q.shape)
    prepared = module.prepare(format, packed, stored, q.shape)
    beside = prepared["scale"] if codec else _fragments.beside(prepared, dtype)
    library = compiled(tmp_path, module.kind(format), dtype, how)
    x = torch.randn(tokens, inputs).to(torch.float16 if codec else dtype)
    exact = x.double() * (trellis.LESS if codec else 1) @ q.decode().double().T
    weights = [pointer(prepared.get(name)) for name in ("low", "high", "meta")]
    parts = torch.full((clusters * 2 * how.share * how.tokens * how.warps * 16,), float("nan"))
    count = torch.zeros(how.tiles(tokens, rows) * how.share, dtype=torch.int32)
    for when in ("late", "at once"):
        if when == "at once":
            monkeypatch.setenv("EAGER", "1")
        y = torch.full((tokens, rows), float("nan"), dtype=dtype)
        ends = (pointer(y), pointer(beside), pointer(parts), pointer(count), rows, prepared["low"].shape[1], grain)
        library.run_prefill(clusters * how.share, pointer(x), tokens, inputs, *weights, *ends)
        assert not count.any()
        error = float((y.double() - exact).norm() / exact.norm())
        assert error < (4e-3 if dtype == torch.bfloat16 else 7e-4), when


@pytest.mark.parametrize("tokens", [65, 256, 257, 4096, 100_000])
@pytest.mark.parametrize("rows", [8, 128, 1000, 14336, 128_256])
def test_every_launch_can_be(tokens: int, rows: int) -> None:
    for how in _prefill.CHUNK:
        for grains in (1, 32):
            blocks = how.clusters(tokens, rows, grains) * how.share
            assert not _build.impossible((1, blocks, 1), how.threads, how.shared_bytes) and blocks % how.share == 0


def test_what_is_taken_is_what_was_faster_on_a_gpu() -> None:
    """Rows, inputs, tokens as timed on an H200; False: a decoded matrix and the vendor's product were faster."""
    timed = {(4096, 4096): (128,), (4096, 14336): (128,)}
    assert not any(_prefill.pays(tokens, rows, inputs // 128) for (rows, inputs), told in timed.items() for tokens in told)
    timed = {(4096, 4096): (512, 1024, 2048), (14336, 4096): (512, 1024), (4096, 14336): (512, 1024, 2048)}
    assert all(_prefill.pays(tokens, rows, inputs // 128) for (rows, inputs), told in timed.items() for tokens in told)
    cuts = {(512, 4096, 32): _prefill.SPLIT, (1024, 4096, 32): _prefill.WIDE, (512, 4096, 112): _prefill.SPLIT}
    assert all(_prefill.fastest(*point).cut == cut for point, cut in cuts.items())
    assert _prefill.fastest(512, 4096, 33).cut.split == 1
