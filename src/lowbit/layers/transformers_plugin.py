"""transformers_plugin - `import lowbit` makes AutoModelForCausalLM.from_pretrained read lowbit's checkpoints, at no cost.

Idea      transformers has no entry points. If it is imported already, the quantizer is registered at once; otherwise a finder
          waits for `transformers.quantizers.auto` and registers when that has run. Until then nothing is imported.
Traps     Nothing but the standard library may be imported at the top of this file.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

AWAITED = "transformers.quantizers.auto"


class Finder:
    """Finds one module as Python would, and registers the quantizer after it has run."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != AWAITED:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            remove()
            _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register now or when transformers is imported; a second call does nothing."""
    if AWAITED in sys.modules:
        _register()
    elif not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def remove() -> None:
    """Take the waiting finder away."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]


def _register() -> None:
    importlib.import_module("lowbit.layers.quantizer")
