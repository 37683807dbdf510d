"""int4_act - 4-bit weights times int8 inputs with a scale a token (W4A8): whole numbers up to 64 tokens, Hopper and later.

In / Out  x [tokens, in] -> found scales and codes in one launch (activations.cu), the product in a second that begins early.
Idea      The words are those of cuda.linear: of a word's bytes the lower nibbles are four weights of one row, the upper ones
          of another, so that one shift and two instructions make operands of eight weights, 16 times as large and signed. What
          changes its place is x. Sums of a group are whole numbers; they are scaled as they leave it. More tokens: x is
          rounded and decoded in one launch, and cuda.linear runs on it: decoding costs less than scaling sums of groups.
Source    QServe (2405.04532) for scaling behind the sum of a group; layout and kernel are our own.
Traps     Two chunks of 128 columns are one here: inputs are a multiple of 256.
"""

import torch
from torch import Tensor

from lowbit.formats import Format
from lowbit.kernels.activation import Activation
from lowbit.kernels.cuda import _activations, _build, _fragments, _product
from lowbit.kernels.cuda._activations import INT8
from lowbit.kernels.cuda._fragments import prepare, restore
from lowbit.kernels.cuda._product import Kind

__all__ = ["prepare", "restore", "rounded", "supports", "takes"]
RANK = 10
FORM = "cuda.linear"
FOR_NIBBLES = 2
"""The order of the codes of x."""


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    return "for layers whose inputs are rounded"


def takes(activation: Activation, format: Format, shape: tuple[int, int], device: torch.device) -> str:
    return _build.not_hopper(device) or _build.missing() or refusal(activation, format, shape)


def refusal(activation: Activation, format: Format, shape: tuple[int, int]) -> str:
    """Why the kernel cannot run such inputs on such weights on any device, or ""."""
    inner, group = activation.format, format.group[1]
    if format.element != "int4" or inner.element != "int8":
        return f"inputs {inner.element}, weights {format.element}: int8 with int4 only"
    if inner.group != (1, 0) or activation.static or activation.beyond or activation.observer != "minmax":
        return f"inputs in {activation}: scales that are found for a token only"
    if format.zero or (group and group != 64 and group % 128):
        return f"weights in {format}: groups of 64, of a multiple of 128 or of all inputs, no zero only"
    if shape[1] % 256 or shape[1] > _activations.LONGEST:
        return f"{shape[1]} inputs: a multiple of 256, at most {_activations.LONGEST}"
    return _fragments.refusal(format, shape, torch.bfloat16)


def kind(format: Format) -> Kind:
    """A column is two codes, a chunk two of cuda.linear's."""
    return Kind(8, 2 * _fragments.kind(format).groups, inputs=INT8)


def rounded(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int], activation: Activation) -> Tensor:
    """x [tokens, in] -> y [tokens, out] in x's type."""
    dtype = x.dtype
    if dtype not in {torch.bfloat16, torch.float16}:
        x = x.to(torch.bfloat16)
    if x.shape[0] > _product.DECODE_TOKENS:
        values, _ = _activations.quantize(x, INT8, activation.clip, decoded=True)
        return _fragments.linear(values, prepared, format, shape).to(dtype)
    codes, scale = _activations.quantize(x, INT8, activation.clip, ordered=FOR_NIBBLES)
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype, device=x.device)
    _product.launch(codes, prepared, y, kind(format), (shape[0], shape[1] // 2), beside=scale)
    return y.to(dtype)
