"""formats - tensors <-> codes and scales: an element, the group that shares a scale, the scale's own format, the zero kind.

A Format is its text: `int4-g128`, `int3-g64-asym`, `int8-row`, `fp8-b128x128`, `nf4-g64`, `nvfp4`, `mxfp4`.

    format := head { "-" word }      head := a dtype ("int4", "nf4", "e4m3") | a file of this shelf ("nvfp4", "mxfp4", "fp8")
    word   := gN (N inputs of one row share a scale) | row | token (= row) | tensor | bRxC (a block of R rows, C columns)
            | asym (integer zero point) | floatzero (16-bit float zero)
            | fp16 | bf16 | fp32 | e4m3 | e8m0 (how scales are stored; default: 16 bits) | dq (double quantization)

Every value is  (element value - zero) * scale.  Contract of a file (one grouping and scale rule, or a head, or both):
    fit(format, weight, importance, search) -> Parts    choose scales (and zeros), already rounded to what is stored
    expand(format, parts) -> (scale, zero | None)       the float32 [R, G] tensors that the stored parts mean
    rescale(format, parts, scale) -> Parts              optional: the parts with other scales [R, G], as near as storable
    part_bits(format, groups) -> int                    optional: bits of all parts, where it is not a scale and a zero a group
    parse(number, words) -> Format                      only in a file that is a head itself (nvfp4, mxfp, fp8)
    EXAMPLES                                            names of formats that the file makes, for lists and for conformance
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from lowbit import dtypes
from lowbit.core.errors import FormatError, ShapeError, nearest
from lowbit.core.shelf import Shelf
from lowbit.dtypes import Element
from lowbit.formats import _words
from lowbit.formats._words import SCALES as SCALES

shelf = Shelf(__name__, "format")
_layouts = Shelf("lowbit.layouts", "layout")
Parts = dict[str, Tensor]
"""What is stored beside the codes, by standard name: "scale", "zero", "global_scale", ..."""


@dataclass(frozen=True)
class Format:
    """How a matrix [out, in] is stored.

    element: name of a dtype. group: (rows, columns) that share one scale, 0 = all of them. scale: how scales are stored.
    zero: "" (none), "int" (an integer code) or "float" (16 bits). rule: the file of this shelf that fits scales.
    text: its name. extra_bits: bits per matrix beside codes, scales and zeros (a tensor-wide scale).
    """

    element: str
    group: tuple[int, int] = (1, 0)
    scale: str = "half"
    zero: str = ""
    rule: str = "symmetric"
    text: str = field(default="", compare=False)
    extra_bits: int = 0

    def __str__(self) -> str:
        return self.text

    @cached_property
    def dtype(self) -> Element:
        """The element's object."""
        return dtypes.get(self.element)

    @cached_property
    def layout(self) -> str:
        """The file of lowbit.layouts that its codes are packed with."""
        bits = self.dtype.bits
        if bits != int(bits):
            return "trits"
        if bits == 8:
            return "bytes"
        return "nibbles" if bits == 4 and not self.element.startswith("int") else "dense"

    def groups(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns [R, G] of the scale tensor for a matrix of `shape`. Raises ShapeError where a group does not fit."""
        out, inputs = shape
        rows, columns = self.group[0] or out, self.group[1] or inputs
        if inputs % columns and self.group[0] == 1:
            fits = [f"g{g}" for g in (128, 64, 32, 16) if inputs % g == 0] if f"g{columns}" in self.text.split("-") else []
            advice = f"Use {', '.join(fits)} or row." if fits else "Use a format with one scale a row, as int4-row."
            raise ShapeError(f"{self}: group {columns} does not divide {inputs} inputs. {advice}")
        return math.ceil(out / rows), math.ceil(inputs / columns)

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """All stored bits of a matrix of `shape` (packed codes, scales, zeros, sides), per weight."""
        out, inputs = shape
        count = math.prod(self.groups(shape))
        layout, rule = _layouts.get(self.layout), shelf.get(self.rule)
        bits: int = math.prod(layout.packed_shape(out, inputs, self.dtype.bits)) * layout.WORD.itemsize * 8
        if hasattr(rule, "part_bits"):
            bits += rule.part_bits(self, count)
        else:
            bits += count * (SCALES[self.scale] + {"": 0, "int": int(self.dtype.bits), "float": 16}[self.zero])
        return (bits + self.extra_bits) / (out * inputs)

    def fit(self, weight: Tensor, importance: Tensor | None = None, search: bool = True) -> "Grid":
        """Choose scales and zeros for `weight` [out, in].

        importance [in] or [out, in]: weight of each squared error (None: all equal). search: minimise the error over a grid
        of scales; otherwise the plain range rule. Raises ShapeError; FormatError when `weight` is not finite.
        """
        if weight.dim() != 2:
            raise ShapeError(f"{self}: the weight has shape {tuple(weight.shape)}. Give a matrix [out, in].")
        if not torch.isfinite(weight).all():
            raise FormatError(f"{self}: the weight holds NaN or Inf. Mend the checkpoint.")
        self.groups(tuple(weight.shape))
        parts = shelf.get(self.rule).fit(self, weight.float().contiguous(), importance, search)
        return Grid(self, parts, (weight.shape[0], weight.shape[1]))


class Grid:
    """The values that one matrix may take: a format with its fitted parts. value = (element - zero) * scale.

    scale [R, G] and zero [R, G] or None are float32 and mean exactly what is stored.
    """

    def __init__(self, format: Format, parts: Parts, shape: tuple[int, int]) -> None:
        self.format = format
        self.parts = parts
        self.shape = shape
        self.scale: Tensor
        self.zero: Tensor | None
        self.scale, self.zero = shelf.get(format.rule).expand(format, parts)

    def _full(self, stored: Tensor) -> Tensor:
        """[R, G] repeated to [out, in]."""
        out, inputs = self.shape
        rows, columns = self.format.group[0] or out, self.format.group[1] or inputs
        if rows > 1:
            stored = stored.repeat_interleave(rows, 0)[:out]
        return stored.repeat_interleave(columns, 1)[:, :inputs]

    @cached_property
    def full_scale(self) -> Tensor:
        """The scale of every weight [out, in]."""
        return self._full(self.scale)

    @cached_property
    def full_zero(self) -> Tensor | None:
        """The zero of every weight [out, in], or None."""
        return None if self.zero is None else self._full(self.zero)

    def encode(self, weight: Tensor) -> Tensor:
        """Nearest codes, uint8 [out, in]."""
        x = weight.float() / self.full_scale
        return self.format.dtype.encode(x if self.full_zero is None else x + self.full_zero)

    def decode(self, codes: Tensor) -> Tensor:
        """The values of codes, float32 [out, in]."""
        x = self.format.dtype.decode(codes)
        return (x if self.full_zero is None else x - self.full_zero) * self.full_scale

    def quantize(self, weight: Tensor) -> "Quantized":
        """Round every weight to its nearest value."""
        return Quantized(self.format, self.encode(weight), self.parts, self.shape)


@dataclass
class Quantized:
    """One matrix in a format: codes uint8 [out, in] and the stored parts; what layers run and checkpoints write.

    report: what the solver wants said of this matrix (relative error, a fallback's name).
    """

    format: Format
    codes: Tensor
    parts: Parts
    shape: tuple[int, int]
    report: dict[str, float | str] = field(default_factory=dict)

    @classmethod
    def unpack(cls, format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> "Quantized":
        """The way back from `packed()`."""
        codes = _layouts.get(format.layout).unpack(packed, format.dtype.bits, shape[1])
        return cls(format, codes, parts, shape)

    @property
    def grid(self) -> Grid:
        return Grid(self.format, self.parts, self.shape)

    def decode(self) -> Tensor:
        """The matrix as float32 [out, in]."""
        return self.grid.decode(self.codes)

    def packed(self) -> Tensor:
        """The codes in the format's layout, as they are stored."""
        packed: Tensor = _layouts.get(self.format.layout).pack(self.codes, self.format.dtype.bits)
        return packed


def parse(text: str) -> Format:
    """The format called `text`. Raises FormatError with the nearest known words."""
    head, *words = text.split("-")
    module, number = _head(head)
    if module is not None:
        found: Format = module.parse(number, words)
        return replace(found, text=text)
    try:
        dtypes.get(head)
    except FormatError as error:
        raise FormatError(f"Unknown format '{text}'. {error}") from error
    except ValueError as error:
        raise FormatError(f"Unknown format '{text}'. {nearest(head, _heads())}") from error
    return with_words(text, head, words)


def with_words(text: str, element: str, words: list[str]) -> Format:
    """The format `text` of an element with the words that any element takes. Raises FormatError where they do not fit."""
    found = _words.read(text, words)
    integer, zero, scale = element.startswith("int"), found.get("zero", ""), found.get("scale", "half")
    if zero and not integer:
        raise FormatError(f"{text}: only integers have a zero point. Leave it out, or use int4.")
    if scale == "dq" and (integer or found.get("group", (1, 0))[0] != 1):
        raise FormatError(f"{text}: double quantization is for tables of values in groups of one row. Use nf4-g64-dq.")
    rule = {"dq": "double", "e4m3": "two_level"}.get(scale) or one_level(element, zero)
    return Format(element=element, rule=rule, text=text, extra_bits=32 if rule == "two_level" else 0, **found)


def one_level(element: str, zero: str) -> str:
    """The rule that fits scales of an element and zero kind when nothing else is asked for."""
    if not element.startswith("int"):
        return "table"
    return {"": "symmetric", "int": "asymmetric", "float": "float_zero"}[zero]


def examples() -> list[str]:
    """Names of formats, one or more for every rule and head; what lists show and conformance checks."""
    return [name for file in shelf.names() for name in getattr(shelf.get(file), "EXAMPLES", ())]


def _head(head: str) -> tuple[ModuleType | None, str]:
    """The file of this shelf that is a head of its own, and the number after its family name; (None, "") for a dtype."""
    try:
        module, number = shelf.resolve(head)
    except ValueError:
        return None, ""
    return (module, number) if hasattr(module, "parse") else (None, "")


def _heads() -> list[str]:
    """Heads worth naming to somebody who mistyped one."""
    return sorted({name.split("-")[0] for name in examples()})
