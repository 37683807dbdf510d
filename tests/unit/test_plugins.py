"""One new file, no other file changed: the examples of docs/guide/extending.md in a copy of lowbit, and by entry points."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide" / "extending.md"
FILES = dict(
    re.findall(r"^`src/lowbit/(\S+\.py)`\n\n```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
)
SHELVES = {place.partition("/")[0]: Path(place).stem for place in FILES}

USE = """
import json, torch
from lowbit import architectures, formats, layouts, methods
from lowbit.cli.main import commands
from lowbit.recipe import Recipe
from lowbit.statistics import Stats

recipe = Recipe.parse("deadzone(int4-g128, dead=0.7)")
(method, _), = recipe.steps
weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
quantized = method.solve(weight, Stats(), formats.parse(method.format))
format = formats.parse("shift")
grid = format.fit(weight)
codes = torch.arange(256, dtype=torch.uint8).view(2, 128)
layout = layouts.shelf.get("backwards")
print(json.dumps({
    "names": {s.package: s.names() for s in (architectures.shelf, formats.shelf, layouts.shelf, methods.shelf)},
    "commands": sorted(commands()),
    "sentence": str(recipe),
    "dead": float((quantized.decode() == 0).float().mean()),
    "zero": float((formats.parse("int4-g128").fit(weight).quantize(weight).decode() == 0).float().mean()),
    "powers": bool((grid.scale.log2() == grid.scale.log2().round()).all()),
    "error": float((grid.quantize(weight).decode() - weight).abs().max() / grid.scale.max()),
    "bits": format.bits_per_weight((8, 128)),
    "round_trip": bool((layout.unpack(layout.pack(codes, 8), 8, 128) == codes).all()),
    "stages": len(architectures.shelf.get("almost_llama").ARCHITECTURE.stages),
}))
"""


def run(*arguments: str, path: list[Path]) -> str:
    """What Python prints with `path` in front of all other places."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_used(facts: dict) -> None:
    """Every one of the five files was found and does what its header says."""
    for shelf, name in SHELVES.items():
        assert name in (facts["commands"] if shelf == "cli" else facts["names"][f"lowbit.{shelf}"])
    assert facts["sentence"] == "deadzone(int4-g128, dead=0.7)"
    assert facts["dead"] > facts["zero"] > 0
    assert facts["powers"] and facts["error"] <= 0.5 and facts["bits"] == 4.5
    assert facts["round_trip"] and facts["stages"] == 4


def test_the_guide_has_one_file_for_each_shelf() -> None:
    assert set(SHELVES) == {"methods", "formats", "layouts", "architectures", "cli"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one new file on each shelf; nothing that was there is changed."""
    place = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src" / "lowbit", place / "lowbit", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        assert not (place / "lowbit" / name).exists()
        (place / "lowbit" / name).write_text(text, encoding="utf-8")
    return place


def test_new_files_in_the_package(copy: Path) -> None:
    check_used(json.loads(run("-c", USE, path=[copy])))


def test_a_new_command_runs(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert json.loads(run("-m", "lowbit", "weigh", str(tmp_path), "--json", path=[copy])) == {"bytes": 5}
    assert "Tell how many bytes a model folder takes." in run("-m", "lowbit", "--help", path=[copy])


def test_new_files_in_another_package(tmp_path: Path) -> None:
    """The same files, unchanged, in a distribution of their own that declares entry points."""
    package, info = tmp_path / "plugin", tmp_path / "plugin-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    points = []
    for place, text in FILES.items():
        shelf, name = place.partition("/")[0], Path(place).stem
        (package / f"{name}.py").write_text(text, encoding="utf-8")
        points.append(f"[lowbit.{shelf}]\n{name} = plugin.{name}\n")
    (info / "entry_points.txt").write_text("\n".join(points))
    check_used(json.loads(run("-c", USE, path=[tmp_path, ROOT / "src"])))
    assert "weigh" in run("-m", "lowbit", "--help", path=[tmp_path, ROOT / "src"])


def test_without_them_they_are_not_there() -> None:
    told = run("-c", "from lowbit import methods; print(methods.shelf.names())", path=[ROOT / "src"])
    assert "deadzone" not in told
