"""generate - the pages of docs/reference, made from the headers of the files, from verbs.py and from the command line's help.

    python docs/generate.py             writes the pages
    python docs/generate.py --check     writes nothing; ends with 1 when a page is stale

A header is: `name - what it does.`, then text (indented lines are shown as they stand), then sections, each a word of SECTIONS
at the start of a line with its text after it. Files are read, not imported.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "src" / "lowbit"
SECTIONS = ("In / Out", "Layout", "Idea", "Source", "Defaults", "Figures", "Traps", "Parts")
SHELVES = {
    "methods": "Methods",
    "formats": "Formats",
    "dtypes": "Number types",
    "sides": "Sides",
    "layouts": "Layouts",
    "kvcache": "Cache policies",
    "architectures": "Architectures",
    "statistics": "Statistics",
    "transforms": "Transforms",
    "solvers": "Solvers",
    "checkpoints": "Checkpoint formats",
    "kernels": "Kernels",
}
NOTE = "<!-- Made by docs/generate.py from the sources. Change those. -->\n\n"
VERBS = {"rewrite": "transform", "solve": "solver", "tune": "tuner", "finish": "finisher", "turn": "turn of the basis"}


@dataclass
class Header:
    """A file's header taken apart. summary: its first line without the name; text: what is free; sections by title."""

    summary: str
    text: list[str] = field(default_factory=list)
    sections: dict[str, list[str]] = field(default_factory=dict)


def parse(docstring: str) -> Header:
    """A module's docstring -> its header."""
    first, *rest = docstring.strip().splitlines()
    header = Header(first.partition(" - ")[2] or first)
    lines = header.text
    for line in rest:
        title = next((s for s in SECTIONS if re.match(rf"{re.escape(s)}(  +|$)", line)), "")
        if title:
            lines = header.sections.setdefault(title, [])
            line = line[len(title) :]
        lines.append(line)
    return header


def escaped(line: str) -> str:
    """A line of plain text as Markdown: what is not between backticks loses its special meaning."""
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(p if p.startswith("`") else re.sub(r"([*<\[|$]|\b_\B|\B_\b)", r"\\\1", p) for p in parts)


def flowing(lines: list[str]) -> str:
    """A section's lines as one paragraph."""
    return escaped(" ".join(line.strip() for line in lines if line.strip()))


def blocks(lines: list[str]) -> Iterator[str]:
    """Free text: paragraphs, and indented lines as they stand."""
    text = "\n".join(lines).strip("\n")
    for indented, run in re.findall(r"((?:^[ ]{4}.*\n?(?:\n(?=[ ]{4}))?)+)|((?:^(?![ ]{4}).*\n?)+)", text + "\n", re.MULTILINE):
        if indented:
            body = "\n".join(line[4:] for line in indented.rstrip().splitlines())
            yield f"```text\n{body}\n```"
        else:
            yield from (flowing(p.splitlines()) for p in re.split(r"\n\s*\n", run) if p.strip())


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def header_of(path: Path) -> Header:
    return parse(ast.get_docstring(tree_of(path)) or path.stem)


def entry(path: Path, name: str, level: str) -> str:
    """One file as a part of a page."""
    header = header_of(path)
    parts = [f"{level} {name}", escaped(header.summary), *settings(tree_of(path)), *blocks(header.text)]
    parts += [f"**{title}.** {flowing(lines)}" for title, lines in header.sections.items()]
    return "\n\n".join(parts)


def settings(tree: ast.Module) -> Iterator[str]:
    """For a method: its kind, the statistics it needs, its fields with their defaults."""
    for node in tree.body:
        bases = [ast.unparse(b).rpartition(".")[2] for b in node.bases] if isinstance(node, ast.ClassDef) else []
        if not isinstance(node, ast.ClassDef) or "Method" not in bases:
            continue
        kinds = [VERBS[f.name] for f in node.body if isinstance(f, ast.FunctionDef) and f.name in VERBS] or ["declaration"]
        fields = {a.target.id: a for a in node.body if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)}
        needs = fields.pop("needs", None)
        fields = {name: a for name, a in fields.items() if not ast.unparse(a.annotation).startswith("ClassVar")}
        told = ast.literal_eval(needs.value) if needs and needs.value else ()
        yield f"*{kinds[0].capitalize()}*" + (f", needs {', '.join(f'`{n}`' for n in told)}." if told else ".")
        yield from taken(node)
        if fields:
            rows = [f"| {code(n)} | {code(a.annotation)} | {code(a.value) if a.value else ''} |" for n, a in fields.items()]
            yield "\n".join(["| setting | type | default |", "|---|---|---|", *rows])


def taken(node: ast.ClassDef) -> Iterator[str]:
    """For a method that is not made for all formats: what those have that it takes, with examples."""
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "takes" and isinstance(line.value, ast.Call):
            have, examples = map(ast.literal_eval, line.value.args[:2])
            yield f"Takes formats with {have}, as {', '.join(f'`{name}`' for name in examples)}."


def code(what: str | ast.AST) -> str:
    """A piece of Python for a table's cell."""
    text = what if isinstance(what, str) else ast.unparse(what)
    return f"`{text}`".replace("|", "\\|")


def entries(folder: Path) -> dict[str, Path]:
    """The files of a shelf by name, those of its subfolders as "folder.file"."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if not path.stem.startswith("_"):
            found[".".join(path.relative_to(folder).with_suffix("").parts)] = path
    return found


def shelf_page(room: str, title: str) -> str:
    """The page of one shelf: its contract, a table of what it holds, a part for each file."""
    header = header_of(PACKAGE / room / "__init__.py")
    files = entries(PACKAGE / room)
    parts = [f"# {title}", f"`lowbit.{room}`: {escaped(header.summary)}", *blocks(header.text)]
    if files:
        rows = [f"| [{name}](#{anchor(name)}) | {escaped(header_of(path).summary)} |" for name, path in files.items()]
        parts += ["| file | what it is |\n|---|---|\n" + "\n".join(rows)]
    return "\n\n".join([*parts, *(entry(path, name, "##") for name, path in files.items())])


def anchor(name: str) -> str:
    """The anchor that Markdown gives the heading `name`."""
    return re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-")


def rooms_page() -> str:
    """The map: every room, top to bottom, with what it does."""
    pyproject = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(c["layers"] for c in pyproject["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    rows = []
    for name in (n for layer in layers for n in layer.split(" | ")):
        path = PACKAGE / f"{name}.py" if (PACKAGE / f"{name}.py").exists() else PACKAGE / name / "__init__.py"
        page = f"[{name}]({name}.md)" if name in SHELVES else f"`{name}`"
        rows.append(f"| {page} | {escaped(header_of(path).summary)} |")
    text = (
        "What each folder of `src/lowbit` takes and gives. A folder imports only what stands below it; `make check` holds that."
    )
    return "\n\n".join(["# The rooms", text, "| room | what it does |\n|---|---|\n" + "\n".join(rows)])


def python_page() -> str:
    """The Python calls, from verbs.py."""
    path = PACKAGE / "verbs.py"
    intro = "The verbs of the command line as Python calls, with the same words: `import lowbit; lowbit.quantize(...)`."
    parts = ["# Python calls", intro]
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = blocks((ast.get_docstring(node) or "").splitlines())
            parts += [f"## {node.name}", f"```python\n{signature(node)}\n```", *text]
    return "\n\n".join(parts)


def signature(node: ast.FunctionDef) -> str:
    """A function's first lines, an argument a line."""
    before = [None] * (len(node.args.args) - len(node.args.defaults))
    pairs = [
        *zip(node.args.args, [*before, *node.args.defaults], strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    lines = [f"    {a.arg}: {plain(a.annotation)}{f' = {ast.unparse(d)}' if d else ''}," for a, d in pairs]
    lines[len(node.args.args) : len(node.args.args)] = ["    *,"] if node.args.kwonlyargs else []
    return "\n".join([f"lowbit.{node.name}(", *lines, f") -> {plain(node.returns)}"])


def plain(annotation: ast.expr | None) -> str:
    """A type as Python, also where it was written as text."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(annotation) if annotation else "None"


def presets_page() -> str:
    """The sentences that have a name."""
    known = tomllib.loads((PACKAGE / "recipe" / "presets.toml").read_text(encoding="utf-8"))
    rows = [f"| `{name}` | `{p['sentence']}` | {escaped(p['note'])} |" for name, p in known.items()]
    return "# Presets\n\nA preset is a sentence with a name.\n\n| preset | sentence | for |\n|---|---|---|\n" + "\n".join(rows)


def cli_page() -> str:
    """The command line's own help, command by command."""
    parts = ["# Command line", f"```text\n{told('--help')}\n```"]
    for file in sorted(entries(PACKAGE / "cli").keys() - {"main"}):
        name = file.rstrip("_")
        parts += [f"## {name}", f"```text\n{told(name, '--help')}\n```"]
    return "\n\n".join(parts)


def told(*arguments: str) -> str:
    """What the program prints, on a terminal of 80 columns."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", "lowbit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.rstrip()


def pages() -> dict[str, str]:
    """All pages by file name."""
    made = {f"{room}.md": shelf_page(room, title) for room, title in SHELVES.items()}
    made |= {"rooms.md": rooms_page(), "python.md": python_page(), "presets.md": presets_page(), "cli.md": cli_page()}
    return {name: NOTE + text.strip() + "\n" for name, text in made.items()}


def main() -> int:
    folder = DOCS / "reference"
    made = pages()
    there = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.md")}
    stale = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
    if "--check" in sys.argv[1:]:
        if stale:
            print(f"Stale pages in docs/reference: {', '.join(stale)}. Run 'make fix' or 'python docs/generate.py'.")
        return 1 if stale else 0
    folder.mkdir(exist_ok=True)
    for name in stale:
        (folder / name).write_text(made[name], encoding="utf-8") if name in made else (folder / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
