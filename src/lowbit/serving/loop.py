"""loop - token after token: on a GPU one CUDA graph a token, no word from the host in between; on a CPU few calls a token.

Idea      A prompt goes through the model's own forward; its keys and values come into a cache of fixed size. A token then is
          the same operations on the same memory: embedding, blocks, head, choice of the next token, which is written where the
          next one reads it. On a GPU they are a graph: the host starts a burst of replays, and reads the tokens of the burst
          before meanwhile, so it never waits for one (serving/_bursts.py).
          Decoders of Llama's shape run step by step (layers/step.py); on a GPU others run their own forward inside the graph.
Traps     What cannot be captured (experts that look at their tokens on the host) has no loop: `refusal` says so, and the caller
          uses transformers' generate. On a GPU a token that ends the text is noticed a burst later; what was computed after it
          is lost.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lowbit import kvcache
from lowbit.kvcache import Policy
from lowbit.layers import joined, step
from lowbit.layers.experts import Experts
from lowbit.serving._bursts import Calls, Graphs, Read

WIDTH = 512
"""Logits that are compared at once."""
ROOM = 256
"""Caches grow in steps of so many tokens."""
TOP_K = 50
"""What transformers' generate takes where a model says nothing."""
READ = {
    "temperature", "top_k", "top_p", "do_sample", "max_length", "max_new_tokens", "bos_token_id", "eos_token_id",
    "pad_token_id", "use_cache", "transformers_version", "_from_model_config",
}  # fmt: skip
"""What a generation config may say, beside values that change nothing."""
ONE = {"repetition_penalty", "encoder_repetition_penalty", "length_penalty", "typical_p", "num_beams", "num_return_sequences"}
"""What changes nothing at 1."""
Choose = Callable[[Tensor], Tensor]


def refusal(model: Any, policy: Policy | None = None) -> str:
    """Why a model has no loop, or "". policy: how its cache is packed, beside what the model says."""
    if model.device.type not in {"cuda", "cpu"}:
        return f"it is on {model.device.type}"
    told = model.generation_config.to_diff_dict()
    beyond = {name for name, value in told.items() if value and name not in READ and not (name in ONE and value == 1)}
    if beyond:
        return f"its generation config asks for {', '.join(sorted(beyond))}"
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    policies = kvcache.by_layer(policy, layers) if policy else getattr(model, "kv_policies", ())
    if policies and model.device.type != "cpu":
        return "its cache is packed"
    if not all(policies):
        return "its cache is packed in some of its blocks"
    if getattr(model, "prefix", None):
        return "its sequences begin with constant keys and values"
    if any(isinstance(module, Experts) for module in model.modules()):
        return "its experts are chosen on the host"
    if model.device.type == "cpu":
        return step.refusal(model)
    return "" if model._can_compile_fullgraph else "transformers says that its forward cannot be captured"


class Loop:
    """A model that writes. Its linears of one input are joined, in place. policy: of its cache, beside what the model says."""

    def __init__(self, model: Any, policy: Policy | None = None) -> None:
        self._policies = policy or getattr(model, "kv_policies", None)
        self.model = joined.join(model, model.config)
        self._room = 0
        self._launch = Graphs() if model.device.type == "cuda" else Calls()
        self._word = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    @torch.no_grad()
    def tokens(self, ids: Tensor, count: int, temperature: float = 0.0) -> Iterator[int]:
        """At most `count` tokens after ids [1, n], the one that ends the text included."""
        ends = self._ends()
        self._make_room(ids.shape[1] + count)
        choose = self._choose(temperature)
        run = self._launch.prepared(temperature, lambda: self._one(choose), self._reset)
        first = choose(self._prompt(ids))
        self._token.copy_(first)
        self._position.fill_(ids.shape[1])
        self._written[:1] = first[0]
        self._number.fill_(1)
        for read in self._launch.in_turn(self._bursts(count, run)):
            for token in read():
                yield token
                if token in ends:
                    return

    def _bursts(self, count: int, run: Callable[[], None]) -> Iterator[Read]:
        """Tokens 0 .. count: the first one is there, the others are started as this goes on."""
        yield self._launch.read(self._written[:1])
        for start in range(1, count, self._launch.burst):
            stop = min(start + self._launch.burst, count)
            for _ in range(start, stop):
                run()
            yield self._launch.read(self._written[start:stop])

    def _ends(self) -> set[int]:
        """The tokens that end a text."""
        told = self.model.generation_config.eos_token_id
        return set(told) if isinstance(told, list) else {told}

    def _reset(self) -> None:
        """Nothing has been said."""
        for tensor in (self._token, self._position, self._number):
            tensor.zero_()
        if self._step is None:
            self._cache.reset()

    def _make_room(self, tokens: int) -> None:
        """A cache for so many tokens; graphs belong to one."""
        if tokens <= self._room:
            return
        self._room = -(-tokens // ROOM) * ROOM
        self._launch.forget()
        device = self.model.device
        self._token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._written = torch.zeros(self._room, dtype=torch.long, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._step = None if step.refusal(self.model) else step.Step(self.model, self._room, bool(self._policies))
        if self._step is None:
            self._cache = StaticCache(config=self.model.config, max_cache_len=self._room)
            # a layer that slides asks the host where it is, which a graph cannot hold: it gets room for
            # all, and its mask is the window
            self._cache.layers = [
                StaticLayer(self._room) if type(layer) is StaticSlidingWindowLayer else layer for layer in self._cache.layers
            ]
            self._call(self._token, self._cache)  # gives it its memory

    def _call(self, ids: Tensor, cache: Any, **more: Any) -> Tensor:
        """The logits [1, vocab] of the last of ids, by the model's own forward."""
        told = {self._word: cache, "use_cache": True, "logits_to_keep": 1}
        logits: Tensor = self.model(ids, **told, **more).logits[:, -1]
        return logits

    def _prompt(self, ids: Tensor) -> Tensor:
        """Fill the cache with a prompt; the logits after it."""
        if self._step is None:
            self._cache.reset()
            return self._call(ids, self._cache)
        if self._policies:
            (held,) = kvcache.arguments(self._policies, self.model).values()
        else:
            held = DynamicCache(config=self.model.config)
        logits = self._call(ids, held)
        self._step.fill(held)
        return logits

    def _choose(self, temperature: float) -> Choose:
        """Logits [1, vocab] -> the next token [1, 1], as transformers' generate chooses it."""
        if temperature <= 0:
            return likeliest
        told = self.model.generation_config
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        top_k = TOP_K if told.top_k is None else told.top_k
        warpers += [TopKLogitsWarper(top_k)] if top_k else []
        warpers += [TopPLogitsWarper(told.top_p)] if told.top_p and told.top_p < 1 else []

        def draw(logits: Tensor) -> Tensor:
            shares = warpers(None, logits.float()).softmax(-1)
            return likeliest(shares / torch.empty_like(shares).exponential_())

        return draw

    def _one(self, choose: Choose) -> None:
        """One token: what a graph holds."""
        run = self._step
        logits = run(self._token, self._position) if run else self._call(self._token, self._cache, position_ids=self._position)
        if run and choose is likeliest:
            run.take(logits, self._token, self._position, self._written, self._number)
            return
        self._token.copy_(choose(logits))
        self._written.index_copy_(0, self._number, self._token[0])
        self._position += 1
        self._number += 1


def likeliest(logits: Tensor) -> Tensor:
    """The first of the greatest [batch, vocab]: [batch, 1]. In two steps: torch's argmax of a row is one block's work."""
    padded = torch.nn.functional.pad(logits, (0, -logits.shape[1] % WIDTH), value=-torch.inf)
    best, place = padded.view(len(logits), -1, WIDTH).max(2)
    row = best.argmax(1, keepdim=True)
    return row * WIDTH + place.gather(1, row)
