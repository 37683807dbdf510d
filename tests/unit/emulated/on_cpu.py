"""A .cu file of lowbit as a library of the CPU: cuda_on_cpu.h takes the place of instructions.cuh. Needs g++."""

import ctypes
import hashlib
import importlib.resources
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

HERE = Path(__file__).parent


def compiled(folder: Path, file: str, macros: Mapping[str, int], entry: str) -> ctypes.CDLL:
    """The library, made in `folder` unless it is there. entry: C++ behind the file that runs its kernels by `run`."""
    cuda = importlib.resources.files("lowbit.kernels.cuda")
    text = cuda.joinpath(file).read_text(encoding="utf-8")
    text = re.sub(r"extern __shared__ __align__\(\d+\) u8 shared\[\];", "u8* shared = block_memory();", text)
    text = re.sub(r"__shared__ __align__\(16\) u8 tiles\[4\](\[.*?\]);", r"auto tiles = (u8(*)\1)block_memory();", text)
    defines = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    text = f'{defines}#include "{HERE}/cuda_on_cpu.h"\n{text}{entry}'
    library = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        library.with_suffix(".cpp").write_text(text, encoding="utf-8")
        with importlib.resources.as_file(cuda) as include:
            command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{include}", "-o", str(library)]
            subprocess.run([*command, str(library.with_suffix(".cpp"))], check=True)
    return ctypes.CDLL(str(library))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor lies, or null."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
