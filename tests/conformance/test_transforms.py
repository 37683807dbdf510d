"""Every method that promises to leave a model's function, on every architecture."""

import pytest

from lowbit.architectures import shelf
from lowbit.testing import transforms as suite


@pytest.mark.parametrize("architecture", shelf.names())
@pytest.mark.parametrize("name", suite.names())
def test_the_function_stays(name: str, architecture: str) -> None:
    suite.check_function(name, architecture)
