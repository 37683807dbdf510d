"""kvcache - what every policy of the KV cache must pass.

In / Out  the name of a policy -> nothing, or an AssertionError that says what is wrong.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lowbit import kvcache
from lowbit.kvcache import Half, Policy
from lowbit.kvcache._store import Store

WIDTH, SINKS, RECENT, TOKENS = 64, 3, 8, 300


def states(seed: int = 0, tokens: int = TOKENS) -> Tensor:
    """Keys [2, 2, tokens, WIDTH] of unit variance, two channels far from zero."""
    found = torch.randn(2, 2, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))
    found[..., 5] += 6
    found[..., 37] -= 4
    return found


def halves(name: str) -> list[tuple[str, Half]]:
    """Both sides of a policy by name."""
    policy = kvcache.parse(name)
    return [(f"{name}, keys", policy.keys), (f"{name}, values", policy.values)]


def filled(half: Half, x: Tensor, *sizes: int) -> Store:
    """A store that took `x` in pieces of the given sizes, then the rest."""
    constants = {"frequencies": 10000.0 ** -(torch.arange(x.shape[3] // 2) / (x.shape[3] // 2))} if half.before else {}
    constants |= {"scale": torch.tensor([0.05])} if half.static else {}
    if half.learned:
        drawn = torch.randn(x.shape[1], x.shape[3], x.shape[3], generator=torch.Generator().manual_seed(3))
        constants["basis"] = torch.linalg.qr(drawn).Q
    store = Store(half, SINKS, RECENT, Policy("", half, half).page, x, constants)
    for part in x.split([*sizes, x.shape[2] - sum(sizes)], 2):
        store.append(part)
    return store


def _same(half: Half, found: Tensor, expected: Tensor) -> bool:
    """Bit by bit; where a basis is a dense product, up to the order of sums, which may follow the number of tokens."""
    return torch.allclose(found, expected, atol=1e-5) if half.learned else torch.equal(found, expected)


def check_text(name: str) -> None:
    """Its text is its name; floats can be asked for in words."""
    assert str(kvcache.parse(name)) == name
    changed = kvcache.parse(f"{name}-s7-r99")
    assert (changed.sinks, changed.recent) == (7, 99), f"{name}: takes no -s7-r99"
    assert replace(changed, text=name, sinks=4, recent=4) == replace(kvcache.parse(name), sinks=4, recent=4)


def check_bytes(name: str) -> None:
    """Packed tokens take the bits that the policy says, floats their own, and nothing else is held."""
    for label, half in halves(name):
        store = filled(half, states(), 7, 200)
        floats = TOKENS - store.packed
        assert RECENT + SINKS <= floats < RECENT + SINKS + store.page, f"{label}: {floats} tokens are floats"
        expected = 2 * 2 * WIDTH * (4 * floats + store.packed * half.bits_per_number(WIDTH) / 8)
        assert store.bytes == expected, f"{label}: {store.bytes} bytes are held, {expected} promised"


def check_error(name: str) -> None:
    """Floats come back exactly, packed Gaussian numbers within the step of so many bits over 8 standard deviations."""
    x = torch.randn(2, 2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    for label, half in halves(name):
        store = filled(half, x)
        back, first, last = store.read(), SINKS, SINKS + store.packed
        assert torch.equal(back[:, :, :first], x[:, :, :first]) and torch.equal(back[:, :, last:], x[:, :, last:]), label
        bits = float(half.grid.dtype.bits) if half.grid else 16.0
        error = float((back - x)[:, :, first:last].square().mean())
        limit = max((8 / (2**bits - 1)) ** 2 / 12, 1e-3 if half.grid else 0.0)
        assert error < limit, f"{label}: squared error {error:.5f}, at most {limit:.5f} is due"


def check_append(name: str) -> None:
    """Token by token, in pieces or at once: the same is held."""
    x = states()
    for label, half in halves(name):
        whole = filled(half, x).read()
        assert _same(half, filled(half, x, 1, 1, 5, 100, 64, 33).read(), whole), f"{label}: pieces give something else"
        assert _same(half, filled(half, x, *[1] * (TOKENS - 1)).read(), whole), f"{label}: single tokens give something else"


def check_crop(name: str) -> None:
    """Rolled back to any length, what remains is as it was; it goes on from there."""
    x = states()
    for label, half in halves(name):
        before = filled(half, x).read()
        for length in (TOKENS, TOKENS - 5, 161, 160, SINKS + 1, SINKS, 1, 0):
            store = filled(half, x)
            store.crop(length)
            assert len(store) == length and _same(half, store.read(), before[:, :, :length]), f"{label}: crop to {length}"
            store.append(x[:, :, length:])
            assert len(store) == TOKENS, f"{label}: {len(store)} tokens after a crop to {length}"
            off = (store.read() - x).square().mean() / ((before - x).square().mean() + 1e-12)
            assert off < 1.5, (
                f"{label}: after a crop to {length} and the same tokens the squared error is {off:.2f} times as large"
            )


def check_batch(name: str) -> None:
    """Sequences picked, repeated or reordered keep their tokens."""
    index = torch.tensor([1, 1, 0])
    for label, half in halves(name):
        store = filled(half, states())
        expected = store.read()[index]
        store.batch(lambda held: held[index])
        assert _same(half, store.read(), expected), f"{label}: other tokens after a change of the batch"
        store.append(states(seed=2)[index])
        assert torch.equal(store.read()[:, :, :SINKS], expected[:, :, :SINKS]), label


def check_policy(name: str) -> None:
    """All of the above."""
    for check in (check_text, check_bytes, check_error, check_append, check_crop, check_batch):
        check(name)
