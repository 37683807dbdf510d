"""The decode loop on the CPU: without graphs, its tokens are those of transformers' generate; text comes in characters."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from lowbit.formats import parse
from lowbit.layers import joined
from lowbit.layers.linear import QuantizedLinear
from lowbit.serving import loop
from lowbit.serving.local import Local
from lowbit.testing._tiny import tiny


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that call what they would replay, reads that are there at once."""

    def graph(self: loop.Loop, temperature: float) -> Any:
        return SimpleNamespace(replay=lambda: self._one(self._choose(temperature)))

    def read(self: loop.Loop, start: int, stop: int) -> Any:
        return self._written[start:stop].clone(), SimpleNamespace(synchronize=lambda: None)

    monkeypatch.setattr(loop.Loop, "_graph", graph)
    monkeypatch.setattr(loop.Loop, "_read", read)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@torch.no_grad()
def test_tokens_are_those_of_generate(name: str, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.step, "refusal", lambda model: "tested in Triton's interpreter")
    model = tiny(name, sliding_window=64)
    ids = torch.randint(3, 256, (1, 9))
    model.generation_config.eos_token_id = None
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    made = loop.Loop(model)
    assert list(made.tokens(ids, 20)) == wanted[0, 9:].tolist()
    model.generation_config.eos_token_id = [int(wanted[0, 15])]
    found = list(made.tokens(ids, 20))
    first = wanted[0, 9:].tolist().index(int(wanted[0, 15]))
    assert found == wanted[0, 9 : 10 + first].tolist()


@pytest.mark.parametrize("name", ["mistral", "cohere2", "gemma2"])
@pytest.mark.parametrize("prompt", [9, 21])
@torch.no_grad()
def test_a_graph_follows_a_window(name: str, prompt: int, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph holds is what the host did once: traced, a token is the same operations wherever it stands."""

    def graph(self: loop.Loop, temperature: float) -> Any:
        choose = self._choose(temperature)
        self._cache.reset()
        for _ in range(2):
            self._one(choose)
        return SimpleNamespace(replay=make_fx(lambda: self._one(choose))())

    monkeypatch.setattr(loop.step, "refusal", lambda model: "tested in Triton's interpreter")
    monkeypatch.setattr(loop.Loop, "_graph", graph)
    model = tiny(name, seed=1, sliding_window=16)
    ids = torch.randint(3, 256, (1, prompt))
    model.generation_config.eos_token_id = None
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert list(loop.Loop(model).tokens(ids, 20)) == wanted[0, prompt:].tolist()


@torch.no_grad()
def test_joined_linears_give_what_they_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, format = tiny("qwen2"), parse("int4-g32-asym")
    block = model.model.layers[0]
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        linear = block.get_submodule(name)
        q = format.fit(linear.weight).quantize(linear.weight)
        block.set_submodule(name, QuantizedLinear.from_quantized(q, linear.bias))
    rest = model.model.layers[1].mlp
    rest.gate_proj = QuantizedLinear.from_quantized(format.fit(rest.gate_proj.weight).quantize(rest.gate_proj.weight))
    ids = torch.randint(3, 256, (2, 7))
    wanted = model(ids).logits
    joined.join(model, model.config)
    assert isinstance(block.self_attn.q_proj.joined.whole, QuantizedLinear)
    assert type(rest.up_proj) is joined.Part and isinstance(rest.gate_proj.joined.whole, joined.Side)
    assert torch.allclose(model(ids).logits, wanted, atol=1e-4)


def test_a_token_of_another_choice_is_drawn_by_its_share(eager: None) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(top_k=2, top_p=1.0))
    made = loop.Loop.__new__(loop.Loop)
    made.model = model
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).repeat(4000, 1)
    found = torch.bincount(made._choose(0.5)(logits)[:, 0], minlength=4) / 4000
    assert found[0] == found[2] == 0
    assert abs(float(found[1]) - 1 / (1 + 2.718281828**-2)) < 0.02


def test_the_first_of_equal_logits_is_taken() -> None:
    logits = torch.randn(2, 1300)
    logits[0, 700] = logits[0, 40] = logits[1, 1299] = 9.0
    assert loop.likeliest(logits).tolist() == [[40], [1299]]


def test_a_character_of_several_tokens_comes_whole() -> None:
    class Bytes:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    local = Local.__new__(Local)
    local.tokenizer = Bytes()
    assert list(local._text(iter("aé€b".encode()))) == ["a", "é", "€", "b", ""]
