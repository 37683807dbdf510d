"""A codec of every format, through the suite of lowbit.testing."""

import pytest

from lowbit import formats
from lowbit.solvers.codec import codec
from lowbit.testing import solvers as suite


@pytest.mark.parametrize("name", formats.examples())
def test_codec(name: str) -> None:
    format = formats.parse(name).core
    weight, x = suite.layer(out=16, inputs=64, tokens=512) if format.step[0] > 1 else suite.layer(64, 128, 1024)
    grid = format.fit(weight)
    suite.check_codec(codec(grid), weight)
    if "codebooks" not in grid.parts:  # few vectors know their codebook by heart
        suite.check_feedback(codec(grid), weight, x)
