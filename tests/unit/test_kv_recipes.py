"""`... + kv(int4-g64)`: sentence, plan, closing check, files, and every way to load them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import lowbit
from lowbit import Recipe, kvcache
from lowbit.core.errors import RecipeError, RequestError, ShapeError
from lowbit.kvcache._cache import PackedCache, PackedLayer
from lowbit.pipeline import held
from lowbit.pipeline import text as texts
from lowbit.pipeline.outer import Outer
from lowbit.pipeline.source import tokenizer_of
from lowbit.recipe import caches
from lowbit.testing._tiny import tiny, tokens

LENGTH = {"samples": 2, "length": 128}
COARSE = "kivi2-r16"


class Linear:
    """A linear as the plan sees it."""

    def __init__(self, layer: int, role: str = "attn") -> None:
        self.name, self.role, self.shape, self.layer = f"layers.{layer}.q", role, (64, 96), layer


LINEARS = [*(Linear(layer) for layer in range(4)), Linear(4, "head")]


def held_as(sentence: str) -> list[str]:
    return caches.policies(Recipe.parse(sentence), LINEARS)


def test_sentences_are_read_and_printed() -> None:
    for text in ("rtn(int8-row) + kv(int4-g64)", "rtn(int8-row) + kv(int4) + kv(int8)@layers.0"):
        assert str(Recipe.parse(text)) == text
    assert str(Recipe.parse("rtn(int8-row) + kv")) == "rtn(int8-row) + kv(int4-centred-rot)"


def test_the_last_that_covers_a_layer_wins() -> None:
    assert held_as("rtn(int8-row)") == []
    assert held_as("rtn(int8-row) + kv(int4)") == ["int4"] * 4
    assert held_as("rtn(int8-row) + kv(int4) + kv(int8)@layers.0-1") == ["int8", "int8", "int4", "int4"]
    assert held_as("rtn(int8-row) + kv(fp8)@layers.3-9") == ["", "", "", "fp8"]
    assert caches.told(["int8", "int4"]) == ["int8", "int4"] and caches.told(["int4"] * 2) == "int4"
    with pytest.raises(RecipeError, match=r"kv\(int4\)@mlp: keys and values belong to whole layers\. Write kv\(int4\)@layers"):
        held_as("rtn(int8-row) + kv(int4)@mlp")
    with pytest.raises(RequestError, match="Unknown KV policy 'kiwi2'"):
        Recipe.parse("rtn(int8-row) + kv(kiwi2)")


def test_heads_are_checked_before_any_work(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="int4-g64: group 64 does not divide the 32 channels of a head"):
        lowbit.quantize(str(tiny_llama), "rtn(int8-row) + kv(int4-g64)", str(tmp_path / "out"), dry_run=True)
    with pytest.raises(RequestError, match="3 KV policies are given for 2 layers"):
        kvcache.by_layer(["int4"] * 3, 2)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3"])
def test_blocks_give_what_the_model_gives(name: str) -> None:
    """The closing check, block by block, against the whole model; gemma3's sliding layers stay floats."""
    sliding = 16 if name == "gemma3_text" else None
    model = tiny(name, num_hidden_layers=6, max_position_embeddings=256, head_dim=32, sliding_window=sliding)
    row = tokens(windows=1, length=150)[0]
    whole, _ = held.logits(model, row, COARSE)
    weights = {n: p.data for n, p in model.named_parameters(remove_duplicate=False)}
    outer = Outer(model, model.model.layers, weights.__getitem__, set(weights), torch.float32, torch.device("cpu"))
    kwargs, policies = outer.kwargs(150), kvcache.by_layer(COARSE, 6)
    hidden = outer.enter(row[None])
    for index, block in enumerate(model.model.layers):
        hidden = held.through(model.config, index, policies, {})(block, hidden, kwargs[index])
    assert torch.allclose(outer.leave(row, hidden[0]), whole, atol=2e-3)
    plain = model(row[None], use_cache=False).logits[0]
    assert float((whole - plain).norm() / plain.norm()) > 0.01


@pytest.mark.parametrize(("recipe", "method"), [("rtn(int8-row)", "compressed-tensors"), ("rtn(nf4-g64)", "lowbit")])
def test_files_restore_the_cache(tiny_llama: Path, tmp_path: Path, recipe: str, method: str) -> None:
    """lowbit.load, AutoModelForCausalLM and evaluate; the check counts what the cache costs."""
    out, plain = tmp_path / "out", tmp_path / "plain"
    result = lowbit.quantize(str(tiny_llama), f"{recipe} + kv({COARSE})", str(out), **LENGTH)
    without = lowbit.quantize(str(tiny_llama), recipe, str(plain), **LENGTH)
    assert result.quant_method == method and result.check["kl"] > 1.1 * without.check["kl"]
    assert json.loads((out / "config.json").read_text())[kvcache.KEY] == COARSE
    assert kvcache.KEY not in json.loads((plain / "config.json").read_text())
    assert f"held packed ({COARSE})" in (out / "README.md").read_text()
    measured = lowbit.evaluate(str(out), str(tiny_llama), ["bundled"], 4, length=256)["texts"]["bundled"]
    assert measured["kl"] == pytest.approx(result.check["kl"], rel=0.02)
    ours, theirs = lowbit.load(out, dtype=torch.float32), AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.arange(60)[None] + 2
    for model in (ours, theirs):
        assert [str(policy) for policy in model.kv_policies] == [COARSE] * 2
        assert isinstance(model(ids).past_key_values, PackedCache)
        assert model(ids, use_cache=False).past_key_values is None
    told = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    written = [model.generate(ids, **told) for model in (ours, theirs)]
    assert torch.equal(*written)
    explicit = lowbit.load(plain, dtype=torch.float32)
    assert torch.equal(explicit.generate(ids, **told, **kvcache.arguments(COARSE, explicit)), written[0])
    ours.save_pretrained(tmp_path / "again")
    assert hasattr(lowbit.load(tmp_path / "again"), "kv_policies")


@pytest.mark.parametrize("recipe", ["rtn(int8-row)", "rtn(nf4-g64)"])
@pytest.mark.parametrize("grain", ["fp8-tensor", "fp8-head", "int8-head"])
def test_constant_scales(tiny_llama: Path, tmp_path: Path, recipe: str, grain: str) -> None:
    """Found in calibration, stored as engines read them, used by every way to load."""
    out = tmp_path / "out"
    result = lowbit.quantize(str(tiny_llama), f"{recipe} + kv({grain})", str(out), **LENGTH)
    model = lowbit.load(out, dtype=torch.float32)
    scales = model.kv_scales
    shape = (1,) if grain == "fp8-tensor" else (2, 1, 1)
    kind, largest = ("float", 448) if grain.startswith("fp8") else ("int", 127)
    assert all(scales[layer][part].shape == shape for layer in (0, 1) for part in ("k_scale", "v_scale"))
    told = json.loads((out / "config.json").read_text())["quantization_config"]
    if result.quant_method == "lowbit":
        assert "kv_cache_scheme" not in told
    else:
        scheme = {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": False, "group_size": None}
        assert told["kv_cache_scheme"] == scheme | {"strategy": "tensor" if grain == "fp8-tensor" else "attn_head"}
    own = DynamicCache(config=model.config)
    windows = texts.windows("bundled", texts.read("bundled"), tokenizer_of(tiny_llama), 256, 8).tokens
    handles = list(model._forward_pre_hooks)
    for handle in handles:
        model._forward_pre_hooks.pop(handle)  # the model without its packed cache
    for row in windows[:, None]:
        own = DynamicCache(config=model.config)
        model(row, **{kvcache.word_of(model): own})
        for layer, held_by in enumerate(own.layers):
            assert (held_by.keys.abs().amax((0, 2, 3)) <= largest * 1.02 * scales[layer]["k_scale"].flatten()).all()
    model = lowbit.load(out, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.arange(200)[None] + 2
    with torch.no_grad():
        caches_of = [m(ids).past_key_values for m in (model, theirs)]
    for layer in (0, 1):
        ours, others = (cache.layers[layer].stores[0] for cache in caches_of)
        off = (ours.read() - others.read()).norm() / ours.read().norm()  # a few codes flip where kernels sum otherwise
        assert ours.packed == 192 and float(off) < 0.01 and set(ours.pages) == {""}
        assert ours.pages[""].nbytes == 192 * 64  # a byte a number, nothing else
    with pytest.raises(RequestError, match=r"int8-tensor: the model has no scales for its cache, .* with \+ kv\(int8-tensor\)"):
        kvcache.build("int8-tensor", model.config)
    model.save_pretrained(tmp_path / "again")
    again = lowbit.load(tmp_path / "again").kv_scales
    assert all(torch.equal(again[layer][part], scales[layer][part]) for layer in scales for part in scales[layer])


def test_caches_of_generate_are_packed(tiny_llama: Path) -> None:
    """In place, in beams too; a cache that is given stays what it is."""
    model = kvcache.attach(lowbit.load(tiny_llama, dtype=torch.float32), ["", "int4-r16"])
    ids, seen = torch.arange(60)[None] + 2, []

    def note(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs[kvcache.word_of(model)])

    model.register_forward_pre_hook(note, with_kwargs=True)
    for beams in (1, 2):
        model.generate(ids, max_new_tokens=20, num_beams=beams, do_sample=False, pad_token_id=0)
        assert [isinstance(layer, PackedLayer) for layer in seen[-1].layers] == [False, True]
        assert seen[-1].layers[1].stores[0].packed == 32
    own = DynamicCache(config=model.config)
    model(ids, **{kvcache.word_of(model): own})  # empty: packed in place
    model(ids, **{kvcache.word_of(model): own})
    assert own.get_seq_length() == 120 and isinstance(own.layers[1], PackedLayer)
    assert kvcache.attach(lowbit.load(tiny_llama), None).config._attn_implementation == "sdpa"


def test_stock_transformers_ignores_it(tiny_llama: Path, tmp_path: Path) -> None:
    """Without lowbit the same folder loads and holds floats."""
    lowbit.quantize(str(tiny_llama), f"rtn(int8-row) + kv({COARSE})", str(tmp_path / "out"), **LENGTH)
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A; m = A.from_pretrained(sys.argv[1]);"
        "c = m(torch.arange(99)[None]).past_key_values;"
        "print(type(c).__name__, c.layers[0].keys.dtype, 'lowbit' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["DynamicCache", "torch.bfloat16", "False"], done.stderr[-2000:]


def outer_product(x: Tensor) -> Tensor:
    """Sums of x x^T over tokens: [heads, width, width]."""
    return torch.einsum("bhtc,bhtd->hcd", x.double(), x.double())


def test_bases_of_queries_and_values() -> None:
    """Orthogonal; queries have even energy in every channel, where a Hadamard matrix alone leaves it in few."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(1, -2, 32)
    query, key, value = (torch.randn(1, heads, 300, 32, generator=generator) * spread for heads in (4, 2, 2))
    mixing = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    query = query @ mixing.T
    moments = kvcache.Moments()
    moments.add((query[:, :, :150], key[:, :, :150], value[:, :, :150]))
    moments.add((query[:, :, 150:], key[:, :, 150:], value[:, :, 150:]))
    keys, values = moments.bases()
    for basis in (keys, values):
        assert torch.allclose(basis @ basis.mT, torch.eye(32).expand(2, -1, -1), atol=1e-5)
    turned = torch.einsum("bhtc,hcd->bhtd", query.unflatten(1, (2, 2)).flatten(2, 3), keys)
    energy = outer_product(turned).diagonal(dim1=1, dim2=2)
    assert float((energy.amax(1) / energy.amin(1)).max()) < 1.01
    scores = torch.einsum("bhtc,bhsc->bhts", turned, torch.einsum("bhtc,hcd->bhtd", key, keys))
    plain = torch.einsum("bhtc,bhsc->bhts", query.unflatten(1, (2, 2)).flatten(2, 3), key)
    assert torch.allclose(scores, plain, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_bases_are_found_written_and_loaded(lowbit_tiny: Path, tmp_path: Path) -> None:
    """Beside a plain Hadamard basis of as many bits they lose less; every loader and saver keeps them."""
    found = {}
    for name, policy in (("ours", "oscar2-s4-r32"), ("plain", "int2-rot-s4-r32")):
        result = lowbit.quantize(str(lowbit_tiny), f"rtn(int8-row) + kv({policy})", str(tmp_path / name), **LENGTH)  # type: ignore[arg-type]
        found[name] = result.check["kl"]
    assert found["ours"] < 0.8 * found["plain"]
    row = tokens(windows=1, length=100)
    ours = lowbit.load(tmp_path / "ours", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert set(ours.kv_scales[0]) == {"k_basis", "v_basis"} and ours.kv_scales[0]["k_basis"].shape == (2, 64, 64)
    for model, name in ((ours, "ours-again"), (theirs, "theirs-again")):
        model.save_pretrained(tmp_path / name)  # before a token runs: transformers unpacks its weights then
    wanted = held.logits(ours, row[0])[0]
    assert torch.allclose(held.logits(theirs, row[0])[0], wanted, atol=0.02)
    for name in ("ours-again", "theirs-again"):
        again = lowbit.load(tmp_path / name, dtype=torch.float32)
        assert all(torch.equal(again.kv_scales[i][n], t) for i, of in ours.kv_scales.items() for n, t in of.items()), name
        assert torch.allclose(held.logits(again, row[0])[0], wanted, atol=0.02), name
    with pytest.raises(RequestError, match=r"oscar2: the model has no bases for its cache, which calibration finds"):
        lowbit.generate(str(lowbit_tiny), "a", kv="oscar2", tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("policy", ["fp8-tensor", "int8-head"])
def test_transformers_saves_the_scales_of_the_cache(tiny_llama: Path, tmp_path: Path, policy: str) -> None:
    """No module of a compressed-tensors model holds them, and they were left out once: read again, 1 took their places."""
    lowbit.quantize(str(tiny_llama), f"rtn(int8-row) + kv({policy})", str(tmp_path / "out"), **LENGTH)  # type: ignore[arg-type]
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    first.save_pretrained(tmp_path / "again")
    for second in (AutoModelForCausalLM.from_pretrained(tmp_path / "again"), lowbit.load(tmp_path / "again")):
        assert set(second.kv_scales) == {0, 1}
        for layer, scales in first.kv_scales.items():
            assert set(scales) == {"k_scale", "v_scale"} and float(scales["k_scale"].max()) < 1
            assert all(torch.equal(second.kv_scales[layer][name], tensor) for name, tensor in scales.items())
