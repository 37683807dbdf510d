"""_options - the arguments that several commands share, in the same words everywhere."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Model folder or Hub id.", metavar="MODEL", show_default=False)]
Out = Annotated[
    str | None, typer.Option(help="Folder to write. [default: named after the model]", metavar="DIR", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N. [default: cuda where there is one]", metavar="NAME", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", metavar="N")]
Calibration = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Text to learn from: a .txt or .jsonl file, a datasets name, 'generated' (the model writes it) or 'bundled'; "
        "A+B takes windows of both.",
    ),
]
Samples = Annotated[int | None, typer.Option(min=1, help="Calibration windows. [default: 64]", metavar="N", show_default=False)]
Length = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of a window. [default: 2048 or the model's context]", metavar="N", show_default=False),
]
Text = Annotated[
    list[str],
    typer.Option(
        help="Text to measure on; several may be given. [default: bundled and pydoc]", metavar="TEXT", show_default=False
    ),
]
Windows = Annotated[
    int | None, typer.Option(min=1, help="At most so many windows of each text. [default: 32]", metavar="N", show_default=False)
]
Tokens = Annotated[int, typer.Option(min=1, help="At most so many new tokens.", metavar="N")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.", metavar="T")]
Kv = Annotated[
    str | None,
    typer.Option(
        help="Hold keys and values packed: int8, int4-centred-rot ... [default: as the checkpoint says]", metavar="POLICY",
        show_default=False,
    ),
]  # fmt: skip
Bits = Annotated[
    int | None,
    typer.Option(min=2, max=8, help="Read nested codes at so many bits. [default: all]", metavar="N", show_default=False),
]
