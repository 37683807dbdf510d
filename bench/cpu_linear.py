"""cpu_linear - one packed layer on the CPU: ours, torch's built-ins and other engines, taking turns in one run.

    python bench/cpu_linear.py [--shape 4096x4096] [--tokens 1,4,128] [--threads 2] [--formats int4-g128,...] [--turns 20]
        [--cold] [--onnxruntime PYTHON] [--openvino PYTHON] [--ggml PYTHON --ggml-folder DIR]

A rival runs in the environment of its PYTHON (_cpu_rival.py); without one it is left out. Before anything is timed, each kernel
of ours must equal the decoded matrix. The least time of all calls counts; --cold goes through copies of the weights of 160 MB
together, or twice the last cache where that is more, so that they come from memory, and counts the median of such a round, the
least of all rounds. `share` is the share of the machine's read rate, measured in the same run over as many bytes: what reading
the weights alone would take, over what the layer took.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _matrices
import torch
from _rows import keep
from torch import Tensor, nn

from lowbit import formats
from lowbit.kernels import activation as acting
from lowbit.kernels import dispatch, packing
from lowbit.kernels.activation import Activation
from lowbit.kernels.cpu import _build

FORMATS = "int4-g32,int4-g128,int3-g128,int2-g128,trellis2-plain,trellis_int2-plain"
COLD = 160 << 20
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
BYTES = "ours, x rounded to int8"
AGAIN = 12
"""Calls of a turn where there is one copy: the first bring the weights back into the cache."""
READ = r"""
#include <immintrin.h>
#include <cstddef>
extern "C" long read_all(const char *p, size_t n, int threads) {
  long all = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : all) schedule(static)
  for (size_t part = 0; part < n >> 16; part++) {
    const char *at = p + (part << 16);
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (int i = 0; i < 1 << 16; i += 128) {
      a = _mm256_xor_si256(a, _mm256_loadu_si256((const __m256i *)(at + i)));
      b = _mm256_xor_si256(b, _mm256_loadu_si256((const __m256i *)(at + i + 32)));
      c = _mm256_xor_si256(c, _mm256_loadu_si256((const __m256i *)(at + i + 64)));
      d = _mm256_xor_si256(d, _mm256_loadu_si256((const __m256i *)(at + i + 96)));
    }
    all += _mm256_extract_epi64(_mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)), 0);
  }
  return all;
}
"""
Turn = Callable[[], float]


def cold_bytes() -> int:
    """Bytes of copies that the last cache cannot hold."""
    told = [path.read_text().strip() for path in CACHES.glob("index*/size")]
    return max(COLD, 2 * max((int(size.removesuffix("K")) << 10 for size in told), default=0))


def timed(calls: Sequence[Callable[[], object]]) -> Turn:
    """A turn of ours, in milliseconds: the quickest call; the median where each has weights of its own."""

    def turn() -> float:
        found = []
        for call in calls if len(calls) > 1 else [*calls] * AGAIN:
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return (statistics.median(found) if len(calls) > 1 else min(found)) * 1e3

    return turn


def reading(size: int, copies: int, threads: int) -> Turn:
    """Reading so many bytes that lie as packed weights do: compiled here, with AVX2."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "read.cpp", Path(folder) / "read.so"
        source.write_text(READ)
        subprocess.run(["g++", "-O2", "-mavx2", "-fopenmp", "-shared", "-fPIC", source, "-o", made], check=True)
        library = ctypes.CDLL(str(made))

    def read(block: Tensor) -> None:
        library.read_all(ctypes.c_void_p(block.data_ptr()), ctypes.c_size_t(size), threads)

    return timed([partial(read, _build.settled(torch.ones(size, dtype=torch.uint8))) for _ in range(copies)])


def prepared(
    text: str, weight: Tensor, kernel: str, copies: int, x: Tensor, inputs: Activation | None = None
) -> tuple[Sequence[Callable[[], Tensor]], int]:
    """Calls of a kernel on copies of a matrix, proven equal to the decoded matrix; and the bytes of one. inputs: rounded so."""
    quantized = _matrices.quantized(text, weight)
    format, shape = quantized.format, quantized.shape
    packed, parts = packing.split(format, packing.pack(quantized), shape)
    first = dispatch.prepare(kernel, format, packed, parts, shape)
    held = [first, *({name: _build.settled(part.clone()) for name, part in first.items()} for _ in range(copies - 1))]
    expected = (acting.fake(x.float(), inputs) if inputs else x).double() @ quantized.decode().double().t()
    calls = [partial(dispatch.bind(p, kernel, format, shape, inputs), x, None) for p in held]
    error = float((calls[0]().double() - expected).norm() / expected.norm())
    if error > 5e-3:
        sys.exit(f"{kernel} of {text}: relative error {error:.1e}; nothing is timed.")
    return calls, sum(t.numel() * t.element_size() for t in held[0].values())


class Rival:
    """Another engine in a process of its own, timed on demand."""

    def __init__(self, python: str, *arguments: object) -> None:
        command = [python, str(Path(__file__).parent / "_cpu_rival.py"), *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._read()

    def _read(self) -> str:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise OSError(f"{self._process.args!r}: ended without an answer.")
        return line

    def __call__(self) -> float:
        self._process.stdin.write("\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return float(self._read())

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()


def rivals(asked: argparse.Namespace, text: str, shape: tuple[int, int], tokens: int, copies: int) -> dict[str, Rival]:
    """The engines that were given and know a format of these bits and groups."""
    format = formats.parse(text)
    bits, group = int(format.dtype.bits), format.group[1]
    found = {}
    for engine, widths in (("onnxruntime", (2, 4, 8)), ("openvino", (4,)), ("ggml", (4,))):
        python = getattr(asked, engine)
        if python and bits in widths and group and not (engine == "ggml" and group != 32):
            folder = [asked.ggml_folder] if engine == "ggml" else []
            found[engine] = Rival(python, engine, *shape, bits, group, tokens, asked.threads, copies, *folder)
    return found


def measure(asked: argparse.Namespace, text: str, shape: tuple[int, int], tokens: int) -> dict[str, Any]:
    """One row: the least milliseconds of each, and ratios to ours."""
    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(tokens, shape[1], dtype=torch.bfloat16)
    size = int(formats.parse(text).bits_per_weight(shape) * shape[0] * shape[1] / 8)
    copies = max(1, cold_bytes() // size) if asked.cold else 1
    turns: dict[str, Turn] = {}
    best = dispatch.pick(formats.parse(text), shape, x.device, x.dtype)
    others = [
        n for n, why in dispatch.explain(formats.parse(text), shape, x.device, x.dtype) if not why and n.startswith("cpu.")
    ]
    resident = 0
    for kernel in others:
        calls, taken = prepared(text, weight, kernel, copies, x)
        turns[kernel] = timed(calls)
        resident = taken if kernel == best else resident
    inputs = acting.parse("int8-token")
    rounding = dispatch.rounding(formats.parse(text), shape, x.device, inputs)
    if rounding:
        turns[BYTES] = timed(prepared(text, weight, rounding, copies, x, inputs)[0])
    layers = max(1, cold_bytes() // (2 * shape[0] * shape[1])) if asked.cold else 1
    dense = [nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16) for _ in range(layers)]
    turns["nn.Linear bfloat16"] = timed([partial(layer, x) for layer in dense])
    turns["read"] = reading(resident >> 16 << 16, copies, asked.threads)
    engines = rivals(asked, text, shape, tokens, copies)
    turns |= engines
    taken_ms = dict.fromkeys(turns, float("inf"))
    for _ in range(asked.turns):
        for name, turn in turns.items():
            taken_ms[name] = min(taken_ms[name], turn())
    for engine in engines.values():
        engine.close()
    ours = taken_ms[best]
    ratios = {name: round(ms / ours, 2) for name, ms in taken_ms.items() if name not in {best, "read"}}
    told = {name: round(ms, 4) for name, ms in taken_ms.items()}
    return {"kernel": best, "ms": told, "ratios": ratios, "share": round(taken_ms["read"] / ours, 2), "bytes": resident}


@torch.no_grad()
def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--shape", default="4096x4096")
    ask.add_argument("--tokens", default="1,4,128")
    ask.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    ask.add_argument("--formats", default=FORMATS)
    ask.add_argument("--turns", type=int, default=20)
    ask.add_argument("--cold", action="store_true")
    for name in ("--onnxruntime", "--openvino", "--ggml", "--ggml-folder"):
        ask.add_argument(name, default="")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    rows, inputs = map(int, asked.shape.split("x"))
    setting = {"shape": [rows, inputs], "threads": asked.threads, "cold": asked.cold, "turns": asked.turns}
    setting["instructions"] = _build.instruction_set()
    for text in asked.formats.split(","):
        for tokens in map(int, asked.tokens.split(",")):
            found = measure(asked, text, (rows, inputs), tokens)
            keep("cpu_linear", format=text, tokens=tokens, **setting, **found, load=round(os.getloadavg()[0], 1))


if __name__ == "__main__":
    main()
