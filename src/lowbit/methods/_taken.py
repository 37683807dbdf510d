"""_taken - which formats a method is made for, said once by its class.

    takes: ClassVar[Formats] = Formats("a table of values for each row", ("lut3-row", "lut4-row"), lambda f: f.rule == "lut")
    takes: ClassVar[Sided[Byte]] = Sided("8-bit columns", ("int4-g128-byte128",), Byte)

The plan refuses all others before any work. A class that says nothing takes every format.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from lowbit import sides
from lowbit.core.errors import FormatError
from lowbit.formats import Format

Kind = TypeVar("Kind")


class Taken(Protocol):
    """Some formats. examples: names of a few."""

    @property
    def examples(self) -> tuple[str, ...]: ...

    def refusal(self, format: Format) -> str:
        """Why `format` is none of them and what to use; "" where it is one."""


@dataclass(frozen=True)
class Formats:
    """Formats with `have`, which `fits` knows."""

    have: str
    examples: tuple[str, ...]
    fits: Callable[[Format], bool]

    def refusal(self, format: Format) -> str:
        return "" if self.fits(format) else f"only formats with {self.have} are taken. Use {_either(self.examples)}"


@dataclass(frozen=True)
class Sided(Generic[Kind]):
    """Formats with `have` as their one side, which is of a `kind`. single: whether each weight must have a code of its own."""

    have: str
    examples: tuple[str, ...]
    kind: type[Kind]
    single: bool = False

    def refusal(self, format: Format) -> str:
        if self.single and format.step != (1, 1, 1):
            return f"only formats with a code for each weight are taken. Use {_either(self.examples)}"
        found = [sides.get(word) for word in format.sides]
        if len(found) == 1 and isinstance(found[0], self.kind):
            return ""
        only = " and no other side" if found else ""
        return f"only formats with {self.have}{only} are taken. Use {format.core}-{self.examples[0].rpartition('-')[2]}"

    def of(self, format: Format) -> Kind:
        """The side of a format. Raises FormatError where it is none of them."""
        reason = self.refusal(format)
        if reason:
            raise FormatError(f"{format}: {reason}.")
        found: Any = sides.get(format.sides[0])
        return found  # type: ignore[no-any-return]


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


AT_ONCE = Formats(
    "codes found at once, since matrices are rounded many times,",
    ("int4-g128", "e8p2"),
    lambda format: format.step[0] == 1,
)
"""What methods take that try candidates."""
