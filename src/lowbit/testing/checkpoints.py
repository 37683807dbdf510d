"""checkpoints - what every file of lowbit.checkpoints passes: codes and scales come back bit by bit, names and sizes as said.

    check_matrices  each format that it can hold: written, read, equal; bytes are those that bits_per_weight says
    check_config    the configuration is JSON and tells every module's format again, mixtures and left-out modules too
    check_folder    a file written twice has the same bytes, leaves nothing beside it and gives the same codes
    check_refusal   what it cannot hold it refuses in words
`quantize_folder` writes a model folder by plain rounding, without a pipeline.
"""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from lowbit import checkpoints, formats
from lowbit.checkpoints.folder import Folder
from lowbit.core.errors import CheckpointError
from lowbit.formats import Format, Quantized
from lowbit.kernels.activation import Activation
from lowbit.testing import kernels

SHAPES = ((128, 128), (64, 256), (96, 384))
LINEAR = re.compile(r"(_proj|lm_head|\.w[123])\.weight$")
MODULES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.experts.11.up_proj",
    "model.layers.1.mlp.down_proj",
    "lm_head",
)


def holds(name: str) -> list[Format]:
    """The formats of the kernels' suite that the file format can say."""
    parsed = [formats.parse(text) for text in kernels.FORMATS]
    return [f for f in parsed if not checkpoints.shelf.get(name).can_hold(f)]


def check_matrices(name: str) -> None:
    form = checkpoints.shelf.get(name)
    for format in holds(name):
        for shape in SHAPES:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                before = kernels.matrix(format, shape, torch.device("cpu"))
                stored = form.tensors(MODULES[0], before, dtype)
                assert all(key.startswith(f"{MODULES[0]}.weight") for key in stored), f"{name}: {format}: {sorted(stored)}"
                after = form.quantized(MODULES[0], format, _getter(stored))
                assert _same(before, after), f"{name}: {format} {shape} with {dtype}: other codes or parts come back"
                size = sum(t.numel() * t.element_size() for key, t in stored.items() if not key.endswith("_shape"))
                claimed = format.bits_per_weight(shape) * shape[0] * shape[1] / 8
                assert size == claimed, f"{name}: {format} {shape} with {dtype}: {size} bytes stored, {claimed} claimed"


def check_config(name: str) -> None:
    form = checkpoints.shelf.get(name)
    held = holds(name)
    mixtures = [
        dict.fromkeys(MODULES[:3], held[0]),
        dict(zip(MODULES, held * 4, strict=False)),
        dict.fromkeys(MODULES, held[-1]),
    ]
    mixtures += [{**dict.fromkeys(MODULES[:2], held[0]), MODULES[2]: held[-1]}]
    for mixture in mixtures:
        ignore = [m for m in MODULES if m not in mixture]
        told = json.loads(json.dumps(form.config(mixture, ignore)))
        assert told["quant_method"] == checkpoints.name_of(form)
        found = form.formats(told, sorted(mixture))
        assert found == mixture and all(str(found[m]) == str(mixture[m]) for m in mixture), (
            f"{name}: {mixture} comes back as {found}"
        )


def check_folder(name: str) -> None:
    format = holds(name)[0]
    form = checkpoints.shelf.get(name)
    with tempfile.TemporaryDirectory() as place:
        first, second = Path(place) / "first.safetensors", Path(place) / "second.safetensors"
        quantized = kernels.matrix(format, SHAPES[0], torch.device("cpu"))
        checkpoints.write_shard(first, form.tensors(MODULES[0], quantized, torch.bfloat16))
        checkpoints.write_shard(second, dict(reversed(form.tensors(MODULES[0], quantized, torch.bfloat16).items())))
        assert first.read_bytes() == second.read_bytes(), f"{name}: two writes differ"
        assert sorted(p.name for p in Path(place).iterdir()) == [first.name, second.name], f"{name}: something is left behind"
        with checkpoints.Shard(first) as shard:
            assert _same(quantized, form.quantized(MODULES[0], format, shard.tensor)), f"{name}: the file gives other codes"


def check_refusal(name: str) -> None:
    for text in (*kernels.FORMATS, "int4-g32-fp32", "e5m2-row"):
        reason = checkpoints.shelf.get(name).can_hold(formats.parse(text))
        assert isinstance(reason, str), f"{name}: can_hold({text}) gives {reason!r}, not a reason"


def quantize_folder(
    source: Path, out: Path, pick: Callable[[str], str], name: str = "", activation: Activation | None = None
) -> ModuleType:
    """Write `source` to the new folder `out`, every linear rounded to the format that `pick(module)` names ("": left).

    name: the file format (default: what lowbit.checkpoints.choose says). activation: of all these linears. Returns its module.
    """
    folder = Folder(source)
    linears = [n.removesuffix(".weight") for n in folder.names if LINEAR.search(n)]
    chosen = {module: formats.parse(pick(module)) for module in linears if pick(module)}
    acts = dict.fromkeys(chosen, activation) if activation else {}
    pairs = [(act, chosen[module]) for module, act in acts.items()]
    form = checkpoints.shelf.get(name) if name else checkpoints.choose(chosen.values(), activations=pairs)
    out.mkdir()
    tensors: dict[str, Tensor] = {}
    for key in folder.names:
        value, module = folder.tensor(key), key.removesuffix(".weight")
        if key.endswith(".weight") and module in chosen:
            quantized = chosen[module].fit(value, None, False).quantize(value)
            tensors |= form.tensors(module, quantized, value.dtype, activation=activation)
            tensors |= checkpoints.input_tensors(module, activation)
        else:
            tensors[key] = value
    checkpoints.write_shard(out / "model.safetensors", tensors)
    checkpoints.complete(out, folder, form.config(chosen, [m for m in linears if m not in chosen], acts))
    return form


def _getter(stored: dict[str, Tensor]) -> Callable[[str], Tensor]:
    def get(name: str) -> Tensor:
        if name not in stored:
            raise CheckpointError(f"no tensor {name}")
        return stored[name]

    return get


def _same(a: Quantized, b: Quantized) -> bool:
    """Whether format, codes and parts are equal to the last bit."""
    if a.format != b.format or a.shape != b.shape or a.parts.keys() != b.parts.keys():
        return False
    pairs = [(a.codes, b.codes), *((a.parts[k], b.parts[k]) for k in a.parts)]
    return all(x.shape == y.shape and x.dtype == y.dtype and torch.equal(kernels.bits(x), kernels.bits(y)) for x, y in pairs)
