"""compressed_tensors - the standard of transformers, vLLM and SGLang: integers of 2 to 8 bits, FP8, NVFP4, MXFP4, MXFP6, MXFP8.

Layout    By module, beside `weight_scale`:
          pack-quantized   weight_packed int32 [N, ceil(K b / 32)], weight_shape int64 [2]; asymmetric: weight_zero_point int32
                           [ceil(N b / 32), G], packed along the outputs. Scales [N, G] in the model's dtype (fp32: bf16).
          float-quantized  weight e4m3 [N, K]; scales [1], [N, 1] or one per 128x128 block
          nvfp4-, mxfp4-, mxfp6-pack-quantized   weight_packed uint8 [N, K b / 8]; nvfp4: weight_global_scale fp32 [1], divisor
          mxfp8-quantized  weight e4m3; scales uint8, as all mx formats
          int-quantized    weight int8 [N, K], scales [N, 1]: written where inputs are rounded too. vLLM takes weight-only
                           integers in the packed form alone.
          Rounded inputs stand in `input_activations`: dynamic scales of a token, a group of one, or all of x; a static one
          for all, `input_scale` [1]; nvfp4 "local" under `input_global_scale` [1]; mxfp by groups.
Source    compressed-tensors 0.20 (never imported here: engines want different versions of it).
Traps     Zero points: transformers builds their parameter unpacked and stops with a size mismatch. `dequantize` in the
          configuration avoids that (the model is loaded as floats, decoded in the scales' dtype) and is written where one
          scheme is all there is; of several, transformers would decode all by the first one: it is left out, and a stock
          load stops.
          With `dequantize`, transformers would leave the inputs as they are: asymmetric weights are not written with rounded
          ones. It rounds inputs in their own dtype; bfloat16 scales differ from lowbit's float32 ones by 0.4 %.
          A quantized head is targeted by name too: engines' heads are no class "Linear", and some would take its packed words
          for a float matrix (SGLang #35228).
          3, 5, 6 and 7 bits are dense since version 0.18 (before: whole codes per word); `version` says which is meant.
          transformers decodes in the scale's dtype: (q - z) exact, one rounding. So do lowbit's reference kernels.
          It keeps experts in that dtype, and rounds their inputs to it, whatever dtype a load asks for (measured in 5.24).
          vLLM 0.32 ignores `dequantize`, takes negative scales, and has no scheme for MXFP6 (bench/vllm_check.py).
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lowbit import formats as all_formats
from lowbit.checkpoints._schemes import FLOATS, WIDE, Scheme, activation_of, inputs_of, scheme_of, unsaid
from lowbit.core.errors import CheckpointError, ShapeError
from lowbit.formats import Format, Quantized
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation

VERSION = "0.18.0"
Get = Callable[[str], Tensor]
ROUTERS = ("re:.*\\.gate$", "re:.*shared_expert_gate$")
"""Ignored where there are experts: linears in vLLM, none in transformers."""


def can_hold(format: Format) -> str:
    if format.scale in WIDE:
        return f"engines cast scales to the model's dtype, which would round those of {format}"
    return "" if scheme_of(format) else f"compressed-tensors has no scheme for {format}"


def can_act(activation: Activation, format: Format) -> str:
    return unsaid(activation, format)


def tensors(module: str, quantized: Quantized, dtype: torch.dtype, activation: Activation | None = None) -> dict[str, Tensor]:
    scheme = _scheme(quantized.format, activation)
    stored, scale = packing.pack(quantized), quantized.parts["scale"]
    if scheme.kind == "pack-quantized":
        found = {"weight_packed": stored[""], "weight_shape": torch.tensor(quantized.shape)}
        if not scheme.symmetric:
            found["weight_zero_point"] = stored["zero"]
    elif scheme.kind == "int-quantized":
        found = {"weight": (quantized.codes ^ 128).view(torch.int8)}
    elif scheme.bits == 8:
        found = {"weight": quantized.codes.view(torch.float8_e4m3fn)}
    else:
        found = {"weight_packed": _bytes(quantized, stored[""])}
    if "global_scale" in quantized.parts:
        found["weight_global_scale"] = quantized.parts["global_scale"].float().reshape(1)
    if quantized.format.scale == "half" and dtype in {torch.float16, torch.bfloat16}:
        scale = scale.to(dtype)
    found["weight_scale"] = scale.reshape(1) if scheme.strategy == "tensor" else scale
    return {f"{module}.{name}": tensor.contiguous() for name, tensor in found.items()}


def _bytes(quantized: Quantized, packed: Tensor) -> Tensor:
    """The dense stream of a row as bytes."""
    count = int(quantized.shape[1] * quantized.format.dtype.bits) // 8
    return packed.view(torch.uint8)[:, :count]


def config(
    formats: dict[str, Format], ignore: list[str], activations: Mapping[str, Activation] = MappingProxyType({})
) -> dict[str, Any]:
    groups: dict[tuple[Scheme, Activation | None], list[str]] = {}
    for module, format in formats.items():
        activation = activations.get(module)
        groups.setdefault((_scheme(format, activation), activation), []).append(module)
    kinds = sorted({scheme.kind for scheme, _ in groups})
    left_out = [*ignore, *(["lm_head"] if "lm_head" not in {*formats, *ignore} else [])]
    if any(".experts." in module for module in formats):
        left_out += ROUTERS
    outside = [module for module in formats if not re.search(r"\.\d+\.", module)]
    told: dict[str, Any] = {
        "quant_method": "compressed-tensors", "version": VERSION, "format": kinds[0] if len(kinds) == 1 else "mixed-precision",
        "quantization_status": "compressed", "ignore": left_out, "kv_cache_scheme": None,
        "config_groups": {
            f"group_{i}": {"targets": ["Linear", *outside] if len(groups) == 1 else modules, "weights": scheme.arguments(),
                           "input_activations": inputs_of(activation), "output_activations": None, "format": scheme.kind}
            for i, ((scheme, activation), modules) in enumerate(groups.items())
        },
    }  # fmt: skip
    if len(groups) == 1 and not next(iter(groups))[0].symmetric:
        told["dequantize"] = True
    return told


def formats(config: dict[str, Any], modules: list[str]) -> dict[str, Format]:
    found: dict[str, Format] = {}
    activations(config, modules)  # what cannot be run is refused before any tensor is read
    for group in config["config_groups"].values():
        format = all_formats.parse(_read(group, config.get("format", "")).text)
        for module in _meant(config, group, modules):
            found.setdefault(module, format)
    return found


def activations(config: dict[str, Any], modules: list[str]) -> dict[str, Activation]:
    found: dict[str, Activation | None] = {}
    for group in config["config_groups"].values():
        activation = activation_of(group.get("input_activations"))
        for module in _meant(config, group, modules):
            found.setdefault(module, activation)
    return {module: activation for module, activation in found.items() if activation}


def _meant(config: dict[str, Any], group: dict[str, Any], modules: list[str]) -> list[str]:
    """The modules of one config group."""
    ignore = config.get("ignore") or []
    return [module for module in modules if _matches(module, group["targets"]) and not _matches(module, ignore)]


def _read(group: dict[str, Any], kind: str) -> Scheme:
    """The scheme of a config group. Raises CheckpointError for one that is not in the header's table."""
    weights = group["weights"]
    size = max(weights.get("group_size") or (weights.get("block_structure") or [0])[0], 0)
    kind = group.get("format") or kind
    found = Scheme(kind, weights["num_bits"], weights["type"], weights["strategy"], size, weights["symmetric"])
    integers = kind in {"pack-quantized", "int-quantized"} and found.type == "int" and found.strategy in {"group", "channel"}
    if not integers and found not in FLOATS.values():
        raise CheckpointError(f"compressed-tensors: {kind} with {weights} cannot be read. Use another checkpoint.")
    return found


def _matches(module: str, targets: list[str]) -> bool:
    """Whether a module is meant: by class, full name, or regular expression."""
    return any(t == "Linear" or t == module or (t.startswith("re:") and re.match(t[3:], module)) for t in targets)


def quantized(module: str, format: Format, get: Get) -> Quantized:
    scheme = _scheme(format)
    format, scale = _exact(format, get(f"{module}.weight_scale"))
    parts = {"scale": scale}
    if scheme.kind == "pack-quantized":
        return _integers(module, format, get, parts)
    if scheme.kind == "nvfp4-pack-quantized":
        parts["global_scale"] = get(f"{module}.weight_global_scale")
    if scheme.bits == 8:
        codes = get(f"{module}.weight").view(torch.uint8)
    else:
        stream = get(f"{module}.weight_packed")
        columns = stream.shape[1] * 8 // scheme.bits
        words = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 4)).view(torch.int32)
        codes = packing.codes(format, words, (stream.shape[0], columns))
    if scheme.strategy == "tensor":
        parts["scale"] = parts["scale"].reshape(1, 1)
    return Quantized(format, codes, parts, (codes.shape[0], codes.shape[1]))


def _exact(format: Format, scale: Tensor) -> tuple[Format, Tensor]:
    """The scales without rounding: bfloat16 where that and float16 hold them, else the format that says their dtype."""
    if format.scale != "half":
        return format, scale
    size = scale.float().abs()
    if torch.equal(scale.to(torch.bfloat16).float(), scale.float()) and bool(((size >= 2.0**-14) & (size <= 65504)).all()):
        return format, scale.to(torch.bfloat16)
    word = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(scale.dtype, "fp32")
    return all_formats.parse(f"{format}-{word}"), scale.float() if word == "fp32" else scale


def _integers(module: str, format: Format, get: Get, parts: dict[str, Tensor]) -> Quantized:
    """Packed integers, or plain int8 as int-quantized files have them."""
    try:
        rows, columns = get(f"{module}.weight_shape").tolist()
    except CheckpointError:
        codes = get(f"{module}.weight").view(torch.uint8) ^ 128
        if format.zero:
            parts["zero"] = get(f"{module}.weight_zero_point").view(torch.uint8) ^ 128
        return Quantized(format, codes, parts, (codes.shape[0], codes.shape[1]))
    packed, bits = get(f"{module}.weight_packed"), int(format.dtype.bits)
    if packed.shape[1] != -(-columns * bits // 32):
        raise ShapeError(
            f"{module}.weight_packed: {packed.shape[1]} words a row for {columns} codes of {bits} bits; the dense form has "
            f"{-(-columns * bits // 32)}. The file is older than compressed-tensors 0.18: convert it anew."
        )
    if format.zero:
        parts["zero"] = packing.unpack_zero(format, get(f"{module}.weight_zero_point"), (rows, columns))
    return Quantized(format, packing.codes(format, packed, (rows, columns)), parts, (rows, columns))


def _scheme(format: Format, activation: Activation | None = None) -> Scheme:
    found = scheme_of(format, activation)
    if found is None:
        raise CheckpointError(f"{can_hold(format)}. Use the checkpoint format lowbit.")
    return found
