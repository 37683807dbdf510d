"""statistics - what every file of the shelf must pass.

In / Out  the name of a statistic -> nothing, or an AssertionError that says what is wrong.
"""

from typing import Any

import torch
from torch import Tensor

from lowbit.statistics import Collecting, gradients, shelf

INPUTS = 200
TOKENS = 1000


def _streams(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and reference inputs [tokens, in]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, INPUTS, generator=generator) * torch.exp(torch.randn(INPUTS, generator=generator))
    return x, x + 0.1 * torch.randn(TOKENS, INPUTS, generator=generator)


def _near(found: Tensor, wanted: Tensor, share: float = 1e-6) -> bool:
    """Equal to 1e-5, or to `share` of the largest entry."""
    return torch.allclose(found, wanted, rtol=1e-5, atol=share * float(wanted.abs().max()))


def plain() -> list[str]:
    """The statistics of inputs alone."""
    return [name for name in shelf.names() if not gradients([name])]


def guided() -> list[str]:
    """Those that come from gradients, and those that weigh tokens by them."""
    return [name for name in shelf.names() if gradients([name])]


def check_guided(name: str) -> None:
    """Finite before anything was seen; float32 of 16-bit inputs; windows add up in any order but that of tokens."""
    x, _ = _streams()
    slopes = torch.randn(TOKENS, 24, generator=torch.Generator().manual_seed(1))
    size: Any = (24, INPUTS) if getattr(shelf.get(name), "NEEDS_GRADIENTS", False) else INPUTS
    results = []
    for dtype, order in ((torch.float32, 1), (torch.bfloat16, 1), (torch.float32, -1)):
        collector = shelf.get(name).collector(size, torch.device("cpu"))
        assert bool(torch.isfinite(collector.result()).all()), f"{name}: not finite before the first window"
        pairs = list(zip(x.bfloat16().to(dtype).split(100), slopes.bfloat16().to(dtype).split(100), strict=True))
        for window, gradient in pairs[::order]:
            collector.add(window, gradient)
        results.append(collector.result())
        assert results[-1].dtype == torch.float32, f"{name}: {results[-1].dtype}"
    whole, rough, turned = results
    assert _near(rough, whole), f"{name}: 16-bit inputs lose precision"
    if whole.shape[0] == TOKENS:
        turned = torch.cat(list(turned.split(100))[::-1])
    assert _near(turned, whole, 1e-5), f"{name}: windows in another order give another result"


def _collected(name: str, x: Tensor, reference: Tensor, split: int) -> Tensor:
    collecting = Collecting((name,), INPUTS, torch.device("cpu"))
    for part, other in zip(x.split(split), reference.split(split), strict=True):
        collecting.add(part, other if collecting.reference else None)
    return collecting.stats()[name]


def check_split(name: str) -> None:
    """Any split of the stream gives the same, to 1e-6 of the largest entry."""
    x, reference = _streams()
    whole = _collected(name, x, reference, TOKENS)
    for split in (1, 7, 128, 999):
        found = _collected(name, x, reference, split)
        assert _near(found, whole), f"{name}: pieces of {split} tokens differ"


def check_going_on(name: str) -> None:
    """A result in between changes nothing."""
    x, reference = _streams()
    collector = shelf.get(name).collector(INPUTS, torch.device("cpu"))
    for part, other in zip(x.split(300), reference.split(300), strict=True):
        collector.add(part, other)
        kept = collector.result()
        before = kept.clone()
    collector.add(x[:10], reference[:10])
    assert torch.equal(kept, before), f"{name}: a result changed when more tokens came"
    assert _near(before, _collected(name, x, reference, TOKENS), 1e-5), f"{name}: results in between disturb"


def check_nothing(name: str) -> None:
    """No token at all gives finite numbers; a token that is not finite is left out, in both streams."""
    empty = shelf.get(name).collector(INPUTS, torch.device("cpu")).result()
    assert bool(torch.isfinite(empty).all()), f"{name}: not finite before the first token"
    x, reference = _streams()
    spoiled = x.clone()
    spoiled[17, 3] = float("inf")
    keep = torch.arange(TOKENS) != 17
    found, wanted = _collected(name, spoiled, reference, 100), _collected(name, x[keep], reference[keep], TOKENS)
    assert _near(found, wanted), f"{name}: an infinite token counts"


def check_precision(name: str) -> None:
    """16-bit inputs are summed in at least 32 bits; float32."""
    x, reference = _streams()
    x, reference = x.bfloat16(), reference.bfloat16()
    found, wanted = _collected(name, x, reference, 64), _collected(name, x.float(), reference.float(), TOKENS)
    assert found.dtype == torch.float32, f"{name}: {found.dtype}"
    assert _near(found, wanted), f"{name}: 16-bit inputs lose precision"
