"""formats - tensors <-> codes and scales: an element, the group that shares a scale, the scale's own format, the zero kind.

A Format is its text: `int4-g128`, `int3-g64-asym`, `int8-row`, `fp8-b128x128`, `nf4-g64`, `nvfp4`, `mxfp4`.

    format := head { "-" word }      head := a dtype ("int4", "nf4", "e4m3") | a file of this shelf ("nvfp4", "mxfp4", "fp8")
    word   := gN (N inputs of one row share a scale) | row | token (= row) | tensor | bRxC (a block of R rows, C columns)
            | a file of lowbit.sides ("had", "sparse1"; from the grid outwards) | plain (no sides, where an element has some)
            | asym (integer zero point) | floatzero (16-bit float zero)
            | fp16 | bf16 | fp32 | e4m3 | e8m0 (how scales are stored; default: 16 bits) | dq (double quantization)
            | bilevel (scales and float zeros of 3 bits)

Every value is  (element value - zero) * scale.  Contract of a file (one grouping and scale rule, or a head, or both), for the
matrix inside the sides:
    fit(format, weight, importance, search) -> Parts    choose scales (and zeros), already rounded to what is stored
    expand(format, parts) -> (scale, zero | None)       the float32 [R, G] tensors that the stored parts mean
    rescale(format, parts, scale) -> Parts              optional: the parts with other scales [R, G], as near as storable
    part_bits(format, shape) -> int                     optional: bits of all parts, where it is not a scale and a zero a group
    step(format) -> (height, width, codes)              optional: weights that some codes tell together (Format.step)
    encode(format, parts, weight) -> codes              } optional, for values that no element and scale give
    decode(format, parts, codes, rows) -> values        } (a table for each row); rows: slice of the matrix that codes are of
    codec(grid) -> lowbit.solvers.codec.Codec           optional: how solvers round onto it
    TRAINED = {part: function}                          optional: parts that tuners train -> how each is made storable again
    PACKED                                              optional: {part: bits} of parts that are codes, [out, groups] in uint8
    parse(number, words) -> Format                      only in a file that is a head itself (nvfp4, mxfp, fp8)
    EXAMPLES                                            names of formats that the file makes, for lists and for conformance
"""

from dataclasses import replace
from types import ModuleType

from lowbit import dtypes, sides
from lowbit.core.errors import FormatError, nearest
from lowbit.formats import _words
from lowbit.formats._format import PLAIN, Format, default_sides
from lowbit.formats._grid import Grid, Parts, Quantized, shelf

__all__ = ["Format", "Grid", "Parts", "Quantized", "examples", "one_level", "parse", "shelf", "with_words"]


def parse(text: str) -> Format:
    """The format called `text`. Raises FormatError with the nearest known words."""
    head, *words = text.split("-")
    around = tuple(word for word in words if sides.known(word))
    rest = [word for word in words if word not in around and word != PLAIN]
    module, number = _head(head)
    if module is not None:
        found: Format = module.parse(number, rest)
    else:
        try:
            dtypes.get(head)
        except FormatError as error:
            raise FormatError(f"Unknown format '{text}'. {error}") from error
        except ValueError as error:
            raise FormatError(f"Unknown format '{text}'. {nearest(head, _heads())}") from error
        found = with_words(text, head, rest)
    if not around and PLAIN not in words:
        around = found.sides
    first = sides.ahead(around)
    if around[len(around) - len(first) :] != first:
        raise FormatError(f"{text}: {first[0]} changes inputs before all else. Put it last.")
    return replace(found, text=text, sides=around)


def with_words(text: str, element: str, words: list[str]) -> Format:
    """The format `text` of an element with the words that any element takes. Raises FormatError where they do not fit."""
    found = _words.read(text, words)
    if dtypes.get(element).minimum >= 0:
        raise FormatError(f"{text}: {element} has no sign; it holds the codes of tables. Use int4, or lut4-row.")
    integer, zero, scale = element.startswith("int"), found.get("zero", ""), found.get("scale", "half")
    if zero and not integer:
        raise FormatError(f"{text}: only integers have a zero point. Leave it out, or use int4.")
    if scale == "dq" and (integer or found.get("group", (1, 0))[0] != 1):
        raise FormatError(f"{text}: double quantization is for tables of values in groups of one row. Use nf4-g64-dq.")
    if scale == "bilevel":
        if zero or not integer or found.get("group", (1, 0))[0] != 1:
            raise FormatError(f"{text}: bilevel is for integers in groups of one row, and has zeros. Use int3-g16-bilevel.")
        found["zero"] = "float"
    around = default_sides(element)
    if around:
        found = {"group": (0, 0), "scale": "fp32", **found}
    rule = {"dq": "double", "e4m3": "two_level", "bilevel": "bilevel"}.get(scale) or one_level(element, zero)
    return Format(element=element, rule=rule, text=text, extra_bits=32 if rule == "two_level" else 0, sides=around, **found)


def one_level(element: str, zero: str) -> str:
    """The rule that fits scales of an element and zero kind when nothing else is asked for."""
    if not element.startswith("int"):
        return "table" if dtypes.get(element).step == (1, 1, 1) else "gaussian"
    return {"": "symmetric", "int": "asymmetric", "float": "float_zero"}[zero]


def examples(file: str | None = None) -> list[str]:
    """Names of formats, one or more for every rule and head: of one file, or of all; what lists show and conformance checks."""
    return [name for file in ([file] if file else shelf.names()) for name in getattr(shelf.get(file), "EXAMPLES", ())]


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
