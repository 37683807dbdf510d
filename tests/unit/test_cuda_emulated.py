"""linear.cu on the CPU (emulated/cuda_on_cpu.h), against the float64 product of the decoded matrix. Needs g++."""

import ctypes
import importlib.resources
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import linear
from lowbit.kernels.cuda.linear import Tiles

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
HERE = Path(__file__).parent / "emulated"
ENTRY = """
extern "C" void run_product(int gx, int gy, int gz, const u8* x, const u8* low, const u8* high, const u8* meta, u16* y,
                            int tokens, int rows, int inputs, int chunks, int span) {
    run({gx, gy, gz}, gy, THREADS, [=] { product(x, low, high, meta, y, tokens, rows, inputs, chunks, span); });
}
extern "C" void run_matrix(int gx, int gy, const u8* low, const u8* high, const u8* meta, u16* out, int rows, int inputs,
                           int chunks) {
    run({gx, gy, 1}, 1, 128, [=] { matrix(low, high, meta, out, rows, inputs, chunks); });
}
"""


def compiled(folder: Path, format: formats.Format, dtype: torch.dtype, how: Tiles, tokens: int) -> ctypes.CDLL:
    """linear.cu with the emulator's instructions as a library of the CPU."""
    source = importlib.resources.files("lowbit.kernels.cuda").joinpath("linear.cu").read_text(encoding="utf-8")
    source = source.replace("extern __shared__ __align__(1024) u8 shared[];", "u8* shared = block_memory();")
    source = re.sub(r"__shared__ __align__\(16\) u8 tiles\[4\](\[.*?\]);", r"auto tiles = (u8(*)\1)block_memory();", source)
    macros = "".join(f"#define {name} {value}\n" for name, value in linear._macros(format, dtype, how, tokens))
    (folder / "linear.cpp").write_text(f'{macros}#include "{HERE}/cuda_on_cpu.h"\n{source}{ENTRY}', encoding="utf-8")
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-o",
        str(folder / "linear.so"),
        str(folder / "linear.cpp"),
    ]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "linear.so"))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


# one of each: narrow and wide products, a split over a cluster, spans of x, every width, group, zero and type; ragged shapes
CASES = [
    ("int4-g128", torch.bfloat16, 40, 640, 1, Tiles(2, 1, 2, 1, 3)),
    ("int4-g32-asym", torch.float16, 72, 672, 3, Tiles(1, 2, 1, 2, 3, 2)),
    ("int4-g128", torch.bfloat16, 80, 1280, 13, Tiles(1, 4, 2, 2, 3, 2, True)),
    ("int3-g64-asym", torch.bfloat16, 72, 704, 20, Tiles(1, 4, 1, 2, 2, 1, True)),
    ("int2-row", torch.bfloat16, 64, 520, 9, Tiles(2, 1, 2, 1, 2)),
    ("int8-g128-asym", torch.float16, 64, 384, 70, Tiles(1, 4, 1, 1, 3, 2, True, True)),
    ("int8-row-asym", torch.bfloat16, 50, 264, 2, Tiles(1, 1, 2, 1, 2)),
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
    library, chunks = compiled(tmp_path, format, dtype, how, tokens), prepared["low"].shape[1]
    weights = [pointer(prepared.get(name)) for name in ("low", "high", "meta")]
    assert linear.shared_bytes(format, tokens, chunks, how) <= linear.SHARED
    x = torch.randn(tokens, inputs).to(dtype)
    exact = x.double() @ q.decode().double().T
    grid = linear.grid(tokens, rows, how)
    for when in ("late", "at once"):
        if when == "at once":
            monkeypatch.setenv("EAGER", "1")
        y = torch.full((tokens, rows), float("nan"), dtype=dtype)
        library.run_product(*grid, pointer(x), *weights, pointer(y), tokens, rows, inputs, chunks, linear.spans(chunks, how)[0])
        error = float((y.double() - exact).norm() / exact.norm())
        assert error < (3.5e-3 if dtype == torch.bfloat16 else 6e-4), when
    decoded = torch.full((rows, inputs), float("nan"), dtype=dtype)
    library.run_matrix(-(-chunks // 4), -(-rows // 16), *weights, pointer(decoded), rows, inputs, chunks)
    assert torch.equal(decoded, q.decode().to(dtype))
