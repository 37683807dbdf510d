"""blocks - one decoder block: float weights in, methods applied stage by stage, packed tensors out.

Idea      Transforms first, each on statistics of the block as the one before left it. Then the stages in running order: the
          inputs that reach a stage through everything quantized before it are summarised (once per shared input), its
          matrices are rounded, the forward goes on with the rounded weights. Where a linear rounds its inputs (act), solvers,
          tuners and the stream meet the rounded ones, transforms and the full-precision stream do not. Tuners come last, each
          on the whole block, between the stream that enters it and what the full-precision model has after it.
Traps     What stays in floats (norms, biases) is rounded to the stored dtype before anything is measured on it: the stream must
          be the one that the written file gives. An expert that saw no token has empty statistics; its solver must say so.
"""

import copy
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.architectures import shares, traced
from lowbit.core import ranks
from lowbit.core.errors import CheckpointError
from lowbit.formats import Parts
from lowbit.methods import Block, name_of
from lowbit.pipeline import activations, online, solving, tuned
from lowbit.pipeline.job import Done, Job
from lowbit.pipeline.stream import Paused, first
from lowbit.statistics import Collecting, Stats, Weighed, needs_reference, weighted

Get = Callable[[str], Tensor]
SAMPLE_WINDOWS = 8
"""Windows of hidden states that a transform may try candidates on."""


def fill(module: nn.Module, name: str, value: Tensor) -> None:
    """Set the parameter `name` of `module`, whatever device it was on."""
    parent, _, leaf = name.rpartition(".")
    module.get_submodule(parent)._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def load(skeleton: nn.Module, prefix: str, get: Get, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of one block of the skeleton with its weights in `dtype`. Raises CheckpointError when one is not finite."""
    module = copy.deepcopy(skeleton)
    for name, _ in list(module.named_parameters()):
        value = get(f"{prefix}.{name}").to(device)
        bad = value.numel() - int(torch.isfinite(value).sum())
        if bad:
            raise CheckpointError(
                f"{prefix}.{name}: {bad} of {value.numel()} values are NaN or Inf. Mend or download the checkpoint again."
            )
        fill(module, name, value.to(dtype))
    return module.eval()


def run(job: Job) -> Done:
    """Quantize one block. `job.module` is used up: its rounded weights are dropped once the stream has passed them."""
    stages, done = stages_of(job), Done()
    transforms = _methods(job, "rewrite")
    if (transforms or any(target.format.ahead for target in job.targets.values())) and job.references is not None:
        # a fold changes the last bits of the block's output; the reference stream must not depend on what a resumed run lacks
        done.references = [first(job.module(h, **job.kwargs)) for h in job.references]
    parts: dict[str, Parts] = {}
    job.front.find(job.module)
    for transform, names in transforms:
        block = _block(job, stages, names)
        stats = _collect(job, stages, tuple(transform.needs)) if transform.needs else {}
        with tuned.repeatable(job.batches[0].device) if hasattr(transform, "steps") and job.batches else nullcontext():
            transform.rewrite(block, stats)
        parts |= block.parts
        job.front.find(job.module)
    _settle(job)
    ahead = online.prepare(job.module, {name: target.format for name, target in job.targets.items()}, parts, stages)
    job.front.find(job.module)
    told = {name: target.activation for name, target in job.targets.items() if target.activation}
    done.activations = activations.observed(told, lambda needs: _collect(job, stages, needs, inner=True))
    if job.batches:
        _stream(job, stages, done)
    else:
        for names in stages:
            solving.solve(job, names, {}, done)
    done.quantized |= {name: online.whole(done.quantized[name], told) for name, told in ahead.items()}
    return done


def _stream(job: Job, stages: list[list[str]], done: Done) -> None:
    """Round the matrices stage by stage, each on the inputs that come through those before it; then tune."""
    original = copy.deepcopy(job.module) if job.references is not None else None
    activations.attach(job.module, done.activations, {n: t.format.inner for n, t in job.targets.items()}, done.quantized.get)
    job.front.hold(job.module)
    tuners = _methods(job, "tune")
    with Paused(job.module, lambda h: first(job.module(h, **job.kwargs)), stages, job.batches) as runs:
        shadow = None
        if original is not None and job.references is not None:
            shadow = Paused(original, lambda h: first(original(h, **job.kwargs)), stages, job.references)
        for number, names in enumerate(stages):
            stats = _stage_statistics(job, runs, shadow, number, names)
            if number and not tuners:
                _forget(job.module, stages[number - 1])
            solving.solve(job, names, stats, done)
            del stats  # and the factors made of them, before the next stage is summed
        done.outputs = [] if tuners else runs.outputs()
        if shadow is not None:
            done.references = done.references or shadow.outputs()
            shadow.close()
    if tuners:
        _tune(job, stages, tuners, done)


def stages_of(job: Job) -> list[list[str]]:
    """The targeted linears by stage, in running order; what the architecture does not mention is found by a probe."""
    patterns: Sequence[Sequence[str]] = job.architecture.stages
    if not patterns and not job.batches:
        return [[name] for name in job.targets]
    if not patterns:
        patterns = traced(job.module, lambda: job.module(job.batches[0][:1], **job.kwargs))
    found = [[name for pattern in stage for name in job.targets if fnmatch.fnmatch(name, pattern)] for stage in patterns]
    return [names for names in found if names]


def _methods(job: Job, verb: str) -> list[tuple[Any, list[str]]]:
    """The transforms ("rewrite") or tuners ("tune") of this block in order, each with the linears it is meant for."""
    found: dict[Any, list[str]] = {}
    for name, target in job.targets.items():
        for method in target.transforms if verb == "rewrite" else target.tuners:
            found.setdefault(method, []).append(name)
    return list(found.items())


def _block(job: Job, stages: list[list[str]], names: list[str]) -> Block:
    samples = ranks.first(torch.cat(job.batches)[:SAMPLE_WINDOWS]) if job.batches else None
    return Block(
        index=job.index,
        name=job.prefix,
        module=job.module,
        heads=job.heads,
        samples=samples,
        kwargs=job.kwargs,
        linears={n: job.module.get_submodule(n) for n in names},  # type: ignore[misc]
        formats={n: job.targets[n].format.inner for n in names},
        ahead={n: job.targets[n].format.ahead for n in names},
        activations={n: a for n in names if (a := job.targets[n].activation)},
        folds=job.architecture.folds,
        stored=job.stored,
        stages=tuple(tuple(s) for s in stages),
        run=lambda h: first(job.module(h, **job.kwargs)),
    )


def _collect(job: Job, stages: list[list[str]], needs: tuple[str, ...], inner: bool = False) -> dict[str, Stats]:
    """Statistics of every linear of the block as it stands. inner: of what the grids get behind the sides around them."""
    found: dict[str, Stats] = {}
    with Paused(job.module, lambda h: first(job.module(h, **job.kwargs)), stages, job.batches) as runs:
        for number, names in enumerate(stages):
            collecting = _collectors(job, names, needs)
            for _, inputs in runs.inputs(number):
                for name, x in inputs.items():
                    if inner:  # where a prefix needs no room in a scale
                        x = activations.behind(job.module, name, job.targets[name].format.inner, job.front.behind(x))
                    collecting[name].add(x)
            for key, members in shares(names).items():
                found.update(dict.fromkeys(members, collecting[key].stats()))
    return found


def _collectors(job: Job, names: Sequence[str], needs: tuple[str, ...]) -> dict[str, Collecting]:
    """A collector for each shared input. Experts get no reference: the two streams send different tokens to one of them."""
    device, found = job.batches[0].device, {}
    alone = tuple(need for need in needs if not needs_reference([need]))
    for key in shares(names):
        size: int = job.module.get_submodule(key).in_features  # type: ignore[assignment]
        found[key] = Collecting(alone if ".experts." in key else needs, size, device)
    return found


def _stage_statistics(job: Job, runs: Paused, shadow: Paused | None, number: int, names: Sequence[str]) -> dict[str, Stats]:
    needs = tuple(sorted({need for name in names for need in job.targets[name].solver.needs}))
    collecting, weighed = _collectors(job, names, needs), _weighed(job, names)
    references = shadow.inputs(number) if shadow else None
    for _, inputs in runs.inputs(number):
        beside: Mapping[str, Tensor] = next(references)[1] if references else {}
        for name, x in inputs.items():
            collecting[name].add(x, beside.get(name) if collecting[name].reference else None)
        for key, members in shares(names).items():
            for member in filter(weighed.__contains__, members):
                weighed[member].add(inputs[key])
    found = {}
    for key, members in shares(names).items():
        stats = collecting[key].stats()
        for member in members:
            own = job.gradients.get(member, {}) | (weighed[member].values() if member in weighed else {})
            found[member] = Stats(stats.tokens, stats.values | own)
    return found


def _weighed(job: Job, names: Sequence[str]) -> dict[str, Weighed]:
    """The collectors of linears whose tokens do not count alike."""
    found, device = {}, job.batches[0].device
    for name in names:
        needs = tuple(job.targets[name].solver.needs)
        if name in job.gradients and any(map(weighted, needs)):
            found[name] = Weighed(needs, job.gradients[name], job.module.get_submodule(name).in_features, device)  # type: ignore[arg-type]
    return found


def _tune(job: Job, stages: list[list[str]], tuners: list[tuple[Any, list[str]]], done: Done) -> None:
    """Train the solved block, put the tuned weights in place and run the stream through them."""
    told: dict[str, dict[str, float]] = {}
    for tuner, names in tuners:
        block = _block(job, stages, names)
        block.quantized = {n: done.quantized[n] for n in names}
        block.originals = {n: done.originals[n] for n in names}
        with tuned.repeatable(job.batches[0].device):
            tuner.tune(block, job.batches, done.references)
        for name, linear in block.linears.items():
            linear.weight.data = block.quantized[name].decode().to(linear.weight.dtype)
        done.quantized |= block.quantized
        _settle(job)
        told[name_of(tuner)] = block.report
        if not block.report["after"] < block.report["before"]:
            loss = f"{block.report['before']:.3g} on held-out windows"
            job.progress.say(f"{job.prefix}: {name_of(tuner)} found nothing better than {loss}; the block stays as it was")
    done.outputs, errors = tuned.outputs(job.module, job.kwargs, job.batches, done.originals)
    for row in done.rows:
        name = row["name"].removeprefix(f"{job.prefix}.")
        row |= {"error": errors[name]} if name in errors else {}
        row |= {"tuning": told} if name in done.originals else {}


def _forget(module: nn.Module, names: Sequence[str]) -> None:
    """Drop the float weights of a stage that every batch has passed: half of a block, where the widest solve comes last."""
    for name in names:
        linear = module.get_submodule(name)
        linear.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)  # type: ignore[arg-type]


def _settle(job: Job) -> None:
    """Round every tensor that is stored as a float to its stored dtype."""
    for name, parameter in job.module.named_parameters():
        if name.removesuffix(".weight") not in job.targets:
            parameter.data = parameter.data.to(job.stored).to(parameter.dtype)
