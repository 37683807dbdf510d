"""qoq - keys, values and products of gate and up made even for 8-bit inputs, 4-bit weights and a 4-bit cache.

In / Out  a block, the greatest |x| of its linears' inputs and of its keys -> the same function. The whole of the paper:
          quarot(online=none) + qoq + gptq(progressive4-g128) + act(int8-token) + kv(qserve).
Idea      SmoothAttention: lambda = max|K|^0.5 of a channel, the same for both of a rotary pair and for all queries of a head;
          keys are divided by it, queries multiplied, so that 4 bits hold keys. Then values to o and up to down are smoothed
          as in SmoothQuant, with most of the strength on the weights' side.
Source    QServe (2405.04532), section 4.2 and 4.3; deepcompressor, qoq-g128.yaml.
Defaults  keys 0.5; alpha 0.3, beta 0.7 (paper, groups of 128; 0.1 and 0.9 for rows).
Traps     Behind norms of queries and keys (Qwen 3, Gemma 3) the scales go into these norms, which hold for all heads; the
          greatest head decides. Keys in one matrix with queries and values (Phi 3), or behind a norm of all heads together
          (OLMo 2), are left as they are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowbit.methods import Block, Method, Share
from lowbit.statistics import Stats
from lowbit.transforms import fold as folding

FLOOR = 1e-5
KEYS, QUERIES = "self_attn.k_proj", "self_attn.q_proj"


@dataclass(frozen=True)
class QoQ(Method):
    """keys: exponent of their reach. alpha, beta: of the reach of inputs and of weights, in scales between linears."""

    keys: Share = 0.5
    alpha: Share = 0.3
    beta: Share = 0.7

    needs: ClassVar[tuple[str, ...]] = ("max_magnitude",)

    @torch.no_grad()
    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        """Smooth keys, then every edge between two linears."""
        modules = dict(block.module.named_modules())
        if KEYS in modules and QUERIES in modules and self.keys and block.samples is not None:
            self._smooth_keys(block, modules)
        for fold in folding.resolve(block.folds, list(modules)):
            source: Any = modules[fold.source]
            seen = [stats[name] for name in fold.targets if name in block.linears and stats[name].tokens]
            if source.weight.dim() == 1 or not seen:
                continue
            inputs = torch.stack([s["max_magnitude"] for s in seen]).amax(0)
            weights = torch.stack([block.linears[n].weight.abs().amax(0).float() for n in fold.targets if n in block.linears])
            x, w = (folding.gather(t, fold, block.heads) for t in (inputs, weights.amax(0)))
            scales = x.clamp_min(FLOOR) ** self.alpha / w.clamp_min(FLOOR) ** self.beta
            scales = torch.where(x > 0, scales / scales.log().mean().exp(), 1.0)
            folding.apply(block.module, fold, scales, block.heads)

    def _smooth_keys(self, block: Block, modules: dict[str, nn.Module]) -> None:
        """Divide keys by lambda and multiply queries by it."""
        normed, rows = modules.get("self_attn.k_norm"), len(block.module.get_parameter(f"{KEYS}.weight"))
        if normed is not None and len(normed.weight) != rows // block.heads[1]:  # type: ignore[arg-type]
            return
        reach = _reach(block, normed or modules[KEYS])
        count = block.heads[1] if normed is None else 1
        halves = reach.view(-1, 2, len(reach) // (2 * block.heads[1]) if normed is None else len(reach) // 2)
        scales = halves.amax(1, keepdim=True).expand_as(halves).reshape(count, -1).clamp_min(FLOOR) ** self.keys
        if normed is not None:
            offset = next((fold.offset for fold in block.folds), 0.0)
            for name, s in (("k_norm", scales.flatten()), ("q_norm", 1 / scales.flatten())):
                weight: Any = modules[f"self_attn.{name}"].weight
                weight.data = folding.scale_norm(weight.data, s, offset)
            return
        queries = scales.repeat_interleave(block.heads[0] // block.heads[1], 0)
        for name, s in ((KEYS, scales.flatten()), (QUERIES, 1 / queries.flatten())):
            for parameter in modules[name].parameters():
                parameter.data = folding.scale_outputs(parameter.data, s)


def _reach(block: Block, keys: nn.Module) -> Tensor:
    """The greatest |k| of each channel of what `keys` gives, all of one head's where a norm gives heads."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: Any, out: Tensor) -> None:
        found.append(out.reshape(-1, out.shape[-1]).abs().amax(0).float())

    hook = keys.register_forward_hook(keep)
    try:
        block.run(block.samples)  # type: ignore[arg-type]
    finally:
        hook.remove()
    return torch.stack(found).amax(0)
