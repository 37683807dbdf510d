"""kvcache - the keys and values of past tokens, packed, in the place of transformers' own cache. One file is a policy.

A Policy is its text: `int4`, `int8-r64`, `int4-g32-k8`, `int4-centred-rot`, `kivi2`, `turbo4`, `qserve4`, `fp8`.

    policy := head { "-" word }      head := a file of this shelf with its number ("int4", "kivi2", "fp8")
    word   := sN (the first N tokens stay floats: sinks) | rN (so do the last N or more: the recent window)
            | what the file takes: gN (numbers that share a scale) | kN (bits of keys) | rot (a Hadamard basis in each head)
            | centred (keys less the mean of 64 tokens in a row; centred32: of 32)
            | outN (the N greatest numbers of each token and head stay floats)

Contract of a file: `def policy(text: str, number: str, words: list[str]) -> Policy`, and its members in EXAMPLES.
Attention over what is packed is lowbit.kernels.attention: it decodes a tile at a time, never the whole.
"""

import functools
import inspect
from typing import Any

from lowbit.core.errors import RequestError, nearest
from lowbit.core.shelf import Shelf
from lowbit.kernels.pages import Half
from lowbit.kvcache._policy import Policy

__all__ = ["Half", "Policy", "arguments", "build", "examples", "parse", "shelf"]

shelf = Shelf(__name__, "KV policy")


@functools.cache
def parse(text: str) -> Policy:
    """The policy called `text`. Raises RequestError with the nearest known names or words."""
    head, *words = text.split("-")
    try:
        module, number = shelf.resolve(head)
    except ValueError as error:
        raise RequestError(f"Unknown KV policy '{text}'. {nearest(head, examples())}") from error
    found: Policy = module.policy(text, number, words)
    return found


def examples() -> list[str]:
    """Names of policies, one or more a file; what lists show and conformance checks."""
    return [name for file in shelf.names() for name in shelf.get(file).EXAMPLES]


def build(policy: str | Policy, config: Any) -> Any:
    """An empty cache for one model. config: the model's."""
    from lowbit.kvcache._cache import PackedCache

    return PackedCache(parse(policy) if isinstance(policy, str) else policy, config)


def arguments(policy: str | Policy, model: Any) -> dict[str, Any]:
    """An empty cache as the keyword argument that the model's `generate` and `forward` take: "cache", or "past_key_values".

    The model attends by lowbit's own function from then on.
    """
    from lowbit.kvcache._attention import use

    use(model)
    word = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {word: build(policy, model.config)}
