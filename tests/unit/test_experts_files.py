"""Experts on disk: fused tensors are read as single ones, written by their published names, and given statistics alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import lowbit
from lowbit import architectures
from lowbit.checkpoints import rename
from lowbit.checkpoints.folder import Folder
from lowbit.core.errors import ArchitectureError
from lowbit.layers.linear import QuantizedLinear
from lowbit.testing._tiny import tiny

MOE = ["mixtral", "qwen3_moe"]
SMALL: dict[str, Any] = {"samples": 2, "length": 32}


def saved(name: str, folder: Path, tokenizer: Path, fused: bool) -> Path:
    """A tiny random model in bfloat16, as published files have it or as transformers holds it."""
    model = tiny(name, vocab_size=258, num_hidden_layers=1).to(torch.bfloat16)
    model.save_pretrained(folder, save_original_format=not fused)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = Folder(folder)
    return {name: found.tensor(name) for name in found.names}


@pytest.mark.parametrize("name", MOE)
def test_a_fused_folder_is_the_published_one(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    published = tensors(saved(name, tmp_path / "published", tiny_llama, fused=False))
    folder = saved(name, tmp_path / "fused", tiny_llama, fused=True)
    raw = [n for shard in Folder(folder).shards.values() for n in shard.entries]
    assert sum(n.endswith(".mlp.experts.gate_up_proj") for n in raw) == 1
    found = tensors(folder)
    assert found.keys() == published.keys()
    assert all(torch.equal(found[n], published[n]) for n in found)
    assert sum(Folder(folder).bytes_of(n) for n in found) == sum(t.nbytes for t in published.values())


@pytest.mark.parametrize("name", MOE)
def test_both_forms_are_quantized_to_the_same_tensors(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    results = []
    for fused in (True, False):
        folder = saved(name, tmp_path / f"in{fused}", tiny_llama, fused)
        lowbit.quantize(str(folder), "rtn(int4-g32)@experts", str(tmp_path / f"out{fused}"), **SMALL)
        results.append(tensors(tmp_path / f"out{fused}"))
    assert sum(n.endswith("weight_packed") for n in results[0]) == 4 * 3
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_published_is_the_way_back() -> None:
    known = architectures.shelf.get("mixtral").ARCHITECTURE
    for leaf in (
        "mlp.gate.weight",
        "mlp.experts.3.gate_proj.weight",
        "mlp.experts.0.up_proj.weight",
        "self_attn.q_proj.weight",
    ):
        name = f"model.layers.0.{leaf}"
        assert rename(rename(name, known.published), known.renames) == name
    assert rename("model.layers.0.mlp.experts.3.down_proj.weight", known.published).endswith(
        "block_sparse_moe.experts.3.w2.weight"
    )


def test_other_arrangements_stay_as_they_are(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shapes = {"x.experts.gate_up_proj": (4, 64, 192), "x.experts.down_proj": (4, 96, 64)}
    save_file({n: torch.zeros(s) for n, s in shapes.items()}, tmp_path / "model.safetensors")
    assert {n: Folder(tmp_path).entry(n).shape for n in shapes} == shapes


def decoded(model: Any) -> Any:
    """The model with floats in the place of packed experts, rounded once to bfloat16."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight.data = module.quantized().decode().to(torch.bfloat16).float()
            model.set_submodule(name, linear)
    return model


@pytest.mark.parametrize("name", MOE)
@torch.no_grad()
def test_transformers_agrees_once_its_own_rounding_is_undone(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    """A stock load keeps experts, and rounds their inputs, in the dtype of the scales, whatever dtype it was asked for."""
    folder = saved(name, tmp_path / "in", tiny_llama, fused=True)
    lowbit.quantize(str(folder), "rtn(int4-g32)@experts", str(tmp_path / "out"), **SMALL)
    ids = torch.randint(3, 250, (1, 24))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    stock(ids)
    for layer in stock.model.layers:
        layer.mlp.experts.float()
    ours = decoded(lowbit.load(tmp_path / "out", dtype=torch.float32))
    torch.testing.assert_close(ours(ids).logits, stock(ids).logits, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("leaf", ["gate_proj", "up_proj", "down_proj"])
def test_one_projection_alone_has_statistics(leaf: str, tmp_path: Path, tiny_llama: Path) -> None:
    folder = saved("mixtral", tmp_path / "in", tiny_llama, fused=False)
    rows = {}
    for selector in (f"*.experts.*.{leaf}", "experts"):
        result = lowbit.quantize(
            str(folder), f'gptq(int4-g32)@"{selector}"'.replace('"experts"', "experts"), str(tmp_path / selector[-9:]), **SMALL
        )
        rows[selector] = {row["name"]: row for row in result.layers if row["name"].endswith(leaf)}
    alone, together = rows.values()
    assert len(alone) == 4 and alone.keys() == together.keys()
    assert sum(row["tokens"] for row in alone.values()) == 2 * 2 * 32  # windows x experts of a token x length
    assert {n: r["tokens"] for n, r in alone.items()} == {n: r["tokens"] for n, r in together.items()}
    if leaf != "down_proj":  # whose inputs are other ones once gate and up are rounded
        assert {n: r["error"] for n, r in alone.items()} == {n: r["error"] for n, r in together.items()}


def test_a_transform_without_folds_is_refused_in_a_dry_run(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    known = architectures.shelf.get("llama")
    without = dataclasses.replace(known.ARCHITECTURE, folds=())
    monkeypatch.setattr(known, "ARCHITECTURE", without)
    for recipe in ("awq + rtn(int4-g128)", "awq(int4-g128)@layers.1-1"):
        with pytest.raises(ArchitectureError, match=r"^awq.*: no folds are known for LlamaDecoderLayer \(model.layers.[01]\)"):
            lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "out"), dry_run=True, **SMALL)
    assert not list(tmp_path.glob("out*"))
    lowbit.quantize(str(tiny_llama), "rtn(int4-g128)", str(tmp_path / "out"), dry_run=True)
