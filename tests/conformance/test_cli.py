"""Every command on the shelf, through the suite of lowbit.testing."""

import pytest

from lowbit.testing import cli as suite


@pytest.mark.parametrize("name", suite.names())
@pytest.mark.parametrize("check", ["declaration", "import"])
def test_command(name: str, check: str) -> None:
    getattr(suite, f"check_{check}")(name)
