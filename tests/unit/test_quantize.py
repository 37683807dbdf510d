"""The whole run on a small real model: guards, resume to the same bytes, errors that leave nothing behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.core.errors import CalibrationError, CapacityError, CheckpointError, RequestError
from lowbit.pipeline import blocks
from lowbit.pipeline import quantize as running
from lowbit.pipeline.writer import Writer
from lowbit.testing.killing import KillAfter, Killed, digest

SMALL: dict[str, Any] = {"samples": 4, "length": 64}


@pytest.mark.parametrize(
    "recipe", ["rtn(int4-g128)", "gptq(int3-g64-asym)", "awq + gptaq(int4-g128)", "gptq(int4-g128)@mlp", "rtn(nf4-g64)"]
)
def test_written_folder_is_the_model_in_memory(tiny_llama: Path, tmp_path: Path, recipe: str) -> None:
    result = lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "out"), **SMALL)
    model = lowbit.load(tmp_path / "out", dtype=torch.float32)
    original = lowbit.load(tiny_llama, dtype=torch.float32)
    tokens = torch.arange(60)[None]
    p, q = original(tokens).logits.log_softmax(-1), model(tokens).logits.log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert 0 < kl < 0.2 and 0 < result.check["kl"] < 0.2
    told = json.loads((tmp_path / "out" / "lowbit.json").read_text())
    assert told["sentence"] == str(lowbit.Recipe.parse(recipe)) and len(told["layers"]) == len(result.layers)
    assert f"    {told['sentence']}" in (tmp_path / "out" / "README.md").read_text()
    packed = sum(m.memory_bytes() for m in model.modules() if hasattr(m, "memory_bytes"))
    weights = sum(m.in_features * m.out_features for m in model.modules() if hasattr(m, "memory_bytes"))
    assert packed * 8 / weights == pytest.approx(result.bits_per_weight, rel=1e-3)


@pytest.mark.parametrize("recipe", ["gptq(int4-g128)", "awq + gptaq(int4-g64)"])
@pytest.mark.parametrize("after", [1, 2])
def test_resume_gives_the_same_bytes(tiny_llama: Path, tmp_path: Path, recipe: str, after: int) -> None:
    lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "whole"), **SMALL)
    with pytest.raises(Killed):
        lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "killed"), progress=KillAfter(after), **SMALL)
    assert not (tmp_path / "killed").exists() and (tmp_path / "killed.partial").exists()
    lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "killed"), **SMALL)
    assert digest(tmp_path / "whole") == digest(tmp_path / "killed")
    assert not (tmp_path / "killed.partial").exists()


@pytest.mark.parametrize("moment", ["join", "complete", "describe"])
def test_a_kill_after_the_last_block_is_mended_too(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        real = getattr(Writer, moment)

        def dies(self: Writer, *arguments: Any) -> None:
            real(self, *arguments)
            raise Killed

        patch.setattr(Writer, moment, dies)
        with pytest.raises(Killed):
            lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "killed"))
    lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "killed"))
    assert digest(tmp_path / "whole") == digest(tmp_path / "killed")


def test_another_recipe_in_an_unfinished_folder_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "out"), progress=KillAfter(1))
    with pytest.raises(CheckpointError, match="differs in sentence"):
        lowbit.quantize(str(tiny_llama), "rtn(int3-g128)", str(tmp_path / "out"))


def test_dry_run_writes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    result = lowbit.quantize(str(tiny_llama), "gptq(int4-g128)", str(tmp_path / "out"), dry_run=True)
    real = lowbit.quantize(str(tiny_llama), "gptq(int4-g128)", str(tmp_path / "real"), **SMALL)
    assert not (tmp_path / "out").exists() and len(result.outlook["layers"]) == 14
    files = sum(f.stat().st_size for f in (tmp_path / "real").glob("*.safetensors"))
    assert abs(files - result.bytes) < 0.02 * files + 4096
    assert result.bits_per_weight == real.bits_per_weight


def test_weights_that_do_not_fit_the_config_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    config = tiny_llama / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 256', '"intermediate_size": 512'))
    with pytest.raises(
        CheckpointError, match=r"mlp\.gate_proj\.weight: \[256, 128\] in the files, \[512, 128\] by config.json"
    ):
        lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "out"), dry_run=True)


def test_a_rival_of_another_vocabulary_is_refused(tiny_llama: Path, lowbit_tiny: Path) -> None:
    with pytest.raises(RequestError, match="their vocabularies have 258 and 8192 tokens"):
        lowbit.evaluate(str(tiny_llama), against=str(lowbit_tiny), text=["bundled"], windows=1, length=16)


def test_folder_that_exists_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "out"))


def test_nan_weights_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_llama / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, tiny_llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: 1 of 32768 values are NaN"):
        lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.txt", "", "holds no text"),
        ("short.txt", "too short", "make no window"),
        ("bad.jsonl", "{}\n", "line 1"),
    ],
)
def test_bad_calibration_files(tiny_llama: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CalibrationError, match=message):
        lowbit.quantize(str(tiny_llama), "gptq(int4-g128)", str(tmp_path / "out"), calibration=str(tmp_path / name), length=64)
    assert not list(tmp_path.glob("out*"))


def test_missing_calibration_file_and_model(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file"):
        lowbit.quantize(str(tiny_llama), "gptq(int4-g128)", str(tmp_path / "out"), calibration="nowhere.txt")
    with pytest.raises(CheckpointError, match="no such folder"):
        lowbit.quantize(str(tmp_path / "nowhere"), "rtn(int4-g128)")


def test_group_that_does_not_divide_and_typo(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"group 100 does not divide 128 inputs|cannot take model\.layers\.0"):
        lowbit.quantize(str(tiny_llama), "rtn(int4-g100)", str(tmp_path / "out"))
    with pytest.raises(RequestError, match="Nearest: gptq"):
        lowbit.quantize(str(tiny_llama), "gtpq(int4-g128)", str(tmp_path / "out"))


def test_full_disk_is_told_before_work(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CapacityError, match="free"):
        lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_too_little_memory_is_told_before_work(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "available_memory", lambda _: 1000)
    with pytest.raises(CapacityError, match="memory"):
        lowbit.quantize(str(tiny_llama), "gptq(int4-g128)", str(tmp_path / "out"), **SMALL)


def test_generated_calibration(tiny_llama: Path, tmp_path: Path) -> None:
    result = lowbit.quantize(
        str(tiny_llama), "gptq(int4-g128)", str(tmp_path / "out"), calibration="generated", samples=2, length=32
    )
    assert result.calibration["text"] == "generated" and result.calibration["windows"] == 2


def test_shares_of_a_stage() -> None:
    assert blocks.shares(["a.q", "a.k"]) == {"a.q": ["a.q", "a.k"]}
    names = ["mlp.experts.0.gate_proj", "mlp.experts.1.gate_proj", "mlp.experts.0.up_proj"]
    assert blocks.shares(names) == {names[0]: [names[0], names[2]], names[1]: [names[1]]}
