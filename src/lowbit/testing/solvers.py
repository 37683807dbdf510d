"""solvers - what every codec must pass, and synthetic layers to try solvers on.

In / Out  a codec and a matrix -> nothing, or an AssertionError that says what is wrong.
Idea      A layer whose inputs are correlated and of unequal size, as real ones are: there feedback must help any codec.
"""

import torch
from torch import Tensor

from lowbit.solvers import damping, descent, ldl
from lowbit.solvers.codec import Codec, round_all


def layer(out: int = 96, inputs: int = 256, tokens: int = 4096, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights [out, in] and inputs [tokens, in], correlated and with log-normal channel scales."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(inputs) + torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    sizes = torch.exp(0.8 * torch.randn(inputs, generator=generator))
    x = torch.randn(tokens, inputs, generator=generator) @ mix * sizes
    return torch.randn(out, inputs, generator=generator) * 0.02, x


def moment_of(x: Tensor) -> Tensor:
    """H = E[x xT] of inputs [tokens, in]."""
    return x.T @ x / x.shape[0]


def check_codec(codec: Codec, weight: Tensor) -> None:
    """Rounds at any place, changes nothing that it is given, gives the same twice; own values stay (of vectors: nearly)."""
    for start in range(0, weight.shape[1], codec.width):
        x = weight[:, start : start + codec.width].clone()
        codes, values = codec.round(x, start)
        assert torch.equal(x, weight[:, start : start + codec.width]), f"the codec changed its input at column {start}"
        assert values.shape == x.shape, f"values {list(values.shape)} for columns {list(x.shape)}"
        assert codes.shape[0] == x.shape[0] // codec.height, f"{codes.shape[0]} rows of codes for {x.shape[0]} rows"
        again, same = codec.round(x, start)
        assert torch.equal(codes, again) and torch.equal(values, same), f"two calls differ at column {start}"
        moved = (codec.round(values, start)[1] - values).norm()
        assert moved <= (0.5 * (values - x).norm() if codec.width > 1 else 0), f"its own values are moved at column {start}"
    assert weight.shape[0] % codec.height == 0, f"{weight.shape[0]} rows do not fill tiles of {codec.height}"


def check_feedback(codec: Codec, weight: Tensor, x: Tensor) -> None:
    """Feedback loses less than rounding each step alone, and a sweep of descent never loses what it won."""
    moment = moment_of(x)
    alone = ldl.loss(weight - round_all(weight, codec)[1], moment)
    for order in ("natural", "activation"):
        factor = damping.factorise(moment, damping.rounding_order(moment, order, codec.width), 0.01, codec.width)
        codes, values = ldl.solve(weight, factor, codec)
        last = ldl.loss(weight - values, moment)
        assert last < alone, f"order {order}: {last:.3e} with feedback, {alone:.3e} without"
        for _ in range(2 if codec.height == 1 else 0):
            codes, values = descent.sweep(weight, moment, codec, codes, values)
            now = ldl.loss(weight - values, moment)
            assert now <= last * (1 + 1e-5), f"order {order}: a sweep raised the loss from {last:.6e} to {now:.6e}"
            last = now
