"""allocation - which option each item takes so that the sum of losses is least and the bytes fit: a knapsack with choices.

In / Out  items, each a list of options (bytes, loss), and the bytes that they may take together -> the option of each item.
Idea      Dynamic programming over stored bytes: the state after some items is (bytes, loss), and one that another beats in both
          is dropped, so nothing is rounded to a unit. A price of bytes, lambda, bounds what the remaining items can reach:
          sum of min (loss + lambda bytes) - lambda * (bytes left). A state whose bound exceeds a known solution is dropped too;
          with the best lambda few are left: what the price buys is within one item of the optimum.
Source    Lists of undominated states: Nemhauser and Ullmann (1969). The price: Everett (1963). As allocation of bits:
          HIGGS (2411.17525), section 5.
Traps     Exact as long as no list is longer than STATES; longer ones keep the states of the best bounds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Options = Sequence[tuple[int, float]]
"""What one item may become: bytes and loss of each option."""
STATES = 200_000
HALVINGS = 100
SLACK = 1e-12
"""Share of a loss by which a bound may be off for rounding alone."""


def allocate(items: Sequence[Options], budget: int) -> list[int] | None:
    """The option of each item; None where even the smallest ones exceed `budget` bytes. Losses are finite.

    Of equal losses the one of fewer bytes is taken.
    """
    if sum(min(size for size, _ in options) for options in items) > budget:
        return None
    price, known = _priced(items, budget)
    incumbent = _loss(items, known)
    rest = _bounds(items, price)
    sizes, losses = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    trail: list[tuple[Tensor, Tensor]] = []
    for number, options in enumerate(items):
        size = torch.tensor([s for s, _ in options], dtype=torch.int64)
        loss = torch.tensor([e for _, e in options], dtype=torch.float64)
        sizes, losses = (sizes[:, None] + size).view(-1), (losses[:, None] + loss).view(-1)
        bounds = losses + rest[number + 1] - price * (budget - sizes)
        kept = _undominated(sizes, losses, bounds, budget, incumbent + SLACK * (1 + abs(incumbent)))
        trail.append((kept // len(options), kept % len(options)))
        sizes, losses = sizes[kept], losses[kept]
        if not len(kept):
            return known
    return _walk(trail, int(losses.argmin()))


def _undominated(sizes: Tensor, losses: Tensor, bounds: Tensor, budget: int, limit: float) -> Tensor:
    """Indices of the states worth keeping, by rising bytes and falling loss."""
    found = ((sizes <= budget) & (bounds <= limit)).nonzero().view(-1)
    if len(found) > STATES:
        found = found[bounds[found].argsort(stable=True)[:STATES]]
    found = found[losses[found].argsort(stable=True)]
    found = found[sizes[found].argsort(stable=True)]
    ordered = losses[found]
    best = torch.cummin(ordered, 0).values
    first = torch.ones(len(found), dtype=torch.bool)
    first[1:] = ordered[1:] < best[:-1]
    return found[first]


def _walk(trail: list[tuple[Tensor, Tensor]], state: int) -> list[int]:
    """The options that led to a last state."""
    taken = []
    for parents, options in reversed(trail):
        taken.append(int(options[state]))
        state = int(parents[state])
    return taken[::-1]


def _priced(items: Sequence[Options], budget: int) -> tuple[float, list[int]]:
    """The least price of a byte at which what each item buys fits, by halving, and what they buy."""
    low, high = 0.0, 1.0
    if _bytes(items, _bought(items, low)) <= budget:
        return low, _bought(items, low)
    while _bytes(items, _bought(items, high)) > budget:
        high *= 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _bytes(items, _bought(items, middle)) <= budget else (middle, high)
    return high, _bought(items, high)


def _bought(items: Sequence[Options], price: float) -> list[int]:
    """What each item takes by itself when a byte costs `price`; of equals the smaller."""
    return [min(range(len(o)), key=lambda i, o=o: (o[i][1] + price * o[i][0], o[i][0])) for o in items]  # type: ignore[misc]


def _bounds(items: Sequence[Options], price: float) -> list[float]:
    """The least that items k, k + 1, ... can cost, bytes at `price`; for every k, and 0 at the end."""
    found = [0.0]
    for options in reversed(items):
        found.append(found[-1] + min(loss + price * size for size, loss in options))
    return found[::-1]


def _bytes(items: Sequence[Options], taken: Sequence[int]) -> int:
    return sum(options[i][0] for options, i in zip(items, taken, strict=True))


def _loss(items: Sequence[Options], taken: Sequence[int]) -> float:
    return sum(options[i][1] for options, i in zip(items, taken, strict=True))
