"""_step - what stands around the linears when a decoder writes one token, on x86 in C++ (source/step.cpp).

norm      hidden += what the last linear gave; y = RMSNorm(hidden)
gate      silu(gate) * up
product   a linear whose weights are floats
enter     hidden = the embedding of the token; y = RMSNorm(hidden)
Attention rotate the new query and key, write the new key and value into the cache, attend to all of it (source/attention.cpp)
Taking    the likeliest token, put where the next step reads it

Idea      The same functions as kernels/triton/_step.py, whose place they take on CPUs: layers/step.py asks for either.
Traps     Norms and gates round to the type of the model where transformers does; rotation is in float32 and rounded once, where
          transformers rounds three times.
"""

import torch
from torch import Tensor

from lowbit.kernels.cpu import _build
from lowbit.kernels.cpu._replay import recorded as recorded


def refusal(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why a model with heads of so many channels cannot go this way, or ""."""
    if width % 16:
        return f"its heads are {width} wide; multiples of 16 are taken"
    return _build.refusal(device, dtype) or _build.missing()


def norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """hidden [1, n] += delta, in place; weight * hidden / sqrt(mean(hidden^2) + eps)."""
    y = torch.empty_like(hidden)
    _build.function("lowbit_norm", "ppppidi")(
        *map(_build.address, (hidden, delta, weight, y)), hidden.shape[1], eps, _build.KINDS[hidden.dtype]
    )
    return y


def enter(token: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """token int64 [1, 1], table [vocab, n] -> its row [1, n], and weight * row / sqrt(mean(row^2) + eps)."""
    hidden = table.new_empty(1, table.shape[1])
    where = map(_build.address, (token, table))
    _build.function("lowbit_row", "ppiip")(*where, *table.shape[:1], hidden.nbytes, _build.address(hidden))
    return hidden, norm(hidden, None, weight, eps)


def gate(both: Tensor) -> Tensor:
    """both [1, 2 n] -> silu(first half) * second half [1, n]."""
    n = both.shape[1] // 2
    y = both.new_empty(1, n)
    _build.function("lowbit_gate", "ppii")(_build.address(both), _build.address(y), n, _build.KINDS[both.dtype])
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [1, in], weight [out, in], bias [out] -> [1, out]."""
    y = x.new_empty(1, weight.shape[0])
    where = map(_build.address, (x, weight, bias, y))
    threads = _build.threads(weight.numel() * weight.element_size())
    _build.function("lowbit_plain", "ppppiiii")(*where, *weight.shape, _build.KINDS[x.dtype], threads)
    return y


class Attention:
    """The attention of one token in every layer of a model. heads: (query, key-value). width: of a head."""

    def __init__(self, heads: tuple[int, int], width: int, scale: float, device: torch.device) -> None:
        self.heads, self.width, self.scale = heads, width, scale

    def __call__(self, qkv: Tensor, cos: Tensor, sin: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """qkv [1, (query + 2 key-value heads) * width], cos and sin [any, width], position int64 -> [1, query heads * width].

        keys, values [key-value heads, room, width] hold the tokens before the position; the new one is written there.
        """
        y = qkv.new_empty(1, self.heads[0] * self.width)
        _build.function("lowbit_step_attention", "ppppppipiiidii")(
            *map(_build.address, (qkv, cos, sin, position, keys, values)), keys.shape[1], _build.address(y), *self.heads,
            self.width, self.scale, _build.KINDS[qkv.dtype], torch.get_num_threads(),
        )  # fmt: skip
        return y


class Taking:
    """The choice of the likeliest token, the first of equal ones. vocab: logits."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self.vocab = vocab

    def __call__(self, logits: Tensor, token: Tensor, position: Tensor, written: Tensor, number: Tensor) -> None:
        """logits [1, vocab] -> token [1, 1], written[number]; position and number are one more. All int64."""
        where = map(_build.address, (token, position, written, number))
        _build.function("lowbit_take", "piipppp")(_build.address(logits), self.vocab, _build.KINDS[logits.dtype], *where)
