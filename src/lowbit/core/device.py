"""device - the device that is asked for, and what this machine has: free memory and arithmetic speed, measured."""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lowbit.core.errors import RequestError

M_MMAP_THRESHOLD = -3
LARGE = 4 << 20
"""Bytes from which on a tensor gets pages of its own."""


def chosen(name: str | None) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1"); None: the GPU where there is one. Raises RequestError."""
    count = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda" if count else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in {"cpu", "cuda"} or (colon and not number.isdecimal()):
        raise RequestError(f"device '{name}': there is no such kind. Use cpu, cuda or cuda:N.")
    if kind == "cuda" and int(number or 0) >= count:
        had = "no GPU that torch can use" if not count else f"{count} of them, cuda:0 to cuda:{count - 1}"
        raise RequestError(f"device '{name}': this machine has {had}. Use {'another' if count else 'cpu'}.")
    return torch.device(name)


def available_memory(device: torch.device) -> int:
    """Bytes that are free: of the GPU, or of the machine's memory (a very large number where the system does not say)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="utf-8").splitlines() if meminfo.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return found[0] if found else 1 << 62


def peak_memory() -> int:
    """The most bytes that this process held at once, file pages included; 0 where the system does not say.

    Not ru_maxrss: a child's begins at its parent's.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def return_freed_memory() -> None:
    """Make the C library give large freed tensors back to the system at once; does nothing where it is not glibc.

    By itself it keeps tensors of up to 32 MB for reuse, in pieces that fit nothing: 400 MB after one wide decoder block.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, LARGE)


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 matrices with factors of 11 significant bits, summed in float32: five times as fast.

    For products whose result is rounded to codes, compared, or told. Nothing changes on a CPU.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def throughput(device: torch.device, seconds: float = 0.1) -> float:
    """Operations a second of a float32 product of 512 x 1024 x 1024, over a tenth of a second."""
    a, b = torch.randn(512, 1024, device=device), torch.randn(1024, 1024, device=device)
    (a @ b).sum().item()
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        (a @ b).sum().item()
        rounds += 1
    return 2 * a.numel() * b.shape[1] * rounds / (time.perf_counter() - start)
