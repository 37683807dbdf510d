"""_search - the integer scale and zero of each group that lose least, weighted by importance.

In / Out  groups x [R, G, n], importance h broadcastable to it, candidate scales and zeros -> scale, zero [R, G].
Idea      For given codes q the loss sum h (x - s q)^2 is a parabola in s with its least point at s + a / b,
          a = sum h (x - s q) q, b = sum h q^2. So each candidate is encoded once and brings its own best scale; what is
          compared is the loss of that scale after rounding to what is stored. Two more alternations of codes and scale end it.
Source    Range factors: GPTQ, OBC (`maxshrink`); alternation: Lloyd. Measured: with the parabola a step of 0.04 in the factor
          loses nothing against 0.02 (int4-g128 on N(0,1): 0.00933 both).
Traps     The parabola must be taken around the candidate: sum h x^2 - 2 s a + s^2 b cancels to noise at 8 bits.
          A loss that starts at a finite number silently switches a search off for large inputs; it starts at infinity here.
          Importance 0 (a dead input) is lifted to 1e-6 of the mean: a group of dead inputs would have no best scale.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from lowbit.formats import Format
from lowbit.formats._scales import load, store

FACTORS = tuple(1.08 - 0.04 * i for i in range(20))
"""Shares of the full range that are tried: 1.08 .. 0.32, 1 among them."""
REFITS = 2
CHUNK = 1 << 18
"""Weights searched at once on a CPU: the temporaries stay in the cache."""
WIDE = 1 << 25
"""On a GPU: enough of them for all its cores."""


def rounded(scale: Tensor, kind: str) -> Tensor:
    """The scale that is stored for `scale`."""
    return load(store(scale, kind), kind)


def grouped(format: Format, tensor: Tensor) -> Tensor:
    """[out, in] as [R, G, n], n weights that share a scale; [in] as [1, G, n]. Ragged blocks are filled with zeros."""
    out, inputs = tensor.shape if tensor.dim() == 2 else (1, tensor.shape[0])
    rows, columns = (format.group[0] or out) if tensor.dim() == 2 else 1, format.group[1] or inputs
    tensor = torch.nn.functional.pad(tensor.reshape(out, inputs), (0, -inputs % columns, 0, -out % rows))
    tensor = tensor.view(tensor.shape[0] // rows, rows, -1, columns)
    return tensor.transpose(1, 2).reshape(tensor.shape[0], tensor.shape[2], rows * columns)


def weights_of(format: Format, importance: Tensor | None, rows: int) -> Tensor | None:
    """Importance [in] or [out, in] as [1 or R, G, n] of mean 1, never 0; None stays None. rows: of the matrix."""
    if importance is None or not importance.any():
        return None
    h = importance.float() / importance.float().mean()
    per_group = (format.group[0] or rows) if importance.dim() == 1 else 1
    return grouped(format, h.clamp_min(1e-6)).repeat(1, 1, per_group)


def pieces(x: Tensor, h: Tensor | None) -> Iterable[tuple[slice, Tensor, Tensor | None]]:
    """Slices of the first axis of x (and of h where it has that axis), each small enough for the cache."""
    step = max(1, (WIDE if x.is_cuda else CHUNK) // (x.shape[1] * x.shape[2]))
    for start in range(0, x.shape[0], step):
        part = slice(start, start + step)
        yield part, x[part], h if h is None or h.shape[0] == 1 else h[part]


def improve(
    x: Tensor, h: Tensor | None, scale: Tensor, zero: Tensor | None, low: float, high: float, kind: str
) -> tuple[Tensor, Tensor]:
    """The stored scale [r, G] that is best for the codes at `scale` and `zero` [r, G], and its loss."""
    codes = (x * (1 / scale)[..., None]).round_()
    if zero is None:
        codes.clamp_(low, high)
    else:
        torch.maximum(codes, (low - zero)[..., None], out=codes)
        torch.minimum(codes, (high - zero)[..., None], out=codes)
    rest = torch.addcmul(x, codes, scale[..., None], value=-1)
    weighted = codes if h is None else codes * h
    a, b = (weighted * rest).sum(-1), (weighted * codes).sum(-1)
    best = rounded(torch.where(b > 0, scale + a / b, scale), kind)
    move = best - scale
    loss = (rest.square() if h is None else rest.square().mul_(h)).sum(-1)
    return best, loss + move * (move * b - 2 * a)


def search(
    x: Tensor, h: Tensor | None, candidates: Iterable[tuple[Tensor, Tensor | None]], low: float, high: float, kind: str
) -> tuple[Tensor, Tensor | None]:
    """The best of the candidates (scale, zero) [r, G] and of what two refits make of it. low, high: the element's range."""
    scale = zero = None
    loss = torch.full(x.shape[:2], float("inf"), device=x.device)
    for start, shift in candidates:
        tried, error = improve(x, h, rounded(start, kind), shift, low, high, kind)
        better = error < loss
        loss = torch.where(better, error, loss)
        scale = tried if scale is None else torch.where(better, tried, scale)
        zero = shift if zero is None or shift is None else torch.where(better, shift, zero)
    if scale is None:
        raise ValueError("search: no candidates were given. Give one scale at least.")
    for _ in range(REFITS):
        tried, error = improve(x, h, scale, zero, low, high, kind)
        scale = torch.where(error < loss, tried, scale)
        loss = torch.minimum(error, loss)
    return scale, zero
