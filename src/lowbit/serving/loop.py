"""loop - token after token on a GPU: one CUDA graph a token, no word from the host in between.

Idea      A prompt goes through the model's own forward; its keys and values come into a cache of fixed size. A token then is a
          graph: embedding, blocks, head, choice of the next token, which the graph itself writes where the next replay reads
          it. The host starts a burst of replays, and reads the tokens of the burst before meanwhile: it never waits for one.
          Decoders of Llama's shape run step by step (layers/step.py); others run their own forward inside the graph.
Traps     What cannot be captured (experts that look at their tokens on the host) has no loop: `refusal` says so, and the caller
          uses transformers' generate. A token that ends the text is noticed a burst later; what was computed after it is lost.
"""

import inspect
from collections.abc import Callable, Generator, Iterator
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

from lowbit.layers import joined, step
from lowbit.layers.experts import Experts

BURST = 8
"""Tokens between two looks of the host."""
WIDTH = 512
"""Logits that are compared at once."""
ROOM = 256
"""Caches grow in steps of so many tokens."""
Choose = Callable[[Tensor], Tensor]


def refusal(model: Any) -> str:
    """Why a model has no loop, or ""."""
    if model.device.type != "cuda":
        return f"it is on {model.device.type}"
    if getattr(model, "kv_policies", None):
        return "its cache is packed"
    if getattr(model, "prefix", None):
        return "its sequences begin with constant keys and values"
    if any(isinstance(module, Experts) for module in model.modules()):
        return "its experts are chosen on the host"
    return "" if model._can_compile_fullgraph else "transformers says that its forward cannot be captured"


class Launches:
    """What has no graph, called like one."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.replay = run


class Loop:
    """A model that writes. Its linears of one input are joined, in place."""

    def __init__(self, model: Any) -> None:
        self.model = joined.join(model, model.config)
        self._room = 0
        self._graphs: dict[float, torch.cuda.CUDAGraph] = {}
        self._word = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    @torch.no_grad()
    def tokens(self, ids: Tensor, count: int, temperature: float = 0.0) -> Iterator[int]:
        """At most `count` tokens after ids [1, n], the one that ends the text included."""
        ends = self._ends()
        self._make_room(ids.shape[1] + count)
        replay = self._graph(temperature)
        first = self._choose(temperature)(self._prompt(ids))
        self._token.copy_(first)
        self._position.fill_(ids.shape[1])
        self._written[:1] = first[0]
        self._number.fill_(1)
        pending: tuple[Tensor, torch.cuda.Event] | None = self._read(0, 1)
        for start in range(1, count, BURST):
            stop = min(start + BURST, count)
            for _ in range(start, stop):
                replay.replay()
            read = self._read(start, stop)
            if pending is not None and (yield from _until(pending, ends)):
                return
            pending = read
        if pending is not None:
            yield from _until(pending, ends)

    def _ends(self) -> set[int]:
        """The tokens that end a text."""
        told = self.model.generation_config.eos_token_id
        return set(told) if isinstance(told, list) else {told}

    def _make_room(self, tokens: int) -> None:
        """A cache for so many tokens; graphs belong to one."""
        if tokens <= self._room:
            return
        self._room = -(-tokens // ROOM) * ROOM
        self._graphs.clear()
        device = self.model.device
        self._cache = StaticCache(config=self.model.config, max_cache_len=self._room)
        # a layer that slides asks the host where it is, which a graph cannot hold: it gets room for all, its mask is the window
        self._cache.layers = [
            StaticLayer(self._room) if type(layer) is StaticSlidingWindowLayer else layer for layer in self._cache.layers
        ]
        self._token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._written = torch.zeros(self._room, dtype=torch.long, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._call(self._token)  # gives the cache its memory
        plain = not step.refusal(self.model) and all(type(layer).__name__ == "StaticLayer" for layer in self._cache.layers)
        self._step = step.Step(self.model, self._cache) if plain else None

    def _call(self, ids: Tensor, cache: Any = None, **more: Any) -> Tensor:
        """The logits [1, vocab] of the last of ids, by the model's own forward."""
        told = {self._word: self._cache if cache is None else cache, "use_cache": True, "logits_to_keep": 1}
        logits: Tensor = self.model(ids, **told, **more).logits[:, -1]
        return logits

    def _prompt(self, ids: Tensor) -> Tensor:
        """Fill the cache with a prompt; the logits after it."""
        self._cache.reset()
        if self._step is None:
            return self._call(ids)
        held = DynamicCache(config=self.model.config)
        logits = self._call(ids, held)
        for layer, found in zip(self._cache.layers, held.layers, strict=True):
            layer.keys[:, :, : ids.shape[1]] = found.keys
            layer.values[:, :, : ids.shape[1]] = found.values
        return logits

    def _choose(self, temperature: float) -> Choose:
        """Logits [1, vocab] -> the next token [1, 1], as transformers' generate chooses it."""
        if temperature <= 0:
            return likeliest
        told = self.model.generation_config
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        warpers += [TopKLogitsWarper(told.top_k)] if told.top_k else []
        warpers += [TopPLogitsWarper(told.top_p)] if told.top_p and told.top_p < 1 else []

        def draw(logits: Tensor) -> Tensor:
            shares = warpers(None, logits.float()).softmax(-1)
            return likeliest(shares / torch.empty_like(shares).exponential_())

        return draw

    def _one(self, choose: Choose) -> None:
        """One token: what a graph holds."""
        run = self._step
        logits = run(self._token, self._position) if run else self._call(self._token, position_ids=self._position)
        if run and choose is likeliest:
            run.take(logits, self._token, self._position, self._written, self._number)
            return
        self._token.copy_(choose(logits))
        self._written.index_copy_(0, self._number, self._token[0])
        self._position += 1
        self._number += 1

    def _graph(self, temperature: float) -> "torch.cuda.CUDAGraph | Launches":
        """The graph of one token, captured when it is first wanted; the cache's content is lost then.

        A layer that asks the host for something cannot be captured: it is launched anew for each token.
        """
        if temperature in self._graphs:
            return self._graphs[temperature]
        choose, side = self._choose(temperature), torch.cuda.Stream()
        for tensor in (self._token, self._position, self._number):
            tensor.zero_()
        self._cache.reset()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._one(choose)
        torch.cuda.current_stream().wait_stream(side)
        found = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(found):
                self._one(choose)
        except RuntimeError:
            return Launches(lambda: self._one(choose))
        self._graphs[temperature] = found
        return found

    def _read(self, start: int, stop: int) -> tuple[Tensor, torch.cuda.Event]:
        """Tokens start .. stop on their way to the host."""
        found, done = self._written[start:stop].to("cpu", non_blocking=True), torch.cuda.Event()
        done.record()
        return found, done


def likeliest(logits: Tensor) -> Tensor:
    """The first of the greatest [batch, vocab]: [batch, 1]. In two steps: torch's argmax of a row is one block's work."""
    padded = torch.nn.functional.pad(logits, (0, -logits.shape[1] % WIDTH), value=-torch.inf)
    best, place = padded.view(len(logits), -1, WIDTH).max(2)
    row = best.argmax(1, keepdim=True)
    return row * WIDTH + place.gather(1, row)


def _until(pending: tuple[Tensor, torch.cuda.Event], ends: set[int]) -> Generator[int, None, bool]:
    """The tokens that have come, up to one that ends the text. Returns whether there was one."""
    pending[1].synchronize()
    for token in pending[0].tolist():
        yield token
        if token in ends:
            return True
    return False
