"""activation - what a quantized layer does to its inputs: x [..., in] <-> codes and scales found in x itself.

In / Out  x, an Activation -> codes in the shape of x, float32 scales that broadcast over its groups; or the rounded x (`fake`).
Idea      A token is a row of the matrix x, so the words of lowbit.formats say who shares a scale: int8-token, fp8-tensor,
          int4-g128. Scales are found anew in every call (dynamic) and stored nowhere; the format's scale word is not used.
          scale = clip * max|x| / half the width of the element's range: 127.5 for int8, 448 for e4m3.
          Integers meet integers where a kernel multiplies both; elsewhere the layer runs on the rounded x, which is the same
          up to float rounding. torch.compile sees either as one opaque op.
Source    compressed-tensors, `calculate_qparams`: what transformers computes for such a file, to the bit for float32 inputs.
Traps     vLLM divides by 127, so its rounding differs by 0.4 % of a step's width. transformers takes one scale for all
          of a two-dimensional x, whatever the file says (experts, some routers). A scale for the whole tensor makes a token's
          result depend on what is computed beside it. Values stay float32 between scale and codes, whatever dtype x has.
          It stands here, and not in lowbit.formats, since nothing of it is ever stored: it is a part of a product.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit import formats
from lowbit.core.errors import FormatError, ShapeError
from lowbit.formats import Format
from lowbit.kernels import dispatch

INT8 = "cpu.int8_act"
"""The kernel that multiplies integers with integers."""
CLIP = "-clip"


@dataclass(frozen=True)
class Activation:
    """How inputs are rounded. format: element and who shares a scale. clip: share of max|x| that the range covers."""

    format: Format
    clip: float = 1.0

    def __post_init__(self) -> None:
        told = self.format
        if told.zero or told.sides or told.extra_bits or told.dtype.step != (1, 1, 1) or told.group[0] > 1:
            raise FormatError(
                f"{told}: inputs are rounded to a grid around 0 with a scale for a token, a group of one or all of x. "
                "Use int8-token, int4-g128 or fp8-tensor."
            )
        if not 0 < self.clip <= 1:
            raise FormatError(f"{told}, clip {self.clip}: the range covers a share of max|x|. Use 0.5 to 1.")

    def __str__(self) -> str:
        return str(self.format) + (f"{CLIP}{self.clip:g}" if self.clip != 1 else "")

    @property
    def integer(self) -> bool:
        return self.format.element.startswith("int")

    def fits(self, inputs: int) -> None:
        """Raises ShapeError where the groups do not divide `inputs`."""
        group = self.format.group[1]
        if group and inputs % group:
            raise ShapeError(f"{self}: group {group} does not divide {inputs} inputs. Use int8-token.")


@functools.cache
def parse(text: str) -> Activation:
    """The activation that `str` printed."""
    name, found, clip = text.partition(CLIP)
    return Activation(formats.parse(name), float(clip) if found else 1.0)


def quantize(x: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Codes [..., in] (integers: int8; other elements: their codes, uint8) and scales: [..., groups], or [1] for all of x."""
    format = activation.format
    whole = format.group[0] == 0
    grouped = x.float() if whole else x.float().unflatten(-1, (-1, format.group[1] or x.shape[-1]))
    peak = grouped.abs().amax().reshape(1) if whole else grouped.abs().amax(-1, keepdim=True)
    element = format.dtype
    scale = peak * activation.clip / ((element.maximum - element.minimum) / 2)
    scale = torch.where(scale == 0, 1.0, scale)
    scaled = grouped / scale
    if activation.integer:
        codes = scaled.round_().clamp_(element.minimum, element.maximum).to(torch.int8)
    else:
        codes = element.encode(scaled)
    return codes.view(x.shape), scale if whole else scale.squeeze(-1)


def fake(x: Tensor, activation: Activation) -> Tensor:
    """x rounded to its grid, in its dtype. Gradients pass straight through."""
    if torch.compiler.is_compiling():
        compiled: Tensor = torch.ops.lowbit.fake(x, str(activation))
        return compiled
    if not x.numel():
        return x
    rounded = _rounded(x.detach(), activation)
    return rounded + (x - x.detach()) if x.requires_grad else rounded


def _rounded(x: Tensor, activation: Activation) -> Tensor:
    codes, scale = quantize(x, activation)
    values: Tensor = codes.float() if activation.integer else activation.format.dtype.decode(codes)
    if activation.format.group[0]:
        values = values.unflatten(-1, (scale.shape[-1], -1)).mul_(scale[..., None]).flatten(-2)
    else:
        values = values.mul_(scale)
    return values.to(x.dtype)


def kernel(format: Format, shape: tuple[int, int], device: torch.device, activation: Activation) -> str:
    """The kernel that multiplies codes of x with codes of W [shape]; "" where the product is emulated on the rounded x."""
    if str(activation.format) not in {"int8-token", "int8-row"}:
        return ""
    return "" if dispatch.get(INT8).refuses(format, shape, device) else INT8


def product(x: Tensor, prepared: dict[str, Tensor], activation: Activation) -> Tensor:
    """x [..., in] -> x @ W.T [..., out] by the integer kernel, in the dtype of x."""
    if torch.compiler.is_compiling():
        compiled: Tensor = torch.ops.lowbit.integer_linear(x, prepared["codes"], prepared["scale"], str(activation))
        return compiled
    return _product(x, prepared["codes"], prepared["scale"], activation)


def _product(x: Tensor, weight: Tensor, weight_scale: Tensor, activation: Activation) -> Tensor:
    if not x.numel():
        return x.new_empty(*x.shape[:-1], len(weight))
    codes, scale = quantize(x.reshape(-1, x.shape[-1]), activation)
    y: Tensor = dispatch.get(INT8).product(codes, scale, weight, weight_scale).to(x.dtype)
    return y.view(*x.shape[:-1], -1)


_library = torch.library.Library("lowbit", "FRAGMENT")
_library.define("fake(Tensor x, str activation) -> Tensor")
_library.define("integer_linear(Tensor x, Tensor codes, Tensor scale, str activation) -> Tensor")
_library.impl("fake", lambda x, text: _rounded(x, parse(text)) if x.numel() else x.clone(), "CompositeExplicitAutograd")
_library.impl(
    "integer_linear", lambda x, codes, scale, text: _product(x, codes, scale, parse(text)), "CompositeExplicitAutograd"
)
torch.library.register_fake("lowbit::fake", lambda x, text: torch.empty_like(x))
torch.library.register_fake("lowbit::integer_linear", lambda x, codes, scale, text: x.new_empty(*x.shape[:-1], len(codes)))
torch.library.register_autograd("lowbit::fake", lambda ctx, gradient: (gradient, None))
