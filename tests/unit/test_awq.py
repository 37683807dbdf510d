"""AWQ and the folds under it: the function is kept, the error falls, what cannot be done is said."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit import architectures, formats
from lowbit.architectures import Fold, traced
from lowbit.core.errors import ArchitectureError
from lowbit.methods import Block
from lowbit.methods.awq import AWQ
from lowbit.statistics import Collecting, Stats
from lowbit.testing import architectures as suite
from lowbit.testing._tiny import config
from lowbit.transforms import fold as folding

FORMAT = formats.parse("int4-g16-asym")


def block_of(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Block, dict[str, Stats]]:
    """A tiny model, its first block at work on inputs with three loud channels, and the statistics of that block."""
    model = suite.model_of(name, **changes).to(dtype)
    module = suite.blocks_of(model, suite.architecture(name).blocks)[0]
    _, _, kwargs = suite.forwards(model, suite.architecture(name), suite.tokens())[0]
    samples = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    for source in {f.source for f in suite.architecture(name).folds if "norm" in f.source}:
        module.get_parameter(f"{source}.weight").data[:3] *= 12

    def run(hidden: Tensor) -> Tensor:
        output = module(hidden, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    collecting = {n: Collecting(("mean_magnitude",), m.in_features, torch.device("cpu")) for n, m in linears.items()}
    hooks = [m.register_forward_pre_hook(lambda _, a, n=n: collecting[n].add(a[0])) for n, m in linears.items()]
    run(samples)
    for hook in hooks:
        hook.remove()
    known = suite.architecture(name)
    block = Block(
        0,
        f"{known.blocks}.0",
        module,
        linears,
        dict.fromkeys(linears, FORMAT),
        known.folds,
        known.stages,
        run,
        suite.heads_of(model),
        samples,
        kwargs,
    )
    return model, block, {n: c.stats() for n, c in collecting.items()}


def rounding_error(block: Block) -> float:
    """Relative squared error of the block's output when every linear is rounded by the range rule; weights are put back."""
    kept = {n: m.weight.data for n, m in block.linears.items()}
    exact = block.run(block.samples)
    for linear in block.linears.values():
        linear.weight.data = FORMAT.fit(linear.weight, search=False).quantize(linear.weight).decode()
    off = block.run(block.samples) - exact
    for name, linear in block.linears.items():
        linear.weight.data = kept[name]
    return float(off.square().mean() / (exact - block.samples).square().mean())


@torch.no_grad()
@pytest.mark.parametrize("name", architectures.shelf.names())
def test_function_is_kept_and_rounding_hurts_less(name: str) -> None:
    _, block, stats = block_of(name)
    before, error = block.run(block.samples), rounding_error(block)
    AWQ().rewrite(block, stats)
    after = block.run(block.samples)
    assert float((after - before).abs().max() / before.std()) < 1e-4
    assert rounding_error(block) < (0.95 if name != "olmo2" else 1.02) * error
    assert not torch.equal(before, after)  # something was folded


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_works_on_a_block_in_bfloat16(name: str) -> None:
    _, block, stats = block_of(name, torch.bfloat16)
    before = block.run(block.samples)
    AWQ().rewrite(block, stats)
    assert {p.dtype for p in block.module.parameters()} == {torch.bfloat16}
    assert float((block.run(block.samples) - before).float().square().mean() / before.float().square().mean()) < 1e-3


@torch.no_grad()
def test_quiet_statistics_change_nothing() -> None:
    _, block, stats = block_of("llama")
    block.module.bfloat16().float()  # norms as files have them
    before = {n: p.clone() for n, p in block.module.named_parameters()}
    even = {n: Stats(s.tokens, {"mean_magnitude": torch.ones_like(s["mean_magnitude"])}) for n, s in stats.items()}
    AWQ().rewrite(block, even)
    assert all(torch.equal(before[n], p) for n, p in block.module.named_parameters())


@torch.no_grad()
def test_norms_are_exact_in_bfloat16_after_folding() -> None:
    for name in ("llama", "gemma2"):
        _, block, stats = block_of(name)
        block.module.bfloat16().float()
        before = block.run(block.samples)
        AWQ().rewrite(block, stats)
        for parameter in block.module.parameters():
            if parameter.dim() == 1:
                parameter.data = parameter.data.bfloat16().float()
        assert float((block.run(block.samples) - before).abs().max() / before.std()) < 1e-4, name


@torch.no_grad()
def test_only_what_is_to_be_rounded_moves_scales() -> None:
    _, block, stats = block_of("llama")
    before = {n: p.clone() for n, p in block.module.named_parameters()}
    mlp = {n: m for n, m in block.linears.items() if n.startswith("mlp")}
    AWQ().rewrite(dataclasses.replace(block, linears=mlp), stats)
    changed = {n for n, p in block.module.named_parameters() if not torch.equal(before[n], p)}
    assert changed == {"post_attention_layernorm.weight", *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down"))}


@torch.no_grad()
def test_an_expert_without_tokens_keeps_its_scales_and_routing_stays() -> None:
    _, block, stats = block_of("mixtral")
    seen: list[Tensor] = []
    router = block.module.get_submodule("mlp.gate")
    router.register_forward_hook(lambda _, a, y: seen.append(y[2]))
    block.run(block.samples)
    stats["mlp.experts.2.down_proj"] = Stats(0, {"mean_magnitude": torch.zeros(96)})
    down = block.linears["mlp.experts.2.down_proj"].weight.clone()
    AWQ().rewrite(block, stats)
    block.run(block.samples)
    assert torch.equal(block.linears["mlp.experts.2.down_proj"].weight, down)
    assert torch.equal(seen[0], seen[-1])
    original = suite.model_of("mixtral").model.layers[0].mlp.gate.weight
    assert not torch.equal(block.module.get_submodule("mlp.gate").weight, original)


def test_without_folds_the_error_names_what_is_missing() -> None:
    _, block, stats = block_of("llama")
    with pytest.raises(ArchitectureError, match="no folds are known for LlamaDecoderLayer"):
        AWQ().rewrite(dataclasses.replace(block, folds=()), stats)


@torch.no_grad()
@pytest.mark.parametrize(("queries", "values"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_value_scales_reach_every_query_head(name: str, queries: int, values: int) -> None:
    model = suite.model_of(name, num_attention_heads=queries, num_key_value_heads=values)
    before = model(suite.tokens()).logits
    heads = (queries, values)
    for block in model.model.layers:
        (fold,) = (f for f in folding.resolve(suite.architecture(name).folds, [n for n, _ in block.named_modules()]) if f.heads)
        first, channels = folding.rows_of(block, fold, heads)
        assert channels == 16 * values and first == (16 * (queries + values) if name == "phi3" else 0)
        folding.apply(block, fold, torch.rand(channels) * 3 + 0.3, heads)
    assert float((model(suite.tokens()).logits - before).abs().max() / before.std()) < 1e-4


def test_gather_and_spread_agree_on_the_order_of_heads() -> None:
    fold = Fold("v", ("o",), "o", heads=True)
    scales = torch.arange(6.0)
    assert folding.spread(scales, fold, (4, 2)).tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert torch.equal(folding.gather(folding.spread(scales, fold, (4, 2)), fold, (4, 2)), scales)


@torch.no_grad()
def test_biases_move_with_their_rows() -> None:
    model = suite.model_of("llama", attention_bias=True, mlp_bias=True).double()
    with suite.Exact():
        before = model(suite.tokens()).logits
        for block in model.model.layers:
            for fold in folding.resolve(suite.architecture("llama").folds, [n for n, _ in block.named_modules()]):
                folding.apply(block, fold, torch.rand(folding.rows_of(block, fold, (4, 2))[1]) * 3 + 0.3, (4, 2))
        after = model(suite.tokens()).logits
    assert float((after - before).abs().max() / before.std()) < 1e-9


@torch.no_grad()
def test_tied_embeddings_are_not_touched() -> None:
    model = suite.model_of("qwen2", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = model.lm_head.weight.clone()
    for block in model.model.layers:
        for fold in folding.resolve(suite.architecture("qwen2").folds, [n for n, _ in block.named_modules()]):
            folding.apply(block, fold, torch.full((folding.rows_of(block, fold, (4, 2))[1],), 2.0), (4, 2))
    assert torch.equal(model.lm_head.weight, before)


def test_wrong_heads_are_refused() -> None:
    _, block, _ = block_of("llama")
    (fold,) = (f for f in folding.resolve(block.folds, [n for n, _ in block.module.named_modules()]) if f.heads)
    with pytest.raises(ArchitectureError, match="do not fit 3 query"):
        folding.rows_of(block.module, fold, (3, 3))


def test_unknown_architectures_are_mapped_or_refused() -> None:
    found = architectures.find(config("starcoder2"))
    known = suite.architecture("llama")
    assert all(getattr(found, field) == getattr(known, field) for field in ("blocks", "embed", "norm", "head", "experts"))
    assert not found.folds and "Starcoder2ForCausalLM" in found.notes
    assert architectures.find(config("olmoe")).experts == "mlp.experts"
    assert architectures.find(config("jamba")).experts == "feed_forward.experts"
    with pytest.raises(ArchitectureError, match="3-D weights"):
        architectures.find(config("jetmoe"))
    with pytest.raises(ArchitectureError, match="no list of layers"):
        architectures.find(config("gpt2"))
    with pytest.raises(ArchitectureError, match="no causal language model"):
        architectures.find(config("vit"))


@torch.no_grad()
def test_stages_of_an_unknown_block() -> None:
    class Parallel(nn.Module):
        """Attention-like and MLP-like branches that read one norm, one of them through a view."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d, self.idle = (nn.Linear(8, 8) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(x)
            left = self.b(self.a(y))
            return x + left + self.d(torch.relu(self.c(y.view(-1, 8)))).view_as(x)

    module = Parallel()
    assert traced(module, lambda: module(torch.randn(1, 3, 8))) == (("a", "c"), ("b",), ("d",))
    assert not module.a._forward_pre_hooks
