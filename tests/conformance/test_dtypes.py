"""Every file of the shelf dtypes passes the suite of lowbit.testing."""

import pytest

from lowbit import dtypes
from lowbit.testing import dtypes as suite


@pytest.mark.parametrize("name", dtypes.examples())
def test_dtype(name: str) -> None:
    suite.check_element(name)
