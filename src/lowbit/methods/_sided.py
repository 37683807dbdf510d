"""_sided - what methods share that round in a format with one side of a certain kind, and choose what it keeps."""

from typing import Any, TypeVar

from lowbit import sides
from lowbit.core.errors import FormatError
from lowbit.formats import Format
from lowbit.methods import name_of

Kind = TypeVar("Kind")


def refusal(kind: type[Any], format: Format, lacks: str, example: str) -> str:
    """Why a format has not one side of this kind and no other; "" where it has. lacks: what is not there then."""
    found = [sides.get(word) for word in format.sides]
    if len(found) == 1 and isinstance(found[0], kind):
        return ""
    return f"the format has no {lacks}. Use {format.core}-{example}"


def only(kind: type[Kind], method: Any, format: Format) -> Kind:
    """The side of a format. Raises FormatError with the method's own refusal."""
    reason = method.refusal(format)
    if reason:
        raise FormatError(f"{name_of(method)}({format}): {reason}.")
    found: Any = sides.get(format.sides[0])
    return found  # type: ignore[no-any-return]
