"""cli - what every command must do, by its name on the shelf `lowbit.cli`."""

import inspect
import json
import subprocess
import sys
from types import ModuleType
from typing import get_args, get_type_hints

from lowbit.core.shelf import Shelf

shelf = Shelf("lowbit.cli", "command")
HEAVY = ("torch", "transformers", "numpy", "matplotlib", "rich.table")


def names() -> list[str]:
    """The files that are commands."""
    return [name for name in shelf.names() if name != "main"]


def check_declaration(name: str) -> None:
    """At most 80 lines; its line in the help fits on a terminal; every parameter has a help text; there is --json."""
    module = shelf.get(name)
    word = name.rstrip("_")
    header, _, about = shelf.summary(name).partition(" - ")
    assert header == word and about.endswith(".") and len(about) <= 68, f"first line of {name}: '{word} - What it does.'"
    assert len(inspect.getsource(module).splitlines()) <= 80
    run = module.command
    assert f"lowbit {word}" in (run.__doc__ or ""), f"{name}: the docstring shows no example"
    hints = get_type_hints(run, include_extras=True)
    assert hints["return"] is type(None)
    assert inspect.signature(run).parameters["json"].default is False
    for parameter in inspect.signature(run).parameters:
        told = [getattr(extra, "help", "") for extra in get_args(hints[parameter])[1:]]
        assert any(told), f"{name}: '{parameter}' has no help"


def check_import(name: str) -> None:
    """Importing the command imports nothing heavy: help must stay quick."""
    module: ModuleType = shelf.get(name)
    code = f"import sys, json, {module.__name__}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
