"""Gradients of the original: those of one graph, kept on the disk for a killed run, and what solvers make of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lowbit
from lowbit import formats, statistics
from lowbit.core.errors import RecipeError
from lowbit.methods.guidedquant import GuidedQuant
from lowbit.pipeline import quantize as running
from lowbit.pipeline.gradients import Gradients
from lowbit.pipeline.progress import Silent
from lowbit.pipeline.request import Request
from lowbit.recipe import Recipe
from lowbit.recipe.plan import Plan
from lowbit.solvers import damping, grid, grouped, ldl, tables, two_sided
from lowbit.statistics import Stats
from lowbit.testing._tiny import tiny
from lowbit.testing.killing import KillAfter, Killed, digest
from lowbit.testing.solvers import layer

SMALL: dict[str, Any] = {"samples": 4, "length": 64}
METHODS = {"qwen3": "yaqa", "mixtral": "guidedquant"}


def collected(folder: Path, out: Path, recipe: str, tokens: Tensor) -> list[dict[str, dict[str, Tensor]]]:
    """The gradient statistics of every block."""
    run = running.Run(Request(str(folder), recipe, str(out), device="cpu"), Silent(), lambda told: "")
    run.work.mkdir()
    with torch.no_grad():
        _, kwargs = run.enter([tokens])
        run.gradients.collect(tokens, kwargs, run.device, torch.float32)
    return [run.gradients.of(index, run.device) for index in range(len(run.source.blocks))]


def test_gradients_are_those_of_the_whole_model(tiny_llama: Path, tmp_path: Path) -> None:
    tokens = torch.randint(2, 258, (3, 20), generator=torch.Generator().manual_seed(0))
    fishers = collected(tiny_llama, tmp_path / "out", "squeezellm(lut3-row)", tokens)
    model = lowbit.load(tiny_llama, dtype=torch.float32).requires_grad_()
    wanted: dict[str, Tensor] = {}
    for row in tokens:
        logits = model(row[None]).logits[0]
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits[:-1], row[1:], reduction="sum").backward()
        for name, p in model.named_parameters():
            wanted[name] = wanted.get(name, torch.zeros(())) + p.grad.square() / 3
    for index, found in enumerate(fishers):
        assert len(found) == 7
        for name, values in found.items():
            whole = wanted[f"model.layers.{index}.{name}.weight"]
            assert torch.allclose(values["fisher_diagonal"], whole, rtol=1e-3, atol=1e-4 * float(whole.max()))


def test_guided_loss_is_the_weighted_one() -> None:
    """With a group for each output, tr(e H_k eT) is the mean of squared output errors times squared gradients, over mean s."""
    torch.manual_seed(0)
    x, gradient, error = torch.randn(50, 8), torch.randn(50, 4), torch.randn(4, 8)
    saliency = statistics.shelf.get("saliency").collector((4, 8), torch.device("cpu"))
    saliency.add(x, gradient)
    weights = saliency.result()
    assert torch.allclose(weights, gradient.square(), atol=1e-6)
    moment = statistics.shelf.get("guided_moment").collector(8, torch.device("cpu"))
    moment.add(x, weights)
    for k, h in enumerate(moment.result()):
        wanted = ((x @ error[k]).square() * weights[:, k]).mean() / weights[:, k].mean()
        assert float(error[k] @ h @ error[k]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize(
    ("format", "apart"),
    [("int4-g64", True), ("lut3-row", True), ("int3-g64-asym", True), ("int4-tensor", False), ("int3-g64-had", False)],
)
def test_rows_that_are_solved_apart(format: str, apart: bool) -> None:
    found = formats.parse(format)
    weight, x = layer(inputs=128)
    weight = weight[:32]
    assert grouped.apart(found, (32, 128)) == apart
    x = x[:4096]
    weights = torch.rand(len(x), 4).pow(4)
    moments = torch.stack([(x * w[:, None]).T @ x / w.sum() for w in weights.T])
    plain = x.T @ x / len(x)
    stats = Stats(len(x), {"second_moment": plain, "cross_moment": plain, "guided_moment": moments})
    guided = GuidedQuant(alpha=0.0).solve(weight, stats, found)
    stats.values["guided_moment"] = plain[None]
    flat = GuidedQuant(alpha=0.0).solve(weight, stats, found)

    def lost(q: torch.Tensor) -> float:
        groups = zip((weight - q).tensor_split(4), moments, strict=True)
        return sum(ldl.loss(part, h) for part, h in groups)

    if not apart:
        together = grid.solve(weight, grid.problem(moments.mean(0), len(x)), found, refit=tables.refit)
        assert torch.equal(guided.codes, together.codes)
        return
    assert lost(guided.decode()) < lost(flat.decode()), "the weights of tokens did not help where they count"
    power = sum(ldl.loss(part, h) for part, h in zip(weight.tensor_split(4), moments, strict=True))
    assert guided.report["error"] == pytest.approx(lost(guided.decode()) / power, rel=1e-3)


def kronecker(out: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, and second moments of inputs and of outputs, as of correlated ones."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(out, inputs, generator=generator)
    moments = []
    for n in (inputs, out):
        x = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator) / n**0.5
        x = x + 2 * torch.randn(4 * n, 1, generator=generator)
        moments.append(x.T @ x / len(x))
    return weight, moments[0], moments[1]


def test_two_sided_is_the_paper_s_rounding() -> None:
    """Blocks of one row, no descent: every weight rounds W + (L_OT E L_I - E), E over what is done (YAQA, LDLQ in both)."""
    weight, inputs, outputs = kronecker(16, 64)
    format = formats.parse("int3-row")
    found = two_sided.solve(weight, grid.Problem(inputs), outputs, format, tables.refit, rows=1, sweeps=0, damp=0.01)
    rows, columns = torch.arange(16).flip(0), damping.rounding_order(inputs, "activation")
    l_o, l_i = (damping.factorise(h, order, 0.01).lower for h, order in ((outputs, rows), (inputs, columns)))
    assert l_o is not None and l_i is not None
    w, scale = weight[rows][:, columns], found.grid.full_scale[rows][:, columns]
    error = torch.zeros_like(w)
    for i in reversed(range(16)):
        for j in reversed(range(64)):
            x = (w + l_o.T @ error @ l_i - error)[i, j]
            error[i, j] = w[i, j] - (x / scale[i, j]).round().clamp(-4, 3) * scale[i, j]
    assert float(((w - error) - found.decode()[rows][:, columns]).abs().gt(1e-5).float().mean()) < 0.01


@pytest.mark.parametrize("format", ["int3-g64", "int3-g64-had", "e8p2"])
def test_two_sides_beat_one(format: str) -> None:
    weight, inputs, outputs = kronecker(64, 128)
    found, given = formats.parse(format), grid.Problem(inputs)
    one = two_sided.solve(weight, given, torch.eye(64), found, tables.refit, rows=8)
    two = two_sided.solve(weight, given, outputs, found, tables.refit, rows=8)
    lost = [two_sided.loss(weight - q.decode(), inputs, outputs) for q in (one, two)]
    assert lost[1] < 0.8 * lost[0], f"{format}: {lost[1] / lost[0]:.2f} of what one side leaves"
    assert two.report["error"] == pytest.approx(lost[1] / two_sided.loss(weight, inputs, outputs), rel=1e-3)


@pytest.mark.parametrize("recipe", ["yaqa(int3-g64)", "squeezellm(lut3-row)"])
def test_resume_gives_the_same_bytes(tiny_llama: Path, tmp_path: Path, recipe: str) -> None:
    lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "whole"), **SMALL)
    for after in (3, 4, 5):
        out = tmp_path / f"killed{after}"
        with pytest.raises(Killed):
            lowbit.quantize(str(tiny_llama), recipe, str(out), progress=KillAfter(after), **SMALL)
        lowbit.quantize(str(tiny_llama), recipe, str(out), **SMALL)
        assert digest(out) == digest(tmp_path / "whole")


def test_what_is_kept_is_not_made_again(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        lowbit.quantize(str(tiny_llama), "guidedquant(int3-g64)", str(tmp_path / "out"), progress=KillAfter(5), **SMALL)
    monkeypatch.setattr(Gradients, "_forward", lambda *_: pytest.fail("the gradients were there"))
    lowbit.quantize(str(tiny_llama), "guidedquant(int3-g64)", str(tmp_path / "out"), **SMALL)


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_other_families(tiny_llama: Path, tmp_path: Path, family: str) -> None:
    folder = tmp_path / family
    tiny(family, vocab_size=300).to(torch.bfloat16).save_pretrained(folder)
    for file in tiny_llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    result = lowbit.quantize(str(folder), f"{METHODS[family]}(int4-g16)", str(tmp_path / "out"), **SMALL)
    told = {
        "gradients" in str(row.get("fallback")) for row in result.layers if ".experts." in row["name"] and row["tokens"] > 64
    }
    assert told == ({True} if family == "mixtral" else set())
    assert not any("gradients" in str(row.get("fallback")) for row in result.layers if ".self_attn." in row["name"])


class Line:
    """A linear as the plan sees it."""

    def __init__(self, name: str, role: str = "mlp") -> None:
        self.name, self.shape, self.role, self.layer = name, (128, 128), role, 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("awq + guidedquant(int4-g128)", "saliency comes from the original, whose weights awq changes in model.layers.0"),
        ("rtn(int4-g128) + guidedquant(int8-row)@head", "saliency of lm_head is not known"),
    ],
)
def test_plans_that_are_refused(recipe: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Plan.make(Recipe.parse(recipe), [Line("model.layers.0.mlp.up_proj"), Line("lm_head", "head")])


def test_outlook_counts_the_pass() -> None:
    sizes = {"tokens": 8192, "hidden": 128, "block_weights": 100_000, "outside_bytes": 0, "flops": 1e9, "blocks": 1000}
    plain, guided = (
        Plan.make(Recipe.parse(r), [Line("model.layers.0.mlp.up_proj")]).outlook(**sizes)  # type: ignore[arg-type]
        for r in ("gptaq(int2-g128)", "guidedquant(int2-g128)")
    )
    assert plain["peak_memory"] < guided["peak_memory"] and plain["seconds"] < guided["seconds"]
