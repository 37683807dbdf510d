"""finish - what a folder needs beside its weights: index, config.json for old and new readers, tokenizer, licence.

Idea      config.json is the original's plus `quantization_config`. transformers 5 spells some keys differently from 4, and a
          reader that misses the rope's base silently takes 10000: both spellings are written.
Traps     Rope parameters by layer type (Gemma 3) have no old spelling. Infinity is written plainly, without a tag.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from lowbit.checkpoints.folder import INDEX, Folder
from lowbit.checkpoints.folder.shard import Shard, write_text

COPIED = (
    "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "*.jinja", "chat_template*", "preprocessor_config.json", "processor_config.json", "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip


def complete(work: Path, source: Folder, quantization: dict[str, Any] | None) -> None:
    """Add to the shards in `work` all that makes the folder a model; the rest comes from `source`."""
    for pattern in COPIED:
        for file in sorted(source.path.glob(pattern)):
            if file.is_file() and not (work / file.name).exists():
                shutil.copyfile(file, work / file.name)
    config = both_spellings(source.settings)
    if quantization is not None:
        config["quantization_config"] = quantization
    write_text(work / "config.json", json.dumps(config, indent=2) + "\n")
    write_index(work)


def write_index(work: Path) -> None:
    """Write the index of the shards in `work`; a lone model.safetensors needs none."""
    files = sorted(work.glob("*.safetensors"))
    if [f.name for f in files] == ["model.safetensors"]:
        return
    homes: dict[str, str] = {}
    total = 0
    for file in files:
        with Shard(file) as shard:
            homes |= dict.fromkeys(shard.entries, file.name)
            total += sum(e.stop - e.start for e in shard.entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
    write_text(work / INDEX, json.dumps(index, indent=2) + "\n")


def both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of config.json's fields that readers of transformers 4 and of transformers 5 understand alike."""
    told: dict[str, Any] = _untagged(config)
    dtype = told.get("dtype") or told.get("torch_dtype")
    if dtype:
        told |= {"dtype": dtype, "torch_dtype": dtype}
    rope = told.get("rope_parameters")
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        scaling = {k: v for k, v in rope.items() if k not in {"rope_theta", "partial_rotary_factor"}}
        told |= {k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if k in rope}
        told["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return told


def _untagged(value: Any) -> Any:
    """Without transformers 5's tags of non-finite floats."""
    if isinstance(value, dict):
        return float(value["__float__"]) if set(value) == {"__float__"} else {k: _untagged(v) for k, v in value.items()}
    return [_untagged(v) for v in value] if isinstance(value, list) else value
