"""step - one token through a decoder of Llama's shape: eight launches a block, whatever its linears are.

Idea      The model's own weights and linears, its own rotary angles, made once for all positions; what stands between the
          linears is three kernels a block (kernels/triton/_step.py) instead of some forty, before the blocks and behind the
          head one each. What transformers computes in its forward comes out, to rounding.
          Llama, Mistral and Qwen2 have this shape. Others keep their own forward; `refusal` says why.
Traps     The residual stream is added up in place, inside the kernel of the next norm. Keys and values are those of a
          StaticCache of one sequence, which a prompt has filled through the model's own forward.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.layers.joined import Part

FIXED = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary angles that are the same whatever the length of the text."""
LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def refusal(model: Any) -> str:
    """Why a model cannot go this way, or ""."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    config, layers = model.config, getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return "it has no list of blocks"
    blocks: list[Any] = list(layers)
    kinds = {type(block).__name__ for block in blocks}
    if not kinds <= LAYERS:
        return f"its blocks are {', '.join(sorted(kinds - LAYERS))}"
    if getattr(config, "sliding_window", None) and any(
        "sliding" in t for t in getattr(config, "layer_types", None) or ["sliding"]
    ):
        return "some of its blocks attend to a window"
    if any({name for name, _ in layer.named_children()} != PARTS for layer in blocks) or config.hidden_act != "silu":
        return "its blocks are not those of Llama"
    if getattr(model.model.rotary_emb, "rope_type", "") not in FIXED:
        return "its rotary angles change with the length of the text"
    parts = [p for layer in blocks for p in (layer.self_attn.q_proj, layer.mlp.gate_proj)]
    if not all(isinstance(part, Part) for part in parts):
        return "its linears of one input are not joined"
    width = parts[0].joined.whole.in_features // config.num_attention_heads
    width = getattr(config, "head_dim", None) or width
    return "" if width & (width - 1) == 0 and width >= 16 else f"its heads are {width} wide"


class Step:
    """One token after the other. model: as `refusal` wants it. cache: its StaticCache, filled by a prompt."""

    def __init__(self, model: Any, cache: Any) -> None:
        from lowbit.kernels.triton import _step

        self._kernels = _step
        self.model, self.cache = model, cache
        config, inner = model.config, model.model
        heads = (config.num_attention_heads, config.num_key_value_heads)
        attention = inner.layers[0].self_attn
        self._attend = _step.Attention(heads, attention.head_dim, attention.scaling, model.device)
        self.take = _step.Taking(config.vocab_size, model.device)
        places = torch.arange(cache.layers[0].keys.shape[2], device=model.device)[None]
        self._cos, self._sin = (angles[0].contiguous() for angles in inner.rotary_emb(inner.norm.weight, position_ids=places))

    def _entered(self, token: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        """The hidden state [1, n] of a token, and what the first norm gives of it."""
        table = self.model.model.embed_tokens
        if type(table) is nn.Embedding:
            return self._kernels.enter(token, table.weight, norm.weight, norm.variance_epsilon)
        hidden: Tensor = table(token)[0].clone()
        return hidden, self._kernels.norm(hidden, None, norm.weight, norm.variance_epsilon)

    def __call__(self, token: Tensor, position: Tensor) -> Tensor:
        """token int64 [1, 1] at position int64 [1, 1] -> logits [1, vocab]; the cache has one token more."""
        inner, norm, gate = self.model.model, self._kernels.norm, self._kernels.gate
        hidden, x = self._entered(token, inner.layers[0].input_layernorm)
        delta: Tensor | None = None
        for layer, held in zip(inner.layers, self.cache.layers, strict=True):
            before, after, attention, mlp = layer.input_layernorm, layer.post_attention_layernorm, layer.self_attn, layer.mlp
            x = x if delta is None else norm(hidden, delta, before.weight, before.variance_epsilon)
            qkv = attention.q_proj.joined.whole(x)
            delta = attention.o_proj(self._attend(qkv, self._cos, self._sin, position, held.keys[0], held.values[0]))
            x = norm(hidden, delta, after.weight, after.variance_epsilon)
            delta = mlp.down_proj(gate(mlp.gate_proj.joined.whole(x)))
        logits: Tensor = self.model.lm_head(norm(hidden, delta, inner.norm.weight, inner.norm.variance_epsilon))
        return logits
