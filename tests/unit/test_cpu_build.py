"""The C++ kernels: built once and whole by whoever comes first, for each instruction set; reasons where they cannot be."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lowbit.kernels.cpu import _build

pytestmark = pytest.mark.skipif(
    _build.instruction_set.__wrapped__() not in _build.SETS, reason="no C++ kernels for this machine"
)
CACHED = (_build.missing, _build.instruction_set, _build.library, _build.has, _build._function)

RUN = """
import sys, torch
from lowbit import formats
from lowbit.kernels import dispatch
from lowbit.layers.linear import QuantizedLinear
from lowbit.testing import kernels as suite

format = formats.parse(sys.argv[1])
weight = torch.randn(144, 384)
layer = QuantizedLinear.from_quantized(format.fit(weight, None, False).quantize(weight), dtype=torch.bfloat16)
expected, x = layer.quantized().decode(), torch.randn(3, 384).bfloat16()
y = layer.prepare()(x)
assert ((y - x.float() @ expected.t()).norm() / y.float().norm()) < 5e-3
if layer.kernel == "cpu.integers":
    suite.check_product("cpu.integers")
print(layer.kernel, "|", dispatch.missing("cpu.integers"))
"""


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """What was found out before a test and what a test finds out are forgotten."""
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


def run(format: str, **environment: str) -> tuple[str, str]:
    """The kernel that runs a layer in a process of its own, and why the C++ cannot."""
    told = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", RUN, format], env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernel, _, reason = done.stdout.partition("|")
    return kernel.strip(), reason.strip()


@pytest.mark.skipif(not _build.shutil.which("g++"), reason="no compiler")
def test_the_older_instruction_set_gives_the_same() -> None:
    assert run("int4-g128", LOWBIT_CPU="avx2") == ("cpu.integers", "")


def test_without_a_compiler_another_kernel_runs_and_the_reason_is_told(tmp_path: Path) -> None:
    kernel, reason = run("int4-g128", PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert kernel != "cpu.integers" and "no C++ compiler" in reason


def test_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOWBIT_CPU", "none")
    assert "LOWBIT_CPU=none" in _build.missing.__wrapped__()
    monkeypatch.delenv("LOWBIT_CPU")
    _build.instruction_set.cache_clear()
    monkeypatch.setenv("CXX", compiler(tmp_path, "echo no such header >&2; exit 1"))
    assert "no such header" in _build.missing.__wrapped__()
    (tmp_path / "lowbit").chmod(0o777)
    assert "can be written by others" in _build.missing.__wrapped__()


def test_it_is_built_once_whoever_comes_first_and_anew_for_another_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = next(Path("/lib").glob("x86_64-linux-gnu/libc.so.6"), None) or pytest.skip("no C library to pass off as ours")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOWBIT_CPU", "avx2")
    counts = []
    for version in ("1", "2"):
        log = tmp_path / version
        copies = f'echo x >> {log}; sleep 0.1; for last; do :; done; cp {library} "$last"'
        monkeypatch.setenv("CXX", compiler(tmp_path, copies, version))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: _build.library.__wrapped__(), range(4)))
        counts.append(len(log.read_text().splitlines()))
    sources = sum(path.suffix == ".cpp" for path in _build._sources())
    assert counts == [sources + 1, sources + 1]
    assert len(list((tmp_path / "lowbit").glob("*.so"))) == 2


def compiler(folder: Path, does: str, version: str = "1") -> str:
    """A program that tells its version and otherwise `does` something."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo {version}; exit; fi\n{does}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_compiler_older_than_amx_builds_for_avx512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = next(Path("/lib").glob("x86_64-linux-gnu/libc.so.6"), None) or pytest.skip("no C library to pass off as ours")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_build, "instruction_set", lambda: "amx")
    refusing = f'case "$*" in *mamx*) exit 1;; esac; for last; do :; done; cp {library} "$last"'
    monkeypatch.setenv("CXX", compiler(tmp_path, refusing))
    assert Path(_build.library.__wrapped__()._name).name.startswith("avx512-")
