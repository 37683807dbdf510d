"""budgeted - a run whose formats are chosen: measure, allot, quantize the choice and its uniform rival, keep the better.

Idea      The budget becomes two ordinary recipes, the allotted one and the uniform one within the same bytes. Both are carried
          out in OUT.budget like any run; the allotted one stays only if its files diverge less from the original on held-out
          text, since the sum of separate losses may be wrong about the whole: on the half of it that the original predicts best
          and on the other, since an allocation learns the kind of text that it was measured on, and what it wins on
          documentation it may lose twice on novels. lowbit.json and the model card hold the explicit sentence, which gives the
          same files without measuring.
          What was measured lies in OUT.budget/allocation.json, so that a killed run does not measure twice; a rival that is
          finished is read from its folder.
Traps     Twice the time of a plain run, and more: models above LARGEST weights are refused, not left unverified.
          Sensitivities depend on the text: windows from all over the calibration text, for its beginning may be of one kind.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import lowbit
from lowbit import checkpoints
from lowbit.checkpoints.folder import Folder
from lowbit.core.device import available_memory, chosen
from lowbit.core.errors import CapacityError, CheckpointError
from lowbit.core.words import size
from lowbit.methods import Linear
from lowbit.pipeline import admission, closing, sensitivity, text
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.request import Request, Result
from lowbit.pipeline.source import Source
from lowbit.recipe import Recipe, allotment
from lowbit.recipe.allotment import Allocator, Shares
from lowbit.solvers.allocation import allocate
from lowbit.statistics._divergence import mean_and_error

LARGEST = 2_000_000_000
"""Weights up to which a model is quantized twice."""
UNIFORM, ALLOTTED = "uniform", "allotted"
WINDOWS = 32
"""Of held-out text, that the rivals are compared on, in two halves."""
SURE = 2.0
"""Standard errors by which an allocation has to win."""
LEAST = 1e-9
"""Nats below which a divergence is none."""
Plain = Callable[[Request], Result]
"""Carries out a request without a budget."""


def run(request: Request, recipe: Recipe, allocator: Allocator, plain: Plain, progress: Progress) -> Result:
    """Carry out a request with a budget."""
    source = Source(request.model)
    shares = allotment.share(recipe, allocator, source.linears(), lambda linear: fused(source, linear))
    uniform = shares.sentence(shares.uniform())
    out = Path(request.out or f"{Path(request.model).name}-{allocator.bits:g}bit")
    room = out.with_name(f"{out.name}.budget")
    if request.dry_run:
        return _outlook(plain(replace(request, recipe=str(uniform), out=str(out))), source, shares, progress)
    _admit(source, shares, out, request)
    told = _allocation(request, source, shares, room, progress)
    rivals = {UNIFORM: str(uniform)} | ({} if told["sentence"] == str(uniform) else {ALLOTTED: str(told["sentence"])})
    results = {name: _rival(request, sentence, room / name, plain) for name, sentence in rivals.items()}
    gain = _gain(request, source, room, progress) if ALLOTTED in rivals else (0.0, 0.0)
    better = ALLOTTED if gain[0] > SURE * gain[1] else UNIFORM
    progress.say(_verdict(results, better, gain))
    return _keep(results, better, gain, told, room, out)


def fused(source: Source, linear: Linear) -> str:
    """A name for all that engines store as one matrix: linears of a block that read the same input, all experts of a block.

    Where the family's stages are not known, those under one module count as one.
    """
    prefix = f"{source.prefix(linear.layer)}."
    name = linear.name.removeprefix(prefix)
    if linear.role == "experts":
        return f"{prefix}experts"
    stage = next((n for n, s in enumerate(source.architecture.stages) if any(fnmatch(name, p) for p in s)), None)
    return f"{prefix}{name.rpartition('.')[0] if stage is None else stage}"


def _admit(source: Source, shares: Shares, out: Path, request: Request) -> None:
    """Refuse what cannot end well. Raises CheckpointError, CapacityError."""
    admission.place(out)
    if shares.weights > LARGEST:
        fact = f"{shares.weights / 1e9:.1f} billion weights are to be shared out"
        limit = f"a choice has to beat the uniform model, and both are made only up to {LARGEST / 1e9:g} billion"
        raise CapacityError(f"{shares.asked}: {fact}; {limit}. Name formats by selectors, as gptq(int8-g128)@layers.0.")
    declared = shares.declared
    need = sensitivity.memory(source, len(shares.groups), declared.windows * min(declared.length, source.context))
    have = available_memory(chosen(request.device))
    if need > have:
        fact = f"sensitivities need about {size(need)} of memory, {size(have)} are free"
        raise CapacityError(f"{shares.asked}: {fact}. Use fewer windows, as budget({declared.bits:g}, windows=2, length=256).")


def _allocation(request: Request, source: Source, shares: Shares, room: Path, progress: Progress) -> dict[str, Any]:
    """What was chosen and why: task, sentence, a row a group; read where it was written before. Raises CheckpointError."""
    path = room / "allocation.json"
    task = {
        "asked": str(shares.asked), "model": source.folder.digest(), "calibration": request.calibration,
        "samples": request.samples, "length": request.length, "seed": request.seed, "device": chosen(request.device).type,
        "version": lowbit.__version__,
    }  # fmt: skip
    if path.exists():
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        changed = ", ".join(key for key in task if told["task"].get(key) != task[key])
        if changed:
            advice = "Repeat the first command, remove the folder, or choose another --out."
            raise CheckpointError(f"{room} holds an unfinished run that differs in {changed}. {advice}")
        return told
    room.mkdir(parents=True, exist_ok=True)
    choice, rows = _chosen(request, source, shares, progress)
    told = {"task": task, "sentence": str(shares.sentence(choice)), "bytes": shares.taken(choice), "groups": rows}
    checkpoints.write_text(path, json.dumps(told, indent=1) + "\n")
    return told


def _chosen(request: Request, source: Source, shares: Shares, progress: Progress) -> tuple[list[int], list[dict[str, Any]]]:
    """The option of every group, and what was measured of it."""
    declared, groups = shares.declared, shares.groups
    tokenizer, length = source.tokenizer, min(declared.length, source.context)
    tokens = text.spread(text.calibration(request.calibration, tokenizer, length).tokens, declared.windows)
    names = [[member.name for member in group.members] for group in groups]
    slopes = sensitivity.slopes(source, names, tokens, declared.seed, chosen(request.device), progress)
    errors = [sensitivity.errors(source, members, group.options) for members, group in zip(names, groups, strict=True)]
    losses = [[slope * t for t in found] for slope, found in zip(slopes, errors, strict=True)]
    items = [list(zip(group.sizes, loss, strict=True)) for group, loss in zip(groups, losses, strict=True)]
    choice = allocate(items, shares.bytes) or shares.uniform()
    rows = [
        {"layers": members, "slope": slope, "format": str(group.options[i]), "error": found[i]}
        for members, slope, group, i, found in zip(names, slopes, groups, choice, errors, strict=True)
    ]
    return choice, rows


def _rival(request: Request, sentence: str, folder: Path, plain: Plain) -> Result:
    """The result of one recipe in `folder`: carried out, or read where it is finished."""
    if not folder.exists():
        return plain(replace(request, recipe=sentence, out=str(folder)))
    told = json.loads((folder / "lowbit.json").read_text(encoding="utf-8"))
    known = {field.name for field in fields(Result)}
    size = sum(file.stat().st_size for file in folder.iterdir())
    return Result(**{key: value for key, value in told.items() if key in known}, out=str(folder), bytes=size)


def _gain(request: Request, source: Source, room: Path, progress: Progress) -> tuple[float, float]:
    """Mean of log(KL of the uniform rival / KL of the allotted one) over held-out windows, and its standard error."""
    tokenizer, length = source.tokenizer, min(source.context, closing.LENGTH)
    tokens = text.spread(text.windows("bundled", text.read("bundled", "evaluation"), tokenizer, length).tokens, WINDOWS)
    uniform, allotted = (
        closing.compare(source, Folder(room / name), tokens, chosen(request.device), progress) for name in (UNIFORM, ALLOTTED)
    )
    gains = [math.log(max(u, LEAST) / max(a, LEAST)) for u, a in zip(uniform.kl, allotted.kl, strict=True)]
    return less_sure(gains, uniform.nll_original)


def less_sure(gains: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """Mean gain and standard error of the half of the windows where it is less sure: of those that the original predicts best,
    by its losses, and of the others."""
    order = sorted(range(len(gains)), key=losses.__getitem__)
    halves = (order[: len(order) // 2], order[len(order) // 2 :])
    found = [mean_and_error([gains[i] for i in half]) for half in halves if half]
    return min(found, key=lambda gain: gain[0] - SURE * gain[1])


def _verdict(results: dict[str, Result], better: str, gain: tuple[float, float]) -> str:
    """What the comparison found, in a line."""
    if len(results) == 1:
        return "budget: the best allocation is the uniform one; nothing is to be compared"
    figures = [
        f"{name} {1000 * r.check['kl']:.2f} ± {1000 * r.check['kl_se']:.2f} at {r.bits_per_weight:.3f} bits"
        for name, r in results.items()
    ]
    told = f"less by {100 * gain[0]:.1f} ± {100 * gain[1]:.1f} % on the worse half of {WINDOWS} windows; {better} is kept"
    return f"budget: held-out KL in thousandths of a nat: {', '.join(figures)}; {told}"


def _keep(
    results: dict[str, Result], better: str, gain: tuple[float, float], told: dict[str, Any], room: Path, out: Path
) -> Result:
    """Make the better folder the result, with a record of the comparison in lowbit.json; the rest goes."""
    path = room / better / "lowbit.json"
    record = {
        "asked": told["task"]["asked"], "kept": better, "gain": gain[0], "gain_se": gain[1], "groups": told["groups"],
        "rivals": {
            name: {"sentence": r.sentence, "bits_per_weight": r.bits_per_weight, "kl": r.check["kl"], "kl_se": r.check["kl_se"]}
            for name, r in results.items()
        },
    }  # fmt: skip
    written = json.loads(path.read_text(encoding="utf-8")) | {"budget": record}
    checkpoints.write_text(path, json.dumps(written, indent=1) + "\n")
    os.replace(room / better, out)
    shutil.rmtree(room)
    seconds, peak = sum(r.seconds for r in results.values()), max(r.peak_memory for r in results.values())
    size = sum(file.stat().st_size for file in out.iterdir())
    return replace(results[better], out=str(out), seconds=round(seconds, 2), peak_memory=peak, bytes=size)


def _outlook(uniform: Result, source: Source, shares: Shares, progress: Progress) -> Result:
    """The dry run: that of the uniform rival, with the sizes that no choice exceeds."""
    outlook, declared = dict(uniform.outlook), shares.declared
    names = {member.name for group in shares.groups for member in group.members}
    rest = [row for row in outlook["layers"] if row["name"] not in names]
    bits = (8 * shares.bytes + sum(8 * row["bytes"] for row in rest)) / outlook["weights"]
    for row in outlook["layers"]:
        if row["name"] in names:
            row |= {"format": "chosen when run", "bits": None, "bytes": None}
    more = shares.bytes - shares.taken(shares.uniform())
    need = sensitivity.memory(source, len(shares.groups), declared.windows * min(declared.length, source.context))
    outlook |= {
        "bytes": outlook["bytes"] + more, "bits_per_weight": bits, "seconds": 2 * outlook["seconds"],
        "peak_memory": max(outlook["peak_memory"], need),
    }  # fmt: skip
    progress.say(
        f"budget: formats are chosen at run time; {len(names)} layers take at most {shares.bytes / 1e6:.2f} MB "
        f"({declared.bits:g} bits per weight), the uniform rival is {shares.sentence(shares.uniform())}"
    )
    told = str(shares.asked)
    return replace(uniform, sentence=told, bits_per_weight=bits, bytes=uniform.bytes + more, outlook=outlook)
