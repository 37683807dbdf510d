"""Every file of the shelf `sides` keeps its contract."""

import pytest

from lowbit import sides
from lowbit.testing.sides import check_side


@pytest.mark.parametrize("name", sides.examples())
def test_side(name: str) -> None:
    check_side(name)
