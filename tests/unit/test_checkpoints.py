"""Folders: what is broken is said with names and numbers; reading costs a tensor's memory; nothing is pickled."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit import checkpoints, formats
from lowbit.checkpoints import Shard, Stored, write_shard
from lowbit.checkpoints.folder import INDEX, Folder, finish
from lowbit.checkpoints.folder import shard as shards
from lowbit.core.errors import ArchitectureError, CapacityError, CheckpointError
from lowbit.testing.checkpoints import quantize_folder

TENSORS = {
    "b.weight": torch.arange(12, dtype=torch.bfloat16).view(3, 4), "a.weight": torch.randn(5, 7), "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4), "codes": torch.arange(6, dtype=torch.uint8), "flag": torch.tensor([True, False]),
    "small": torch.randn(4, 4).to(torch.float8_e4m3fn), "words": torch.arange(-3, 3, dtype=torch.int32).view(2, 3),
}  # fmt: skip


def split(folder: Path) -> Path:
    """The folder's one file cut into two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:5], names[5:]), 1):
        save_file({n: tensors[n] for n in part}, folder / f"model-0000{number}-of-00002.safetensors", {"format": "pt"})
    finish.write_index(folder)
    return folder


def test_safetensors_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    write_shard(tmp_path / "ours.safetensors", TENSORS)
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"format": "pt"})
    theirs = load_file(tmp_path / "ours.safetensors")
    with Shard(tmp_path / "theirs.safetensors") as shard:
        for name, tensor in TENSORS.items():
            for found in (theirs[name], shard.tensor(name)):
                assert found.dtype == tensor.dtype and found.shape == tensor.shape
                assert found.flatten().view(torch.uint8).tolist() == tensor.flatten().view(torch.uint8).tolist()
    assert (tmp_path / "ours.safetensors").stat().st_size == (tmp_path / "theirs.safetensors").stat().st_size


def test_a_truncated_file_names_file_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model-00003.safetensors"
    write_shard(path, {"model.layers.8.x": torch.zeros(100), "model.layers.9.y": torch.zeros(1000)})
    os.truncate(path, path.stat().st_size - 1204)
    with pytest.raises(CheckpointError, match=r"model-00003.safetensors ends 1,204 bytes early, in model.layers.9.y"):
        Shard(path)
    for size in (4, 30):
        os.truncate(path, size)
        with pytest.raises(CheckpointError, match=f"no safetensors header in {size} bytes"):
            Shard(path)
    path.write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(CheckpointError, match="unreadable safetensors header"):
        Shard(path)
    path.write_bytes(
        (70).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'.ljust(70) + bytes(12)
    )
    with pytest.raises(CheckpointError, match="unreadable safetensors header"):
        Shard(path)


def test_pieces_of_a_tensor_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TOGETHER", 1000)
    wanted = {"long": torch.randn(77, 91), "short": torch.arange(3)}
    write_shard(tmp_path / "a.safetensors", wanted)
    with Shard(tmp_path / "a.safetensors") as shard:
        assert all(torch.equal(shard.tensor(name), value) for name, value in wanted.items())
        (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:20000])
        with pytest.raises(CheckpointError, match="ends early, in long: it was cut while being read"):
            shard.tensor("long")


def test_a_missing_shard_is_named(tiny_llama: Path) -> None:
    split(tiny_llama)
    whole = Folder(tiny_llama)
    assert len(whole.shards) == 2
    (tiny_llama / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00002.safetensors: .* puts \d+ tensors .*1 of 2 files are missing"
    ):
        Folder(tiny_llama)


def test_an_index_that_lies_is_found(tiny_llama: Path) -> None:
    split(tiny_llama)
    index = json.loads((tiny_llama / INDEX).read_text())
    index["weight_map"]["model.layers.7.ghost"] = "model-00001-of-00002.safetensors"
    (tiny_llama / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"no model\.layers\.7\.ghost, though"):
        Folder(tiny_llama)
    (tiny_llama / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match="no JSON"):
        Folder(tiny_llama)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "ran").encode())
    with pytest.raises(CheckpointError, match=r"pickle files .pytorch_model\.bin."):
        Folder(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no safetensors file"):
        Folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        Folder(tmp_path / "nowhere")


def test_a_folder_knows_its_tensors(tiny_llama: Path) -> None:
    folder = Folder(tiny_llama)
    name = "model.layers.1.mlp.down_proj.weight"
    assert folder.entry(name).shape == (128, 256) and folder.entry(name).dtype == torch.bfloat16
    assert folder.bytes_of(name) == 128 * 256 * 2 and folder.dtype() == torch.bfloat16
    assert torch.equal(folder.tensor(name), load_file(tiny_llama / "model.safetensors")[name])
    with pytest.raises(CheckpointError, match="no tensor ghost in 1 safetensors file"):
        folder.tensor("ghost")
    assert folder.config().model_type == "llama"


def test_digest_sees_weights_and_settings(tiny_llama: Path) -> None:
    before = Folder(tiny_llama).digest()
    assert Folder(tiny_llama).digest() == before
    data = bytearray((tiny_llama / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tiny_llama / "model.safetensors").write_bytes(bytes(data))
    assert Folder(tiny_llama).digest() != before


def test_unknown_models_and_methods_are_named(tiny_llama: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    (tiny_llama / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "lowbits"}}))
    with pytest.raises(CheckpointError, match=r"quant_method 'lowbits' cannot be read. Nearest: lowbit"):
        _ = Stored(Folder(tiny_llama)).formats
    (tiny_llama / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    with pytest.raises(ArchitectureError, match="model_type 'lama'"):
        Folder(tiny_llama).config()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(CapacityError, match="the disk is full"):
        write_shard(tmp_path / "x.safetensors", {"a": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_config_is_spelled_for_old_and_new_readers() -> None:
    rope = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    told = finish.both_spellings({"dtype": "bfloat16", "rope_parameters": rope, "limit": {"__float__": "Infinity"}})
    assert told["torch_dtype"] == told["dtype"] == "bfloat16" and told["limit"] == float("inf")
    assert told["rope_theta"] == 5e5 and told["rope_parameters"] == rope
    assert told["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    assert finish.both_spellings({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}})["rope_scaling"] is None
    by_layer = {"sliding": {"rope_type": "default"}, "full": {"rope_type": "default"}}
    assert "rope_scaling" not in finish.both_spellings({"rope_parameters": by_layer})


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 64}])  # fmt: skip
def test_both_spellings_mean_the_same_to_transformers(tiny_llama: Path, rope: dict[str, object]) -> None:
    path = tiny_llama / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": rope | {"rope_theta": 5e5}}))
    before = Folder(tiny_llama).config().rope_parameters
    path.write_text(json.dumps(finish.both_spellings(json.loads(path.read_text()))))
    assert Folder(tiny_llama).config().rope_parameters == before
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in {"rope_parameters", "dtype"}}
    path.write_text(json.dumps(old))
    assert Folder(tiny_llama).config().rope_parameters == before and Folder(tiny_llama).dtype() == torch.bfloat16


def test_a_complete_folder_has_all_but_the_old_index(tiny_llama: Path, tmp_path: Path) -> None:
    (tiny_llama / "LICENSE").write_text("free")
    (tiny_llama / "pytorch_model.bin").write_text("no")
    quantize_folder(split(tiny_llama), tmp_path / "out", lambda m: "int4-g128")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "LICENSE", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_the_index_sums_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "model-00001-of-00002.safetensors", {"b": torch.zeros(3)})
    write_shard(tmp_path / "model-00002-of-00002.safetensors", {"a": torch.zeros(5, dtype=torch.uint8)})
    finish.write_index(tmp_path)
    assert json.loads((tmp_path / INDEX).read_text()) == {
        "metadata": {"total_size": 17},
        "weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
    }


def test_the_file_format_is_chosen() -> None:
    def chosen(*texts: str) -> str:
        return checkpoints.name_of(checkpoints.choose(map(formats.parse, texts)))

    assert chosen("int4-g128", "int8-row", "nvfp4") == "compressed-tensors"
    assert chosen("int4-g128", "nf4-g64") == chosen("int4-g128-fp16") == chosen("ternary-g64") == "lowbit"


def test_own_config_is_compact_and_exact() -> None:
    form = checkpoints.shelf.get("lowbit")
    modules = [f"model.layers.{i}.mlp.{p}" for i in range(12) for p in ("up_proj", "down_proj")]
    chosen = {m: formats.parse("nf4-g64" if m != modules[5] else "nf4-g32") for m in modules}
    told = form.config(chosen, [])
    assert told["formats"]["nf4-g64"][0] == "model.layers.*.mlp.up_proj" and told["formats"]["nf4-g32"] == [modules[5]]
    assert form.formats(told, modules) == chosen
    with pytest.raises(CheckpointError, match="is said to be nf4-g32, but no file holds it"):
        form.formats(told, [m for m in modules if m != modules[5]])
    with pytest.raises(CheckpointError, match=r"needs lowbit 99.0, here is .* pip install --upgrade lowbit"):
        form.formats(told | {"min_version": "99.0"}, modules)


def test_compressed_tensors_names_are_exact() -> None:
    form = checkpoints.shelf.get("compressed_tensors")
    weight = torch.randn(32, 256)

    def stored(text: str, dtype: torch.dtype = torch.float16) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        q = formats.parse(text).fit(weight, None, False).quantize(weight)
        return {n.removeprefix("m."): (t.dtype, tuple(t.shape)) for n, t in form.tensors("m", q, dtype).items()}

    shape = {"weight_shape": (torch.int64, (2,))}
    assert stored("int4-g128") == {"weight_packed": (torch.int32, (32, 32)), "weight_scale": (torch.float16, (32, 2))} | shape
    assert stored("int3-row-asym", torch.float32) == shape | {
        "weight_packed": (torch.int32, (32, 24)),
        "weight_scale": (torch.bfloat16, (32, 1)),
        "weight_zero_point": (torch.int32, (3, 1)),
    }
    assert stored("fp8-tensor") == {"weight": (torch.float8_e4m3fn, (32, 256)), "weight_scale": (torch.float16, (1,))}
    assert stored("nvfp4") == {
        "weight_packed": (torch.uint8, (32, 128)), "weight_scale": (torch.float8_e4m3fn, (32, 16)),
        "weight_global_scale": (torch.float32, (1,)),
    }  # fmt: skip
    assert stored("mxfp6") == {"weight_packed": (torch.uint8, (32, 192)), "weight_scale": (torch.uint8, (32, 8))}


def test_compressed_tensors_reads_what_others_write() -> None:
    form = checkpoints.shelf.get("compressed_tensors")
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False, "group_size": None}
    group = {"targets": ["re:.*q_proj"], "weights": weights, "input_activations": None}
    config = {"format": "int-quantized", "ignore": [], "config_groups": {"group_0": group}}
    found = form.formats(config, ["a.q_proj", "a.k_proj"])
    assert {m: str(f) for m, f in found.items()} == {"a.q_proj": "int8-row"}
    codes = torch.tensor([[-128, 5, 127, 0]], dtype=torch.int8)
    held = {"m.weight": codes, "m.weight_scale": torch.tensor([[1 / 3]])}

    def get(name: str) -> torch.Tensor:
        if name not in held:
            raise CheckpointError(name)
        return held[name]

    q = form.quantized("m", found["a.q_proj"], get)
    assert str(q.format) == "int8-row-fp32"  # a scale that bfloat16 would round stays as it is
    assert torch.equal(q.decode(), codes.float() * (1 / 3))
    with pytest.raises(CheckpointError, match="quantizes activations"):
        form.formats({**config, "config_groups": {"group_0": {**group, "input_activations": {"num_bits": 8}}}}, ["a.q_proj"])
    with pytest.raises(CheckpointError, match=r"pack-quantized with .* cannot be read"):
        form.formats(
            {**config, "format": "pack-quantized", "config_groups": {"g": {**group, "weights": weights | {"type": "float"}}}},
            ["a.q_proj"],
        )


READ = """
import resource, sys
from pathlib import Path
from lowbit.checkpoints.folder import Folder
folder = Folder(Path(sys.argv[1]))
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
folder.tensor("t0")
before = peak()
for name in folder.names:
    folder.tensor(name)
print(peak() - before)
"""


def test_reading_takes_one_tensor_s_memory(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {f"t{i}": torch.zeros(1 << 21) for i in range(20)})
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True, env=env)
    assert int(told.stdout) < 80 << 20  # of 160 MiB in the file; pages read ahead count too
