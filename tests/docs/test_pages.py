"""What the pages tell a reader to type, typed: the shell and Python blocks of the guide, every sentence; the pages' maker."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lowbit import methods
from lowbit.cli.main import app
from lowbit.recipe import Recipe

ROOT = Path(__file__).parents[2]
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "index.md", *GUIDE]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUANTIZE = re.compile(r"lowbit quantize \S+ \"([^\"]+)\"")


def shell(line: str) -> None:
    """One line of a shell block: a command of lowbit, run here."""
    program, *arguments = shlex.split(line)
    assert program == "lowbit", line
    result = CliRunner().invoke(app, arguments, input="Hello\n", catch_exceptions=False)
    assert result.exit_code == 0, (line, result.output)


@pytest.mark.parametrize("page", [p for p in GUIDE if p.stem != "extending"], ids=lambda p: p.stem)
def test_blocks_of_the_guide_run(page: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    shutil.copytree(tiny_llama, tmp_path / "models" / "lowbit-tiny")
    monkeypatch.chdir(tmp_path)
    if page.stem == "measuring":
        shell("lowbit quantize models/lowbit-tiny 'rtn(int4-g128)' --out small")
    names: dict[str, object] = {}
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "sh":
            for line in text.splitlines():
                shell(line)
        else:
            exec(compile(text, str(page), "exec"), names)


def test_sentences_on_the_pages_can_be_read() -> None:
    found = [s for page in PAGES for s in QUANTIZE.findall(page.read_text(encoding="utf-8"))]
    table = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "guide" / "recipes.md").read_text(encoding="utf-8"), re.MULTILINE)
    sentences = [s for s in (*found, *table) if "deadzone" not in s]
    assert len(sentences) > 8
    for sentence in sentences:
        assert str(Recipe.parse(sentence)) == sentence


def test_the_readme_names_every_method() -> None:
    words = set(re.findall(r"\w+", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert not {*methods.shelf.names()} - words


def test_formats_on_the_page_have_the_bits_it_says() -> None:
    from lowbit import formats

    rows = re.findall(
        r"^\| `([^`]+)` \| (\d\.\d+) \|", (ROOT / "docs" / "guide" / "formats.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 8
    for name, bits in rows:
        assert formats.parse(name).bits_per_weight((1024, 1024)) == pytest.approx(float(bits), abs=6e-4)


def test_header_is_taken_apart() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    text = "awq - scale a_b.\n\nFree *text*.\n\n    as it stands\n\nIn / Out  W -> W,\n          twice.\nTraps     None."
    header = generate["parse"](text)
    assert header.summary == "scale a_b."
    assert list(generate["blocks"](header.text)) == ["Free \\*text\\*.", "```text\nas it stands\n```"]
    assert generate["flowing"](header.sections["In / Out"]) == "W -> W, twice."
    assert header.sections["Traps"] == ["     None."]
