"""Formats by budget: the knapsack against all choices, the sentence against its plan, the whole run on a small real model."""

import fnmatch
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lowbit
from lowbit import formats
from lowbit.core.errors import CapacityError, CheckpointError, RecipeError
from lowbit.methods.budget import Budget
from lowbit.methods.gptq import GPTQ
from lowbit.pipeline import budgeted, sensitivity, text
from lowbit.pipeline.progress import Silent
from lowbit.pipeline.source import Source
from lowbit.recipe import Recipe, allotment
from lowbit.recipe.allotment import Shares
from lowbit.recipe.plan import Plan
from lowbit.solvers.allocation import allocate
from lowbit.testing.killing import digest

SENTENCE = "budget(3.5, windows=2, length=64) + gptq(int4-g128-asym)"
SMALL: dict[str, Any] = {"samples": 4, "length": 64}


def shares_of(text: str, model: Path) -> Shares:
    """A budget's sentence applied to a model."""
    source, recipe = Source(str(model)), Recipe.parse(text)
    allocator = allotment.declared(recipe)
    assert allocator is not None
    return allotment.share(recipe, allocator, source.linears(), lambda linear: budgeted.fused(source, linear))


class Says(Silent):
    """Keeps what is said; ends the run when so many phases have begun."""

    def __init__(self, kill: int = 0) -> None:
        self.lines: list[str] = []
        self.kill = kill

    def start(self, what: str, blocks: int) -> None:
        self.kill -= 1
        if self.kill == 0:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.lines.append(text)


# ---- the knapsack


@pytest.mark.parametrize("seed", range(40))
def test_allocation_is_the_best_of_all(seed: int) -> None:
    draw = random.Random(seed)
    items = [
        [(draw.randint(1, 40), draw.choice([draw.random() * 10, float(draw.randint(0, 5))])) for _ in range(draw.randint(1, 4))]
        for _ in range(draw.randint(1, 6))
    ]
    budget = draw.randint(5, 150)

    def total(choice: tuple[int, ...] | list[int]) -> tuple[int, float]:
        picked = [options[i] for options, i in zip(items, choice, strict=True)]
        return sum(size for size, _ in picked), sum(loss for _, loss in picked)

    all_choices = [total(choice) for choice in itertools.product(*(range(len(options)) for options in items))]
    fitting = [loss for size, loss in all_choices if size <= budget]
    taken = allocate(items, budget)
    if not fitting:
        assert taken is None
        return
    assert taken is not None
    size, loss = total(taken)
    assert size <= budget and loss == pytest.approx(min(fitting), abs=1e-9)


def test_allocation_of_a_large_model_fills_the_budget() -> None:
    draw = random.Random(0)
    weights = [draw.choice([16, 32, 64]) << 20 for _ in range(200)]
    slopes = [draw.random() ** 3 for _ in weights]
    items = [[(n * r // 8, a * n * 4.0**-r) for r in range(2, 9)] for n, a in zip(weights, slopes, strict=True)]
    budget = int(3.5 * sum(weights) / 8)
    taken = allocate(items, budget)
    assert taken is not None
    assert budget - (2 << 20) < sum(options[i][0] for options, i in zip(items, taken, strict=True)) <= budget
    by_slope = [i for _, i in sorted(zip(slopes, taken, strict=True))]
    assert by_slope == sorted(by_slope)  # losses for each byte fall alike, so a larger slope never gets fewer bits


# ---- the sentence


def test_sentence_round_trip() -> None:
    recipe = Recipe.parse("budget(3.5) + gptq(int4-g128-asym)")
    assert recipe == Recipe.of(Budget(3.5) + GPTQ("int4-g128-asym")) == Recipe.parse(str(recipe))
    limited = Recipe.parse("budget(3.5, windows=2, seed=1)@mlp + gptq(int4-g128)")
    assert limited.steps[0] == (Budget(3.5, windows=2, seed=1), "mlp") and Recipe.parse(str(limited)) == limited


@pytest.mark.parametrize(
    ("text", "said"), [("budget(0.5)", "from 1 to 16, not 0.5"), ("budget(3, windows=0)", "from 1 on, not 0")]
)
def test_absurd_settings_are_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.parse(f"{text} + gptq(int4-g128)")


def test_families() -> None:
    budget = Budget()
    assert budget.family("int3-g64-asym") == tuple(f"int{bits}-g64-asym" for bits in range(2, 9))
    assert budget.family("") == budget.family("int4-g128-asym")
    assert budget.family("trellis2")[:6] == ("trellis1.5", "trellis2", "trellis2.5", "trellis3", "trellis3.5", "trellis4")
    with pytest.raises(RecipeError, match="nvfp4 has no relatives"):
        budget.family("nvfp4")


@pytest.mark.parametrize("seed", range(20))
def test_globs_match_the_names_and_no_others(seed: int) -> None:
    names = [f"model.layers.{i}.self_attn.{c}_proj" for i in range(24) for c in "qkv"]
    some = random.Random(seed).sample(names, 1 + 3 * seed)
    found = allotment.globs(some)
    assert [n for n in names if any(fnmatch.fnmatchcase(n, glob) for glob in found)] == sorted(some, key=names.index)
    assert len(found) <= len(some)


def test_globs_are_short_where_they_can_be() -> None:
    assert allotment.globs([f"layers.{i}.{c}_proj" for i in (0, 5, 11, 12) for c in "qkv"]) == [
        "layers.[05].[kqv]_proj",
        "layers.1[12].[kqv]_proj",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "budget(3.5) + gptq(int4-g128-asym)",
        "awq + budget(3)@mlp + gptq(int4-g128) + gptq(int4-g64)@layers.1",
        "budget(2.5) + qtip(trellis2) + gptq(int8-g128)@head",
    ],
)
def test_the_explicit_sentence_gives_every_layer_what_was_chosen(tiny_llama: Path, text: str) -> None:
    shares = shares_of(text, tiny_llama)
    draw = random.Random(0)
    for _ in range(10):
        choice = [draw.randrange(3) for _ in shares.groups]
        recipe = shares.sentence(choice)
        assert Recipe.parse(str(recipe)) == recipe and "budget" not in str(recipe)
        plan = Plan.make(recipe, shares.linears)
        for group, i in zip(shares.groups, choice, strict=True):
            assert {str(plan.formats[member.name]) for member in group.members} == {str(group.options[i])}
        shared = {member.name for group in shares.groups for member in group.members}
        assert sum(plan.targets[name].bytes for name in shared) == shares.taken(choice)
        before = Plan.make(allotment.without(shares.asked, shares.declared), shares.linears)
        assert {n: f for n, f in plan.formats.items() if n not in shared} == {
            n: f for n, f in before.formats.items() if n not in shared
        }


def test_fused_linears_are_one_group(tiny_llama: Path) -> None:
    groups = [[m.name.removeprefix("model.layers.") for m in g.members] for g in shares_of(SENTENCE, tiny_llama).groups]
    assert groups[:4] == [
        ["0.self_attn.q_proj", "0.self_attn.k_proj", "0.self_attn.v_proj"],
        ["0.self_attn.o_proj"],
        ["0.mlp.gate_proj", "0.mlp.up_proj"],
        ["0.mlp.down_proj"],
    ]


def test_the_uniform_rival_is_the_largest_that_fits(tiny_llama: Path) -> None:
    for bits, expected in ((3.5, "int3-g128-asym"), (4.2, "int4-g128-asym"), (3.14, "int2-g128-asym")):
        shares = shares_of(f"budget({bits}) + gptq(int4-g128-asym)", tiny_llama)
        assert str(shares.sentence(shares.uniform())) == f"gptq({expected})"
    with pytest.raises(RecipeError, match=r"smallest formats of its layers take 2\.1\d+ bits"):
        shares_of("budget(2) + gptq(int4-g128-asym)", tiny_llama).uniform()


def test_what_cannot_be_shared_out(tiny_llama: Path) -> None:
    with pytest.raises(RecipeError, match="Keep one"):
        lowbit.quantize(str(tiny_llama), "budget(3) + budget(4) + gptq(int4-g128)", dry_run=True)
    with pytest.raises(RecipeError, match=r"nested\(2-8, group=64\) rounds all its layers to one format of its own"):
        lowbit.quantize(str(tiny_llama), "budget(6) + nested(2-8, group=64)", dry_run=True)
    with pytest.raises(RecipeError, match="finds no layer that a solver rounds"):
        lowbit.quantize(str(tiny_llama), "budget(3) + awq(int4-g128)", dry_run=True)


# ---- what is measured


def test_windows_come_from_all_over_the_text() -> None:
    rows = torch.arange(10)[:, None]
    assert text.spread(rows, 4).flatten().tolist() == [0, 3, 6, 9] and torch.equal(text.spread(rows, 20), rows)


@torch.no_grad()
def test_slopes_are_those_of_the_whole_model(tiny_llama: Path) -> None:
    """The streams that share each block against the model as transformers runs it, noise put into its weights."""
    source = Source(str(tiny_llama))
    groups = [["model.layers.0.mlp.down_proj"], ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"]]
    tokens = torch.randint(2, 250, (3, 32))
    found = sensitivity.slopes(source, groups, tokens, 5, torch.device("cpu"), Silent())
    model = lowbit.load(tiny_llama, dtype=torch.float32)
    original = model(tokens).logits.log_softmax(-1)
    for number, names in enumerate(groups):
        ratios = []
        for level in sensitivity.LEVELS:
            kept = sensitivity._disturb(model, names, level, sensitivity.SEEDS * 5 + number)
            noisy = model(tokens).logits.log_softmax(-1)
            ratios.append(float((original.exp() * (original - noisy)).sum(-1).mean()) / level**2)
            for name, weight in kept.items():
                off = (model.get_parameter(name) - weight).norm() / weight.norm()
                assert float(off) == pytest.approx(level, rel=1e-3)
                sensitivity.fill(model, name, weight)
        assert found[number] == pytest.approx(sum(ratios) / len(ratios), rel=2e-3)


def test_errors_of_formats() -> None:
    """On a normal source: uniform grids lose about what the notes of formats say, a turned one knows no rows."""
    weight = torch.randn(512, 256)
    found = [sensitivity.error(formats.parse(f"int{bits}-g128"), weight) for bits in (3, 4, 8)]
    assert found[1] == pytest.approx(0.0093, rel=0.1) and found[0] > 3 * found[1] > 100 * found[2] > 0
    turned = formats.parse("trellis3.5")
    assert sensitivity.error(turned, weight) == sensitivity.error(turned, 7 * weight[:16]) == pytest.approx(0.0093, rel=0.1)


# ---- the run


@pytest.fixture(scope="module")
def made(_tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a budget gives."""
    out = tmp_path_factory.mktemp("budget") / "out"
    result = lowbit.quantize(str(_tiny_llama), SENTENCE, str(out), **SMALL)
    told = json.loads((out / "lowbit.json").read_text())
    assert result.sentence == told["sentence"] and result.check == told["check"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    return out


def test_the_better_rival_is_kept_within_the_bytes(made: Path) -> None:
    told = json.loads((made / "lowbit.json").read_text())
    rivals, kept = told["budget"]["rivals"], told["budget"]["kept"]
    assert set(rivals) == {"uniform", "allotted"} and told["budget"]["asked"] == str(Recipe.parse(SENTENCE))
    assert rivals["uniform"]["sentence"] == "gptq(int3-g128-asym)"
    gain, error = told["budget"]["gain"], told["budget"]["gain_se"]
    assert rivals[kept]["kl"] == told["check"]["kl"] and kept == ("allotted" if gain > 2 * error else "uniform")
    measured = math.log(rivals["uniform"]["kl"] / rivals["allotted"]["kl"])
    assert gain == pytest.approx(measured, abs=max(4 * error, 0.2)) and error > 0
    assert rivals[kept]["sentence"] == told["sentence"]
    assert rivals["uniform"]["bits_per_weight"] < rivals["allotted"]["bits_per_weight"] <= 3.5
    packed = [m for m in lowbit.load(made).modules() if hasattr(m, "memory_bytes")]
    assert len(packed) == 14
    assert 8 * sum(m.memory_bytes() for m in packed) <= 3.5 * sum(m.in_features * m.out_features for m in packed)
    rows = {row["name"]: row["format"] for row in told["layers"]}
    for group in told["budget"]["groups"]:
        assert group["slope"] > 0 and (kept == "uniform" or {rows[name] for name in group["layers"]} == {group["format"]})
    assert f"    {told['sentence']}" in (made / "README.md").read_text()


def test_the_explicit_sentence_gives_the_same_files(made: Path, tiny_llama: Path, tmp_path: Path) -> None:
    told = json.loads((made / "lowbit.json").read_text())
    lowbit.quantize(str(tiny_llama), told["sentence"], str(tmp_path / "again"), **SMALL)
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_resume_measures_once(made: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second rival: sensitivities, then quantize and check of the first, lie before it."""
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        lowbit.quantize(str(tiny_llama), SENTENCE, str(killed), progress=Says(kill=4), **SMALL)
    room = tmp_path / "killed.budget"
    assert not killed.exists() and sorted(p.name for p in room.iterdir()) == ["allocation.json", "allotted.partial", "uniform"]
    monkeypatch.setattr(sensitivity, "slopes", None)
    with pytest.raises(CheckpointError, match="unfinished run that differs in seed"):
        lowbit.quantize(str(tiny_llama), SENTENCE, str(killed), seed=1, **SMALL)
    result = lowbit.quantize(str(tiny_llama), SENTENCE, str(killed), **SMALL)
    assert digest(made) == digest(killed) and not room.exists() and result.out == str(killed)


def test_uniform_is_kept_where_it_is_better(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensitivities that are wrong on purpose: all bits go to the attention outputs of both blocks."""

    def wrong(source: Source, groups: list[list[str]], *_: object) -> list[float]:
        return [100.0 if "o_proj" in names[0] else 1e-6 for names in groups]

    monkeypatch.setattr(sensitivity, "slopes", wrong)
    says = Says()
    text = SENTENCE.replace("3.5", "3.15")
    result = lowbit.quantize(str(tiny_llama), text, str(tmp_path / "out"), progress=says, **SMALL)
    told = json.loads((tmp_path / "out" / "lowbit.json").read_text())
    assert told["budget"]["kept"] == "uniform" and result.sentence == told["sentence"] == "gptq(int3-g128-asym)"
    assert told["budget"]["rivals"]["allotted"]["kl"] > told["budget"]["rivals"]["uniform"]["kl"]
    assert any("uniform is kept" in line for line in says.lines)


def test_dry_run_tells_the_most(made: Path, tiny_llama: Path, tmp_path: Path) -> None:
    says = Says()
    result = lowbit.quantize(str(tiny_llama), SENTENCE, str(tmp_path / "out"), dry_run=True, progress=says, **SMALL)
    assert "formats are chosen at run time" in says.lines[0] and "gptq(int3-g128-asym)" in says.lines[0]
    assert result.sentence == str(Recipe.parse(SENTENCE)) and result.bits_per_weight == pytest.approx(3.5, abs=1e-3)
    assert {row["format"] for row in result.outlook["layers"]} == {"chosen when run"}
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-llama"]
    packed = sum(t.numel() * t.element_size() for t in load_file(made / "model.safetensors").values())
    assert packed <= result.bytes * 1.001


def test_what_is_too_large_is_refused_before_any_work(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(budgeted, "LARGEST", 1000)
        with pytest.raises(CapacityError, match="has to beat the uniform model"):
            lowbit.quantize(str(tiny_llama), SENTENCE, out, **SMALL)
    monkeypatch.setattr(budgeted, "available_memory", lambda device: 10_000)
    with pytest.raises(CapacityError, match="sensitivities need about"):
        lowbit.quantize(str(tiny_llama), SENTENCE, out, **SMALL)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        lowbit.quantize(str(tiny_llama), SENTENCE, out, **SMALL)


def test_a_gain_counts_on_the_half_of_the_text_where_it_is_less_sure() -> None:
    easy, hard = [0.1, 0.12], [-0.05, -0.06]
    losses = [1.0, 3.0, 1.1, 3.2]
    mean, error = budgeted.less_sure([easy[0], hard[0], easy[1], hard[1]], losses)
    assert mean == pytest.approx(-0.055) and error == pytest.approx(0.005)
    even = budgeted.less_sure([0.1, 0.2, 0.3, 0.1], [1.0, 3.0, 1.1, 3.2])
    assert even == pytest.approx((0.2, 0.1))  # greater in the mean, but less sure
