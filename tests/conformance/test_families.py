"""Every method on families other than Llama: Qwen3 (norms on heads, a head dimension of its own) and Mixtral (experts); every
method killed and taken up, on a Llama of two blocks."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lowbit import methods
from lowbit.testing import families
from lowbit.testing._tiny import tiny

SMALL: dict[str, Any] = {"samples": 4, "length": 32}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, _tiny_llama: Path) -> dict[str, Path]:
    """A random model of one block of each family."""
    found = {}
    for name in ("qwen3", "mixtral"):
        folder = tmp_path_factory.mktemp("families") / name
        tiny(name, vocab_size=258, num_hidden_layers=1, sliding_window=None).save_pretrained(folder)
        for file in _tiny_llama.glob("tokenizer*"):
            shutil.copy(file, folder)
        found[name] = folder
    return found


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
@pytest.mark.parametrize("name", methods.shelf.names())
def test_method(name: str, family: str, models: dict[str, Path], tmp_path: Path) -> None:
    families.check(name, models[family], tmp_path / "out", **SMALL)


@pytest.mark.parametrize("name", methods.shelf.names())
def test_resumed(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    families.check_resumed(name, tiny_llama, tmp_path / "out", **SMALL)
