"""attention.cu on the CPU (emulated/cuda_on_cpu.h) against float64 attention to the decoded keys and values. Needs g++."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unit.emulated import on_cpu

from lowbit.core.errors import ShapeError
from lowbit.kernels.cuda import _attention
from lowbit.kernels.cuda._attention import FLOAT8, Plain, Side
from lowbit.sides import _hadamard

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
ENTRY = """
extern "C" void run_attend(int gx, int gy, int gz, const u16* q, const u8* k, const u8* ks, const u8* kz, const u8* v,
                           const u8* vs, const u8* vz, const int* table, const int* counts, const u16* fk, const u16* fv,
                           const u16* lk, const u16* lv, u16* out, float* part, int* count, int group, int page, int bits,
                           int width, int span, int first, int packed, int last, int scale) {
    run({gx, gy, gz}, 1, THREADS, [=] {
        attend(q, k, ks, kz, v, vs, vz, table, counts, fk, fv, lk, lv, out, part, count, group, page, bits, width, span, first,
               packed, last, scale);
    });
}
"""


class Emulated:
    """What `_build.kernel` gives: attention.cu compiled for the CPU."""

    def __init__(self, folder: Path, macros: dict[str, int]) -> None:
        self._run = on_cpu.compiled(folder, "attention.cu", macros, ENTRY).run_attend

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: tuple[int, ...], shared: int, overlap: bool) -> None:
        assert shared <= 227 << 10 and threads == _attention.threads()
        self._run(*grid, *(ctypes.c_void_p(a) if isinstance(a, _attention.Pointer) else a for a in arguments))


def side(pages: int, heads: int, page: int, width: int, bits: int, zero: bool, fixed: int = 0) -> tuple[Side, Tensor]:
    """Random codes, and what they stand for, float64 [pages, heads, page, width]. fixed: so many scales for all tokens."""
    scale = torch.rand(fixed) * 0.1 + 0.02 if fixed else (torch.rand(pages, heads, page) * 0.1 + 0.02).bfloat16()
    by = scale.double().view(1, -1, 1, 1) if fixed else scale.double()[..., None]
    zeros = (torch.rand(pages, heads, page) * 3 + (1 << bits) / 3).bfloat16() if zero else None
    if bits == FLOAT8:
        codes = torch.randn(pages, heads, page, width).mul(30).to(torch.float8_e4m3fn)
        return Side(codes.view(torch.uint8), scale, bits), codes.double() * by
    codes = torch.randint(0, 1 << bits, (pages, heads, page, width), dtype=torch.uint8)
    parts = codes.unflatten(-1, (-1, 8 // bits))
    packed = torch.stack([parts[..., i] << (bits * i) for i in range(8 // bits)]).sum(0).to(torch.uint8)
    off = zeros.double()[..., None] if zeros is not None else float(1 << bits >> 1)
    return Side(packed, scale, bits, zeros), (codes.double() - off) * by


def exact(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """q [heads, width], keys and values [key heads, tokens, width]."""
    group = q.shape[0] // keys.shape[0]
    weights = (q.double()[:, None] @ keys.repeat_interleave(group, 0).transpose(1, 2) * scale).softmax(-1)
    return (weights @ values.repeat_interleave(group, 0))[:, 0]


CASES = [
    (8, 8, True, True, 128, 4, torch.bfloat16, False, (0, 0)), (8, 8, False, False, 64, 8, torch.float16, True, (0, 0)),
    (4, 4, True, True, 128, 4, torch.bfloat16, True, (0, 0)), (4, 4, False, True, 64, 1, torch.float16, False, (0, 0)),
    (8, 4, True, False, 128, 3, torch.bfloat16, False, (0, 0)), (2, 2, True, True, 128, 4, torch.float16, True, (0, 0)),
    (FLOAT8, FLOAT8, False, False, 128, 4, torch.bfloat16, False, (0, 0)),
    (FLOAT8, 8, False, False, 64, 2, torch.bfloat16, False, (2, 1)),
    (8, FLOAT8, True, False, 128, 4, torch.float16, False, (0, 2)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key_bits", "value_bits", "key_zero", "value_zero", "width", "group", "dtype", "turned", "fixed"), CASES
)
@pytest.mark.parametrize("paged", [False, True], ids=["whole", "paged"])
def test_attention_cu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_bits: int, value_bits: int, key_zero: bool, value_zero: bool,
    width: int, group: int, dtype: torch.dtype, turned: bool, fixed: tuple[int, int],
    paged: bool,
) -> None:  # fmt: skip
    torch.manual_seed(key_bits + width)
    for name, value in {"WARPS": 4, "TEAMS": 2, "ROOM": 20000, "BATCHED": 128}.items():
        monkeypatch.setattr(_attention, name, value)
    monkeypatch.setattr(_attention, "_processors", lambda device: 4)
    _attention._known.cache_clear()
    _attention.ring_of.cache_clear()
    monkeypatch.setattr(_attention._build, "kernel", lambda file, function, macros, device: Emulated(tmp_path, dict(macros)))
    heads, page, pages = 2, 16 if paged else 160, 20 if paged else 2
    counts = torch.tensor([[4, 152, 11], [2, 77, 0]], dtype=torch.int32)
    keys, k = side(pages, heads, page, width, key_bits, key_zero, fixed[0])
    values, v = side(pages, heads, page, width, value_bits, value_zero, fixed[1])
    if turned:
        k, v = (_hadamard.apply(x, width, back=True) for x in (k, v))
    table = torch.randperm(20, dtype=torch.int32).view(2, 10).contiguous() if paged else None
    floats = [torch.randn(2, heads, n, width).to(dtype) for n in (4, 4, 13, 13)]
    plain = None if paged else Plain((floats[0], floats[1]), (floats[2], floats[3]))
    q = (torch.randn(2, heads * group, width) * 3).to(dtype)
    found = _attention.attend(q, keys, values, width**-0.5, counts, table, plain, (turned, turned))
    for n, (first, length, last) in enumerate(counts.tolist()):
        own = table[n].long() if table is not None else torch.tensor([n])
        both = [x[own].transpose(0, 1).flatten(1, 2)[:, :length] for x in (k, v)]
        if plain is not None:
            before, after = (
                (floats[i][n, :, :first].double() for i in (0, 1)),
                (floats[i][n, :, :last].double() for i in (2, 3)),
            )
            both = [torch.cat(parts, 1) for parts in zip(before, both, after, strict=True)]
        wanted = exact(q[n], *both, width**-0.5)
        error = float((found[n].double() - wanted).norm() / wanted.norm())
        assert error < (4e-3 if dtype == torch.bfloat16 else 1e-3), (n, error)
    assert not _attention._build.counters(q.device, 4).any()
    _attention._known.cache_clear()
    _attention.ring_of.cache_clear()


def test_what_does_not_fit_is_told() -> None:
    keys, _ = side(1, 2, 16, 64, 2, False)
    with pytest.raises(ShapeError, match="2 and 2 bits in heads of 64"):
        _attention.attend(torch.zeros(1, 2, 64).half(), keys, keys, 1.0)


def test_spans_cover_the_past() -> None:
    for pairs, tokens in ((1, 5), (8, 131072), (64, 32768), (2048, 100)):
        splits, span = _attention.spans(pairs, tokens, 32, 132)
        assert splits * span >= tokens > (splits - 1) * span and span % 32 == 0
    assert _attention.spans(4, 0, 32, 132)[0] == 0
