"""Every architecture on the shelf, through the suite of lowbit.testing."""

import pytest
import torch

from lowbit.architectures import shelf
from lowbit.testing import architectures as suite


@pytest.mark.parametrize("name", shelf.names())
@pytest.mark.parametrize("check", ["coverage", "stages", "folds", "experts", "names", "discovery"])
def test_architecture(name: str, check: str) -> None:
    getattr(suite, f"check_{check}")(name)


@pytest.mark.parametrize("name", shelf.names())
def test_folds_in_float32(name: str) -> None:
    suite.check_folds(name, torch.float32, 1e-4)
