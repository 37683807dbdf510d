"""attention - decode a tile of keys and values, weigh, add, forget it: the law of lowbit.kernels.attention, everywhere.

Idea      Softmax over tiles: the greatest score so far m, the sum l of exp(score - m) and the weighted values, all scaled down
          when m grows. Scores and sums are float32. A tile is at most LONGEST tokens and TILE numbers of any tensor.
"""

import torch
from torch import Tensor

from lowbit.kernels import pages
from lowbit.kernels.attention import Case, Held

RANK = 0
LONGEST = 512
TILE = 1 << 20
NEVER = -1e30
"""A greatest score for queries that see nothing: their result is 0."""


def supports(case: Case) -> str:
    return "" if case.dtype.is_floating_point else f"q is {case.dtype}; floats only"


def attend(q: Tensor, keys: Held, values: Held, scale: float, mask: Tensor | None, counts: Tensor | None) -> Tensor:
    batch, heads, new, _ = q.shape
    shared = keys.first.shape[1]
    state = _State(q.float().reshape(batch, shared, -1, q.shape[3]) * scale, values.width)
    hidden = _Hidden(mask, counts, (batch, shared, heads // shared, new), keys)
    first, packed = keys.first.shape[2], keys.packed
    _pages(state, hidden, keys, values)
    if values.half.rotated and packed:
        state.sum = pages.out_of_basis(state.sum, values.constants)
    for start, k, v in ((0, keys.first, values.first), (first + packed, keys.last, values.last)):
        if k.shape[2]:
            state.add(hidden(state.q @ k.float().transpose(-1, -2), start), v.float())
    return state.result().view(batch, heads, new, -1).to(q.dtype)


def _pages(state: "_State", hidden: "_Hidden", keys: Held, values: Held) -> None:
    """Add the packed tokens, their values in their basis."""
    half, start = keys.half, keys.first.shape[2]
    turned = half.rotated and not half.before
    q = pages.into_basis(state.q, keys.constants) if turned else state.q
    block = max(keys.block, values.block)
    room = TILE // max(q[..., 0].numel(), keys.width * q.shape[0] * q.shape[1], 1)
    tile = max(block, min(LONGEST, room) // block * block)
    for a in range(0, keys.packed, tile):
        b = min(a + tile, keys.packed)
        state.add(hidden(_scores(keys, state.q, q, a, b), start + a), _values(values, a, b))


def _scores(keys: Held, plain: Tensor, q: Tensor, a: int, b: int) -> Tensor:
    """Scores [batch, heads, queries, b - a] of packed tokens a .. b. plain, q: queries as they are and in the keys' basis."""
    half, part = keys.half, keys.part(a, b)
    if half.grid is None or half.before:
        k = pages.decode(half, part, keys.width, keys.first.shape[2] + a, keys.constants)
        return plain @ k.float().transpose(-1, -2)
    scores = q @ pages.in_basis(half, part, keys.width, keys.constants).flatten(2, 3).transpose(-1, -2)
    if half.centred:
        mean = plain @ part["mean"].float().transpose(-1, -2)
        scores = scores + mean.repeat_interleave(half.step, -1)
    return scores


def _values(values: Held, a: int, b: int) -> Tensor:
    """Packed values a .. b [batch, heads, tokens, width], float32, in their basis."""
    half, part = values.half, values.part(a, b)
    if half.grid is None:
        return pages.decode(half, part, values.width).float()
    x = pages.in_basis(half, part, values.width, values.constants)
    if half.centred:
        mean = part["mean"].float()[:, :, :, None]
        x = x + (pages.into_basis(mean, values.constants) if half.rotated else mean)
    return x.flatten(2, 3)


class _State:
    """The softmax so far. q [batch, heads, queries, width], scaled."""

    def __init__(self, q: Tensor, width: int) -> None:
        self.q = q
        self.greatest = q.new_full((*q.shape[:3], 1), -torch.inf)
        self.weight = q.new_zeros(*q.shape[:3], 1)
        self.sum = q.new_zeros(*q.shape[:3], width)

    def add(self, scores: Tensor, v: Tensor) -> None:
        """Take tokens in. scores [batch, heads, queries, tokens], v [batch, heads, tokens, width]."""
        greatest = torch.maximum(self.greatest, scores.amax(-1, keepdim=True))
        level = greatest.clamp_min(NEVER)
        weights, shrink = (scores - level).exp_(), (self.greatest - level).exp_()
        self.weight = self.weight * shrink + weights.sum(-1, keepdim=True)
        self.sum = self.sum * shrink + weights @ v
        self.greatest = greatest

    def result(self) -> Tensor:
        return self.sum / self.weight.clamp_min(torch.finfo(torch.float32).tiny)


class _Hidden:
    """Which scores count. shape: batch, heads, queries of a head, new tokens."""

    def __init__(self, mask: Tensor | None, counts: Tensor | None, shape: tuple[int, int, int, int], keys: Held) -> None:
        self.shape, self.counts = shape, counts
        self.first, self.packed, self.total = keys.first.shape[2], keys.packed, len(keys)
        self.mask = None
        if mask is not None:
            heads = shape[1:3] if mask.shape[1] > 1 else (1, 1)
            self.mask = mask[..., : self.total].unflatten(1, heads)

    def __call__(self, scores: Tensor, start: int) -> Tensor:
        """Scores [batch, heads, queries, tokens] of tokens from `start` on, what is not seen at minus infinity."""
        stop, shape = start + scores.shape[-1], scores.shape
        if self.mask is None and self.counts is None and (self.shape[3] == 1 or stop <= self.total - self.shape[3] + 1):
            return scores
        scores = scores.view(*self.shape, -1)
        place = torch.arange(start, stop, device=scores.device)
        if self.counts is not None:
            scores = scores.masked_fill(~self._real(place)[:, None, None, None], -torch.inf)
        if self.mask is None:
            seen = place <= self._ends(scores.device)[:, None, None, :, None]
            scores = scores.masked_fill(~seen, -torch.inf)
        else:
            part = self.mask[..., start:stop]
            scores = scores.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else scores + part
        return scores.view(shape)

    def _real(self, place: Tensor) -> Tensor:
        """Whether row b has a token at each place: [batch, places]."""
        assert self.counts is not None  # noqa: S101 - for the type checker
        first, packed, last = self.counts.long().unsqueeze(-1).unbind(1)
        behind, paged = self.first + self.packed, self.first + packed
        in_first, in_pages = place < first, (place >= self.first) & (place < paged)
        return in_first | in_pages | ((place >= behind) & (place < behind + last))

    def _ends(self, device: torch.device) -> Tensor:
        """The last place that each new token sees: [batch or 1, new]."""
        new = self.shape[3]
        end = torch.full((1, 1), self.total, device=device)
        if self.counts is not None:
            end = self.first + self.packed + self.counts[:, 2:3].long()
        return end - new + torch.arange(new, device=device)
