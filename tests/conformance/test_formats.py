"""Every file of the shelf formats passes the suite of lowbit.testing."""

import pytest

from lowbit import formats
from lowbit.testing import formats as suite


@pytest.mark.parametrize("name", formats.examples())
def test_format(name: str) -> None:
    suite.check_format(name)
