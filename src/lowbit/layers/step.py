"""step - one token through a decoder of Llama's shape: eight launches a block, whatever its linears are.

Idea      The model's own weights and linears, its own rotary angles, made once for all positions; what stands between the
          linears is three kernels a block (in Triton on GPUs, in C++ on CPUs: kernels/step.py) instead of some forty, before
          the blocks and behind the head one each. What transformers computes in its forward comes out, to rounding.
          Llama, Mistral and Qwen2 have this shape. Others keep their own forward; `refusal` says why.
          On a CPU the calls of the first token are written down and made again at once for each one after it
          (kernels/cpu/_replay.py). The cache may be packed there (lowbit.kvcache): its own stores take the new token, attention
          goes by dispatch.
Traps     The residual stream is added up in place, inside the kernel of the next norm. Keys and values are those of one
          sequence; a prompt goes through the model's own forward, and `fill` takes what it left. On a CPU the next token's
          logits lie where these did, and weights that are put in place of others later are not seen.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.kernels import step as kernels
from lowbit.kernels.attention import attend
from lowbit.layers import joined

FIXED = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary angles that are the same whatever the length of the text."""
LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
SHARING = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
"""Linears of a block that have one input."""


def refusal(model: Any) -> str:
    """Why a model cannot go this way, once its linears of one input are joined, or ""."""
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
    if {parameter.dtype for parameter in model.parameters()} > {model.dtype}:
        return "its weights are floats of several types"
    if not all(joined.can_join(layer, names) for layer in blocks for names in SHARING):
        return "its linears of one input cannot be joined"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return kernels.refusal(model.device, model.dtype, width)


class Step:
    """One token after the other. model: as `refusal` wants it. room: tokens that its cache holds. packed: how it holds them."""

    def __init__(self, model: Any, room: int, packed: bool = False) -> None:
        self._kernels = kernels.find(model.device)
        self.model = model
        config, inner = model.config, model.model
        heads = (config.num_attention_heads, config.num_key_value_heads)
        attention = inner.layers[0].self_attn
        self._attend = self._kernels.Attention(heads, attention.head_dim, attention.scaling, model.device)
        self.take = self._kernels.Taking(config.vocab_size, model.device)
        like = {"dtype": model.dtype, "device": model.device}
        sizes = (2, heads[1], 0 if packed else room, attention.head_dim)
        self._held: list[Any] = [torch.zeros(sizes, **like) for _ in inner.layers]
        self._packed = packed
        self._again: Callable[[], None] | None = None
        self._made_for: tuple[int, ...] = ()
        places = torch.arange(room, device=model.device)[None]
        self._cos, self._sin = (angles[0].contiguous() for angles in inner.rotary_emb(inner.norm.weight, position_ids=places))

    def fill(self, cache: Any) -> None:
        """Begin with the tokens of a cache of transformers, of one sequence; a packed one is used as it is."""
        if self._packed:
            self._held = [Packed(layer, self._attend) for layer in cache.layers]
            return
        for held, layer in zip(self._held, cache.layers, strict=True):
            held[0, :, : layer.keys.shape[2]] = layer.keys[0]
            held[1, :, : layer.values.shape[2]] = layer.values[0]

    def _entered(self, token: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        """The hidden state [1, n] of a token, and what the first norm gives of it."""
        table = self.model.model.embed_tokens
        if type(table) is nn.Embedding:
            found: tuple[Tensor, Tensor] = self._kernels.enter(token, table.weight, norm.weight, norm.variance_epsilon)
            return found
        hidden: Tensor = table(token)[0].clone()
        return hidden, self._kernels.norm(hidden, None, norm.weight, norm.variance_epsilon)

    def __call__(self, token: Tensor, position: Tensor) -> Tensor:
        """token int64 [1, 1] at position int64 [1, 1] -> logits [1, vocab]; the cache has one token more."""
        recorded = getattr(self._kernels, "recorded", None)
        if recorded is None:
            return self._one(token, position)
        made_for = token.data_ptr(), position.data_ptr(), torch.get_num_threads()
        if self._again is not None and made_for == self._made_for:
            self._again()
        elif made_for == self._made_for:
            self._logits = self._one(token, position)
        else:
            self._made_for = made_for
            self._logits, self._again = recorded(lambda: self._one(token, position))
        return self._logits

    def _one(self, token: Tensor, position: Tensor) -> Tensor:
        inner, norm, gate = self.model.model, self._kernels.norm, self._kernels.gate
        hidden, x = self._entered(token, inner.layers[0].input_layernorm)
        delta: Tensor | None = None
        for layer, held in zip(inner.layers, self._held, strict=True):
            before, after, attention, mlp = layer.input_layernorm, layer.post_attention_layernorm, layer.self_attn, layer.mlp
            x = x if delta is None else norm(hidden, delta, before.weight, before.variance_epsilon)
            qkv = self._times(attention.q_proj.joined.whole, x)
            angles = (self._cos, self._sin, position)
            seen = held(qkv, *angles) if self._packed else self._attend(qkv, *angles, held[0], held[1])
            delta = self._times(attention.o_proj, seen)
            x = norm(hidden, delta, after.weight, after.variance_epsilon)
            delta = self._times(mlp.down_proj, gate(self._times(mlp.gate_proj.joined.whole, x)))
        return self._times(self.model.lm_head, norm(hidden, delta, inner.norm.weight, inner.norm.variance_epsilon))

    def _times(self, linear: Any, x: Tensor) -> Tensor:
        """A linear of the model times x [1, in]."""
        y: Tensor = self._kernels.product(x, linear.weight, linear.bias) if type(linear) is nn.Linear else linear(x)
        return y


class Packed:
    """Attention of one token in one layer whose keys and values are packed. layer: lowbit.kvcache's. like: that of floats."""

    def __init__(self, layer: Any, like: Any) -> None:
        self.stores, self.heads, self.width, self.scale = layer.stores, like.heads, like.width, like.scale

    def __call__(self, qkv: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> Tensor:
        """qkv [1, (query + 2 key-value heads) * width], cos and sin [any, width], position int64 -> [1, heads * width]."""
        queries, pairs = self.heads
        states, at = qkv.view(1, -1, 1, self.width), int(position)
        x = states[:, : queries + pairs]
        a, b = x.chunk(2, -1)
        turned = x * cos[at] + torch.cat([-b, a], -1) * sin[at]
        q, k = turned.split([queries, pairs], 1)
        keys, values = (store.take(new) for store, new in zip(self.stores, (k, states[:, queries + pairs :]), strict=True))
        return attend(q, keys, values, self.scale).view(1, -1)
