"""Every method on the shelf, through the suite of lowbit.testing."""

import pytest

from lowbit import methods
from lowbit.testing import methods as suite


@pytest.mark.parametrize("name", methods.shelf.names())
def test_declaration(name: str) -> None:
    suite.check_declaration(name)


@pytest.mark.parametrize("name", suite.solvers())
@pytest.mark.parametrize("check", ["near_identity", "report", "hard_inputs"])
def test_solver(name: str, check: str) -> None:
    getattr(suite, f"check_{check}")(name)


@pytest.mark.parametrize("name", suite.tuners())
def test_tuner(name: str) -> None:
    suite.check_tuner(name)


@pytest.mark.parametrize("name", suite.finishers())
def test_finisher(name: str) -> None:
    suite.check_finisher(name)
