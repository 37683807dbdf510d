"""Every statistic on the shelf, through the suite of lowbit.testing."""

import pytest

from lowbit.statistics import shelf
from lowbit.testing import statistics as suite


@pytest.mark.parametrize("name", shelf.names())
@pytest.mark.parametrize("check", ["split", "going_on", "nothing", "precision"])
def test_statistic(name: str, check: str) -> None:
    getattr(suite, f"check_{check}")(name)
