"""_ending - how a command ends that does not end well: one line on stderr and an exit code.

2 the request, 3 files, 4 memory or disk (lowbit.core.errors); 130 interrupted; 1 a bug.
"""

import errno
import functools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from lowbit.core.errors import LowbitError


def guarded(run: Callable[..., None], debug: bool) -> Callable[..., None]:
    """`run`, with errors that a user can mend told in one line and turned into their exit code."""

    @functools.wraps(run)
    def call(*args: Any, **options: Any) -> None:
        try:
            run(*args, **options)
        except (LowbitError, OSError, KeyboardInterrupt) as error:
            if debug and not isinstance(error, KeyboardInterrupt):
                raise
            sys.exit(_end(error))

    return call


def _end(error: BaseException) -> int:
    """Tell what ended the run; its exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        return 141
    print(f"error: {error}", file=sys.stderr)
    if isinstance(error, LowbitError):
        return error.exit_code
    return 4 if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM} else 3


def bug(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """What is printed for an error that no user can mend."""
    print(f"error: {kind.__name__}: {error}", file=sys.stderr)
    print("This is a bug in lowbit; `lowbit --debug ...` shows where. Please report it.", file=sys.stderr)
