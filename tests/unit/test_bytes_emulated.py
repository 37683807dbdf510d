"""bytes.cu on the CPU (emulated/cuda_on_cpu.h), against the product of the codes in float64. Needs g++."""

import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from unit.emulated import on_cpu
from unit.emulated.on_cpu import pointer

from lowbit.kernels.cuda import _build, _bytes, byte_act
from lowbit.kernels.cuda._activations import E4M3, INT8
from lowbit.kernels.cuda._bytes import Cut

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
ENTRY = """
extern "C" void run_bytes(int blocks, const u8* x, const u8* w, int tokens, int rows, int inputs, u16* y,
                          const float* token_scale, const u8* row_scale) {
    const TensorMap inner = {x, tokens, inputs / 2, TOKENS, 64}, outer = {w, rows, inputs / 2, ROWS / 2, 64};
    run({1, blocks, 1}, SPLIT, THREADS, [=] {
        bytes_by_bytes(inner, outer, y, token_scale, row_scale, tokens, rows, (inputs + 127) / 128);
    });
}
"""


def codes(kind: int, *shape: int) -> torch.Tensor:
    if kind == INT8:
        return torch.randint(-127, 128, shape, dtype=torch.int8)
    return torch.randn(shape).to(torch.float8_e4m3fn)


# tiles of fewer rows than on a GPU, so that a CPU ends; clusters: fewer than tiles, so that each takes several
@pytest.mark.parametrize(("kind", "dtype", "rows", "inputs", "tokens", "how", "clusters"), [
    (INT8, torch.bfloat16, 80, 320, 300, Cut(2, 4, 2), 4),
    (INT8, torch.float16, 208, 64, 70, Cut(1, 14, 3), 1),
    (INT8, torch.bfloat16, 112, 448, 300, Cut(2, 8, 3), 2),
    (INT8, torch.bfloat16, 48, 528, 66, Cut(2, 4, 4, split=2), 2),
    (E4M3, torch.bfloat16, 64, 144, 1200, Cut(1, 4, 2), 6),
    (E4M3, torch.float16, 16, 640, 65, Cut(2, 4, 4, fold=2), 1),
    (E4M3, torch.bfloat16, 112, 720, 40, Cut(1, 8, 3, split=2, fold=2), 2),
])  # fmt: skip
def test_bytes_cu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: int,
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    tokens: int,
    how: Cut,
    clusters: int,
) -> None:
    torch.manual_seed(rows)
    x, w = codes(kind, tokens, inputs), codes(kind, rows, inputs)
    token_scale, row_scale = torch.rand(tokens) / 4096 + 1e-4, (torch.rand(rows) + 0.5).bfloat16()
    exact = (x.double() * token_scale.double()[:, None]) @ (w.double() * row_scale.double()[:, None]).T
    meta = row_scale.view(-1, 2, 8).transpose(1, 2).contiguous()
    library = on_cpu.compiled(tmp_path, "bytes.cu", dict(_bytes.macros(kind, dtype, how)), ENTRY)
    assert how.tiles(tokens, rows) >= clusters or how.split > 1
    for when in ("late", "at once"):
        if when == "at once":
            monkeypatch.setenv("EAGER", "1")
        y = torch.full((tokens, rows), float("nan"), dtype=dtype)
        ends = (pointer(y), pointer(token_scale), pointer(meta))
        library.run_bytes(clusters * how.split, pointer(x), pointer(w), tokens, rows, inputs, *ends)
        error = (y.double() - exact).norm(dim=1) / exact.norm(dim=1)
        assert float(error.max()) < (4e-3 if dtype == torch.bfloat16 else 6e-4), when


@pytest.mark.parametrize("how", [how for cuts in _bytes.CUTS.values() for how in cuts])
def test_every_launch_can_be(how: Cut) -> None:
    for tokens, rows in product((33, 65, 128, 257, 4096, 100_000), (16, 1008, 4096, 128_256)):
        blocks = how.blocks(tokens, rows)
        if how.split > 1 and not how.fits(tokens, rows, 4096):
            continue
        assert not _build.impossible((1, blocks, 1), how.threads, how.shared_bytes) and blocks % how.split == 0
    assert how.eights % (2 * how.split) == 0 and how.eights <= 32
    sums = 4 * how.eights * (2 if how.fold else 1)
    assert sums + 40 <= 16384 // (-(-how.threads // 128) * 32)  # registers of a thread (warps go to four schedulers), addresses


@pytest.mark.parametrize("kind", [INT8, E4M3])
def test_cuts_fill_the_multiprocessors(kind: int) -> None:
    """Few tokens take small tiles, and half of the columns where tiles are few; many take large ones, which read least."""
    largest = max(how.outputs for how in _bytes.CUTS[kind])
    assert all(_bytes.cut(kind, tokens, 4096, 4096).outputs == largest for tokens in (1024, 4096))
    assert _bytes.cut(kind, 256, 4096, 4096).split == 2 or _bytes.cut(kind, 256, 4096, 4096).outputs < largest
    assert _bytes.cut(kind, 100, 4096, 4096).split == 2 and _bytes.cut(kind, 100, 14336, 4096).split == 1
    assert _bytes.cut(kind, 64, 4096, 4096).high == 1 and _bytes.cut(kind, 100, 4096, 64).split == 1


def test_who_multiplies() -> None:
    most = _bytes.MOST_E4M3
    assert byte_act.way(INT8, 4096) is byte_act._own and byte_act.way(E4M3, most + 1) is byte_act._vendors
    assert byte_act.way(E4M3, most) is byte_act._own
    for kind in (INT8, E4M3):
        assert byte_act.way(kind, _bytes.FEWEST - 1) is byte_act._few and byte_act.way(kind, _bytes.FEWEST) is byte_act._own
