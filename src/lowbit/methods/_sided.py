"""_sided - what methods share that round in a format with one side of a certain kind, and choose what it keeps."""

from typing import Any, TypeVar

from lowbit import sides
from lowbit.core.errors import FormatError
from lowbit.formats import Format

Kind = TypeVar("Kind")


def only(kind: type[Kind], method: str, format: Format, lacks: str, example: str) -> Kind:
    """The side of a format. Raises FormatError when there is none, another one, or more. lacks: what is not there then."""
    found: Any = sides.get(format.sides[0]) if len(format.sides) == 1 else None
    if not isinstance(found, kind):
        raise FormatError(f"{method}({format}): the format has no {lacks}. Use {format.core}-{example}.")
    return found
