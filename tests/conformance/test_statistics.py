"""Every statistic on the shelf, through the suite of lowbit.testing."""

import pytest

from lowbit.testing import statistics as suite


@pytest.mark.parametrize("name", suite.plain())
@pytest.mark.parametrize("check", ["split", "going_on", "nothing", "precision"])
def test_statistic(name: str, check: str) -> None:
    getattr(suite, f"check_{check}")(name)


@pytest.mark.parametrize("name", suite.guided())
def test_guided(name: str) -> None:
    suite.check_guided(name)
