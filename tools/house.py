"""house - the rules of the house that no other checker knows; part of `make check`.

    python tools/house.py       prints `file:line: what is wrong` and ends with 1 when there is anything

Files stay within the lines of their room, functions within 60 lines, inheritance within 2 levels; every file says in its
header what it does; nothing is called utils, common, helpers, base, manager or registry; no enums; long tables are data files;
what src/lowbit imports is declared in pyproject.toml.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINES = {
    "cli": 80, "testing": 300, "report": 250, "serving": 300, "evaluation": 250, "pipeline": 300,
    "recipe": 250, "methods": 200, "checkpoints": 250, "layers": 200, "kvcache": 200, "solvers": 200, "transforms": 200,
    "architectures": 80, "statistics": 150, "kernels": 400, "layouts": 120, "formats": 150, "dtypes": 120,
    "sides": 120, "core": 120,
}  # fmt: skip
OTHER_LINES = 300
CONTRACT_LINES = 250
SHARED_LINES = 150
FUNCTION_LINES = 60
INHERITANCE = 2
LITERAL = 40
NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "registry", "misc"}
SECTIONS = {
    "methods": ("In / Out", "Idea", "Source"),
    "formats": ("In / Out", "Idea"),
    "layouts": ("Layout",),
    "dtypes": ("In / Out", "Idea"),
}
WITH_TORCH = ("triton", "cuda")
Finding = tuple[int, str]


def room(path: Path) -> str:
    """The room of a file inside the package folder: "" for files of the root."""
    return path.parts[0] if len(path.parts) > 1 else ""


def findings(path: Path, text: str) -> Iterator[Finding]:
    """Everything wrong with one file of the package; `path` is relative to the package."""
    tree = ast.parse(text)
    yield from _size(path, text)
    yield from _header(path, tree)
    if path.stem.strip("_") in NAMES:
        yield 1, f"'{path.stem}' says nothing. Name the file after what it does."
    for node in ast.walk(tree):
        yield from _function(path, node)
        yield from _literal(node)
        yield from _enum(node)


def _size(path: Path, text: str) -> Iterator[Finding]:
    lines = text.count("\n")
    limit = LINES.get(room(path), OTHER_LINES)
    if path.stem.startswith("_"):
        limit = max(limit, CONTRACT_LINES if path.stem == "__init__" else SHARED_LINES)
    if lines > limit:
        yield 1, f"{lines} lines, room for {limit}. Cut it where it does two things."


def _header(path: Path, tree: ast.Module) -> Iterator[Finding]:
    header = ast.get_docstring(tree) or ""
    first = header.split("\n", 1)[0]
    if not first:
        yield 1, 'no header. Say what the file does: """name - what it does."""'
        return
    name = path.stem.rstrip("_")
    if path.stem not in {"__init__", "__main__"} and not first.startswith(f"{name} - "):
        yield 1, f"the header starts with '{first[:30]}', not with '{name} - '."
    if path.stem.startswith("_"):
        return
    for section in SECTIONS.get(room(path), ()):
        if not re.search(rf"^{re.escape(section)}\b", header, re.MULTILINE):
            yield 1, f"the header has no '{section}'. The pages are made from it."


def _function(path: Path, node: ast.AST) -> Iterator[Finding]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and room(path) != "kernels":
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {lines} lines, room for {FUNCTION_LINES}."


def _literal(node: ast.AST) -> Iterator[Finding]:
    if isinstance(node, ast.List | ast.Tuple | ast.Set) and len(node.elts) > LITERAL:
        yield node.elts[0].lineno, f"a table of {len(node.elts)} values. Put it into a data file, or compute it."


def _enum(node: ast.AST) -> Iterator[Finding]:
    if isinstance(node, ast.ImportFrom) and node.module == "enum":
        yield node.lineno, "an enum is a list that every new file would have to change. Use names of files."


def deep(files: dict[Path, str]) -> Iterator[tuple[Path, int, str]]:
    """Classes with more own ancestors, one above the other, than the house allows."""
    bases: dict[str, list[str]] = {}
    places: dict[str, tuple[Path, int]] = {}
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(b).rpartition(".")[2] for b in node.bases]
                places[node.name] = (path, node.lineno)

    def depth(name: str, below: tuple[str, ...] = ()) -> int:
        own = [b for b in bases[name] if b in bases and b not in below]
        return 1 + max(depth(b, (*below, name)) for b in own) if own else 0

    for name, place in places.items():
        if depth(name) > INHERITANCE:
            yield *place, f"{name} inherits over {depth(name)} levels, at most {INHERITANCE}."


def undeclared(files: dict[Path, str], project: dict[str, object]) -> Iterator[tuple[Path, int, str]]:
    """Imports of distributions that pyproject.toml does not name."""
    extras = project.get("optional-dependencies", {})
    asked = [*project["dependencies"], *(d for e in extras.values() for d in e)]  # type: ignore[misc,attr-defined]
    declared = {re.split(r"[^\w.-]", str(d))[0].lower().replace("-", "_") for d in asked}
    known = {"lowbit", *sys.stdlib_module_names, *declared, *WITH_TORCH}
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                for name in {n.split(".")[0] for n in names} - known:
                    yield path, node.lineno, f"imports {name}, which pyproject.toml does not name."


def survey(package: Path, project: dict[str, object]) -> list[str]:
    """All findings in a package folder, as lines to print."""
    files = {p.relative_to(package): p.read_text(encoding="utf-8") for p in sorted(package.rglob("*.py"))}
    rows = [(path, line, what) for path, text in files.items() for line, what in findings(path, text)]
    rows += [*deep(files), *undeclared(files, project)]
    return [f"{package.name}/{path}:{line}: {what}" for path, line, what in sorted(rows, key=str)]


def main() -> int:
    package = ROOT / "src" / "lowbit"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = survey(package, project)
    print("\n".join(rows), end="\n" if rows else "")
    return 1 if rows else 0


if __name__ == "__main__":
    sys.exit(main())
