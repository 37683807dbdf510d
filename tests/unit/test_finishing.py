"""Finishers: the loss is the measured one, what is written is what was trained, killed runs end in the same bytes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lowbit
from lowbit import formats
from lowbit.core.errors import CapacityError, RecipeError
from lowbit.pipeline import quantize as running
from lowbit.pipeline import text
from lowbit.pipeline.finishing import Finishing
from lowbit.pipeline.source import tokenizer_of
from lowbit.recipe import Recipe
from lowbit.recipe.plan import Plan
from lowbit.solvers import tuning, whole
from lowbit.solvers.continuous import Continuous
from lowbit.solvers.moving import Moving
from lowbit.statistics._divergence import Divergence
from lowbit.testing._tiny import tiny
from lowbit.testing.killing import KillAfter, Killed, digest

SMALL: dict[str, Any] = {"samples": 4, "length": 64}
STEPS = "(steps=8, batch=3, rate=0.01)"
PV = "aqlm(aqlm2x8, rounds=1) + pv_tuning(steps=20, batch=3, rate=0.001, every=4)"


def test_losses_are_the_measured_ones() -> None:
    torch.manual_seed(0)
    tokens, ours, theirs, head = torch.randint(40, (3, 17)), torch.randn(3, 17, 8), torch.randn(3, 17, 8), torch.randn(8, 40)
    logits = lambda row, hidden: hidden @ head  # noqa: E731
    measured = Divergence()
    for row, q, p in zip(tokens, ours @ head, theirs @ head, strict=True):
        measured.add(row, q, p)
    told = measured.summary()
    assert float(whole.divergence(logits, ours, theirs, tokens)) == pytest.approx(told["kl"], rel=1e-5)
    assert float(whole.likelihood(logits, ours, theirs, tokens).exp()) == pytest.approx(told["perplexity"], rel=1e-5)


def test_gradients_are_those_of_one_graph() -> None:
    """Checkpoints between blocks and windows change no gradient."""
    torch.manual_seed(0)
    blocks = [torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)]
    names, head = ["a", "b"], torch.randn(8, 20)
    weights = {f"{n}.weight": torch.randn(8, 8, requires_grad=True) for n in names}
    x, y, tokens = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randint(20, (2, 5))
    stack = whole.Stack(blocks, names, [{}, {}])
    out = stack.run(x, {n: w.clone for n, w in weights.items()})
    found = torch.autograd.grad(whole.divergence(lambda _, h: h @ head, out, y, tokens), list(weights.values()))
    plain = (x @ weights["a.weight"].T + blocks[0].bias) @ weights["b.weight"].T + blocks[1].bias
    p, q = (y @ head).log_softmax(-1), (plain @ head).log_softmax(-1)
    wanted = torch.autograd.grad((p.exp() * (p - q)).sum(-1).mean(), list(weights.values()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("format", ["int2-g64-asym", "lut3-row", "aqlm2x8", "e8p2", "int3-g64-had"])
def test_codes_move_where_the_buffer_says(format: str) -> None:
    found = formats.parse(format)
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0)) * 0.05
    start = found.fit(weight).quantize(weight)
    piece = Moving(start, 0.001, 0.01, share=0.1)
    assert torch.equal(piece.value(), start.decode())
    piece.move()
    assert torch.equal(piece.codes, start.codes), "codes moved without a drift"
    goal = start.grid.inner(start.codes).roll(1, 0) - start.grid.inner(start.codes)
    piece.drift.value.data = goal.clone()
    piece.move()
    height, width, count = found.step
    changed = (piece.codes != start.codes).view(piece.codes.shape[0], -1, count).any(2)
    assert 0.08 * changed.numel() < int(changed.sum()) <= 0.1 * changed.numel()
    freed = changed.repeat_interleave(height, 0).repeat_interleave(width, 1)
    assert bool((piece.drift.value[freed] == 0).all()) and torch.equal(piece.drift.value[~freed], goal[~freed])
    stored = piece.quantized()
    assert torch.equal(piece.value(), stored.decode())
    piece.value().square().sum().backward()
    assert all(t.value.grad is not None for t in piece.trained)


def test_scales_alone() -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    start = formats.parse("int3-g64-had").fit(weight).quantize(weight)
    alone, whole_ = Continuous(start, 0.1, scales=True), Continuous(start, 0.1)
    assert len(alone.trained) == 1 and len(whole_.trained) == 3
    alone.trained[0].value.data.mul_(1.1)
    assert torch.equal(alone.quantized().parts["input_factors"], start.parts["input_factors"])
    assert torch.equal(alone.value(), alone.quantized().decode())


CHAIN = f"rtn(int2-g64-asym) + kl_rounding{STEPS} + kl_tuning(steps=6, batch=3)"


@pytest.mark.parametrize(("recipe", "moments", "samples"), [(CHAIN, (1, 3), 4), (PV, (2,), 8)])
def test_resume_gives_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, recipe: str, moments: tuple[int, ...], samples: int
) -> None:
    """Killed while blocks stream, between blocks and finishers, between two finishers."""
    small = {**SMALL, "samples": samples}
    result = lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "whole"), **small)
    assert all(told["after"] < told["before"] for told in result.finished), "nothing was learned"
    for after in moments:
        folder = tmp_path / f"killed{after}"
        with pytest.raises(Killed):
            lowbit.quantize(str(tiny_llama), recipe, str(folder), progress=KillAfter(after), **small)
        lowbit.quantize(str(tiny_llama), recipe, str(folder), **small)
        assert digest(tmp_path / "whole") == digest(folder)


def test_the_folder_is_the_model_that_was_trained(tiny_llama: Path, tmp_path: Path) -> None:
    """The loss that the finisher reports is that of the written folder, on the windows that were held out."""
    result = lowbit.quantize(str(tiny_llama), f"rtn(int2-g64) + kl_tuning{STEPS}", str(tmp_path / "out"), **SMALL)
    tokens = text.windows("bundled", text.read("bundled"), tokenizer_of(tiny_llama), 64, 4).tokens
    held = tuning.Windows([[tokens]], torch.Generator().manual_seed(0)).held
    models = [lowbit.load(folder, dtype=torch.float32) for folder in (tmp_path / "out", tiny_llama)]
    found = Divergence()
    with torch.no_grad():
        for row in tokens[held]:
            found.add(row, *(model(row[None]).logits[0] for model in models))
    assert found.summary()["kl"] == pytest.approx(result.finished[0]["after"], rel=1e-3)
    assert result.finished[0]["after"] < result.finished[0]["before"]


def test_a_selector_leaves_other_blocks_alone(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = "rtn(int2-g64) + kl_tuning(steps=4, batch=3, rate=0.01)@layers.1"
    result = lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "out"), **SMALL)
    assert result.finished[0]["after"] < result.finished[0]["before"]
    lowbit.quantize(str(tiny_llama), "rtn(int2-g64)", str(tmp_path / "plain"), **SMALL)
    ours, plain = (load_file(tmp_path / place / "model.safetensors") for place in ("out", "plain"))
    moved = {name.split(".")[2] for name in ours if not torch.equal(ours[name], plain[name])}
    assert moved == {"1"}


@pytest.mark.parametrize("moment", ["_write", "_adopt"])
def test_a_kill_while_files_are_written(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    recipe = f"rtn(int3-g64) + gptq(int8-row)@head + kl_tuning{STEPS}@layers.0-1"
    lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "whole"), **SMALL)
    with monkeypatch.context() as patch:
        real = getattr(Finishing, moment)

        def dies(self: Finishing, *arguments: Any) -> None:
            real(self, *arguments)
            raise Killed

        patch.setattr(Finishing, moment, dies)
        with pytest.raises(Killed):
            lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "killed"), **SMALL)
    lowbit.quantize(str(tiny_llama), recipe, str(tmp_path / "killed"), **SMALL)
    assert digest(tmp_path / "whole") == digest(tmp_path / "killed")


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_other_families(tiny_llama: Path, tmp_path: Path, family: str) -> None:
    folder = tmp_path / family
    tiny(family, vocab_size=300).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, folder / name)
    result = lowbit.quantize(str(folder), f"rtn(int3-g16) + kl_tuning{STEPS}", str(tmp_path / "out"), **SMALL)
    (told,) = result.finished
    assert told["after"] < told["before"]
    model = lowbit.load(tmp_path / "out")
    assert bool(torch.isfinite(model(torch.arange(20)[None]).logits).all())


class Line:
    """A linear as the plan sees it."""

    def __init__(self, name: str, role: str = "mlp") -> None:
        self.name, self.shape, self.role, self.layer = name, (128, 128), role, 0


def planned(recipe: str) -> Plan:
    return Plan.make(Recipe.parse(recipe), [Line("model.layers.0.mlp.up_proj"), Line("lm_head", "head")])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("kl_tuning", "nothing here rounds"),
        ("rtn(nf4-g64-dq) + kl_tuning", "cannot be set one by one"),
        ("rtn(nf4-g64) + kl_rounding", "its values are nf4"),
        ("kl_tuning + rtn(int4-g128)", r"Put rtn\(int4-g128\) before it"),
        ("rtn(int4-g128) + kl_tuning + block_tuning", "trains the whole model when its blocks are done. Put block_tuning"),
        ("rtn(int4-g128) + rtn(int8-row)@head + kl_tuning@head", "lm_head is in no decoder block"),
    ],
)
def test_plans_that_are_refused(recipe: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(recipe)


def test_outlook_counts_the_whole_model(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"tokens": 8192, "hidden": 128, "block_weights": 100_000, "outside_bytes": 0, "flops": 1e9}
    plain, light, heavy = (
        planned(r).outlook(blocks=20_000, **sizes)  # type: ignore[arg-type]
        for r in ("gptq(int2-g128)", "gptq(int2-g128) + kl_tuning", "gptq(int2-g128) + kl_rounding(batch=4)")
    )
    assert plain["peak_memory"] < light["peak_memory"] < heavy["peak_memory"] and plain["seconds"] < light["seconds"]
    monkeypatch.setattr(running, "available_memory", lambda device: 10_000)
    with pytest.raises(CapacityError, match=r"kl_tuning: needs about .* MB of memory"):
        lowbit.quantize(str(tiny_llama), "rtn(int4-g128) + kl_tuning", str(tmp_path / "out"), **SMALL)
