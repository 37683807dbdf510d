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
from lowbit import architectures, dtypes, formats, layouts, methods, sides, statistics, verbs
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
    "names": {r.shelf.package: r.shelf.names() for r in (architectures, dtypes, formats, layouts, methods, sides, statistics)},
    "listed": [r["name"] for k in ("methods", "formats", "dtypes", "sides", "architectures") for r in verbs.listing(k)],
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

SUITES = """
from lowbit.testing import cli, dtypes, formats, layouts, methods, sides, statistics

for check in (methods.check_declaration, methods.check_near_identity, methods.check_report, methods.check_hard_inputs):
    check("deadzone")
dtypes.check_element("log4")
for name in ("log4-g64", "shift", "int4-g128-mean"):
    formats.check_format(name)
sides.check_side("mean")
for check in (statistics.check_split, statistics.check_going_on, statistics.check_nothing, statistics.check_precision):
    check("mean_input")
layouts.check_layout("backwards")
cli.check_declaration("weigh")
"""


def run(*arguments: str, path: list[Path]) -> str:
    """What Python prints with `path` in front of all other places."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_used(facts: dict) -> None:
    """Every file was found and does what its header says."""
    assert {"deadzone", "shift", "log4", "mean", "almost_llama"} <= {*facts["listed"]}
    for shelf, name in SHELVES.items():
        assert name in (facts["commands"] if shelf == "cli" else facts["names"][f"lowbit.{shelf}"])
    assert facts["sentence"] == "deadzone(int4-g128, dead=0.7)"
    assert facts["dead"] > facts["zero"] > 0
    assert facts["powers"] and facts["error"] <= 0.5 and facts["bits"] == 4.5
    assert facts["round_trip"] and facts["stages"] == 4


def test_the_guide_has_one_file_for_each_shelf() -> None:
    assert set(SHELVES) == {"methods", "dtypes", "formats", "sides", "statistics", "layouts", "architectures", "cli"}


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


def test_new_files_pass_the_suites(copy: Path) -> None:
    run("-c", SUITES, path=[copy])


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
