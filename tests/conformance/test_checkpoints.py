"""Every checkpoint format on the shelf, through the suite of lowbit.testing."""

import pytest

from lowbit.checkpoints import shelf
from lowbit.testing import checkpoints as suite


@pytest.mark.parametrize("name", shelf.names())
@pytest.mark.parametrize("check", ["matrices", "config", "folder", "refusal"])
def test_checkpoint_format(name: str, check: str) -> None:
    getattr(suite, f"check_{check}")(name)
