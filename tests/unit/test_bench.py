"""bench/all.py: what it would start exists, bars are judged by the rows, and what takes too long is stopped whole."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import _bars  # noqa: E402
import all as every  # noqa: E402

MACHINES = ("gpu", "cpu")


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_started_is_there(machine: str) -> None:
    for run in _bars.plan(machine)[0]:
        file, *words = shlex.split(run["command"])
        text = (BENCH / file).read_text()
        for word in (word for word in words if word.startswith("--")):
            assert word.split("=")[0] in text or f'"{word[2:].split("=")[0]}"' in text, run["command"]


@pytest.mark.parametrize("machine", MACHINES)
def test_bars_ask_for_rows_that_some_benchmark_keeps(machine: str) -> None:
    sources = "".join(file.read_text() for file in BENCH.glob("*.py"))
    for bar in _bars.plan(machine)[1]:
        assert f'"{bar.rows}",' in sources or (bar.rows == "kv_memory" and 'keep("kv_memory"' in sources), bar.rows
        assert (bar.least is None) != (bar.most is None), bar.says


def rows() -> list[dict[str, Any]]:
    one = {"kernel": "ours", "format": "int4-g128", "rows": 64, "inputs": 64, "tokens": 1}
    return [
        {**one, "us": 9.0, "ratio": 1.9}, {**one, "us": 4.0, "ratio": 1.1}, {**one, "tokens": 16, "us": 6.0, "ratio": 1.4},
        {**one, "kernel": "cublas", "us": 10.0},
        {**one, "kernel": "marlin", "us": 3.0}, {**one, "kernel": "marlin", "tokens": 16, "us": 9.0},
        {**one, "format": "int3-g128", "us": 3.2, "inside": {"a b": 7}},
    ]  # fmt: skip


def judged(**asked: Any) -> tuple[float | None, str, int]:
    found = _bars.judge(_bars.Bar(**{"machine": "gpu", "says": "", "rows": "x", "figure": "us", **asked}), rows())
    return found.worst, found.told, found.count


def test_bars_are_judged_by_the_worst_of_the_newest_rows() -> None:
    ours = {"kernel": "ours", "format": "int4-g128"}
    assert judged(where=ours, figure="ratio", most=1.35) == (1.4, "misses", 2)
    assert judged(where={**ours, "tokens": 1}, figure="ratio", most=1.35) == (1.1, "holds", 1)
    assert judged(where={**ours, "tokens": [1, 16]}, against={"kernel": ["cublas", "marlin"]}, least=1) == (0.75, "misses", 2)
    assert judged(where={**ours, "tokens": 16}, against={"kernel": ["cublas", "marlin"]}, least=1) == (1.5, "holds", 1)
    assert judged(where={"format": "int3-g128"}, against={"format": "int4-g128"}, least=1) == (1.25, "holds", 1)
    assert judged(where={"format": "int3-g128"}, figure=["inside", "a b"], least=8) == (7, "misses", 1)
    assert judged(where={"format": "int2-g128"}, most=8) == (None, "no row", 0)
    assert judged(where=ours, against={"kernel": "machete"}, least=1) == (None, "no row", 0)


def test_options_of_rivals_that_are_not_here_are_left_out() -> None:
    run = {"command": "x.py --a {one} --b {two}/file --c 3", "seconds": 1}
    assert every.command(run, {"two": "here"})[2:] == ["--b", "here/file", "--c", "3"]
    assert every.command({**run, "gpus": 2}, {"one": "p", "two": "t"})[1:4] == [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
    ]
    assert every.refusal({"needs": ["llama"]}, {}, 100, 0) == "no --rival llama=PYTHON"
    assert every.refusal({"gpus": 2}, {}, 100, 1) == "2 GPUs are needed, 1 are there"
    assert every.refusal({}, {}, 5, 1) == "no time left" and not every.refusal({}, {}, 100, 0)


def test_what_takes_too_long_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    script = tmp_path / "slow.sh"
    script.write_text(f"(sleep 2; touch {tmp_path}/late) &\nsleep 60\n")
    start = time.perf_counter()
    assert every.carry_out(["sh", str(script)], 0.3) == "stopped after 0 s" and time.perf_counter() - start < 2
    time.sleep(2.2)
    assert not (tmp_path / "late").exists()
    assert every.carry_out(["sh", "-c", "exit 3"], 10) == "0 s, ended with 3"


def test_only_rows_of_this_call_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_bars, "RESULTS", tmp_path)
    monkeypatch.setattr(every, "HERE", tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"us": 1, "tokens": 1}\n')
    (tmp_path / "one.py").write_text(f"open(r'{tmp_path}/mine.jsonl', 'a').write('{{\"us\": 5, \"tokens\": 2}}\\n')")
    bar = _bars.Bar("cpu", "as fast as that", "mine", {}, "us", most=4)
    monkeypatch.setattr(every, "plan", lambda machine: ([{"command": "one.py", "seconds": 30}], [bar]))
    told = every.measure("cpu", 1, {})
    assert told[-1].startswith("| as fast as that | at most 4 | 5 | misses | 1 |")
