"""Two processes quantize as one does: the same scales of transforms, codes equal up to the order of sums, one writer."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import lowbit
from lowbit import checkpoints, formats
from lowbit.checkpoints import Folder
from lowbit.core import ranks
from lowbit.pipeline import solving
from lowbit.solvers import rows as apart
from lowbit.solvers import stacked
from lowbit.testing._tiny import tiny

SOURCE = Path(__file__).parents[2] / "src"
TOKENIZER = Path(__file__).parents[2] / "models" / "lowbit-tiny"
RUN = "import sys, lowbit; lowbit.quantize(*sys.argv[1:4], samples=5, length=32, device='cpu')"
STACKED = "from lowbit.pipeline import solving; solving.STACKED = {'cpu'}; " + RUN


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny("llama", vocab_size=8192, sliding_window=None).save_pretrained(folder)
    for path in TOKENIZER.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def together(model: Path, sentence: str, out: Path, count: int = 2, run: str = RUN) -> list[tuple[int, str]]:
    """Quantize in several processes, as torchrun starts them; exit codes and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", run, str(model), sentence, str(out)]
    started = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE)
        for r in range(count)
    ]
    said = [process.communicate(timeout=240)[1].decode() for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def test_two_processes_are_as_one(model: Path, tmp_path: Path) -> None:
    sentence = 'awq@layers.0 + gptq(int4-g32) + gptq(trellis_short2)@"*.1.self_attn.k_proj"'
    done = together(model, sentence, tmp_path / "two")
    assert [code for code, _ in done] == [0, 0], done[0][1][-2000:] + done[1][1][-2000:]
    alone = lowbit.quantize(str(model), sentence, str(tmp_path / "one"), samples=5, length=32, device="cpu")
    one, two = (checkpoints.Stored(Folder(tmp_path / name)) for name in ("one", "two"))
    assert one.formats == two.formats
    for name in [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]:
        ours, theirs = one.quantized(name).decode(), two.quantized(name).decode()
        assert (ours - theirs).norm() < 0.001 * ours.norm(), name
    # later sums differ in the last bit, and the first code that falls on its other side moves those behind it: losses stay
    for row, other in zip(alone.layers, _told(tmp_path / "two")["layers"], strict=True):
        assert row["tokens"] == other["tokens"] == 160
        assert other["error"] == pytest.approx(row["error"], rel=0.05)
    assert _told(tmp_path / "two")["check"]["kl"] == pytest.approx(alone.check["kl"], rel=0.05)


def test_matrices_of_one_input_are_rounded_as_one(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacked, by one process and by two: the files of matrices that are rounded one by one, up to the order of sums."""
    sentence = "gptaq(int4-g32)@attn + gptq(int4-g32-asym)@mlp"
    one_by_one = lowbit.quantize(str(model), sentence, str(tmp_path / "apart"), samples=5, length=32, device="cpu")
    stacks = []
    plain = stacked.solve
    monkeypatch.setattr(solving, "STACKED", {"cpu"})
    monkeypatch.setattr(stacked, "solve", lambda weights, one: stacks.append(len(weights)) or plain(weights, one))
    as_one = lowbit.quantize(str(model), sentence, str(tmp_path / "one"), samples=5, length=32, device="cpu")
    assert stacks == [3, 2] * (len(stacks) // 2)
    done = together(model, sentence, tmp_path / "two", run=STACKED)
    assert [code for code, _ in done] == [0, 0], done[0][1][-2000:] + done[1][1][-2000:]
    apart, *others = (checkpoints.Stored(Folder(tmp_path / name)) for name in ("apart", "one", "two"))
    for name in apart.formats:
        wanted, one, two = (stored.quantized(name).decode() for stored in (apart, *others))
        assert (one - wanted).norm() < 0.01 * wanted.norm(), name
        assert (two - wanted).norm() < 0.02 * wanted.norm() or ".1." in name, name  # what comes later drifts apart
    for rows in (as_one.layers, _told(tmp_path / "two")["layers"]):
        for row, other in zip(one_by_one.layers, rows, strict=True):
            assert row["name"] == other["name"]
            assert other["error"] == pytest.approx(row["error"], rel=0.05)


def test_what_cannot_be_shared_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    done = together(model, "gptq(int4-g32) + block_tuning", tmp_path / "two")
    assert all(code for code, _ in done)
    assert "in 2 processes: tuners and finishers train on all windows. Run it in one" in done[0][1]
    assert not list(tmp_path.iterdir())


def test_shares_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 3)
    assert ranks.shares(8) == [slice(0, 2), slice(2, 5), slice(5, 8)]
    assert ranks.shares(64, 16) == [slice(0, 16), slice(16, 32), slice(32, 64)]
    assert ranks.shares(2) == [slice(0, 0), slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("int4-g32", True), ("lut3-row", True), ("nf4-g64-dq", False), ("int4-tensor", False), ("nvfp4", False)],
)
def test_rows_are_shared_where_they_stand_alone(text: str, wanted: bool) -> None:
    assert apart.separable(formats.parse(text).core) is wanted


def _told(folder: Path) -> dict:  # type: ignore[type-arg]
    found: dict = json.loads((folder / "lowbit.json").read_text())  # type: ignore[type-arg]
    return found
