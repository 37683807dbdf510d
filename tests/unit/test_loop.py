"""The decode loop on the CPU: its tokens are those of transformers' generate, step by step, by a model's own forward, and as a
graph would hold it; text comes in characters."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lowbit import kvcache
from lowbit.formats import parse
from lowbit.kernels.cpu import _build
from lowbit.layers import joined
from lowbit.layers.linear import QuantizedLinear
from lowbit.layers.loading import load
from lowbit.pipeline.source import tokenizer_of
from lowbit.serving import loop
from lowbit.serving._bursts import Graphs
from lowbit.serving.local import Local
from lowbit.testing._tiny import tiny

MODEL = Path(__file__).parents[2] / "models" / "lowbit-tiny"
on_cpu = pytest.mark.skipif(bool(_build.missing()), reason=_build.missing())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@torch.no_grad()
def test_tokens_of_a_forward_are_those_of_generate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.step, "refusal", lambda model: "the forward is what is tested")
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
def test_a_graph_follows_a_window(name: str, prompt: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph holds is what the host did once: traced, a token is the same operations wherever it stands."""

    def traced(_: loop.Calls, key: float, one: Callable[[], None], reset: Callable[[], None]) -> Any:
        reset()
        for _ in range(2):
            one()
        return make_fx(one)()

    monkeypatch.setattr(loop.step, "refusal", lambda model: "the forward is what is tested")
    monkeypatch.setattr(loop.Calls, "prepared", traced)
    model = tiny(name, seed=1, sliding_window=16)
    ids = torch.randint(3, 256, (1, prompt))
    model.generation_config.eos_token_id = None
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert list(loop.Loop(model).tokens(ids, 20)) == wanted[0, prompt:].tolist()


@on_cpu
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
@torch.no_grad()
def test_tokens_step_by_step_are_those_of_generate(name: str) -> None:
    """Greedy and drawn, of prompts of several lengths, with a cache that grows, and up to the end of a text."""
    model = tiny(name, sliding_window=None, max_position_embeddings=2048)
    model.generation_config.eos_token_id = None
    made = loop.Loop(copy.deepcopy(model))
    for length in (1, 9, 290, 40):
        ids = torch.randint(3, 256, (1, length))
        for temperature in (0.0, 0.7):
            wanted = written(model, ids, 30, temperature)
            torch.manual_seed(1)
            assert list(made.tokens(ids, 30, temperature)) == wanted, (length, temperature)
    assert made._step is not None and made._room == 512 and made._step._again is not None
    made.model.generation_config.eos_token_id = [wanted[12]]
    torch.manual_seed(1)
    assert list(made.tokens(ids, 30, 0.7)) == wanted[: wanted.index(wanted[12]) + 1]


@on_cpu
@pytest.mark.parametrize("text", ["int4-g32-asym", "nf4-g32"])
@torch.no_grad()
def test_packed_linears_with_biases_are_written_down(text: str) -> None:
    """A copy of the model looks everything up by each call."""
    model, format = tiny("qwen2", sliding_window=None, max_position_embeddings=512), parse(text)
    model.generation_config.eos_token_id = None
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            q = format.fit(module.weight).quantize(module.weight)
            model.model.set_submodule(name, QuantizedLinear.from_quantized(q, module.bias).prepare())
    ids = torch.randint(3, 256, (1, 9))
    wanted = written(copy.deepcopy(model), ids, 30, 0.0)
    made = loop.Loop(model)
    assert list(made.tokens(ids, 30)) == wanted
    assert made._step is not None and made._step._again is not None
    assert isinstance(model.model.layers[0].self_attn.q_proj.joined.whole, QuantizedLinear)


@on_cpu
@pytest.mark.parametrize("text", ["int4-s2-r8", "int8-r0", "int4-centred-rot-r8", "kivi2-r0"])
@torch.no_grad()
def test_tokens_over_a_packed_cache_are_those_of_generate(text: str) -> None:
    """In C++ and by the reference; of a prompt that is packed at once, and one that is packed while it is written."""
    model = tiny("llama", sliding_window=None, head_dim=64, max_position_embeddings=512)
    model.generation_config.eos_token_id = None
    policy = kvcache.parse(text)
    assert not loop.refusal(model, policy)
    made = loop.Loop(copy.deepcopy(model), policy)
    for length in (150, 5):
        ids = torch.randint(3, 256, (1, length))
        for temperature in (0.0, 0.7):
            wanted = written(model, ids, 80, temperature, kvcache.arguments(policy, model))
            torch.manual_seed(1)
            assert list(made.tokens(ids, 80, temperature)) == wanted, (length, temperature)
    assert made._step is not None and made._step._held[0].stores[0].packed > 0 and made._step._again is None
    kvcache.attach(model, text)
    assert not loop.refusal(model)
    torch.manual_seed(1)
    assert list(loop.Loop(model).tokens(ids, 80, 0.7)) == wanted
    model.kv_policies = (policy, None)
    assert loop.refusal(model) == "its cache is packed in some of its blocks"


@on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_bundled_model_writes_what_generate_writes(dtype: torch.dtype) -> None:
    """In bfloat16 two orders of sums may part where two tokens are all but equal: whatever a step takes is likely enough."""
    model, told = load(MODEL, dtype=dtype), Local.__new__(Local)
    told.tokenizer = tokenizer_of(MODEL)
    ids = told.tokenizer("The history of", return_tensors="pt")["input_ids"]
    wanted = written(model, ids, 60, 0.0)
    assert not loop.refusal(model)
    found = list(loop.Loop(copy.deepcopy(model)).tokens(ids, 60))
    if dtype == torch.float32:
        assert found == wanted
    logits = model(torch.cat([ids, torch.tensor([found])], 1)).logits[0, ids.shape[1] - 1 : -1].float()
    behind = logits.amax(1) - logits.gather(1, torch.tensor(found)[:, None])[:, 0]
    assert float(behind.max()) < (1e-3 if dtype == torch.float32 else 0.15)


def written(model: Any, ids: Tensor, count: int, temperature: float, cache: Any = None) -> list[int]:
    """What transformers' generate gives from seed 1."""
    how: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    torch.manual_seed(1)
    told = {"attention_mask": torch.ones_like(ids), "max_new_tokens": count, "pad_token_id": 0}
    found: list[int] = model.generate(ids, **told, **how, **(cache or {}))[0, ids.shape[1] :].tolist()
    return found


@on_cpu
def test_what_has_no_loop_says_why() -> None:
    model = tiny("llama", sliding_window=None)
    assert not loop.refusal(model)
    model.generation_config.repetition_penalty = 1.0
    assert not loop.refusal(model)
    model.generation_config.repetition_penalty = 1.1
    assert loop.refusal(model) == "its generation config asks for repetition_penalty"
    assert loop.refusal(tiny("qwen3")) == "its blocks are Qwen3DecoderLayer"
    assert loop.refusal(tiny("gemma3"), kvcache.parse("int4")) == "it has no list of blocks"
    assert loop.refusal(tiny("mistral", sliding_window=16)) == "some of its blocks attend to a window"
    assert "float16" in loop.refusal(tiny("llama", sliding_window=None).half())
    assert loop.refusal(tiny("llama", head_dim=24, sliding_window=None)) == "its heads are 24 wide; multiples of 16 are taken"
    model = tiny("llama", sliding_window=None)
    model.model.norm.to(torch.bfloat16)
    assert loop.refusal(model) == "its weights are floats of several types"
    model.model.norm.float()
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(model.model.layers[1].mlp.up_proj)
    assert loop.refusal(model) == "its linears of one input cannot be joined"


def test_graphs_hand_out_a_burst_when_the_next_one_is_started() -> None:
    started: list[int] = []

    def bursts() -> Iterator[Any]:
        for number in range(3):
            started.append(number)
            yield lambda number=number: [number]

    seen = [(read(), len(started)) for read in Graphs().in_turn(bursts())]
    assert seen == [([0], 2), ([1], 3), ([2], 3)]


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


def test_a_token_of_another_choice_is_drawn_by_its_share() -> None:
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
