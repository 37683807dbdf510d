"""Loading: the same model as transformers', packed; strict about every tensor; saving gives the very bytes back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from lowbit import architectures
from lowbit.checkpoints.folder import Folder
from lowbit.core.errors import CheckpointError
from lowbit.layers.linear import QuantizedLinear
from lowbit.layers.loading import load, skeleton
from lowbit.layers.replacing import linear_of
from lowbit.testing._tiny import tiny
from lowbit.testing.checkpoints import quantize_folder

IDS = torch.arange(40)[None]


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def packed(model: Any) -> dict[str, QuantizedLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def same_files(a: Path, b: Path) -> bool:
    x, y = Folder(a), Folder(b)
    return x.names == y.names and all(
        x.entry(n).dtype == y.entry(n).dtype
        and torch.equal(x.tensor(n).flatten().view(torch.uint8), y.tensor(n).flatten().view(torch.uint8))
        for n in x.names
    )


def rewrite(folder: Path, change: Any) -> None:
    """Change the tensors of a folder's one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("text", ["int4-g128", "int3-g64-asym", "nvfp4", "nf4-g64"])
def test_logits_are_those_of_the_decoded_model(tiny_llama: Path, tmp_path: Path, text: str) -> None:
    quantize_folder(tiny_llama, tmp_path / "out", lambda m: text if m != "lm_head" else "")
    model = load(tmp_path / "out", dtype=torch.float32)
    dense = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for name, layer in packed(model).items():
        dense.get_submodule(name).weight.data = layer.quantized().decode()
    assert len(packed(model)) == 14
    torch.testing.assert_close(logits(model), logits(dense), rtol=0, atol=2e-5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(p.requires_grad for p in model.parameters())
    fast = load(tmp_path / "out")
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(logits(fast).float(), logits(model), rtol=0, atol=0.1)


def test_generation_and_saving(tiny_llama: Path, tmp_path: Path) -> None:
    quantize_folder(tiny_llama, tmp_path / "out", lambda m: "int4-g128-asym" if m != "lm_head" else "")
    model = load(tmp_path / "out")
    text = model.generate(IDS[:, :5], max_new_tokens=6, do_sample=False)
    assert text.shape == (1, 11)
    model.save_pretrained(tmp_path / "again")
    assert same_files(tmp_path / "out", tmp_path / "again")
    told = [json.loads((tmp_path / f / "config.json").read_text())["quantization_config"] for f in ("out", "again")]
    assert told[0] == told[1]
    assert torch.equal(load(tmp_path / "again").generate(IDS[:, :5], max_new_tokens=6, do_sample=False), text)


def test_floats_load_as_they_are(tiny_llama: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert torch.equal(logits(load(tiny_llama, dtype=torch.float32)), logits(expected))
    assert load(tiny_llama).dtype == torch.bfloat16


def test_another_dtype_changes_nothing_but_rounding(tiny_llama: Path, tmp_path: Path) -> None:
    quantize_folder(tiny_llama, tmp_path / "out", lambda m: "int4-g128" if m != "lm_head" else "")
    direct, moved = load(tmp_path / "out", dtype=torch.float32), load(tmp_path / "out").float()
    assert torch.equal(logits(direct), logits(moved))


@pytest.mark.parametrize("quantized", [True, False])
def test_missing_and_surplus_tensors_are_errors(tiny_llama: Path, tmp_path: Path, quantized: bool) -> None:
    out = tiny_llama
    if quantized:
        out = tmp_path / "out"
        quantize_folder(tiny_llama, out, lambda m: "int4-g128" if m != "lm_head" else "")
    rewrite(out, lambda t: t.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"model.norm.weight: not in the files. The weights do not fit config.json"):
        load(out)
    rewrite(out, lambda t: t.update({"model.norm.weight": torch.ones(128), "model.layers.9.ghost.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"model.layers.9.ghost.weight: in the files, but not in the model"):
        load(out)
    rewrite(out, lambda t: t.update({"model.norm.weight": torch.ones(64)}))
    rewrite(out, lambda t: t.pop("model.layers.9.ghost.weight"))
    with pytest.raises(CheckpointError, match=r"config.json"):
        load(out)


def test_a_lost_scale_or_another_shape_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    quantize_folder(tiny_llama, tmp_path / "out", lambda m: "int4-g128" if m != "lm_head" else "")
    path = tmp_path / "out" / "config.json"
    good = path.read_text()
    path.write_text(json.dumps(json.loads(good) | {"intermediate_size": 512}))
    with pytest.raises(CheckpointError, match=r"\[128, 256\] in the files, \[128, 512\] by config.json"):
        load(tmp_path / "out")
    path.write_text(good)
    rewrite(tmp_path / "out", lambda t: t.pop("model.layers.0.mlp.up_proj.weight_packed"))
    with pytest.raises(CheckpointError, match=r"no tensor model.layers.0.mlp.up_proj.weight"):
        load(tmp_path / "out")


def test_the_skeleton_computes_its_own_buffers() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=32, rope_parameters=rope
    )
    model = skeleton(config, torch.bfloat16)
    expected = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).model.rotary_emb
    assert torch.equal(model.model.rotary_emb.inv_freq, expected.inv_freq)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())


def test_a_tower_inside_a_model_computes_its_own_buffers() -> None:
    model = tiny("gemma3")
    made = dict(skeleton(model.config, torch.float32).named_buffers())
    assert all(torch.equal(buffer, made[name]) for name, buffer in model.named_buffers())
    assert any(name.endswith("position_ids") for name in made)


@pytest.mark.parametrize("name", ["gemma3", "mixtral", "phi3"])
@pytest.mark.parametrize("text", ["int8-row", "nf4-g32"])
def test_files_keep_their_names_and_load(tmp_path: Path, name: str, text: str) -> None:
    tiny(name).to(torch.bfloat16).save_pretrained(tmp_path / "in")
    quantize_folder(tmp_path / "in", tmp_path / "out", lambda m: text if "layers" in m and "vision" not in m else "")
    model = load(tmp_path / "out")
    assert len(packed(model)) >= 8
    model.save_pretrained(tmp_path / "again")
    assert same_files(tmp_path / "out", tmp_path / "again")
    if text == "nf4-g32":
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_what_is_no_linear_is_refused(tiny_llama: Path) -> None:
    model = skeleton(Folder(tiny_llama).config(), torch.float32)
    with pytest.raises(CheckpointError, match=r"model\.norm: the files hold it quantized, the model has a LlamaRMSNorm"):
        linear_of(model, "model.norm")
    with pytest.raises(CheckpointError, match="no module of this name"):
        linear_of(model, "model.ghost")


@pytest.mark.parametrize("text", ["int4-g64", "nf4-g64"])
def test_experts_load_packed(tmp_path: Path, text: str) -> None:
    config = Qwen3MoeConfig(
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=3,
        num_experts_per_tok=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=64,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "in")
    assert architectures.find(config).experts
    quantize_folder(tmp_path / "in", tmp_path / "out", lambda m: text if m != "lm_head" else "")
    model = load(tmp_path / "out")
    assert len(packed(model)) == 4 + 3 * 3
    assert torch.isfinite(logits(model)).all()
    model.save_pretrained(tmp_path / "again")
    assert same_files(tmp_path / "out", tmp_path / "again")
    if text == "nf4-g64":
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


LATE = """
import sys, time
start = time.perf_counter()
import lowbit
assert not {"torch", "transformers"} & set(sys.modules), "import lowbit imports too much"
from transformers import AutoModelForCausalLM
import transformers.quantizers.auto as auto
assert "lowbit" in auto.AUTO_QUANTIZER_MAPPING and "lowbit" in auto.AUTO_QUANTIZATION_CONFIG_MAPPING
assert not any("lowbit" in type(f).__module__ for f in sys.meta_path)
from lowbit.layers import transformers_plugin
transformers_plugin.install()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.model.layers[0].mlp.up_proj).__name__, model.generate(max_new_tokens=3, do_sample=False).shape[1])
"""


def test_the_plugin_waits_for_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    quantize_folder(tiny_llama, tmp_path / "out", lambda m: "nf4-g64" if m != "lm_head" else "")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", LATE, str(tmp_path / "out")], capture_output=True, text=True, env=env)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[0] == "QuantizedLinear"


def test_the_plugin_round_trips(tiny_llama: Path, tmp_path: Path) -> None:
    quantize_folder(tiny_llama, tmp_path / "out", lambda m: "int4-g64-fp16" if m != "lm_head" else "")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(packed(model)) == 14 and torch.equal(logits(model), logits(load(tmp_path / "out")))
    model.save_pretrained(tmp_path / "again")
    assert same_files(tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").stat().st_size == (tmp_path / "out" / "model.safetensors").stat().st_size
