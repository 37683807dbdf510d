"""Stock transformers, in a process without lowbit: the right logits to the last bit, or an error; never random weights."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from lowbit.checkpoints.folder import Folder
from lowbit.kernels import activation as acting
from lowbit.layers.linear import QuantizedLinear
from lowbit.layers.loading import load
from lowbit.testing.checkpoints import quantize_folder

STANDARD = (
    "int2-g32",
    "int3-g64",
    "int4-g128",
    "int5-row",
    "int6-g32",
    "int7-g128",
    "int8-row",
    "int8-g64",
    "int2-g64-asym",
    "int3-g32-asym",
    "int4-g128-asym",
    "int8-row-asym",
    "fp8-tensor",
    "fp8-row",
    "fp8-b128x128",
    "nvfp4",
    "mxfp4",
    "mxfp6",
    "mxfp8",
)
OWN = ("nf4-g64", "int4-g32-fp16", "ternary-g64", "mxint8", "int8-g64-fp16", "e5m2-row", "int4-g64-floatzero")
MIXTURES = {
    "mixed": ("int4-g128", "int8-row"),
    "mixed-kinds": ("int4-g64", "fp8-row"),
    "mixed-asym": ("int4-g64-asym", "int8-g64-asym"),
}
ROUNDED = {
    "w8a8": ("int8-row", "int8-token", 0.0, "float32"),
    "w8a8-static": ("int8-row", "int8-tensor-static", 8 / 127.5, "float32"),
    "fp8-dynamic": ("fp8-row", "fp8-token", 0.0, "float32"),
    "fp8-static": ("fp8-tensor", "fp8-tensor-static", 8 / 448, "float32"),
    "fp8-block": ("fp8-b128x128", "fp8-g128", 0.0, "float32"),
    "nvfp4-w4a4": ("nvfp4", "nvfp4", 448 * 6 / 8, "bfloat16"),
    "mxfp4-w4a4": ("mxfp4", "mxfp4", 0.0, "bfloat16"),
}
"""Weights, inputs, their stored scale, and the dtype in which transformers rounds by the same numbers: it decodes 4-bit floats
to bfloat16 alone, and takes scales of int8 and FP8 in the dtype of the inputs."""
STOCK = """
import json, sys, torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging
logging.disable_progress_bar()
assert "lowbit" not in sys.modules
told = {}
for line in sys.stdin.read().splitlines():
    folder, dtype = line.split()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        with torch.no_grad():
            torch.save(model(torch.arange(40)[None]).logits, folder + "/logits-" + dtype)
        told[line] = ""
    except Exception as error:
        told[line] = type(error).__name__ + ": " + str(error)
assert "lowbit" not in sys.modules
print(json.dumps(told))
"""


def stock(requests: list[tuple[Path, str]]) -> dict[tuple[Path, str], str]:
    """Load every (folder, dtype) in one process of stock transformers: "" or the error; logits lie in the folder."""
    lines = "\n".join(f"{folder} {dtype}" for folder, dtype in requests)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOCK], input=lines, capture_output=True, text=True, env=env, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return {request: told[f"{request[0]} {request[1]}"] for request in requests}


def reference(folder: Path, dtype: str, rounded: bool = True) -> torch.Tensor:
    """Logits of lowbit's own load, by the law: every layer on the reference kernel. rounded: inputs, where the file says so."""
    model: Any = load(folder, dtype=getattr(torch, dtype))
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.unprepare()
            module.activation = module.activation if rounded else None
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(40)[None]).logits
    return found


def llama(folder: Path, tied: bool, dtype: torch.dtype = torch.bfloat16) -> Path:
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        tie_word_embeddings=tied,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=1,
    )
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder


def mixtral(folder: Path) -> Path:
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=64,
        num_local_experts=3,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A quantized folder by format."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("stock")
    sources = {tied: llama(place / f"source-{tied}", tied) for tied in (True, False)}
    found = {}
    for number, text in enumerate(STANDARD + OWN):
        quantize_folder(sources[bool(number % 2)], place / text, lambda m, text=text: "" if m == "lm_head" else text)  # type: ignore[misc]
        found[text] = place / text
    for name, (first, second) in MIXTURES.items():
        pick = lambda m, a=first, b=second: "" if m == "lm_head" else a if "attn" in m else b  # noqa: E731
        quantize_folder(sources[True], place / name, pick)
        found[name] = place / name
    quantize_folder(sources[False], place / "head", lambda m: "int8-row" if m == "lm_head" else "int4-g64")
    found["head"] = place / "head"
    for name, (text, acts, scale, _) in ROUNDED.items():
        activation = replace(acting.parse(acts), scale=(scale,) if scale else ())
        quantize_folder(sources[False], place / name, lambda m, t=text: "" if m == "lm_head" else t, activation=activation)  # type: ignore[misc]
        found[name] = place / name
    for text in ("int4-g64", "nf4-g64"):
        pick = lambda m, text=text: "" if m == "lm_head" else text  # noqa: E731
        quantize_folder(mixtral(place / "experts"), place / f"experts-{text}", pick)
        found[f"experts-{text}"] = place / f"experts-{text}"
    return found


@pytest.fixture(scope="module")
def told(folders: dict[str, Path]) -> dict[tuple[Path, str], str]:
    """What stock transformers makes of them all."""
    extra = [(folders[text], dtype) for text in ("int4-g128", "int4-g128-asym", "fp8-row") for dtype in ("float32", "float16")]
    extra += [(folders[name], dtype) for name, (_, _, _, dtype) in ROUNDED.items()]
    return stock([(folder, "bfloat16") for folder in folders.values()] + extra)


@pytest.mark.parametrize("text", [*STANDARD, "mixed", "mixed-kinds", "head"])
def test_stock_transformers_gives_the_very_logits(
    folders: dict[str, Path], told: dict[tuple[Path, str], str], text: str
) -> None:
    assert (
        json.loads((folders[text] / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    )
    assert told[folders[text], "bfloat16"] == ""
    logits = torch.load(folders[text] / "logits-bfloat16")
    assert float((logits - reference(folders[text], "bfloat16")).abs().max()) == 0.0
    assert float(logits.std()) > 0.05


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_inputs_give_the_same_logits(folders: dict[str, Path], told: dict[tuple[Path, str], str], name: str) -> None:
    folder, dtype = folders[name], ROUNDED[name][3]
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    assert told[folder, dtype] == ""
    theirs, ours = torch.load(folder / f"logits-{dtype}").float(), reference(folder, dtype).float()
    assert float((theirs - ours).abs().max()) < 1e-5 * float(ours.std())
    plain = reference(folder, dtype, rounded=False).float()
    assert float((plain - ours).norm() / ours.norm()) > 3e-3  # inputs were rounded


@pytest.mark.parametrize("text", ["int4-g128", "fp8-row"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_too(folders: dict[str, Path], told: dict[tuple[Path, str], str], text: str, dtype: str) -> None:
    assert told[folders[text], dtype] == ""
    logits = torch.load(folders[text] / f"logits-{dtype}")
    assert float((logits - reference(folders[text], dtype)).abs().max()) == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_zero_points_are_decoded_in_the_dtype_of_the_scales(
    folders: dict[str, Path], told: dict[tuple[Path, str], str], dtype: str
) -> None:
    folder = folders["int4-g128-asym"]
    assert told[folder, dtype] == ""
    torch.testing.assert_close(torch.load(folder / f"logits-{dtype}"), reference(folder, dtype), rtol=0, atol=0.03)


@pytest.mark.parametrize("text", OWN)
def test_what_it_cannot_read_is_an_error(folders: dict[str, Path], told: dict[tuple[Path, str], str], text: str) -> None:
    assert "mismatch" in told[folders[text], "bfloat16"].lower()
    assert reference(folders[text], "bfloat16").isfinite().all()


def test_mixed_zero_points_are_right_or_an_error(folders: dict[str, Path], told: dict[tuple[Path, str], str]) -> None:
    folder = folders["mixed-asym"]
    if told[folder, "bfloat16"]:
        assert "mismatch" in told[folder, "bfloat16"].lower()
    else:  # transformers 5.17
        assert torch.equal(torch.load(folder / "logits-bfloat16"), reference(folder, "bfloat16"))


def test_experts_keep_the_names_of_the_original(folders: dict[str, Path], told: dict[tuple[Path, str], str]) -> None:
    standard, own = folders["experts-int4-g64"], folders["experts-nf4-g64"]
    assert told[standard, "bfloat16"] == "" and "mismatch" in told[own, "bfloat16"].lower()
    assert any(name.endswith("block_sparse_moe.experts.2.w1.weight") for name in Folder(own).names)
    ours = reference(standard, "bfloat16")
    torch.testing.assert_close(torch.load(standard / "logits-bfloat16"), ours, rtol=0, atol=0.02)
    again = AutoModelForCausalLM.from_pretrained(own)
    with torch.no_grad():
        assert torch.equal(again(torch.arange(40)[None]).logits, load(own)(torch.arange(40)[None]).logits)
