"""_build - the C++ of source/ compiled on first use by the system's compiler, kept in the user's cache, called by ctypes.

Idea      A shared library for each instruction set; the best one that this processor has is chosen when it is loaded. It knows
          neither Python nor torch (pointers and numbers go in), so one build serves every version of both, takes seconds, and
          shares torch's threads, whose OpenMP library it finds loaded.
          The file is named by a digest of sources, flags and compiler; it appears whole or not at all, and one process builds
          while others wait. Without a compiler, or on another system, `missing` says why, and other kernels run.
          LOWBIT_CPU = amx, avx512, avx2 or none chooses; CXX names the compiler; XDG_CACHE_HOME moves the cache.
Traps     A cache that others can write to would run their code: the folder is made for its owner alone, another's refused.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

AVX2 = ("avx2", "fma", "f16c", "bmi2")
AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "avx512vbmi", "avx512vbmi2", "gfni")
AMX = ("avx512bf16", "amx-tile", "amx-int8", "amx-bf16")
SETS = {"amx": AVX2 + AVX512 + AMX, "avx512": AVX2 + AVX512, "avx2": AVX2}
"""Instruction sets, best first, and the compiler's names of what they need."""
FLAGS = (
    "-O2",
    "-ftree-vectorize",
    "-fno-tree-pre",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-w",
)
KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""Numbers of the float types that the C++ knows."""
CODES = 2
"""The number of x as int8 codes."""
HUGE = 1 << 21
"""Bytes of a huge page."""


@functools.cache
def missing() -> str:
    """Why the library cannot be had, or "". The first call builds it, once for a machine."""
    name = instruction_set()
    if name not in SETS:
        return name
    try:
        library()
    except (OSError, subprocess.SubprocessError) as error:
        return f"the C++ kernels could not be built: {error}"
    return ""


@functools.cache
def refusal(device: torch.device, dtype: torch.dtype) -> str:
    """Why inputs of this kind cannot be taken, or ""."""
    if device.type != "cpu":
        return f"device {device.type}; CPUs only"
    return "" if dtype in KINDS else f"x is {dtype}; float32 and bfloat16 only"


@functools.cache
def instruction_set() -> str:
    """The best instruction set of this processor that there is a library for; else a sentence that says why there is none."""
    asked = os.environ.get("LOWBIT_CPU", "")
    if asked == "none":
        return "LOWBIT_CPU=none turns the C++ kernels off"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"C++ kernels are for x86 under Linux, this is {platform.machine()} under {sys.platform}"
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    told = next((line for line in lines if line.startswith("flags")), "").replace("_", "").split()
    for name, needs in SETS.items():
        if {need.replace("-", "") for need in needs} <= set(told) and asked in {"", name} and (name != "amx" or _tiles()):
            return name
    return f"the processor has no {asked.upper() or 'AVX2'}"


def _tiles() -> bool:
    """Whether this process may use matrix registers, which Linux grants on request."""
    call, request, data = map(ctypes.c_long, (158, 0x1023, 18))
    return ctypes.CDLL(None).syscall(call, request, data) == 0  # type: ignore[no-any-return]


@functools.cache
def library() -> ctypes.CDLL:
    """The library, built if it is not there; for AVX-512 where the compiler is older than AMX. Raises OSError,
    SubprocessError."""
    name = instruction_set()
    try:
        return _built(name)
    except OSError:
        if name != "amx":
            raise
        return _built("avx512")


def _built(name: str) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        raise OSError("no C++ compiler is installed (g++)")
    flags = (*FLAGS, *(f"-m{need}" for need in SETS[name]))
    folder = _cache()
    target = folder / f"{name}-{_digest(compiler, flags)}.so"
    if not target.exists():
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(compiler, flags, target)
    return ctypes.CDLL(str(target))


def _cache() -> Path:
    """The folder for built libraries, its owner's alone."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowbit"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{folder} can be written by others; make it yours alone, or set XDG_CACHE_HOME")
    return folder


def _sources() -> list[Path]:
    with resources.as_file(resources.files(__package__) / "source") as folder:
        return sorted(folder.iterdir())


def _digest(compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=30).stdout
    told = [version, " ".join(flags).encode(), *(path.read_bytes() for path in _sources())]
    return hashlib.sha256(b"\0".join(told)).hexdigest()[:16]


def _compile(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    """Build the library beside its place and move it there whole."""
    files = [path for path in _sources() if path.suffix == ".cpp"]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        objects = [Path(scratch) / f"{path.stem}.o" for path in files]

        def build(file: Path, made: Path) -> None:
            _run([compiler, *flags, "-c", str(file), "-o", str(made)])

        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
            list(pool.map(build, files, objects))
        whole = Path(scratch) / "whole.so"
        _run([compiler, *flags, "-shared", *map(str, objects), "-o", str(whole)])
        os.replace(whole, target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise OSError(f"{command[0]} says: {done.stderr.strip()[-500:]}")


@functools.cache
def has(name: str) -> bool:
    """Whether the library for this machine's instruction set has a function."""
    return hasattr(library(), name)


def function(name: str, arguments: str, held: Mapping[str, Tensor] = MappingProxyType({})) -> Callable[..., None]:
    """A function of the library. arguments: a letter for each: p an address or None, i a whole number, d a float. held: where
    addresses point that were taken before."""
    found, writer = _function(name, arguments), _here.writer
    if writer is None:
        return found
    writer.kept += held.values()
    return functools.partial(writer.call, name, arguments, found)


@functools.cache
def _function(name: str, arguments: str) -> Callable[..., None]:
    found = getattr(library(), name)
    found.argtypes = [{"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}[letter] for letter in arguments]
    found.restype = None
    call: Callable[..., None] = found
    return call


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor begins; None: null."""
    if tensor is None:
        return None
    if _here.writer is not None:
        _here.writer.kept.append(tensor)
    return tensor.data_ptr()


Bound = Callable[[Tensor, Tensor | None], Tensor | None]
"""A matrix: x and the bias or None -> y; None where they are not what C++ takes."""


def bound(product: Callable[[Tensor, Tensor, int], None], shape: tuple[int, int]) -> Bound:
    """A matrix whose `product` fills y for so many tokens of x."""
    rows, inputs = shape

    def call(x: Tensor, bias: Tensor | None) -> Tensor | None:
        kind, tokens = KINDS.get(x.dtype), x.numel() // inputs
        if kind is None or not x.is_cpu or x.shape[-1] != inputs or not tokens or (bias is not None and bias.dtype != x.dtype):
            return None
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], rows, dtype=x.dtype)
        product(x, y, tokens)
        if bias is not None:
            function("lowbit_shift", "ppiii")(address(y), address(bias.contiguous()), tokens, rows, kind)
        return y

    return call


class Writer(Protocol):
    """Who writes calls down (_replay.py). kept: tensors whose addresses were taken."""

    kept: list[Tensor]

    def call(self, name: str, arguments: str, found: Callable[..., None], *given: Any) -> None:
        """Make a call."""


class Here(threading.local):
    """Who writes down the calls of this thread."""

    writer: Writer | None = None


_here = Here()


@contextlib.contextmanager
def writing(writer: Writer) -> Iterator[None]:
    """Calls of this thread are made by `writer`."""
    _here.writer = writer
    try:
        yield
    finally:
        _here.writer = None


def settled(tensor: Tensor) -> Tensor:
    """A copy on huge pages where the system grants them: weights that come from memory once a token then cost fewer page walks.
    They must be asked for before the memory is touched. Small tensors come back as they are."""
    size = tensor.numel() * tensor.element_size()
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    room = mmap.mmap(-1, size + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        room.madvise(mmap.MADV_HUGEPAGE)
    start = -torch.frombuffer(room, dtype=torch.uint8).data_ptr() % HUGE
    found = torch.frombuffer(room, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
    return found.copy_(tensor)


def threads(work: int) -> int:
    """Threads for so many bytes of weights times tokens: torch's number, one for each 64 KiB at most."""
    return max(1, min(torch.get_num_threads(), work >> 16))
