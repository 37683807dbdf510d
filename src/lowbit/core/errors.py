"""errors - every way in which a request can end, and its exit code.

LowbitError
├── RequestError (ValueError)      2  the request itself is wrong
│   ├── RecipeError                   a sentence, a method, a selector
│   ├── FormatError                   a format's name or a value it cannot hold
│   ├── ShapeError                    a shape that a format, layout or kernel cannot take
│   └── ArchitectureError             a model whose structure lowbit does not know well enough
├── CalibrationError (ValueError)  3  a text that is missing, empty or too short
├── CheckpointError (OSError)      3  a model folder that cannot be read or written
├── KernelUnavailable (RuntimeError) 2  no kernel for this layout on this device
└── CapacityError (MemoryError)    4  not enough memory or disk

A message has three parts: what was asked, verbatim; the fact that prevents it, with numbers and the tensor's name;
what to do. Anything that is no LowbitError is a bug (exit code 1).
"""

import difflib
from collections.abc import Iterable


class LowbitError(Exception):
    """Base of all errors that a user can cause or mend."""

    exit_code = 1


class RequestError(LowbitError, ValueError):
    exit_code = 2


class RecipeError(RequestError):
    """A sentence that cannot be carried out."""


class FormatError(RequestError):
    """A format that does not exist, or a value that it cannot hold."""


class ShapeError(RequestError):
    """A shape that a format, a layout or a kernel cannot take."""


class ArchitectureError(RequestError):
    """A model whose structure is not known well enough for the request."""


class CalibrationError(LowbitError, ValueError):
    """A calibration or evaluation text that is missing, empty or too short."""

    exit_code = 3


class CheckpointError(LowbitError, OSError):
    """A model folder that cannot be read or written."""

    exit_code = 3


class KernelUnavailable(LowbitError, RuntimeError):
    """No kernel takes this layout on this device."""

    exit_code = 2


class CapacityError(LowbitError, MemoryError):
    """Not enough memory or disk."""

    exit_code = 4


MANY = 40
"""Names that a message does not tell one by one."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown `word`: the nearest known ones, else all of them or how many there are."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"Nearest: {', '.join(close)}."
    return f"Known: {', '.join(known)}." if len(known) <= MANY else f"{len(known)} are known."
