"""Every architecture on the shelf, through the suite of lowbit.testing."""

from typing import Any

import pytest
import torch

from lowbit.architectures import shelf
from lowbit.testing import architectures as suite


@pytest.mark.parametrize("name", shelf.names())
@pytest.mark.parametrize("check", ["coverage", "stages", "folds", "turning", "experts", "names", "discovery"])
def test_architecture(name: str, check: str) -> None:
    getattr(suite, f"check_{check}")(name)


@pytest.mark.parametrize("name", shelf.names())
def test_folds_in_float32(name: str) -> None:
    suite.check_folds(name, torch.float32, 1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "mixtral"])
@pytest.mark.parametrize(
    "changes",
    [{"tie_word_embeddings": True}, {"hidden_size": 92, "intermediate_size": 60}, {"attention_bias": True, "mlp_bias": True}],
    ids=["tied", "no-hadamard", "biases"],
)
def test_turning_of_variants(name: str, changes: dict[str, Any]) -> None:
    suite.check_turning(name, **changes)


@pytest.mark.parametrize("name", shelf.names())
def test_turning_in_float32(name: str) -> None:
    suite.check_turning(name, torch.float32, 1e-4)
