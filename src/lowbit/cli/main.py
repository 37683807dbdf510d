"""main - the program `lowbit`: finds the commands on the shelf and imports only the one that was asked for."""

import errno
import functools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lowbit import __version__
from lowbit.core.errors import LowbitError, nearest
from lowbit.core.shelf import Shelf

shelf = Shelf("lowbit.cli", "command")


def commands() -> dict[str, str]:
    """File of every command by its name; imports none of them."""
    return {file.rstrip("_"): file for file in shelf.names() if file != "main"}


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


def _bug(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """What is printed for an error that no user can mend."""
    print(f"error: {kind.__name__}: {error}", file=sys.stderr)
    print("This is a bug in lowbit; `lowbit --debug ...` shows where. Please report it.", file=sys.stderr)


class Commands(TyperGroup):
    """The shelf as a group of commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(commands())

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in commands():
            ctx.fail(f"Unknown command '{name}'. {nearest(name, commands())}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        run = shelf.get(commands()[name]).command
        single.command(name, no_args_is_help=False)(guarded(run, ctx.params.get("debug", False)))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, shelf.summary(file).partition(" - ")[2]) for name, file in commands().items()])


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Make large language models small: quantize, measure, pack and run them at 8 bits down to 1.5."""
    if not debug:
        sys.excepthook = _bug


def main() -> None:
    """The entry point of the program."""
    typer.main.get_command(app).main(prog_name="lowbit")
