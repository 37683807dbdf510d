"""grammar - the sentence <-> Recipe.

    recipe   := step { "+" step }         step := method [ "(" argument { "," argument } ")" ] [ "@" selector ]
    argument := format | key "=" literal  selector := attn | mlp | experts | head | embed | layers.A-B | "glob"

In / Out  "awq + gptq(int4-g128)@mlp" <-> steps, each a method's dataclass and the selector it is limited to ("" = all layers).
Idea      The Python twin `AWQ() + GPTQ("int4-g128") @ "mlp"` is the truth; text is read into it and printed from it.
          An argument without a key is the field `format` or `policy` (in a method without: its first field). A literal is a
          number, a word, true, false or none, and must be of the field's type. Only what differs from the default is printed.
Traps     What needs the model's layers (a group that does not divide, a selector that finds nothing) is checked by the plan.
"""

import dataclasses
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from lowbit import formats, methods
from lowbit.core.chain import Chain, Link
from lowbit.core.errors import RecipeError, nearest
from lowbit.methods import Method, Prefixing, Turner, name_of, verb
from lowbit.recipe import presets

NAMES = ("format", "policy", "rates")
"""Settings that say what is made; they come first, without a key."""
ROLES = ("attn", "mlp", "experts", "head", "embed")
_STEP = re.compile(
    r"\s*(?P<name>[A-Za-z_]\w*)\s*(?:\((?P<arguments>[^()]*)\)\s*)?"
    r"(?:@\s*(?P<selector>\"[^\"]*\"|'[^']*'|[^\s+@()\"']+)\s*)?(?:(?P<more>\+)|$)"
)
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", types.NoneType: "none"}


@dataclass(frozen=True)
class Recipe:
    """Steps in order, each with its selector; checked as far as that goes without a model. Raises RecipeError, FormatError."""

    steps: tuple[tuple[Link, str], ...]

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        return " + ".join(step_text(method, selector) for method, selector in self.steps)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """The recipe that a sentence says. Raises RecipeError, FormatError."""
        steps, position = [], 0
        while True:
            found = _STEP.match(text, position)
            if not found:
                where = f"'{text[position:].strip()}'" if text[position:].strip() else "its end"
                raise RecipeError(
                    f"'{text}': no step can be read at {where}. Write method(format, key=value)@selector, joined by +."
                )
            steps.append((_method(found["name"], found["arguments"] or ""), (found["selector"] or "").strip("\"'")))
            position = found.end()
            if not found["more"]:
                return cls(tuple(steps))

    @classmethod
    def of(cls, what: "str | Link | Chain | Recipe") -> "Recipe":
        """The recipe of a preset's name, a sentence, a method or a chain of methods."""
        if isinstance(what, Recipe):
            return what
        if isinstance(what, str):
            word = what.strip()
            known = presets.load()
            if re.fullmatch(r"[\w-]+", word) and word not in known and word not in methods.shelf:
                tail = nearest(word.lower(), [*known, *methods.shelf.names()])
                show = "'lowbit list presets' and 'lowbit list methods' show all."
                raise RecipeError(f"Unknown preset or method '{word}'. {tail} {show}")
            return cls.parse(known[word]["sentence"] if word in known else what)
        return cls(what.steps if isinstance(what, Chain) else ((what, ""),))


def step_text(method: Link, selector: str = "") -> str:
    """One step as it stands in a sentence."""
    arguments: list[str] = []
    for field in _fields(type(method)):
        value, default = getattr(method, field.name), _default(field)
        if field.name in NAMES and value:
            arguments.insert(0, str(value))
        elif value != default:
            arguments.append(f"{field.name}={_literal(value)}")
    limited = f"@{selector}" if re.fullmatch(r"\w+", selector) or layers(selector) else f'@"{selector}"' if selector else ""
    return name_of(method) + (f"({', '.join(arguments)})" if arguments else "") + limited


def layers(selector: str) -> tuple[int, int] | None:
    """First and last layer of `layers.A-B` or `layers.A`; None for any other selector."""
    found = _LAYERS.fullmatch(selector)
    return (int(found[1]), int(found[2] or found[1])) if found else None


def _method(name: str, arguments: str) -> Method:
    """The method called `name` with its arguments read from text."""
    if name not in methods.shelf:
        tail = nearest(name.lower(), methods.shelf.names())
        raise RecipeError(f"Unknown method '{name}'. {tail} 'lowbit list methods' shows all.")
    cls = methods.get(name)
    step = f"{name}({arguments.strip()})"
    fields = {field.name: field for field in _fields(cls)}
    first = next((name for name in NAMES if name in fields), next(iter(fields), ""))
    values: dict[str, Any] = {}
    for argument in filter(None, map(str.strip, arguments.split(","))):
        key, equals, word = (part.strip() for part in argument.partition("="))
        if not equals:
            key, word = first, argument
        if key not in fields:
            tail = nearest(key, fields) if fields else "It has none; leave it out."
            wrong = f"has no setting '{key}'" if equals else f"takes no '{word}'"
            raise RecipeError(f"{step}: {name} {wrong}. {tail}")
        if key in values:
            raise RecipeError(f"{step}: '{key}' is given twice. Keep one.")
        values[key] = _value(step, key, typing.get_type_hints(cls)[key], word, _default(fields[key]))
    return cls(**values)


def _fields(cls: type[Link]) -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _value(step: str, key: str, hint: Any, word: str, default: Any) -> Any:
    """`word` as a value of the type `hint`."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    for kind in kinds:
        choices = {str(choice): choice for choice in typing.get_args(kind)} if typing.get_origin(kind) is typing.Literal else {}
        if word in choices:
            return choices[word]
        if kind is types.NoneType and word == "none":
            return None
        if kind is bool and word in {"true", "false"}:
            return word == "true"
        if kind in {int, float} and re.fullmatch(r"[-+]?\d+" if kind is int else r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", word):
            return kind(word)
        if kind is str and word:
            return word
    wanted = " or ".join(_NAMES.get(k) or " or ".join(map(str, typing.get_args(k))) for k in kinds)
    hint_text = "" if default in (dataclasses.MISSING, "") else f" The default is {_literal(default)}."
    raise RecipeError(f"{step}: '{key}' takes {wanted}, not '{word}'.{hint_text}")


def _literal(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _check(recipe: Recipe) -> None:
    """Everything that can be wrong with a recipe whatever the model is."""
    if not recipe.steps:
        raise RecipeError("The recipe has no step. Write one, as gptq(int4-g128).")
    solvers: list[tuple[Link, str]] = []
    for number, (method, selector) in enumerate(recipe.steps):
        _check_turn(recipe, number)
        methods.check(method, step_text(method, selector))
        _check_selector(step_text(method, selector), selector)
        if getattr(method, "format", ""):
            formats.parse(str(method.format))  # type: ignore[attr-defined]
        if verb(method) == "rewrite" and solvers:
            name, last = name_of(method), name_of(solvers[-1][0])
            raise RecipeError(f"{recipe}: {name} would rewrite weights that {last} has rounded. Put {name} before {last}.")
        if verb(method) == "solve":
            _check_solver(recipe, method, selector, solvers)
            solvers.append((method, selector))
    if not solvers and not any(getattr(method, "format", "") for method, _ in recipe.steps):
        raise RecipeError(f"{recipe}: nothing here rounds a weight. Add a solver: {recipe} + gptq(int4-g128).")


def _check_turn(recipe: Recipe, number: int) -> None:
    """What turns the whole model has no selector, and comes before all that works on single blocks. Nor has a prefix one."""
    method, selector = recipe.steps[number]
    if isinstance(method, Prefixing) and selector:
        fact = f"{name_of(method)} puts tokens in front of the whole model"
        raise RecipeError(f"{step_text(method, selector)}: {fact}. Leave @{selector} out.")
    if not isinstance(method, Turner):
        return
    step = step_text(method, selector)
    if selector:
        raise RecipeError(f"{step}: {name_of(method)} turns the whole model, not a part of it. Leave @{selector} out.")
    for other, _ in recipe.steps[:number]:
        if verb(other) not in {"", "turn"}:
            fact = f"{name_of(method)} turns the model before {name_of(other)} sees a block of it"
            raise RecipeError(f"{recipe}: {fact}. Put {name_of(method)} first.")


def _check_solver(recipe: Recipe, method: Link, selector: str, earlier: list[tuple[Link, str]]) -> None:
    """A solver has a format, or a budget gives it one, and no earlier one rounds the very layers that it covers."""
    step, taken = step_text(method, selector), getattr(method, "takes", None)
    given = [formats.parse(other.family("")[-1]) for other, _ in recipe.steps if hasattr(other, "family")]
    if not getattr(method, "format", "") and not any(taken is None or not taken.refusal(format) for format in given):
        example = f"{name_of(method)}({taken.examples[0] if taken else 'int4-g128'})"
        raise RecipeError(f"{step}: no format to round to. Write {example}; 'lowbit list formats' shows all.")
    for rival, covered in earlier:
        if selector in {"", covered}:
            advice = f"Keep one, or limit the later: {step}@mlp."
            if covered:
                advice = "Keep one, or narrow the selector of the later." if selector else "Put the narrower step last."
            raise RecipeError(f"{recipe}: {step_text(rival, covered)} and {step} round the same layers. {advice}")


def _check_selector(step: str, selector: str) -> None:
    span = layers(selector)
    if span and span[0] > span[1]:
        raise RecipeError(f"{step}: layers {span[0]} to {span[1]} run backwards. Write layers.{span[1]}-{span[0]}.")
    if selector and selector not in ROLES and not span and not re.search(r"[*?\[.]", selector):
        also = 'Also layers.A-B and "glob", as "*.down_proj".'
        raise RecipeError(f"{step}: unknown selector '{selector}'. {nearest(selector, ROLES)} {also}")
