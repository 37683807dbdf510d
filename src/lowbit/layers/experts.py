"""experts - fused 3-D experts taken apart into one linear per expert and projection, named as in the files.

In / Out  a module with gate_up_proj [experts, 2 * inner, hidden] and down_proj [experts, hidden, inner], as transformers has
          for Mixtral, Qwen3-MoE and most others -> Experts, with linears "3.gate_proj", "3.up_proj", "3.down_proj" and a
          forward of the same arguments and result.
Idea      The forward has two phases: gate and up of all experts, then down of all. Before each, the child `announce` is called
          with every expert's input, those of experts that no token chose too (no rows): whoever collects inputs or waits for
          them meets all experts at one point, not one after the other.
Traps     Loops over nn.Linear do not see fused experts and skip nine tenths of such a model without a word.
          The two phases hold the inner activations of all chosen (token, expert) pairs at once.
          Other arrangements (GPT-OSS: transposed, interleaved, biases) are refused, not guessed.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.errors import ArchitectureError

ARGUMENTS = "hidden_states, top_k_index, top_k_weights"


class Announce(nn.Module):
    """Does nothing; a forward pre-hook on it learns the inputs of all experts.

    inputs: by the name of a linear of each expert ("3.gate_proj") its input [tokens, in]. sharing: the projections that
    take it.
    """

    def forward(self, inputs: dict[str, Tensor], sharing: tuple[str, ...]) -> None:
        return None


class Expert(nn.Module):
    """The three linears of one expert; on the meta device until filled."""

    def __init__(self, hidden: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False, dtype=dtype, device=device)
        self.up_proj = nn.Linear(hidden, inner, bias=False, dtype=dtype, device=device)
        self.down_proj = nn.Linear(inner, hidden, bias=False, dtype=dtype, device=device)


class Experts(nn.Module):
    """All experts of one layer, children "0", "1", ... activation: applied to the gate."""

    def __init__(
        self,
        count: int,
        hidden: int,
        inner: int,
        activation: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.num_experts = count
        self.act_fn = activation
        self.announce = Announce()
        for i in range(count):
            self.add_module(str(i), Expert(hidden, inner, dtype, device))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Mix the experts' results.

        hidden_states [tokens, hidden]; top_k_index [tokens, k], an expert each (num_experts: none); top_k_weights [tokens, k].
        """
        places = [torch.where(top_k_index == i) for i in range(self.num_experts)]
        inputs = [hidden_states[tokens] for tokens, _ in places]
        experts: list[Any] = [self.get_submodule(str(i)) for i in range(self.num_experts)]
        self.announce({f"{i}.gate_proj": x for i, x in enumerate(inputs)}, ("gate_proj", "up_proj"))
        inner = [
            self.act_fn(e.gate_proj(x)) * e.up_proj(x) if len(x) else x.new_zeros(0, e.down_proj.in_features)
            for e, x in zip(experts, inputs, strict=True)
        ]
        self.announce({f"{i}.down_proj": x for i, x in enumerate(inner)}, ("down_proj",))
        result = torch.zeros_like(hidden_states)
        for expert, x, (tokens, ranks) in zip(experts, inner, places, strict=True):
            if len(x):
                weighted = expert.down_proj(x) * top_k_weights[tokens, ranks, None]
                result.index_add_(0, tokens, weighted.to(result.dtype))
        return result


def take_apart(module: nn.Module) -> Experts:
    """The same experts, one linear each; the weights are views of the fused ones (shapes alone on the meta device).

    Raises ArchitectureError when the module's arrangement is not [gate; up] rows without biases.
    """
    unusual = _unusual(module)
    if unusual:
        raise ArchitectureError(
            f"{type(module).__name__}: these experts cannot be taken apart: {', '.join(unusual)}. "
            "Add their form to lowbit/layers/experts.py."
        )
    source: Any = module
    fused, down = source.gate_up_proj, source.down_proj
    count, twice, hidden = fused.shape
    experts = Experts(count, hidden, twice // 2, source.act_fn, fused.dtype, torch.device("meta"))
    if not fused.is_meta:
        for i in range(count):
            gate, up = fused.detach()[i].chunk(2)
            _fill(experts.get_submodule(str(i)), gate, up, down.detach()[i])
    return experts.train(module.training)


def _unusual(module: Any) -> list[str]:
    """What sets a module of experts apart from the form that is known; empty for the known one."""
    weights = {name: tuple(p.shape) for name, p in module.named_parameters()}
    up, down = weights.pop("gate_up_proj", ()), weights.pop("down_proj", ())
    found = [f"a parameter {name}" for name in weights]
    if len(up) != 3 or down != (up[0], up[2], up[1] // 2):
        found.append(f"gate_up_proj {list(up)} and down_proj {list(down)} are not [E, 2I, H] and [E, H, I]")
    found += [flag for flag in ("has_bias", "is_transposed", "has_post_expert_norm") if getattr(module, flag, False)]
    found += [f"not {flag}" for flag in ("is_concatenated", "has_gate") if not getattr(module, flag, True)]
    found += [] if hasattr(module, "act_fn") else ["no act_fn"]
    arguments = ", ".join(inspect.signature(module.forward).parameters)
    return found if arguments == ARGUMENTS else [*found, f"called with ({arguments})"]


def _fill(expert: Any, gate: Tensor, up: Tensor, down: Tensor) -> None:
    for linear, weight in ((expert.gate_proj, gate), (expert.up_proj, up), (expert.down_proj, down)):
        linear.weight = nn.Parameter(weight, requires_grad=False)


def fuse(experts: Experts) -> dict[str, Tensor]:
    """The way back: {"gate_up_proj" [experts, 2 * inner, hidden], "down_proj" [experts, hidden, inner]}."""
    parts: list[Any] = [experts.get_submodule(str(i)) for i in range(experts.num_experts)]
    return {
        "gate_up_proj": torch.stack([torch.cat([e.gate_proj.weight, e.up_proj.weight]) for e in parts]).detach(),
        "down_proj": torch.stack([e.down_proj.weight for e in parts]).detach(),
    }
