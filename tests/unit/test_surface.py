"""What users type is frozen: names, commands, options, exit codes. A change here is a decision, not an accident."""

import importlib
import inspect
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import lowbit
from lowbit.cli.main import commands, shelf
from lowbit.core import errors

NAMES = ["Recipe", "__version__", "chat", "compare", "diagnose", "evaluate", "generate", "inspect", "load", "quantize"]

COMMANDS = {
    "chat": "model tokens temperature seed kv bits device json",
    "compare": "original recipes out text windows calibration samples length seed device json",
    "diagnose": "model out text windows length device json",
    "evaluate": "model against text windows length bits device json",
    "generate": "model prompt tokens temperature seed kv bits device json",
    "inspect": "model device json",
    "list": "kind json",
    "quantize": "model recipe out dry_run calibration samples length seed device json",
}

EXIT_CODES = {
    "ArchitectureError": 2,
    "CalibrationError": 3,
    "CapacityError": 4,
    "CheckpointError": 3,
    "FormatError": 2,
    "KernelUnavailable": 2,
    "LowbitError": 1,
    "RecipeError": 2,
    "RequestError": 2,
    "ShapeError": 2,
}

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "safetensors")


def python(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names() -> None:
    assert sorted(lowbit.__all__) == NAMES == dir(lowbit)
    for name in NAMES:
        assert getattr(lowbit, name) is not None
    with pytest.raises(AttributeError, match=r"no attribute 'quantise'\. It has: Recipe"):
        lowbit.quantise  # noqa: B018


def test_commands_and_options() -> None:
    found = {name: " ".join(inspect.signature(shelf.get(file).command).parameters) for name, file in commands().items()}
    assert found == COMMANDS


@pytest.mark.parametrize("name", ["compare", "diagnose", "evaluate", "generate", "inspect", "quantize"])
def test_a_verb_has_the_words_of_its_command(name: str) -> None:
    verb = inspect.signature(getattr(importlib.import_module("lowbit.verbs"), name)).parameters
    command = inspect.signature(shelf.get(commands()[name]).command).parameters
    assert set(verb) - {"progress"} == set(command) - {"json"}
    for word in set(verb) & set(command):
        ours, theirs = verb[word].default, command[word].default
        assert ours == theirs or (not ours and not theirs), word


def test_exit_codes() -> None:
    found = {n: v.exit_code for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.LowbitError)}
    assert found == EXIT_CODES


@pytest.mark.parametrize("code", ["import lowbit", "from lowbit.cli.main import app, commands; commands()"])
def test_importing_is_cheap(code: str) -> None:
    told = python(f"import sys, json; {code}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))")
    assert json.loads(told) == []


def test_help_is_quick() -> None:
    """Under 0.3 s on a quiet machine; the processor time of the best of three stands for that here."""
    seconds = []
    for _ in range(3):
        start = _processor_time()
        subprocess.run([sys.executable, "-m", "lowbit", "--help"], capture_output=True, check=True)
        seconds.append(_processor_time() - start)
    assert min(seconds) < 0.6


def _processor_time() -> float:
    """Seconds that finished child processes took; waiting for a busy machine is not among them."""
    told = resource.getrusage(resource.RUSAGE_CHILDREN)
    return told.ru_utime + told.ru_stime


def test_version_is_that_of_the_changelog() -> None:
    text = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{lowbit.__version__}]" in text


def test_types_are_shipped() -> None:
    assert (Path(lowbit.__file__).parent / "py.typed").exists()
