"""tests/typecheck.py is at work: a function of lowbit given another type than its hint says ends in an error."""

import pytest
from jaxtyping import TypeCheckError

from lowbit.recipe import Recipe


def test_hints_are_compared_with_what_is_passed() -> None:
    with pytest.raises(TypeCheckError, match=r"Recipe\.parse"):
        Recipe.parse(4)  # type: ignore[arg-type]
