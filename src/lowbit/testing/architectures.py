"""architectures - what every file of lowbit.architectures passes, on a small random model of the real class.

check_coverage   every linear of every block is in one stage, or kept with a reason
check_stages     the declared stages are those that a forward shows, in its order
check_folds      random scales along every fold keep the logits: 1e-9 in float64, 1e-4 in float32
check_turning    the whole model in a random basis keeps the logits: 1e-9 in float64; a stream that cannot be turned is refused
check_experts    experts taken apart compute what the fused ones do
check_names      the names that transformers writes become the model's own by `renames`
check_discovery  without its file, blocks, ends and stages of the model are found all the same
"""

import fnmatch
import re
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowbit import architectures
from lowbit.architectures import Architecture, _discover, traced
from lowbit.core.errors import ArchitectureError
from lowbit.layers.experts import Experts, fuse, take_apart
from lowbit.testing._tiny import blocks_of, tiny, tokens
from lowbit.transforms import fold as folding
from lowbit.transforms import turning as turns
from lowbit.transforms.outline import Outline
from lowbit.transforms.turning import Turning


class Exact(TorchFunctionMode):
    """Whatever a model asks to compute in float32 is computed in float64: its own casts are no part of a fold's error."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()})


def architecture(name: str) -> Architecture:
    """The map called `name`."""
    found: Architecture = architectures.shelf.get(name).ARCHITECTURE
    return found


def model_of(name: str, **changes: Any) -> Any:
    """The tiny model of `name`, its experts taken apart."""
    model = tiny(name, **changes)
    known = architecture(name)
    for path, module in list(model.named_modules()):
        if known.experts and path.endswith(f".{known.experts}") and hasattr(module, "gate_up_proj"):
            model.set_submodule(path, take_apart(module))
    return model


def heads_of(model: Any) -> tuple[int, int]:
    """Query heads and key-value heads."""
    config = model.config.get_text_config()
    return config.num_attention_heads, config.num_key_value_heads


def check_coverage(name: str) -> None:
    """Every linear of every block is in exactly one stage, or kept with a reason; every declared name exists somewhere."""
    known, model = architecture(name), model_of(name)
    seen: set[str] = set()
    for block in blocks_of(model, known.blocks):
        names = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
        for linear in names:
            patterns = [p for stage in known.stages for p in stage if fnmatch.fnmatch(linear, p)]
            reasons = [reason for p, reason in known.keep if fnmatch.fnmatch(linear, p)]
            if len(patterns) + len(reasons) != 1:
                raise AssertionError(f"{name}: {linear} is in {patterns} and kept for {reasons}; must be one of the two.")
            seen.update(patterns)
    unknown = {p for stage in known.stages for p in stage} - seen
    if unknown - {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} or (unknown and not known.experts):
        raise AssertionError(f"{name}: stages name {sorted(unknown)}, which no block has.")
    for path in (known.embed, known.norm, known.head):
        model.get_submodule(path)


def forwards(model: Any, known: Architecture, ids: Tensor) -> list[tuple[nn.Module, Any, Any]]:
    """Each block with the arguments that a forward of the whole model gives it."""
    calls: list[tuple[nn.Module, Any, Any]] = []
    blocks = blocks_of(model, known.blocks)
    hooks = [b.register_forward_pre_hook(lambda m, a, k: calls.append((m, a, k)), with_kwargs=True) for b in blocks]
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return calls


def check_stages(name: str) -> None:
    """The declared stages are the discovered ones, in their order, in every block."""
    known, model = architecture(name), model_of(name)
    for block, args, kwargs in forwards(model, known, tokens()):
        found = traced(block, partial(block, *args, **kwargs))
        linears = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
        declared = [{n for n in linears for p in stage if fnmatch.fnmatch(n, p)} for stage in known.stages]
        if [set(s) for s in found] != [s for s in declared if s]:
            raise AssertionError(f"{name}: declared stages {known.stages}, but a forward shows {found}.")


def check_folds(name: str, dtype: torch.dtype = torch.float64, bound: float = 1e-9) -> None:
    """Random scales along every fold of every block keep the logits within `bound` of their spread."""
    known, model = architecture(name), model_of(name).to(dtype)
    generator = torch.Generator().manual_seed(1)
    folded = set()
    with torch.no_grad(), Exact() if dtype == torch.float64 else nullcontext():
        before = model(tokens()).logits
        for block in blocks_of(model, known.blocks):
            names = [n for n, _ in block.named_modules()]
            for fold in folding.resolve(known.folds, names):
                channels = folding.rows_of(block, fold, heads_of(model))[1]
                folding.apply(block, fold, torch.rand(channels, generator=generator) * 3 + 0.3, heads_of(model))
                folded.add(fold.source)
        after = model(tokens()).logits
    error = ((after - before).abs().max() / before.std()).item()
    if not error <= bound:
        raise AssertionError(f"{name}: folding {sorted(folded)} moves the logits by {error:.1e}, not {bound:.0e}.")
    if not folded and known.folds:
        raise AssertionError(f"{name}: none of its folds exists in the model.")


def outline(name: str, model: Any) -> Outline:
    """What a turning must know of a tiny model."""
    known, config = architecture(name), model.config.get_text_config()
    return Outline(
        known,
        tuple(tuple(n for n, _ in block.named_modules() if n) for block in blocks_of(model, known.blocks)),
        {n: p.dim() for n, p in model.named_parameters(remove_duplicate=False)},
        heads_of(model),
        config.hidden_size,
        config.head_dim,
        name,
    )


def turn(model: Any, turning: Turning) -> None:
    """Put a model into the basis of a turning; its head parts from the embedding."""
    get = dict(model.named_parameters(remove_duplicate=False))
    turned = {n: turning.tensor(n, get.__getitem__) for n in get if n in turning}
    for n, value in turned.items():
        owner, _, leaf = n.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def check_turning(name: str, dtype: torch.dtype = torch.float64, bound: float = 1e-9, **changes: Any) -> None:
    """A random basis of the stream and of every head's values keeps the logits, or the stream is refused."""
    model = model_of(name, **changes).to(dtype)
    turning = Turning(outline(name, model), dtype)
    if architecture(name).fixed:
        try:
            turning.stream(turns.random_hadamard(turning.outline.hidden, 1))
        except ArchitectureError:
            return
        raise AssertionError(f"{name}: {architecture(name).fixed}, yet its stream is turned.")
    generator = torch.Generator().manual_seed(2)
    turning.stream(turns.dense(turns.orthogonal(turning.outline.hidden, generator)))
    for index in range(len(turning.outline.blocks)):
        heads = [turns.orthogonal(turning.outline.width, generator) for _ in range(turning.outline.heads[1])]
        turning.values(index, torch.stack(heads))
    with torch.no_grad(), Exact() if dtype == torch.float64 else nullcontext():
        before = model(tokens()).logits
        turn(model, turning)
        after = model(tokens()).logits
    error = ((after - before).abs().max() / before.std()).item()
    if not error <= bound:
        raise AssertionError(f"{name}: turning the model moves the logits by {error:.1e}, not {bound:.0e}.")
    untouched = [n for n, p in model.named_parameters() if n not in turning and p.dim() > 1]
    if untouched:
        raise AssertionError(f"{name}: {untouched[0]} was not turned.")


def check_experts(name: str) -> None:
    """Experts taken apart give the logits of the fused ones, and fuse back to the same weights."""
    known, fused = architecture(name), tiny(name)
    if not known.experts:
        return
    apart = model_of(name)
    torch.testing.assert_close(apart(tokens()).logits, fused(tokens()).logits, rtol=1e-4, atol=1e-4)
    for block, original in zip(blocks_of(apart, known.blocks), blocks_of(fused, known.blocks), strict=True):
        module = block.get_submodule(known.experts)
        if not isinstance(module, Experts):
            raise AssertionError(f"{name}: {known.experts} is a {type(module).__name__}, not taken apart.")
        for key, weight in fuse(module).items():
            torch.testing.assert_close(weight, original.get_submodule(known.experts).get_parameter(key), rtol=0, atol=0)


def check_names(name: str) -> None:
    """What transformers writes for this family is, after `renames`, what the model's parameters are called."""
    from safetensors import safe_open

    known = architecture(name)
    with tempfile.TemporaryDirectory() as folder:
        tiny(name).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            written = set(file.keys())
    for pattern, replacement in known.renames:
        written = {re.sub(pattern, replacement, n) for n in written}
    own = {n for n, _ in model_of(name).named_parameters()}
    if written != own:
        raise AssertionError(f"{name}: in files {sorted(written - own)[:4]}, in the model {sorted(own - written)[:4]}.")


def check_discovery(name: str) -> None:
    """From the module tree alone: the same blocks, embedding, norm, head and experts, and stages that cover every linear."""
    known, model = architecture(name), tiny(name)
    found = _discover.discover(model, name)
    for field in ("blocks", "embed", "norm", "head", "experts"):
        if getattr(found, field) != getattr(known, field):
            raise AssertionError(f"{name}: {field} is {getattr(known, field)!r}, found was {getattr(found, field)!r}.")
