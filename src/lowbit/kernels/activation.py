"""activation - what a quantized layer does to its inputs: x [..., in] <-> codes and scales, by the words of an Activation.

In / Out  x, an Activation, its stored scale where it has one -> codes in the shape of x, float32 scales that broadcast over
          its groups; or the rounded x (`fake`).
Idea      A token is a row of the matrix x, so the words of lowbit.formats say who shares a scale: int8-token, fp8-tensor,
          int4-g128, mxfp4, nvfp4. Dynamic scales are found in x itself; static ones come from calibration and are stored
          beside the matrix as `input_scale`, [1] or one a group. nvfp4 is both: the scales of its groups are found, in e4m3
          under a stored `input_global_scale`, a divisor. Found scales put clip * max|x| on the end of the element's range;
          observer "mse" tries a few (mxfp4: half and twice; nvfp4: 4 or 6 under the maximum; others: shares) and takes that of
          least squared error. `beyond`: columns that reach so far in this call keep their floats.
Kernels   A file of a back-end that multiplies codes with codes has, beside RANK, `prepare` and `restore` as any kernel:
              takes(activation, format, shape, device) -> str        "" where it runs these inputs on these weights, or why not
              rounded(x, prepared, format, shape, activation) -> y   x [tokens, in], any float dtype, any count but 0, in the
                                                                     basis of the grid -> y [tokens, out] in that dtype, by the
                                                                     law of `quantize`; prepared["input_scale"]: what is stored
              turned(side, x, activation) -> str        (optional) "" where `rounded` takes side `turn` as one argument more and
                                                        turns x itself before it rounds, or why not
          and a `supports` that refuses, unless it runs plain inputs too. Dispatch asks all files by RANK (`dispatch.rounding`):
          a new kernel is one new file. `beyond` reaches no kernel: dispatch parts the columns. Without a taker the plain
          kernel runs on `fake(x)`, which is the same up to float rounding; `lowbit inspect` says which of both.
Source    compressed-tensors, `calculate_qparams`: what transformers computes for such a file, to the bit for float32 inputs.
          Four or six: 2512.02010. Columns in floats: LLM.int8() (2208.07339).
Traps     vLLM divides by 127, so its rounding differs by 0.4 % of a step's width. transformers takes one scale for all
          of a two-dimensional x, whatever the file says (experts, some routers). A scale for the whole tensor makes a token's
          result depend on what is computed beside it. Values stay float32 between scale and codes, whatever dtype x has.
          mxfp rounds the maximum's exponent up from 1.75 on, as compressed-tensors does; the weights' rule is the floor.
"""

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowbit import formats
from lowbit.core.errors import FormatError, ShapeError
from lowbit.formats import Format

STORED = "input_scale"
"""The name of a stored scale among the tensors that a kernel gets."""
OBSERVERS = ("minmax", "average", "percentile", "mse")
RULES = ("symmetric", "table", "mxfp", "nvfp4")
WORDS = re.compile(rf"static|{'|'.join(OBSERVERS)}|(?P<key>clip|beyond)(?P<number>[\d.]+)")
SHARES = tuple(1 - 0.05 * i for i in range(11))
"""Shares of max|x| that observer "mse" tries where neither a power of two nor e4m3 stores the scale."""
LEAST = 0.125
"""The stored scale of a group of zeros under a tensor scale, as compressed-tensors has it."""


@dataclass(frozen=True)
class Activation:
    """How inputs are rounded. format: element and who shares a scale. clip: share of the range that is kept. static: the scale
    is stored. observer: what chooses it. beyond: columns that reach so far stay floats (0: none). scale: what is stored."""

    format: Format
    clip: float = 1.0
    static: bool = False
    observer: str = "minmax"
    beyond: float = 0.0
    scale: tuple[float, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        told, reason = self.format, ""
        if told.zero or told.sides or told.rule not in RULES or told.dtype.step != (1, 1, 1) or told.group[0] > 1:
            reason = "inputs are rounded to a grid around 0 with a scale for a token, a group of one or all of x. "
            reason += "Use int8-token, int4-g128, fp8-tensor, mxfp4 or nvfp4"
        elif not 0 < self.clip <= 1:
            reason = f"clip {self.clip}: the range covers a share of max|x|. Use 0.5 to 1"
        elif self.observer not in OBSERVERS:
            reason = f"observer {self.observer}: there are {', '.join(OBSERVERS)}. Use one of them"
        elif self.static and (told.rule in {"mxfp", "nvfp4"} or told.group == (1, 0)):
            reason = "its scales are found in each token. Leave static out, or use int8-tensor or int8-g128"
        elif self.observer in {"average", "percentile"} and not self.static:
            reason = f"observer {self.observer} looks at a calibration text. Add static=true, or use minmax or mse"
        elif self.static and told.group[1] and self.observer != "minmax":
            reason = f"observer {self.observer} looks at all of x. Use minmax for groups"
        elif self.beyond and (self.static or told.group != (1, 0)):
            reason = f"beyond {self.beyond:g} leaves columns out of a token's scale. Use int8-token"
        if reason:
            raise FormatError(f"{told}: {reason}.")

    def __str__(self) -> str:
        words = [str(self.format)]
        words += ["static"] if self.static else []
        words += [self.observer] if self.observer != "minmax" else []
        words += [f"clip{self.clip:g}"] if self.clip != 1 else []
        words += [f"beyond{self.beyond:g}"] if self.beyond else []
        return "-".join(words)

    @property
    def integer(self) -> bool:
        return self.format.element.startswith("int")

    @property
    def stored(self) -> str:
        """The name of the tensor that is stored for it beside a matrix; "" where there is none."""
        return "input_global_scale" if self.format.rule == "nvfp4" else STORED if self.static else ""

    def stored_scale(self, device: torch.device) -> Tensor | None:
        """What is stored, float32 [1] or [groups]."""
        return torch.tensor(self.scale, device=device) if self.scale else None

    def scales(self, inputs: int) -> int:
        """How many scales are stored for a matrix of so many inputs."""
        return 0 if not self.stored else inputs // self.format.group[1] if self.static and self.format.group[1] else 1

    def fits(self, inputs: int) -> None:
        """Raises ShapeError where the groups do not divide `inputs`."""
        group = self.format.group[1]
        if group and inputs % group:
            raise ShapeError(f"{self}: group {group} does not divide {inputs} inputs. Use int8-token.")


@functools.cache
def parse(text: str) -> Activation:
    """The activation that `str` printed."""
    words = text.split("-")
    own = [found for word in words if (found := WORDS.fullmatch(word))]
    numbers = {found["key"]: float(found["number"]) for found in own if found["key"]}
    plain = [found[0] for found in own if not found["key"]]
    name = "-".join(word for word in words if not WORDS.fullmatch(word))
    observer = next((word for word in plain if word in OBSERVERS), "minmax")
    return Activation(formats.parse(name), numbers.get("clip", 1.0), "static" in plain, observer, numbers.get("beyond", 0.0))


def quantize(x: Tensor, activation: Activation, stored: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes [..., in] (integers: int8; other elements: their codes, uint8) and scales: [..., groups], or [1] for all of x."""
    format = activation.format
    whole = format.group[0] == 0
    grouped = x.float() if whole else x.float().unflatten(-1, (-1, format.group[1] or x.shape[-1]))
    if activation.static and stored is not None:
        scale = stored if whole else stored[:, None]
    else:
        scale = _found(grouped, activation, stored)
    scaled = grouped / scale
    element = format.dtype
    if activation.integer:
        codes = scaled.round_().clamp_(element.minimum, element.maximum).to(torch.int8)
    else:
        codes = element.encode(scaled)
    return codes.view(x.shape), scale if whole else scale.expand(*grouped.shape[:-1], 1).squeeze(-1)


def _found(x: Tensor, activation: Activation, stored: Tensor | None) -> Tensor:
    """The scales of the groups of x [..., n], or of all of x, found in x. stored: of nvfp4."""
    whole = activation.format.group[0] == 0
    peak = (x.abs().amax().reshape(1) if whole else x.abs().amax(-1, keepdim=True)) * activation.clip
    scale = _storable(peak, activation, stored)
    if activation.observer != "mse":
        return scale
    best, loss = scale, torch.full_like(scale, math.inf)
    for tried in _tried(peak, scale, activation, stored):
        error = (activation.format.dtype.round(x / tried).mul_(tried) - x).square_()
        error = error.sum().reshape(1) if whole else error.sum(-1, keepdim=True)
        best, loss = torch.where(error < loss, tried, best), torch.minimum(error, loss)
    return best


def _storable(peak: Tensor, activation: Activation, stored: Tensor | None) -> Tensor:
    """The scale that puts `peak` on the end of the element's range, as the format can have it; never 0."""
    element = activation.format.dtype
    half = (element.maximum - element.minimum) / 2
    if activation.format.rule == "mxfp":
        fraction = 3 if activation.format.element == "e2m3" else 1
        power = (peak.contiguous().view(torch.int32) + (1 << (22 - fraction)) >> 23) - 127 - math.floor(math.log2(half))
        return torch.exp2(power.clamp(-127, 127).float())
    if activation.format.rule == "nvfp4":
        factor = 1.0 if stored is None else stored
        scale = (factor * (peak / half)).clamp_max(448.0).to(torch.float8_e4m3fn).float()
        return torch.where(scale == 0, LEAST, scale) / factor
    return torch.where(peak == 0, 1.0, peak / torch.full_like(peak, half))  # a number would be 1 / half times on a GPU


def _tried(peak: Tensor, scale: Tensor, activation: Activation, stored: Tensor | None) -> Iterable[Tensor]:
    """The scales that observer "mse" compares, the plain one first."""
    if activation.format.rule == "mxfp":
        return (scale, scale * 2, scale / 2)
    if activation.format.rule == "nvfp4":
        return (scale, _storable(peak * 1.5, activation, stored))
    return (scale * share for share in SHARES)


def outliers(x: Tensor, activation: Activation) -> Tensor | None:
    """Which columns [in] of x keep their floats in this call; None: none ever."""
    return x.abs().flatten(0, -2).amax(0) >= activation.beyond if activation.beyond else None


def fake(x: Tensor, activation: Activation, stored: Tensor | None = None) -> Tensor:
    """x rounded to its grid, in its dtype. stored: default what the activation holds. Gradients pass straight through."""
    if not x.numel():
        return x
    stored = activation.stored_scale(x.device) if stored is None else stored
    rounded = _rounded(x.detach(), activation, stored)
    return rounded + (x - x.detach()) if x.requires_grad else rounded


def _rounded(x: Tensor, activation: Activation, stored: Tensor | None) -> Tensor:
    kept = outliers(x, activation)
    codes, scale = quantize(x if kept is None else x.masked_fill(kept, 0), activation, stored)
    values: Tensor = codes.float() if activation.integer else activation.format.dtype.decode(codes)
    if activation.format.group[0]:
        values = values.unflatten(-1, (scale.shape[-1], -1)).mul_(scale[..., None]).flatten(-2)
    else:
        values = values.mul_(scale)
    values = values.to(x.dtype)
    return values if kept is None else torch.where(kept, x, values)
