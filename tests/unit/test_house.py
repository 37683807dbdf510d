"""tools/house.py finds what it promises to find (`make check` runs it over the house)."""

import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
house = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "house.py")))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAD = '"""mine - a thing.\n\nIn / Out  x -> y.\nIdea      y = x.\nSource    own.\n"""\n'


def found(tmp_path: Path, place: str, text: str) -> list[str]:
    """What the house says of a package that holds one file."""
    path = tmp_path / "lowbit" / place
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return house.survey(tmp_path / "lowbit", PROJECT)


def test_a_good_file_passes(tmp_path: Path) -> None:
    assert found(tmp_path, "methods/mine.py", HEAD + "import torch\n") == []


@pytest.mark.parametrize(
    ("place", "text", "fact"),
    [
        ("methods/mine.py", HEAD + "x = 1\n" * 200, "206 lines, room for 200"),
        ("cli/mine.py", HEAD + "x = 1\n" * 80, "86 lines, room for 80"),
        ("core/mine.py", HEAD + "def f():\n" + "    x = 1\n" * 60, "f has 61 lines, room for 60"),
        ("core/mine.py", "x = 1\n", "no header"),
        ("core/mine.py", '"""yours - a thing."""\n', "the header starts with 'yours - a thing.'"),
        ("methods/mine.py", '"""mine - a thing."""\n', "the header has no 'Idea'"),
        ("core/utils.py", '"""utils - things."""\n', "'utils' says nothing"),
        ("core/mine.py", HEAD + "from enum import Enum\n", "an enum is a list"),
        ("core/mine.py", HEAD + f"X = {list(range(41))}\n", "a table of 41 values"),
        ("core/mine.py", HEAD + "import pandas\n", "imports pandas, which pyproject.toml does not name"),
        ("core/mine.py", HEAD + "class A: 0\nclass B(A): 0\nclass C(B): 0\nclass D(C): 0\n", "D inherits over 3 levels"),
    ],
)
def test_each_rule_finds_its_breach(tmp_path: Path, place: str, text: str, fact: str) -> None:
    rows = found(tmp_path, place, text)
    assert any(fact in row and row.startswith(f"lowbit/{place}:") for row in rows), rows


def test_the_lists_of_rooms_agree() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    rooms = {name for layer in layers for name in layer.split(" | ")} - {"verbs"}
    assert rooms == set(house.LINES)
    assert rooms == {p.parent.name for p in (ROOT / "src" / "lowbit").glob("*/__init__.py")}
