"""Tuners: what is trained is what is stored, descent finds what it should, and a whole run resumes to the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowbit
from lowbit import formats, methods
from lowbit.core.errors import RecipeError
from lowbit.formats import Quantized
from lowbit.methods import _training, efficientqat, omniquant
from lowbit.recipe import Recipe
from lowbit.recipe.plan import Plan
from lowbit.solvers import integers, trained, tuning
from lowbit.solvers.continuous import Continuous
from lowbit.solvers.trained import Trained, through
from lowbit.solvers.tuning import Settings
from lowbit.testing import methods as suite
from lowbit.testing.killing import KillAfter, Killed, digest

SMALL: dict[str, Any] = {"samples": 4, "length": 64}
FORMATS = [
    "int2-g64-asym",
    "int3-g64",
    "int4-row",
    "int4-g128-asym",
    "int4-g64-floatzero",
    "int8-tensor",
    "int3-g32-e4m3",
    "int3-g64-had",
]
Make = Callable[[torch.Tensor, Quantized], Any]
PIECES: dict[str, Make] = {
    "autoround": lambda w, q: integers.Rounding(w, q, 0.01),
    "efficientqat": lambda w, q: efficientqat.Latent(w, q, 0.01, 0.01),
    "omniquant": lambda w, q: omniquant.Clipping(w, q, 0.01),
    "block_tuning": lambda _, q: Continuous(q, 0.01),
}


def solved(format: str) -> tuple[torch.Tensor, Quantized]:
    """A weight, and its codes as a solver with feedback leaves them: a third of them one step off the nearest value."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(16, 128, generator=generator) * 0.05
    found = formats.parse(format)
    grid = found.fit(weight)
    moved = weight + grid.full_scale * (torch.rand(weight.shape, generator=generator) * 3 - 1.5)
    return weight, grid.quantize(moved)


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_trained_is_what_is_stored(name: str, format: str) -> None:
    weight, start = solved(format)
    piece = PIECES[name](weight, start)
    if name != "omniquant":
        assert torch.equal(piece.value(), start.decode()), "the start is not the solved matrix"
    for seed, t in enumerate(piece.trained):
        noise = torch.randn(t.value.shape, generator=torch.Generator().manual_seed(seed)) * 0.2
        t.value.data.add_(noise).clamp_(t.low, t.high)
    stored = piece.quantized()
    assert torch.equal(piece.value(), stored.decode())
    again = Quantized.unpack(stored.format, stored.packed(), stored.parts, stored.shape)
    assert torch.equal(again.decode(), stored.decode())
    assert not torch.equal(stored.decode(), start.decode())


@pytest.mark.parametrize("name", PIECES)
def test_every_trained_tensor_has_a_gradient(name: str) -> None:
    weight, start = solved("int3-g64-asym")
    piece = PIECES[name](weight, start)
    (piece.value() - weight).square().sum().backward()
    assert all(t.value.grad is not None and bool(t.value.grad.any()) for t in piece.trained)


def test_gradient_of_scales_is_the_slope() -> None:
    weight, start = solved("int4-g64-fp32")
    piece = Continuous(start, 0.01)
    loss = lambda: (piece.value() - weight).square().sum()  # noqa: E731
    loss().backward()
    assert piece.trained[0].value.grad is not None
    slope, before = piece.trained[0].value.grad[3, 1].item(), piece.trained[0].value.data.clone()
    ends = []
    for step in (1e-3, -1e-3):
        piece.trained[0].value.data = before.clone()
        piece.trained[0].value.data[3, 1] += step
        ends.append(float(loss().detach()))
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(slope, rel=1e-2)


def test_latent_weights_stay_where_they_are_in_their_cell() -> None:
    weight, start = solved("int4-g64")
    latent = integers.latent(weight, start, 0.1)
    x, codes = weight / start.grid.full_scale, start.format.dtype.decode(start.codes)
    inside = (x - codes).abs() < 0.4
    assert torch.allclose(latent[inside], weight[inside], atol=1e-7) and 0.2 < inside.float().mean() < 0.9
    assert torch.equal(start.grid.encode(latent), start.codes)


def test_through_is_exact_and_passes_the_gradient() -> None:
    x = torch.tensor([0.1, 7.3], requires_grad=True)
    y = through(x, torch.tensor([1.0, -3.0]))
    y.sum().backward()
    assert y.tolist() == [1.0, -3.0] and x.grad is not None and x.grad.tolist() == [1.0, 1.0]


class Free:
    """A weight without any rounding."""

    def __init__(self, start: torch.Tensor, rate: float) -> None:
        self.trained = [Trained(start, rate)]

    def value(self) -> torch.Tensor:
        return self.trained[0].value


def problem() -> tuple[nn.Linear, list[torch.Tensor], list[torch.Tensor]]:
    """A linear that is off, inputs, and what it should give."""
    wanted, linear = nn.Linear(8, 8), nn.Linear(8, 8)
    linear.bias.data = wanted.bias.data.clone()
    inputs = [torch.randn(5, 16, 8), torch.randn(3, 16, 8)]
    return linear, inputs, [wanted(x).detach() for x in inputs]


@pytest.mark.parametrize("settings", [Settings(300, 2, "adam"), Settings(300, 2, "sign", balanced=True)])
def test_descent_finds_the_matrix(settings: Settings) -> None:
    linear, inputs, targets = problem()
    piece = Free(linear.weight, 0.01)
    outcome = tuning.run(linear, {}, {"weight": piece}, inputs, targets, settings, 0)
    assert outcome.better and outcome.after < 1e-3 * outcome.before
    assert float((piece.value().detach() @ inputs[0][0].T + linear.bias.detach()[:, None] - targets[0][0].T).abs().max()) < 0.1
    again = Free(linear.weight, 0.01)
    tuning.run(linear, {}, {"weight": again}, inputs, targets, settings, 0)
    assert torch.equal(again.value(), piece.value()), "two runs differ"


def test_what_gets_worse_is_not_kept() -> None:
    linear, inputs, targets = problem()
    piece = Free(linear.weight, 1e3)
    outcome = tuning.run(linear, {}, {"weight": piece}, inputs, targets, Settings(7, 2, "sign"), 0)
    assert not outcome.better and outcome.after == outcome.before
    assert torch.equal(piece.value(), linear.weight), "the start was the best point"


def test_trimmed_loss_leaves_out_the_largest() -> None:
    linear = nn.Linear(8, 8)
    x = [torch.randn(2, 64, 8)]
    target = [linear(x[0]).detach()]
    target[0][0, 0, 0] += 100
    target[0][1, 5, 1] += 100
    whole = tuning.run(linear, {}, {}, x, target, Settings(0, 2, "sign"), 0)
    trimmed = tuning.run(linear, {}, {}, x, target, Settings(0, 2, "sign", trim=0.01), 0)
    assert trimmed.before < 1e-9 < whole.before


def test_windows_are_parted_and_all_come() -> None:
    inputs = [torch.arange(20.0)[:, None, None]]
    windows = tuning.Windows((inputs, inputs), torch.Generator().manual_seed(0))
    assert len(windows.held) == 2 and len(windows.trained) == 18 and not set(windows.held) & set(windows.trained)
    batches = windows.batches(6)
    seen = {int(v) for _ in range(3) for v in next(batches)[0].flatten()}
    assert seen == set(windows.trained)


def test_floats_are_rounded_as_they_are_stored() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    found = trained.floats(block, 0.1, torch.bfloat16)
    assert set(found) == {"0.bias", "1.weight", "1.bias"}
    found["1.weight"].moved.value.data += 0.001
    assert torch.equal(found["1.weight"].value(), torch.ones(4).add(0.001).bfloat16().float())


TUNERS = [
    "autoround(int2-g64-asym, steps=10, batch=2)",
    "rtn(nf4-g64) + block_tuning(steps=10)",
    "awq + gptq(int3-g64) + norm_tuning(steps=10)",
]

RESUMED = {"autoround", "norm_tuning"}


@pytest.mark.parametrize("recipe", TUNERS)
def test_whole_run(tiny_llama: Path, tmp_path: Path, recipe: str) -> None:
    result = lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "out"), **SMALL)
    name = recipe.split(" + ")[-1].partition("(")[0]
    losses = [row["tuning"][name] for row in result.layers]
    assert len(losses) == 14 and all(loss["after"] <= loss["before"] for loss in losses)
    assert any(loss["after"] < loss["before"] for loss in losses), f"{name} did nothing"
    assert all(0 < row["error"] < 1 for row in result.layers)
    if name not in RESUMED:
        return
    with pytest.raises(Killed):
        lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "killed"), progress=KillAfter(1), **SMALL)
    lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "killed"), **SMALL)
    assert digest(tmp_path / "out") == digest(tmp_path / "killed")


def test_errors_are_measured_as_solvers_do(tiny_llama: Path, tmp_path: Path) -> None:
    windows = {"samples": 8, "length": 64}
    plain = lowbit.quantize(str(tiny_llama), "gptq(int4-g128)", str(tmp_path / "plain"), **windows)  # type: ignore[arg-type]
    recipe = "gptq(int4-g128) + norm_tuning(steps=1, rate=0.0)"
    tuned = lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "tuned"), **windows)  # type: ignore[arg-type]
    assert [r["error"] for r in tuned.layers] == pytest.approx([r["error"] for r in plain.layers], rel=1e-3)


class Line:
    """A linear as the plan sees it."""

    def __init__(self, name: str, role: str = "mlp") -> None:
        self.name, self.shape, self.role, self.layer, self.writes = name, (128, 128), role, 0, False


def planned(recipe: str) -> Plan:
    return Plan.make(Recipe.parse(recipe), [Line("model.layers.0.mlp.up_proj"), Line("lm_head", "head")])


def test_plan_of_tuners() -> None:
    alone, after = planned("autoround(int2-g128)"), planned("rtn(int2-g128) + autoround")
    assert alone.rows[0].row()["method"] == "gptaq + autoround" and after.rows[0].row()["method"] == "rtn + autoround"
    assert after.needs_data and after.needs_reference and not planned("rtn(int2-g128)").needs_data
    assert planned("omniquant(int4-row)").rows[0].row()["method"] == "rtn + omniquant"
    sizes = {"tokens": 8192, "hidden": 128, "block_weights": 100_000, "blocks": 2, "outside_bytes": 0, "flops": 1e9}
    short, long = (planned(f"autoround(int2-g128, steps={n})").outlook(**sizes) for n in (100, 200))  # type: ignore[arg-type]
    assert long["seconds"] - short["seconds"] >= 100 * 6 * 8192 * 200_000 / 1e9
    assert short["peak_memory"] > planned("gptaq(int2-g128)").outlook(**sizes)["peak_memory"]  # type: ignore[arg-type]


def test_plan_counts_what_learns_a_basis() -> None:
    """On the whole model (spinquant, ostquant) or block by block (flatquant): memory of steps, copies and logits; time."""
    sizes = {"tokens": 8192, "hidden": 128, "block_weights": 100_000, "blocks": 4, "outside_bytes": 0, "flops": 1e9}
    whole = sizes | {"vocabulary": 30_000, "window": 512}

    def told(recipe: str) -> dict[str, Any]:
        return planned(recipe).outlook(**whole)  # type: ignore[arg-type]

    plain, one, four = (told(f"{s}rtn(int4-row)") for s in ("quarot + ", "spinquant(batch=1) + ", "spinquant(batch=4) + "))
    assert one["peak_memory"] - plain["peak_memory"] > 4 * 5 * (4 * 100_000 + 30_000 * 128)
    assert four["peak_memory"] - one["peak_memory"] >= 4 * 3 * 512 * (4 * 16 * 128 + 6 * 30_000)
    assert told("ostquant + rtn(int4-row)")["peak_memory"] == four["peak_memory"]
    assert four["seconds"] - one["seconds"] >= 100 * 8 * 3 * 512 * 400_000 / 1e9
    assert told("flatquant(batch=8) + rtn(int4-row)")["peak_memory"] > told("duquant + rtn(int4-row)")["peak_memory"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("rtn(nf4-g64) + autoround", r"autoround cannot tune model\.layers\.0\.mlp\.up_proj in nf4-g64: its values are nf4"),
        ("rtn(nvfp4) + efficientqat", "cannot tune .* nvfp4"),
        ("rtn(nf4-g64-dq) + block_tuning", "cannot be set one by one"),
        ("rtn(int4-g128) + autoround(int3-g128)", "is rounded to int4-g128 before"),
        ("norm_tuning + rtn(int4-g128)", r"Put rtn\(int4-g128\) before it"),
        ("autoround", "nothing here rounds"),
        ("rtn(int4-g128) + rtn(int8-row)@head + autoround@head", "lm_head is in no decoder block"),
    ],
)
def test_plans_that_are_refused(recipe: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(recipe)


def test_every_tuner_names_itself_as_one() -> None:
    names = {name for name in methods.shelf.names() if methods.verb(methods.get(name)) == "tune"}
    assert {"autoround", "efficientqat", "omniquant", "block_tuning", "norm_tuning"} <= names
    assert all(isinstance(methods.get(name)(), methods.Tuner) for name in names)


def test_targets_part_of_the_way() -> None:
    """0: what the original block makes of the inputs that it gets; 1: the targets; between: the line between them."""
    block, inputs, targets = suite.solved_block(formats.parse("int3-g64"))
    with torch.no_grad():
        own = _training.partway(block, inputs, [t + 1 for t in targets], 0.0)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own, targets, strict=True))
        half = _training.partway(block, inputs, [t + 1 for t in targets], 0.5)
        assert all(torch.allclose(a, b + 0.5, atol=1e-5) for a, b in zip(half, targets, strict=True))
    assert _training.partway(block, inputs, targets, 1.0) is targets
