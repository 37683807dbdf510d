"""_rope - a model's config -> the frequencies by which RoPE turns its keys, for policies that pack them as they were before.

In / Out  config, a layer's kind -> float32 [n]: channels i and i + n are turned by position * frequencies[i].
Idea      A key that was turned is turned back by its place in the cache, packed, and turned again when it is read. What RoPE
          scales beside (attention factors) stays in the key.
Traps     Frequencies that change with the length (dynamic, longrope) are refused: what was packed under others cannot be read.
          Families that pair neighbours instead of halves (GLM, Cohere) get the same numbers back, but not the steadier ones.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lowbit.core.errors import RequestError

FIXED = ("default", "linear", "llama3", "yarn", "proportional")


def frequencies(config: Any, kind: str, policy: str) -> Tensor:
    """See the header. config: the text model's. kind: of the layer, as "full_attention". Raises RequestError."""
    told = getattr(config, "rope_parameters", None) or {}
    by_kind = isinstance(told.get(kind), dict)
    told = told[kind] if by_kind else told
    name = told.get("rope_type", "default")
    if "rope_theta" not in told or name not in FIXED:
        fact = f"{config.model_type} has RoPE of type {name}" if told else f"{config.model_type} has no RoPE"
        raise RequestError(f"{policy}: {fact}, which keys cannot be taken back from. Leave the word pre out.")
    if name != "default":
        found: Tensor = ROPE_INIT_FUNCTIONS[name](config, None, **({"layer_type": kind} if by_kind else {}))[0]
        return found
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = int(width * told.get("partial_rotary_factor", 1.0))
    return float(told["rope_theta"]) ** -(torch.arange(0, turned, 2, dtype=torch.float32) / turned)
