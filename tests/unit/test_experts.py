"""Fused experts taken apart: same function, announced inputs, pausable in two phases, refused when arranged otherwise."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lowbit.architectures import traced
from lowbit.core.errors import ArchitectureError
from lowbit.layers.experts import Experts, fuse, take_apart
from lowbit.pipeline.stream import Paused
from lowbit.statistics import Collecting
from lowbit.testing._tiny import config, tiny

MOE = ["mixtral", "qwen3_moe"]


def experts_of(name: str, **changes: object) -> nn.Module:
    found: nn.Module = tiny(name, **changes).model.layers[0].mlp.experts
    return found


def routed(experts: int = 4, tokens: int = 33) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, experts chosen (never the last one) and their weights."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(tokens, 64, generator=generator)
    weights, index = torch.rand(tokens, experts - 1, generator=generator).topk(2)
    return x, index, weights


@pytest.mark.parametrize("name", MOE)
def test_same_result_and_a_way_back(name: str) -> None:
    fused = experts_of(name)
    apart = take_apart(fused)
    torch.testing.assert_close(apart(*routed()), fused(*routed()), rtol=1e-5, atol=1e-5)
    back = fuse(apart)
    assert torch.equal(back["gate_up_proj"], fused.gate_up_proj) and torch.equal(back["down_proj"], fused.down_proj)


def test_a_token_may_choose_no_expert() -> None:
    fused, (x, index, weights) = experts_of("mixtral"), routed()
    fused.config._experts_implementation = "eager"
    index[5, 0] = 4
    torch.testing.assert_close(take_apart(fused)(x, index, weights), fused(x, index, weights), rtol=1e-5, atol=1e-5)


def test_names_are_those_of_files_and_meta_stays_meta() -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config("qwen3_moe"))
    model.set_submodule("model.layers.0.mlp.experts", take_apart(model.model.layers[0].mlp.experts))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if "layers.0.mlp.experts.3" in n}
    assert {n.removeprefix("model.layers.0.mlp.experts.3."): s for n, s in shapes.items()} == {
        "gate_proj.weight": (32, 64),
        "up_proj.weight": (32, 64),
        "down_proj.weight": (64, 32),
    }
    assert all(p.is_meta for p in model.parameters())


def test_tokens_of_every_expert_are_announced() -> None:
    apart, (x, index, weights) = take_apart(experts_of("mixtral")), routed()
    collecting = {i: Collecting(("mean_magnitude",), 64, torch.device("cpu")) for i in range(4)}

    def count(_: nn.Module, args: tuple[dict[str, Tensor], tuple[str, ...]]) -> None:
        if "up_proj" in args[1]:
            for name, inputs in args[0].items():
                collecting[int(name.partition(".")[0])].add(inputs)

    apart.announce.register_forward_pre_hook(count)
    apart(x, index, weights)
    assert [c.tokens for c in collecting.values()] == [int((index == i).sum()) for i in range(4)]
    assert collecting[3].tokens == 0 and collecting[3].stats()["mean_magnitude"].eq(0).all()
    chosen = x[(index == 1).any(1)]
    torch.testing.assert_close(collecting[1].stats()["mean_magnitude"], chosen.abs().mean(0))


def test_all_gates_run_before_any_down() -> None:
    apart, called = take_apart(experts_of("qwen3_moe")), []
    for name, module in apart.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name.rpartition(".")[2]))
    apart(*routed())
    assert called == ["gate_proj", "up_proj"] * 3 + ["down_proj"] * 3


class Layer(nn.Module):
    """Experts under the name that a decoder layer gives them, with a fixed choice."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.experts = take_apart(experts_of("mixtral"))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.mlp.experts(x, *routed(tokens=len(x))[1:])
        return found


@torch.no_grad()
def test_a_pause_meets_all_experts_and_down_sees_what_changed() -> None:
    layer = Layer()
    stages = traced(layer, lambda: layer(routed()[0]))
    assert [len(s) for s in stages] == [8, 4]
    changed = copy.deepcopy(layer)
    with Paused(changed, changed, [list(s) for s in stages], [routed()[0]]) as runs:
        ((_, wide),) = runs.inputs(0)
        assert list(wide) == [f"mlp.experts.{i}.gate_proj" for i in range(4)]
        changed.mlp.experts.get_submodule("0").up_proj.weight.mul_(2)
        ((_, narrow),) = runs.inputs(1)
        runs.outputs()
    x, index, _ = routed()
    expert = layer.mlp.experts.get_submodule("0")
    mine = x[(index == 0).any(1)]
    expected = 2 * layer.mlp.experts.act_fn(expert.gate_proj(mine)) * expert.up_proj(mine)
    torch.testing.assert_close(narrow["mlp.experts.0.down_proj"], expected)
    assert narrow["mlp.experts.3.down_proj"].shape == (0, 96)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: setattr(m, "is_transposed", True), "is_transposed"),
        (lambda m: setattr(m, "is_concatenated", False), "not is_concatenated"),
        (lambda m: m.register_parameter("gate_up_proj_bias", nn.Parameter(torch.zeros(4, 192))), "gate_up_proj_bias"),
        (lambda m: setattr(m, "down_proj", nn.Parameter(torch.zeros(64, 96))), r"down_proj \[64, 96\]"),
    ],
)
def test_other_arrangements_are_refused(change: object, said: str) -> None:
    fused = experts_of("mixtral")
    change(fused)  # type: ignore[operator]
    with pytest.raises(ArchitectureError, match=said):
        take_apart(fused)


def test_layers_without_experts_beside_layers_with() -> None:
    from lowbit.testing import architectures as suite

    model = suite.model_of("qwen3_moe", mlp_only_layers=[0])
    kinds = [isinstance(getattr(layer.mlp, "experts", None), Experts) for layer in model.model.layers]
    assert kinds == [False, True]
    known = suite.architecture("qwen3_moe")
    ups = ({"mlp.up_proj"}, {f"mlp.experts.{i}.up_proj" for i in range(4)})
    for block, sources in zip(model.model.layers, ups, strict=True):
        folds = suite.folding.resolve(known.folds, [n for n, _ in block.named_modules()])
        assert {f.source for f in folds} == {"input_layernorm", "self_attn.v_proj", "post_attention_layernorm"} | sources


@pytest.mark.parametrize("name", ["gpt_oss", "llama4_text"])
def test_families_with_other_experts_are_refused_not_guessed(name: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(name))
    fused = next(m for n, m in model.named_modules() if n.endswith(".experts"))
    with pytest.raises(ArchitectureError, match=type(fused).__name__):
        take_apart(fused)
