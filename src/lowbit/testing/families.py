"""families - every method through a small random model of a family: quantized, written, read again.

In / Out  the name of a method, a model folder, a folder to write -> nothing, or an AssertionError that says what is wrong.
          `check`: it works and reloads; `check_resumed`: a run that is killed and taken up writes the bytes of a whole one.
Idea      A method knows nothing of families, but what it is given differs: norms of heads, experts that few tokens reach,
          widths that are no powers of two. Every linear of the blocks must be rounded; the packed layers that are loaded must
          give the logits of the matrices that they decode to, and the same in every load.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowbit
from lowbit import methods
from lowbit.layers.linear import QuantizedLinear
from lowbit.testing._tiny import tokens
from lowbit.testing.killing import KillAfter, Killed, digest

OWN = {
    "aqlm": "aqlm1x8",
    "atom": "int4-g32-byte8",
    "quik": "int4-row-keep8",
    "rptq": "int4-g32-order",
    "llm_int8": "int8-row",
    "zeroquant_v2": "int4-g32-rank4",
    "hqq": "int4-g32-floatzero",
    "higgs": "higgs2x16",
    "lnq": "lut3-row",
    "qtip": "trellis_short3",
    "quip_sharp": "e8p2",
    "squeezellm": "lut3-row",
    "onebit": "binary-row-svid",
    "billm": "billm-g32",
    "pb_llm": "binary-g32-salient10",
    "spqr": "int3-g16-bilevel-sparse1",
    "quip": "int4-row-kron",
    "lqer": "int4-g32-rank4",
    "qera": "int4-g32-rank4",
}
"""Formats of methods that are made for them; all others take int4-g32."""
SHORT = {"steps": 2, "batch": 1, "windows": 1, "length": 16, "group": 32}
"""Settings that make a method quick, where it has them."""
WHOLE = {
    "act": "rtn(int8-row) + act(int8-token)",
    "kv": "rtn(int4-g32) + kv(int4)",
    "budget": "budget(5, windows=1, length=16) + rtn(int4-g32)",
}


def sentence(name: str) -> str:
    """A small recipe in which a method takes part."""
    if name in WHOLE:
        return WHOLE[name]
    cls = methods.get(name)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    settings = [f"{key}={value}" for key, value in SHORT.items() if key in fields]
    if methods.verb(cls) == "solve":
        own = [OWN.get(name, "int4-g32")] if "format" in fields else []
        return f"{name}({', '.join([*own, *settings])})"
    step = f"{name}({', '.join(settings)})" if settings else name
    after = methods.verb(cls) in {"tune", "finish"}
    return f"rtn(int4-g32) + {step}" if after else f"{step} + rtn(int4-g32)"


def check(name: str, model: Path, out: Path, **settings: Any) -> None:
    """Quantize, read, compare."""
    done = lowbit.quantize(str(model), sentence(name), str(out), **settings)
    original, read = lowbit.load(model, dtype=torch.float32), lowbit.load(out, dtype=torch.float32)
    packed = {n: m for n, m in read.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(packed) == len(done.layers), f"{name}: {len(done.layers)} were rounded, {len(packed)} are packed layers"
    rounded = {n for n in packed if ".layers." in n}
    linears = {n for n, m in original.named_modules() if isinstance(m, nn.Linear) and ".layers." in n}
    whole = {n for n in linears if not n.endswith(".gate")}  # routers stay
    assert whole <= rounded, f"{name}: {sorted(whole - rounded)[:3]} are still floats"
    ids = tokens(windows=2, length=16)
    logits = _logits(read, ids)
    assert bool(torch.isfinite(logits).all()), f"{name}: logits are not finite"
    for layer_name, layer in packed.items():
        if layer.activation is None:
            read.set_submodule(layer_name, _dense(layer))
    assert torch.allclose(_logits(read, ids), logits, atol=2e-3 * float(logits.abs().max())), f"{name}: packed layers differ"
    again = _logits(lowbit.load(out, dtype=torch.float32), ids)
    assert torch.equal(again, logits), f"{name}: a second load gives other logits"


def check_resumed(name: str, model: Path, out: Path, **settings: Any) -> None:
    """Kill a run when the first block is done, take it up again, compare with a run that nothing stopped."""
    recipe, whole = sentence(name), out.with_name("whole")
    try:
        lowbit.quantize(str(model), recipe, str(out), progress=KillAfter(1, "quantize"), **settings)
    except Killed:
        lowbit.quantize(str(model), recipe, str(out), **settings)
    else:
        raise AssertionError(f"{name}: the run ended before its first block did")
    lowbit.quantize(str(model), recipe, str(whole), **settings)
    assert digest(out) == digest(whole), f"{name}: the run that was taken up wrote other bytes"


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, use_cache=False).logits
    return found


def _dense(layer: QuantizedLinear) -> nn.Linear:
    """The decoded matrix in a plain layer; what the layer adds to it, a bias or a side's vector, is its output at 0."""
    made = nn.Linear(layer.in_features, layer.out_features)
    made.weight.data = layer.quantized().decode()
    made.bias.data = layer(torch.zeros(1, layer.in_features))[0]
    return made.requires_grad_(False)
