"""`lowbit diagnose`: it names the channels and tokens that were planted, measures each part alone, recommends what runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import lowbit
from lowbit.cli._output import plain
from lowbit.core.errors import CheckpointError
from lowbit.evaluation import perturbation, ranges
from lowbit.layers.loading import load
from lowbit.recipe import advice
from lowbit.report import diagnosis as page
from lowbit.testing._tiny import tiny, tokens

QUICK: dict[str, Any] = {"windows": 2, "length": 128}
NORM, UP, VALUE = 17, 200, 5


def planted(folder: Path) -> None:
    """Outliers that leave the function as it is: a channel of the first norm, one of the MLP, one value of the second head."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    block = model.model.layers[1]
    block.input_layernorm.weight.data[NORM] *= 60
    for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
        linear.weight.data[:, NORM] /= 60
    block.mlp.up_proj.weight.data[UP] *= 60
    block.mlp.down_proj.weight.data[:, UP] /= 60
    block.self_attn.v_proj.weight.data[32 + VALUE] *= 60
    for head in (2, 3):
        block.self_attn.o_proj.weight.data[:, 32 * head + VALUE] /= 60
    model.save_pretrained(folder)


def test_planted_channels_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    """The diagnosis of a model, and of the same with planted outliers."""
    before = lowbit.diagnose(str(tiny_llama), out=str(tmp_path / "plain"), **QUICK)
    planted(tiny_llama)
    after = lowbit.diagnose(str(tiny_llama), out=str(tmp_path / "planted"), **QUICK)
    assert not any(layer["channels"] for layer in before["layers"])
    found = {(layer["block"], layer["kind"]): [c["channel"] for c in layer["channels"]] for layer in after["layers"]}
    expected = {(1, "q k v"): [NORM], (1, "o"): [32 * 2 + VALUE, 32 * 3 + VALUE], (1, "down"): [UP]}
    assert {key: sorted(channels) for key, channels in found.items() if channels} == expected
    assert before["perplexity"] == pytest.approx(after["perplexity"], rel=1e-3)
    losses = [{(row["what"], row["kind"]): row["kl"] for row in result["losses"]} for result in (before, after)]
    key = ("inputs int8-tensor", "all")
    assert losses[1][key] > 10 * losses[0][key]
    other = after["advice"]["others"][0]
    assert other["sentence"].startswith("smoothquant + ") and "up to" in other["reason"]
    assert not before["advice"]["others"][0]["sentence"].startswith("smoothquant")
    told = (tmp_path / "planted" / "report.html").read_text(encoding="utf-8")
    assert f"{NORM} (" in told and told.count("<svg") == 4 and "http://www.w3.org" in told and "<script src" not in told
    data = told.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["advice"] == after["advice"]
    for name in ("losses", "ranges", "channels", "tokens"):
        assert (tmp_path / "planted" / f"{name}.png").stat().st_size > 10_000
    json.dumps(plain(after), allow_nan=False)
    for number, sentence in enumerate((after["advice"]["sentence"], other["sentence"])):
        made = lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / str(number)), samples=2, length=128, dry_run=True)
        assert made.bits_per_weight < 9


def test_a_token_that_stands_out_is_named(tiny_llama: Path) -> None:
    """A hidden unit that answers to one token alone; its size says nothing against the channel."""
    from lowbit.pipeline.source import tokenizer_of

    inputs, rows = ranges.Inputs(), [torch.arange(100, 200), torch.arange(100, 200)]
    for _ in rows:
        x = torch.randn(100, 32)
        x[40, 7] = 500
        inputs.add(x)
    told = inputs.row(rows, tokenizer_of(tiny_llama))
    assert [(t["id"], t["count"], t["position"]) for t in told["tokens"]] == [(140, 2, 40)]
    assert told["channels"] == [] and told["max"] == 500 and told["kurtosis"] > 1000
    assert told["positions"][40] == pytest.approx(told["tokens"][0]["ratio"])
    reason = advice._tokens([{"block": 3, "kind": "down", "tokens": told["tokens"]}])[0]
    assert "stands out" in reason and "down of block 3" in reason


def test_probes_leave_the_model_as_it_was() -> None:
    model = tiny("qwen3", sliding_window=None)
    rows = list(tokens(length=128))
    with torch.no_grad():
        originals = [model(row[None], use_cache=False).logits[0] for row in rows]
    heard: list[str] = []
    losses = perturbation.probe(model, rows, originals, heard.append)
    assert heard == ["q k v", "o", "gate up", "down", "all", "cache"]
    kl = {(row["what"], row["kind"]): row["kl"] for row in losses}
    for kind in heard[:5]:
        assert 0 < kl["weights int8", kind] < kl["weights int4", kind]
        assert 0 < kl["inputs int8-token", kind] <= kl["inputs int8-tensor", kind] * 1.5
        assert kl["inputs int8-token", kind] < kl["inputs int4-token", kind]
    for side in ("keys", "values", "all"):
        assert 0 < kl["cache int8", side] < kl["cache int4", side]
    with torch.no_grad():
        assert all(torch.equal(model(row[None], use_cache=False).logits[0], o) for row, o in zip(rows, originals, strict=True))


def test_experts_are_seen() -> None:
    model = tiny("qwen3_moe", sliding_window=None)
    from lowbit.layers import replacing

    replacing.open_experts(model)
    kinds = {kind for _, kind, _ in ranges.stages(model)}
    assert {"q k v", "o", "gate up", "down"} <= kinds


def test_worst_kinds_get_more_bits() -> None:
    class Linear:
        role, layer = "mlp", 0

        def __init__(self, name: str) -> None:
            self.name, self.shape = f"layers.0.{name}", (64, 128)

    linears = [Linear("q_proj"), Linear("down_proj")]
    kinds = {"q": 0.1, "down": 0.9, "all": 1.0}
    losses = [{"what": "weights int4", "kind": k, "kl": v} for k, v in kinds.items()]
    losses += [
        {"what": w, "kind": "all", "kl": v} for w, v in (("inputs int8-token", 0.01), ("cache int4", 2), ("cache int8", 0.01))
    ]
    found = advice.recommend([], losses, linears)
    assert found["sentence"] == 'gptaq(int4-g128-asym) + gptaq(int8-g128)@"*.down_proj" + kv(int8)'
    assert any("90 % of the loss" in reason for reason in found["reasons"])


def test_quantized_models_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    lowbit.quantize(str(tiny_llama), "rtn(int8-row)", str(tmp_path / "out"), samples=2, length=64)
    with pytest.raises(CheckpointError, match="already quantized"):
        lowbit.diagnose(str(tmp_path / "out"), out=str(tmp_path / "d"), **QUICK)
    assert load(tiny_llama) is not None and page.COLUMNS[0] == "block"
