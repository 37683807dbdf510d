"""A codec of every format, through the suite of lowbit.testing."""

import pytest

from lowbit import formats
from lowbit.solvers.codec import GridCodec
from lowbit.testing import solvers as suite


@pytest.mark.parametrize("name", formats.examples())
def test_codec(name: str) -> None:
    weight, x = suite.layer(out=64, inputs=128, tokens=1024)
    codec = GridCodec(formats.parse(name).fit(weight))
    suite.check_codec(codec, weight)
    suite.check_feedback(codec, weight, x)
