"""Whole models in another basis: folded and online parts, files, stock loaders, resume, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import lowbit
from lowbit import Recipe, architectures, checkpoints, formats, sides
from lowbit.core.errors import ArchitectureError, FormatError, RecipeError
from lowbit.kernels import activation as acting
from lowbit.layers import replacing
from lowbit.layers.linear import QuantizedLinear
from lowbit.methods import duquant
from lowbit.sides import _hadamard
from lowbit.testing._tiny import tiny
from lowbit.testing.killing import KillAfter, Killed, digest
from lowbit.testing.planting import Outliers, plant
from lowbit.transforms.outline import Outline
from lowbit.transforms.turning import Turning
from tests.unit.test_quantize import SMALL

TOKENS = torch.arange(3, 60)[None]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(TOKENS, use_cache=False).logits.float()
    return found


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


STEPS = (
    "quarot", "quarot(online=none)", "quarot(online=all)", "spinquant(steps=2)", "ostquant(steps=2)",
    "flatquant(steps=4, batch=2)", "duquant(steps=8)", "outlier_suppression", "os_plus(grid=4)",
    "os_plus(grid=4, shift=false)", "quarot + smoothquant(edges=all)", "quarot + qoq",
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_the_written_model_computes_what_the_original_does(tiny_llama: Path, tmp_path: Path, step: str) -> None:
    lowbit.quantize(str(tiny_llama), f"{step} + rtn(int8-g32)", str(tmp_path / "out"), **SMALL)
    lowbit.quantize(str(tiny_llama), "rtn(int8-g32)", str(tmp_path / "plain"))
    original = logits(lowbit.load(tiny_llama, dtype=torch.float32))
    turned = off(logits(lowbit.load(tmp_path / "out", dtype=torch.float32)), original)
    assert turned < 1.5 * off(logits(lowbit.load(tmp_path / "plain", dtype=torch.float32)), original) + 0.004  # bf16 tables
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["tie_word_embeddings"] is not any(name in step for name in ("quarot", "spinquant", "ostquant"))
    folded = any(name in step for name in ("none", "shift=false", "suppression"))
    assert told["quantization_config"]["quant_method"] == ("compressed-tensors" if folded else "lowbit")


@pytest.mark.parametrize(
    "sentence", ["quarot(online=none) + gptq(int8-row) + act(int8-token)", "quarot(seed=3) + rtn(int4-row)"]
)
def test_stock_transformers_gives_the_same_logits(tiny_llama: Path, tmp_path: Path, sentence: str) -> None:
    lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "out"), **SMALL)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    bound = 5e-3 if "act" in sentence else 1e-5  # a last bit decides which way an input is rounded
    assert off(logits(model), logits(lowbit.load(tmp_path / "out", dtype=torch.float32))) < bound


@pytest.mark.parametrize("step", ["quarot", "flatquant(steps=4, batch=2)", "duquant(steps=8)", "os_plus(grid=4)"])
def test_resume_gives_the_same_bytes(tiny_llama: Path, tmp_path: Path, step: str) -> None:
    sentence = f"{step} + gptaq(int4-row) + act(int4-token, clip=0.9)"
    lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "whole"), **SMALL)
    with pytest.raises(Killed):
        lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "killed"), progress=KillAfter(1), **SMALL)
    lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "killed"), **SMALL)
    assert digest(tmp_path / "whole") == digest(tmp_path / "killed")


def test_experts_turn_the_inputs_that_each_gets(_tiny_llama: Path, tmp_path: Path) -> None:
    model = tiny("mixtral", vocab_size=258, bos_token_id=0, eos_token_id=1)
    model.save_pretrained(tmp_path / "moe")
    for file in _tiny_llama.glob("token*"):
        shutil.copy(file, tmp_path / "moe" / file.name)
    errors = []
    for step in ("", "quarot + "):
        out = tmp_path / f"out{step}"
        lowbit.quantize(str(tmp_path / "moe"), f"{step}rtn(int8-g16) + act(int8-g16)", str(out), **SMALL)
        errors.append(off(logits(lowbit.load(out, dtype=torch.float32)), logits(model)))
    assert errors[1] < 1.5 * errors[0]


@torch.no_grad()
@pytest.mark.parametrize("text", ["int8-row-turn", "int4-g32-turn16"])
@pytest.mark.parametrize("activation", ["int8-token", "int4-token"])
def test_a_layer_rounds_what_it_has_turned(text: str, activation: str) -> None:
    weight, x, format = torch.randn(32, 96), torch.randn(2, 5, 96), formats.parse(text)
    quantized = format.fit(weight, search=False).quantize(weight)
    layer = QuantizedLinear.from_quantized(quantized)
    assert layer(x).allclose(x @ quantized.decode().T, atol=1e-4)
    layer.activation = acting.parse(activation)
    size = 16 if "turn16" in text else 96
    rounded = acting.fake(_hadamard.apply(x, size), acting.parse(activation))
    wanted = _hadamard.apply(rounded, size, back=True) @ quantized.decode().T
    for found in (layer(x), layer.prepare()(x)):
        assert off(found, wanted) < 1e-5
    compiled: Any = torch.compile(layer, backend="aot_eager")
    assert off(compiled(x), wanted) < 1e-5


def test_formats_tell_what_inputs_meet_first() -> None:
    assert str(formats.parse("int4-g32").behind("turn")) == "int4-g32-turn"
    turned = formats.parse("trellis2").behind("turn")
    assert turned == formats.parse(str(turned)) and turned.inner.sides == ("had",) and turned.core.sides == ()
    with pytest.raises(FormatError, match="Put it last"):
        formats.parse("int4-g32-turn-had")


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("quarot@mlp + rtn(int4-row)", "turns the whole model"),
        ("awq + quarot + rtn(int4-row)", "Put quarot first"),
        ("rtn(int4-row) + quarot", "Put quarot first"),
        ("quarot", "nothing here rounds a weight"),
    ],
)
def test_a_sentence_that_cannot_be_meant_is_refused(sentence: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(sentence)


def test_a_stream_that_cannot_be_turned_is_refused_before_any_work(_tiny_llama: Path, tmp_path: Path) -> None:
    tiny("gemma3_text", vocab_size=258).save_pretrained(tmp_path / "gemma")
    for file in _tiny_llama.glob("token*"):
        shutil.copy(file, tmp_path / "gemma" / file.name)
    with pytest.raises(ArchitectureError, match="norms stand between"):
        lowbit.quantize(str(tmp_path / "gemma"), "quarot + rtn(int8-row)", str(tmp_path / "out"))
    assert not (tmp_path / "out.partial").exists()
    sentence = "quarot(online=all) + rtn(int8-g16) + act(int8-token)"
    lowbit.quantize(str(tmp_path / "gemma"), sentence, str(tmp_path / "out"))
    original = logits(lowbit.load(tmp_path / "gemma", dtype=torch.float32))
    assert off(logits(lowbit.load(tmp_path / "out", dtype=torch.float32)), original) < 0.1


def test_a_greedy_rotation_narrows_the_range_and_channels_are_dealt_out() -> None:
    x = torch.randn(64, 256)
    x[:, [3, 5, 130]] *= 40
    parts = duquant.DuQuant()._parts(x)
    turned = sides.get("zigzag").before(x, parts)
    assert float(turned.abs().max()) < 0.25 * float(x.abs().max())
    order = duquant.zigzag(torch.arange(8.0), 2)
    assert order.view(4, 2).tolist() == [[7, 0], [6, 1], [5, 2], [4, 3]]


@torch.no_grad()
def test_shifted_inputs_meet_a_grid_around_zero() -> None:
    weight, x, format = torch.randn(32, 64), torch.randn(8, 64) + 20, formats.parse("int8-row-shift")
    side, inner = sides.get("shift"), formats.parse("int8-row")
    middle = x.mean(0).half()
    parts = {"shift_input": middle, "shift_output": weight @ middle.float()}
    quantized = inner.fit(weight, search=False).quantize(weight)
    errors = []
    for told in ((format, quantized.parts | parts), (inner, quantized.parts)):
        layer = QuantizedLinear.from_quantized(formats.Quantized(told[0], quantized.codes, told[1], (32, 64)))
        layer.activation = acting.parse("int4-token")
        errors.append(off(layer(x), x @ weight.T))
    assert errors[0] < 0.3 * errors[1] and side.bits((32, 64)) == 64 * 16 + 32 * 32


def test_learned_rotations_are_orthogonal_better_and_resumed(tiny_llama: Path, tmp_path: Path) -> None:
    sentence = "spinquant(steps=4, batch=2) + rtn(int4-row) + act(int4-token)"
    said: list[str] = []

    class Telling(KillAfter):
        def say(self, text: str) -> None:
            said.append(text)

    lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "whole"), progress=Telling(99), **SMALL)
    losses = [float(line.split()[2]) for line in said if line.startswith("held-out loss")]
    assert losses[1] <= losses[0] and not list((tmp_path / "whole").glob("learned*"))
    with pytest.raises(Killed):
        lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "killed"), progress=KillAfter(1), **SMALL)
    kept = tmp_path / "killed.partial" / "learned-0-spinquant.tensors"
    with checkpoints.Shard(kept) as shard:
        stream = shard.tensor("stream")
    assert float((stream @ stream.T - torch.eye(len(stream))).abs().max()) < 1e-4
    lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "killed"), **SMALL)
    assert digest(tmp_path / "whole") == digest(tmp_path / "killed")


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "gemma2"])
def test_channels_between_linears_are_evened_out(name: str) -> None:
    """Rows and the columns that read them have equal norms; planted outliers are gone, and the function is what it was."""
    plain, model = tiny(name), tiny(name)
    plant(model, Outliers(norms=(1, 1.0), keys=(1, 1.0)))
    replacing.open_experts(plain)
    replacing.open_experts(model)
    config = plain.config
    blocks = plain.model.layers
    outline = Outline(
        architectures.find(config), tuple(tuple(n for n, _ in b.named_modules() if n) for b in blocks),
        {n: p.dim() for n, p in plain.named_parameters(remove_duplicate=False)},
        (config.num_attention_heads, config.num_key_value_heads), config.hidden_size, config.head_dim,
    )  # fmt: skip
    found = []
    for one in (plain, model):
        turning, held = Turning(outline), dict(one.named_parameters(remove_duplicate=False))
        for index in range(len(blocks)):
            turning.even(index)
        found.append({n: turning.tensor(n, held.__getitem__) for n in held})
    changed = [n for n, t in found[0].items() if not torch.equal(t, plain.get_parameter(n))]
    assert changed and all(torch.allclose(found[1][n], t, rtol=1e-4, atol=1e-6) for n, t in found[0].items())
    wanted = logits(plain)
    for n, t in found[1].items():
        model.get_parameter(n).data = t
    assert off(logits(model), wanted) < 1e-5
    down = next(n for n in changed if n.endswith("down_proj.weight"))
    rows = next(t for n, t in found[0].items() if n == down.replace("down_proj", "up_proj") or "gate_up" in n)
    columns = found[0][down]
    assert torch.allclose(rows[-columns.shape[1] :].norm(dim=1), columns.norm(dim=0), rtol=1e-4)
