"""recipe - what every method's sentence must do, by the method's name on the shelf `lowbit.methods`."""

import dataclasses
import types
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lowbit import methods
from lowbit.core.chain import Link
from lowbit.core.errors import FormatError, RecipeError
from lowbit.methods import name_of, verb
from lowbit.recipe import Recipe
from lowbit.recipe.grammar import step_text


def settings(name: str) -> dict[str, Any]:
    """A value other than the default for every setting of a method that a sentence can say."""
    cls: type[Any] = methods.get(name)
    hints, found = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        kind, default = hints[field.name], field.default
        if field.name == "format" or default is dataclasses.MISSING:
            continue
        if isinstance(kind, types.UnionType):
            kind = next(k for k in get_args(kind) if k is not types.NoneType)
        if get_origin(kind) is Literal:
            found[field.name] = next(choice for choice in get_args(kind) if choice != default)
        elif kind is bool:
            found[field.name] = not default
        elif kind is int:
            found[field.name] = (default or 0) + 1
        elif kind is float:
            found[field.name] = (default or 1.0) / 2
    return found


def check_sentence(name: str) -> None:
    """Text and Python say the same; it prints as it was read; a wrong key and a wrong value are errors that name it."""
    cls: type[Any] = methods.get(name)
    method = cls(format="int4-g128") if "format" in {f.name for f in dataclasses.fields(cls)} else cls()
    assert name_of(method) == name
    _round_trip(method)
    for key, value in settings(name).items():
        _round_trip(_varied(method, key, value))
        _refused(f"{name}({key}=?)", f"'{key}' takes")
    _refused(f"{name}(no_such=1)", "has no setting 'no_such'")


def _varied(method: Any, key: str, value: Any) -> Link:
    """The method with one other setting; in its own default format where the setting does not go with the format at hand."""
    try:
        found: Link = dataclasses.replace(method, **{key: value})
    except FormatError:
        found = dataclasses.replace(type(method)(), **{key: value})
    return found


def _round_trip(method: Link) -> None:
    """A transform without a format stands before a solver."""
    text = step_text(method)
    if verb(method) != "solve" and not getattr(method, "format", ""):
        text += " + rtn(int8-row)"
    recipe = Recipe.parse(text)
    assert recipe.steps[0][0] == method
    assert str(recipe) == text and Recipe.parse(str(recipe)) == recipe


def _refused(text: str, reason: str) -> None:
    try:
        Recipe.parse(text)
    except RecipeError as error:
        assert reason in str(error), f'{text}: the error does not say "{reason}": {error}'
    else:
        raise AssertionError(f"{text} was taken")
