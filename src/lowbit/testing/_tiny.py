"""_tiny - a small random model of the real class of every architecture, for tests.

Idea   Every weight is drawn, norms and biases too: with the usual start (norms 1, biases 0) a fold that forgets an offset or a
       bias would pass. Weights are large enough that attention and routing matter.
"""

from typing import Any

import torch
from torch import nn

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "sliding_window": 16,
    "query_pre_attn_scalar": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "norm_topk_prob": True,
}
"""Every family takes what it knows of these."""
EYE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def config(name: str, **changes: Any) -> Any:
    """A small config of model_type `name`; a family that sees gets a small eye."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    parts = getattr(CONFIG_MAPPING[name], "sub_configs", {})
    if "text_config" in parts:
        return AutoConfig.for_model(name, text_config={**SIZES, **changes}, vision_config=EYE)
    return AutoConfig.for_model(name, **{**SIZES, **changes})


def tiny(name: str, seed: int = 0, **changes: Any) -> Any:
    """A small causal-LM model of model_type `name` with random float32 weights. changes: to its config."""
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(name, **changes), dtype=torch.float32).eval().requires_grad_(False)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        scale = 0.2 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5
        parameter.data = drawn * scale + (1.0 if parameter.dim() == 1 else 0.0)
    model.tie_weights()
    return model


def tokens(seed: int = 0, windows: int = 2, length: int = 24) -> torch.Tensor:
    """Random tokens [windows, length] that a tiny model takes."""
    return torch.randint(3, SIZES["vocab_size"], (windows, length), generator=torch.Generator().manual_seed(seed))


def blocks_of(model: nn.Module, name: str) -> nn.ModuleList:
    """The ModuleList called `name` of `model`."""
    found = model.get_submodule(name)
    if not isinstance(found, nn.ModuleList):
        raise TypeError(f"{name} is a {type(found).__name__}, no ModuleList of decoder blocks.")
    return found
