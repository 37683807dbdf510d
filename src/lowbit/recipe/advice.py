"""advice - what a diagnosis found -> a recipe, with the reason for each step.

In / Out  layers and losses as lowbit.evaluation finds them, the model's linears -> {"sentence", "reasons", "others"}.
Idea      Plain rules over measured losses, in shares of what 4-bit weights cost by rounding to nearest: what costs less than a
          tenth of it is free beside it. Weights: 4 bits by a solver with feedback; the kind of layers that loses most of it
          gets 8 where 4 bits cost too much. Cache: the fewest bits that are free. Another recipe for integer products (8-bit
          weights and inputs), with a transform before it where channels of the inputs stand out.
Traps     A recommendation to begin with, not the best recipe: `lowbit compare` measures it beside others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.methods import Linear
from lowbit.recipe.grammar import Recipe
from lowbit.recipe.plan import Plan

FREE = 0.1
"""Share of the weights' loss below which another loss is nothing beside it."""
MUCH = 0.2
"""Nats lost by rounding all weights to 4 bits from which the worst kind of layers gets 8."""
CACHES = (("int4", "int4-centred-rot"), ("int8", "int8"))
"""Measured plain policies, and what is recommended in their place."""
Row = Mapping[str, Any]
Loss = Mapping[tuple[str, str], float]


def recommend(layers: Sequence[Row], losses: Sequence[Row], linears: Sequence[Linear]) -> dict[str, Any]:
    """A sentence that the model takes and why, and another for integer products."""
    loss = {(row["what"], row["kind"]): float(row["kl"]) for row in losses}
    steps, reasons = _weights(loss, linears)
    cache = _cache(loss)
    if cache:
        steps.append(cache[0])
        reasons.append(cache[1])
    reasons += _tokens(layers)
    return {"sentence": _checked(steps, linears), "reasons": reasons, "others": [_integers(layers, loss, linears)]}


def _checked(steps: Sequence[str], linears: Sequence[Linear]) -> str:
    """The sentence, which the model can take."""
    recipe = Recipe.parse(" + ".join(steps))
    Plan.make(recipe, linears)
    return str(recipe)


def _weights(loss: Loss, linears: Sequence[Linear]) -> tuple[list[str], list[str]]:
    """The solver's steps and why."""
    four = loss["weights int4", "all"]
    group = "g128" if all(linear.shape[1] % 128 == 0 for linear in linears) else "row"
    steps = [f"gptaq(int4-{group}-asym)"]
    cost = f"4 bits by rounding to nearest cost {1000 * four:.1f} mnat"
    reasons = [f"{steps[0]}: {cost}; a solver with feedback leaves less of it."]
    kinds = [kind for what, kind in loss if what == "weights int4" and kind != "all"]
    if four < MUCH:
        return steps, reasons
    worst = max(kinds, key=lambda kind: loss["weights int4", kind])
    named = [word for word in worst.split() if any(linear.name.endswith(f".{word}_proj") for linear in linears)]
    steps += [f'gptaq(int8-{group})@"*.{word}_proj"' for word in named]
    if named:
        share = loss["weights int4", worst] / max(sum(loss["weights int4", kind] for kind in kinds), 1e-12)
        reasons.append(f"8 bits for {worst}: {100 * share:.0f} % of the loss of 4-bit weights is theirs.")
    return steps, reasons


def _cache(loss: Loss) -> tuple[str, str] | None:
    """The step of the cache and why."""
    four = loss["weights int4", "all"]
    for plain, name in CACHES:
        cost = loss[f"cache {plain}", "all"]
        if cost <= FREE * four:
            fact = f"the plain {plain} cache costs {1000 * cost:.2f} mnat, less than a tenth of what 4-bit weights do"
            return f"kv({name})", f"kv({name}): {fact}."
    return None


def _tokens(layers: Sequence[Row]) -> list[str]:
    """What tokens that stand out ask for."""
    found = [(token["ratio"], token["token"], layer) for layer in layers for token in layer["tokens"]]
    if not found:
        return []
    ratio, token, layer = max(found, key=lambda item: item[0])
    fact = f"{token!r} stands out {ratio:.0f} times before {layer['kind']} of block {layer['block']}"
    return [f"tokens: {fact}; scales found in each token keep clear of it, scales for all tokens would be its own."]


def _integers(layers: Sequence[Row], loss: Loss, linears: Sequence[Linear]) -> dict[str, str]:
    """8-bit weights and inputs, for integer products."""
    outliers = [layer for layer in layers if layer["channels"]]
    cost = loss["inputs int8-token", "all"]
    reason = f"for integer products: inputs rounded to 8 bits by token cost {1000 * cost:.2f} mnat"
    steps = ["gptq(int8-row)", "act(int8-token)"]
    if outliers:
        steps.insert(0, "smoothquant")
        kinds = ", ".join(dict.fromkeys(layer["kind"] for layer in outliers))
        most = max(float(layer["ratio"]) for layer in outliers)
        reason += f"; channels before {kinds} stand out up to {most:.0f} times, smoothquant moves them into the weights"
    return {"sentence": _checked(steps, linears), "reason": reason + "."}
