"""main - the program `lowbit`: finds the commands on the shelf and imports only the one that was asked for."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lowbit import __version__
from lowbit.cli._ending import bug, guarded
from lowbit.core.errors import nearest
from lowbit.core.shelf import Shelf

shelf = Shelf("lowbit.cli", "command")


def commands() -> dict[str, str]:
    """File of every command by its name; imports none of them."""
    return {file.rstrip("_"): file for file in shelf.names() if file != "main"}


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
        sys.excepthook = bug


def main() -> None:
    """The entry point of the program."""
    typer.main.get_command(app).main(prog_name="lowbit")
