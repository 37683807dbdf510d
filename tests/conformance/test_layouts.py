"""Every file of the shelf layouts passes the suite of lowbit.testing."""

import pytest

from lowbit import layouts
from lowbit.testing import layouts as suite


@pytest.mark.parametrize("name", layouts.shelf.names())
def test_layout(name: str) -> None:
    suite.check_layout(name)
