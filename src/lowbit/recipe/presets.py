"""presets - the sentences that have a name, read from presets.toml."""

import functools
import tomllib
from importlib import resources


@functools.cache
def load() -> dict[str, dict[str, str]]:
    """Every preset by name: {"sentence": ..., "note": what it is good for}."""
    return tomllib.loads(resources.files("lowbit.recipe").joinpath("presets.toml").read_text(encoding="utf-8"))
