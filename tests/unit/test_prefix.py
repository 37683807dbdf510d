"""Tokens that begin every sequence, their keys and values constants: found, held, written, loaded, and nothing else changed."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import lowbit
from lowbit import kvcache
from lowbit.core.errors import RecipeError
from lowbit.kvcache import Prefix
from lowbit.methods.prefixquant import PrefixQuant
from lowbit.pipeline import held
from lowbit.testing._tiny import tiny
from lowbit.testing.killing import KillAfter, Killed, digest
from tests.unit.test_quantize import SMALL

STATIC = "rtn(int8-row) + act(int8-tensor, static=true)"
TEXT = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(3, 60)])


def reach(*outliers: tuple[int, int], windows: int = 4, length: int = 32) -> Tensor:
    """Greatest |x| of tokens [windows, length], about 1, but for the (window, place) that are given: 100."""
    found = torch.rand(windows, length, generator=torch.Generator().manual_seed(0)) + 0.5
    for window, place in outliers:
        found[window, place] = 100.0
    return found


def test_tokens_that_stand_out_are_chosen() -> None:
    tokens = torch.arange(4 * 32).view(4, 32) % 20 + 5
    tokens[:, 0] = 0
    tokens[:3, 7], tokens[3, 9], tokens[0, 11] = 2, 2, 3
    places = [(w, 0) for w in range(4)] + [(0, 7), (1, 7), (2, 7), (3, 9)]
    assert PrefixQuant().prefix(tokens, [reach(), reach()], 0) == (0,)
    assert PrefixQuant().prefix(tokens, [reach(), reach(*places[:4])], 0) == (0,), "the first token alone"
    assert PrefixQuant().prefix(tokens, [reach(*places), reach()], 0) == (2, 0), "most frequent, first token last"
    assert PrefixQuant().prefix(tokens, [reach(*places, (0, 11))], 0) == (2, 3, 0), "one window has three"
    assert PrefixQuant(most=1).prefix(tokens, [reach(*places)], 0) == (0,)
    assert PrefixQuant(beyond=500).prefix(tokens, [reach(*places)], 0) == (0,)


def test_what_a_sequence_lacks() -> None:
    prefix = Prefix((7, 9, 0))
    assert prefix.before(torch.tensor([0, 5, 6])).tolist() == [7, 9]
    assert prefix.before(torch.tensor([5, 6])).tolist() == [7, 9, 0]
    assert Prefix((0,)).before(torch.tensor([0, 5])).tolist() == []


def pinned(model: Any, ids: tuple[int, ...], add: float = 0.0) -> Any:
    """The model with the constants that it gives itself, plus something."""
    outputs: dict[str, Tensor] = {}
    names = kvcache.prefix_linears(n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    hooks = [
        model.get_submodule(n).register_forward_hook(lambda _, args, out, n=n: outputs.update({n: out[0] + add})) for n in names
    ]
    model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return kvcache.attach_prefix(model, Prefix(ids, outputs))


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gemma3_text"])
def test_own_constants_change_nothing(name: str) -> None:
    """The keys and values that a model gives itself: the same logits; others: other ones, for all tokens behind them."""
    ids, row = (7, 9, 3), torch.cat([torch.tensor([7, 9, 3]), torch.arange(20, 40)])[None]
    plain = tiny(name)(row, use_cache=False).logits
    assert torch.allclose(pinned(tiny(name), ids)(row, use_cache=False).logits, plain, atol=1e-5)
    other = pinned(tiny(name), ids, add=1.0)
    assert float((other(row, use_cache=False).logits - plain)[:, 3:].abs().amax(-1).min()) > 1e-3
    with pytest.warns(UserWarning, match=r"1 of 1 sequences do not begin with the tokens \[7, 9, 3\]"):
        assert torch.equal(other(row[:, 1:], use_cache=False).logits, tiny(name)(row[:, 1:], use_cache=False).logits)


def test_padding_pieces_and_single_steps() -> None:
    """Left padding, a cache filled in pieces, and a row without the prefix give what whole sequences give."""
    ids = (7, 9, 3)
    model = pinned(tiny("llama", sliding_window=None), ids, add=1.0)
    row = torch.cat([torch.tensor(ids), torch.arange(20, 40)])[None]
    whole = model(row, use_cache=False).logits
    padded, mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], 1), torch.ones(1, 27, dtype=torch.long)
    mask[:, :4] = 0
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = model(padded, attention_mask=mask, position_ids=places, use_cache=False).logits[:, 4:]
        assert torch.allclose(moved, whole, atol=1e-4)
        first = model(row[:, :10], use_cache=True)
        then = model(row[:, 10:], use_cache=True, **{kvcache.word_of(model): first.past_key_values})
        assert torch.allclose(torch.cat([first.logits, then.logits], 1), whole, atol=1e-4)
        new = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
        greedy = model.generate(row, **new)
        batch = model.generate(padded, attention_mask=mask, **new)
        beams = model.generate(row, num_beams=3, **new)
    assert torch.equal(batch[:, 4:], greedy) and beams.shape == greedy.shape
    again = model(greedy[:, :-1], use_cache=False).logits.argmax(-1)
    assert torch.equal(again[0, 22:], greedy[0, 23:])
    with pytest.warns(UserWarning, match="1 of 2 sequences"):
        two = model(torch.cat([row, row.flip(1)]), use_cache=False).logits
    assert torch.allclose(two[:1], whole, atol=1e-5)


@torch.no_grad()
def test_written_and_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = lowbit.quantize(str(tiny_llama), f"prefixquant + {STATIC}", str(out), **SMALL)
    told = json.loads((out / "config.json").read_text())
    assert told["lowbit_prefix"] == [0] and told["quantization_config"]["quant_method"] == "lowbit"
    assert not list(tmp_path.glob("**/learned-*"))
    ours, theirs = lowbit.load(out, dtype=torch.float32), AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    wanted = ours(TEXT[None], use_cache=False).logits
    assert torch.equal(theirs(TEXT[None], use_cache=False).logits, wanted)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = lowbit.load(tmp_path / folder, dtype=torch.float32)
        assert torch.equal(again(TEXT[None], use_cache=False).logits, wanted), folder
    original = lowbit.load(tiny_llama, dtype=torch.float32)
    float_keys = dict[str, Tensor]()
    for name in ours.prefix.outputs:
        original.get_submodule(name).register_forward_hook(
            lambda _, args, y, name=name: float_keys.update({name: y[0, :1].bfloat16().float()})
        )
    original(TEXT[None], use_cache=False)
    assert len(float_keys) == 4
    for name, tensor in ours.prefix.outputs.items():
        assert torch.allclose(tensor.float(), float_keys[name], atol=1e-2), f"{name}: no constants of the original"
    lowbit.generate(str(out), "hello", tokens=4, kv="int8")
    assert result.check["kl"] < 0.2


@torch.no_grad()
def test_tokens_in_front_are_not_compared(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer prefix: lowbit puts it in front by itself, and drops what stands behind its tokens."""
    monkeypatch.setattr(PrefixQuant, "prefix", lambda *_: (5, 9, 0))
    lowbit.quantize(str(tiny_llama), f"prefixquant + {STATIC}", str(tmp_path / "out"), **SMALL)
    model = lowbit.load(tmp_path / "out", dtype=torch.float32)
    row, before = held.with_prefix(model, TEXT)
    assert before == 2 and row[:3].tolist() == [5, 9, 0] and torch.equal(row[2:], TEXT)
    told = lowbit.evaluate(str(tmp_path / "out"), str(tiny_llama), windows=1, length=64)
    assert all(found["kl"] < 0.5 for found in told["texts"].values())
    with pytest.warns(UserWarning, match="put them in front"):
        model(TEXT[None], use_cache=False)


def test_a_killed_run_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    sentence = "smoothquant(edges=all) + prefixquant + gptaq(int8-row) + act(int8-tensor, static=true) + kv(int8-tensor)"
    lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "whole"), **SMALL)
    with pytest.raises(Killed):
        lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "cut"), progress=KillAfter(1, "quantize"), **SMALL)
    lowbit.quantize(str(tiny_llama), sentence, str(tmp_path / "cut"), **SMALL)
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_a_part_of_a_model_has_no_prefix() -> None:
    with pytest.raises(RecipeError, match=r"prefixquant@mlp: prefixquant puts tokens in front of the whole model"):
        lowbit.Recipe.parse(f"prefixquant@mlp + {STATIC}")
