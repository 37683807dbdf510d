"""measure - perplexity, KL divergence from the original and top-1 agreement, by the one protocol of the house.

In        a model folder or Hub id, the original to compare with, texts.
Out       {"bits_per_weight": ..., "texts": {name: {perplexity, perplexity_se, kl, kl_se, top1, top1_se, windows}}}
Idea      Windows of 2048 tokens (beginning-of-text + next 2047), no overlap; the original in float32 against the quantized
          model with its decoded weights in float32; all positions count; standard errors over windows.
Traps     Never evaluate on the calibration text. Differences below two standard errors are no difference; `paired` is tighter.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.device import available_memory
from lowbit.core.errors import RequestError
from lowbit.layers.embedding import QuantizedEmbedding
from lowbit.layers.linear import QuantizedLinear
from lowbit.layers.loading import load
from lowbit.pipeline import held
from lowbit.pipeline import text as texts
from lowbit.pipeline.source import resolve, tokenizer_of
from lowbit.statistics._divergence import Divergence

DEFAULT_TEXTS = ("bundled", "pydoc")
WINDOWS = 32


class Reference:
    """The original model, with its logits of recent windows kept (in at most 40 % of the memory that is free at first)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._limit = int(0.4 * available_memory(torch.device("cpu")))
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [length, vocab] of one window [length]."""
        key = tokens.numpy().tobytes()
        if key not in self._kept:
            found = logits_of(self.model, tokens).cpu()
            self._bytes += found.numel() * found.element_size()
            self._kept[key] = found
            while self._bytes > self._limit:
                _, old = self._kept.popitem(last=False)
                self._bytes -= old.numel() * old.element_size()
            return found
        return self._kept[key]


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits [length, vocab] of one window [length] of tokens, its cache packed where the model's is."""
    device = next(model.parameters()).device
    if hasattr(model, "kv_policies"):
        return held.logits(model, tokens.to(device))[0]
    tokens, before = held.with_prefix(model, tokens)
    with torch.no_grad():
        found: Tensor = model(tokens[None].to(device), use_cache=False).logits[0]
    return found[before:]


def read_texts(names: Sequence[str], tokenizer: Any, length: int, count: int | None) -> dict[str, Tensor]:
    """Windows [windows, length] of each text, by a short name ("evaluation-books" for evaluation-books.txt)."""
    found = {}
    for name in names or DEFAULT_TEXTS:
        cut = texts.windows(name, texts.read(name, "evaluation"), tokenizer, length, count)
        found[Path(name).stem if Path(name).suffix else name] = cut.tokens
    return found


def divergence(model: nn.Module | Reference, windows: Tensor, reference: Reference | None) -> Divergence:
    """Run both models over windows [windows, length]."""
    found = Divergence()
    for row in windows:
        quantized = model.logits(row) if isinstance(model, Reference) else logits_of(model, row)
        found.add(row, quantized, None if reference is None else reference.logits(row))
    return found


def bits_per_weight(model: nn.Module) -> float:
    """Stored bits per weight of the matrices that are quantized; of all decoder linears when none is."""
    packed = [m for m in model.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)]
    if packed:
        return 8 * sum(m.memory_bytes() for m in packed) / sum(m.out_features * m.in_features for m in packed)
    floats = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return 8 * sum(w.numel() * w.element_size() for w in floats) / max(1, sum(w.numel() for w in floats))


def evaluate(
    model: str,
    against: str | None = None,
    text: Sequence[str] = (),
    windows: int | None = None,
    length: int | None = None,
    device: str | None = None,
    bits: int | None = None,
) -> dict[str, Any]:
    """Measure a model, and its divergence from the original when one is given.

    text: files, datasets names, "bundled" or "pydoc" (default: the last two). windows: at most so many per text (default 32).
    bits: at which nested codes are read.
    """
    folder = resolve(model)
    tokenizer = tokenizer_of(folder)
    candidate = load(str(folder), device=device, bits=bits)
    length = length or window_length(candidate)
    rows = read_texts(text, tokenizer, length, windows or WINDOWS)
    size = bits_per_weight(candidate)
    candidate = candidate.float()
    reference = Reference(load(str(resolve(against)), dtype=torch.float32, device=device)) if against else None
    if reference:
        both: tuple[Any, Any] = candidate, reference.model
        sizes = [found.config.get_text_config().vocab_size for found in both]
        if sizes[0] != sizes[1]:
            fact = f"their vocabularies have {sizes[0]} and {sizes[1]} tokens"
            raise RequestError(f"{model} against {against}: {fact}. Give the original that it was made of.")
    return {
        "model": model,
        "against": against,
        "length": length,
        "bits_per_weight": size,
        "texts": {name: divergence(candidate, tokens, reference).summary() for name, tokens in rows.items()},
    }


def window_length(model: nn.Module) -> int:
    """2048, or the model's context when that is shorter."""
    return min(texts.LENGTH, int(getattr(model.config, "max_position_embeddings", texts.LENGTH)))
