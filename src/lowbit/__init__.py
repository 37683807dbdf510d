"""lowbit - makes large language models small: quantizes, measures, packs and runs them at 8 bits down to 1.

    import lowbit
    lowbit.quantize("models/lowbit-tiny", "awq + gptq(int4-g128)", "out")
    print(lowbit.evaluate("out", against="models/lowbit-tiny"))

The names below are loaded when they are first used: `import lowbit` costs milliseconds and does not import torch.
It also teaches transformers to read lowbit's own checkpoints: `AutoModelForCausalLM.from_pretrained("out")`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lowbit.layers import transformers_plugin

if TYPE_CHECKING:
    from lowbit.layers.loading import load
    from lowbit.recipe import Recipe
    from lowbit.verbs import chat, compare, diagnose, evaluate, generate, inspect, quantize

__version__ = "0.1.0"

_HOMES = {
    "Recipe": "lowbit.recipe",
    "chat": "lowbit.verbs",
    "compare": "lowbit.verbs",
    "diagnose": "lowbit.verbs",
    "evaluate": "lowbit.verbs",
    "generate": "lowbit.verbs",
    "inspect": "lowbit.verbs",
    "load": "lowbit.layers.loading",
    "quantize": "lowbit.verbs",
}

__all__ = ["Recipe", "__version__", "chat", "compare", "diagnose", "evaluate", "generate", "inspect", "load", "quantize"]


def __getattr__(name: str) -> Any:
    """Import a name of the surface when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lowbit' has no attribute '{name}'. It has: {', '.join(__all__)}.")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


transformers_plugin.install()
