"""_settings - which numbers a setting of a method takes, said by its type.

    steps: Count = 200        a whole number from 1 on
    alpha: Share = 0.5        a number from 0 to 1
A number whose type says nothing is finite and not negative.
"""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from lowbit.core.errors import RecipeError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them."""

    low: float = 0
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        return f"from {self.low:g} " + (f"to {self.high:g}" if math.isfinite(self.high) else "on")


Count = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]


def check(method: Any, step: str) -> None:
    """Every number of a method lies in the range of its type. step: how the method was asked for. Raises RecipeError."""
    hints = typing.get_type_hints(type(method), include_extras=True)
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        told = getattr(hints[field.name], "__metadata__", ())
        allowed = next((extra for extra in told if isinstance(extra, Range)), Range())
        if value not in allowed:
            kind = "a whole number" if isinstance(field.default, int) else "a number"
            raise RecipeError(f"{step}: '{field.name}' takes {kind} {allowed}, not {value:g}. The default is {field.default}.")
