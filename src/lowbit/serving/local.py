"""local - one prompt or one conversation with a model on this machine, token by token.

Idea      transformers' own `generate` over lowbit's packed layers; where nothing refuses, the loop of serving/loop.py instead.
          Text is handed out as soon as it is whole characters.
          kv: a policy of lowbit.kvcache; each call of `stream` or `reply` starts an empty cache.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from lowbit import kvcache
from lowbit.core.errors import RequestError
from lowbit.layers.loading import load
from lowbit.pipeline import held
from lowbit.pipeline.source import resolve, tokenizer_of
from lowbit.serving import loop

UNFINISHED = "\ufffd"
"""What a decoded text ends with when bytes of its last character are missing."""


class Local:
    """A loaded model that writes.

    temperature: 0 = always the likeliest token. kv: how keys and values are held (None: as floats). bits: at which nested
    codes are read (None: all).
    Raises CheckpointError when there is no such model, RequestError when there is no such policy.
    """

    def __init__(
        self, model: str, device: str | None = None, seed: int = 0, kv: str | None = None, bits: int | None = None
    ) -> None:
        self.policy = kvcache.parse(kv) if kv else None
        folder = resolve(model)
        self.tokenizer = tokenizer_of(folder)
        self.model = load(str(folder), device=device, bits=bits).eval()
        self.loop = None if loop.refusal(self.model, self.policy) else loop.Loop(self.model, self.policy)
        self.context = int(getattr(self.model.config, "max_position_embeddings", 1 << 30))
        torch.manual_seed(seed)

    def stream(self, prompt: str, tokens: int, temperature: float = 0.0) -> Iterator[str]:
        """The continuation of `prompt` piece by piece, at most `tokens` tokens. Raises RequestError when it does not fit."""
        yield from self._stream(self.tokenizer(prompt, return_tensors="pt")["input_ids"], tokens, temperature)

    def reply(self, messages: list[dict[str, str]], tokens: int, temperature: float = 0.7) -> Iterator[str]:
        """The answer to a conversation ({"role", "content"} each), by the chat template; cut at the end of the context."""
        if self.tokenizer.chat_template:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        else:
            ids = self.tokenizer("\n".join(m["content"] for m in messages) + "\n", return_tensors="pt")["input_ids"]
        yield from self._stream(ids, max(1, min(tokens, self.context - ids.shape[1])), temperature)

    def _stream(self, ids: torch.Tensor, tokens: int, temperature: float) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        ids = held.with_prefix(self.model, ids[0])[0][None]
        if ids.shape[1] + tokens > self.context:
            asked = f"{ids.shape[1]} prompt tokens and {tokens} new ones"
            raise RequestError(f"{asked}: the model's context holds {self.context}. Ask for fewer --tokens.")
        ids = ids.to(self.model.device)
        if self.loop is not None:
            yield from self._text(self.loop.tokens(ids, tokens, temperature))
            return
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        cache = kvcache.arguments(self.policy, self.model) if self.policy else {}
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

        def work() -> None:
            with torch.no_grad():
                self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    streamer=streamer,
                    pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                    **sampling,
                    **cache,
                )

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            done.add_done_callback(lambda _: streamer.end())  # an error must end the stream too
            yield from streamer
            done.result()

    def _text(self, tokens: Iterator[int]) -> Iterator[str]:
        """Tokens as text, piece by piece; a piece waits for the rest of its last character."""
        ids: list[int] = []
        start = end = 0  # the piece that is told is decoded with the one before it: a tokenizer may put a space between them
        for token in tokens:
            ids.append(token)
            before = self.tokenizer.decode(ids[start:end], skip_special_tokens=True)
            found = self.tokenizer.decode(ids[start:], skip_special_tokens=True)
            if not found.endswith(UNFINISHED):
                yield found[len(before) :]
                start, end = end, len(ids)
        yield self.tokenizer.decode(ids[start:], skip_special_tokens=True)[
            len(self.tokenizer.decode(ids[start:end], skip_special_tokens=True)) :
        ]
