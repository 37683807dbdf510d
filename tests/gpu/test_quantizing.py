"""What quantizing does otherwise on a GPU, against what it does on a CPU: sums of products, scales, solving, a whole run."""

from pathlib import Path

import pytest
import torch

import lowbit
from lowbit import checkpoints, formats
from lowbit.checkpoints import Folder
from lowbit.checkpoints.folder import shard as shards
from lowbit.kernels import scales
from lowbit.solvers import grid, replayed
from lowbit.statistics import second_moment
from lowbit.testing._tiny import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
TOKENIZER = Path(__file__).parents[2] / "models" / "lowbit-tiny"


def test_tensors_come_to_the_gpu_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TOGETHER", 10_000)
    wanted = {"long": torch.randn(300, 777).bfloat16(), "short": torch.arange(5), "none": torch.empty(0, 3)}
    checkpoints.write_shard(tmp_path / "a.safetensors", wanted)
    with checkpoints.Shard(tmp_path / "a.safetensors") as shard:
        for name, value in wanted.items():
            found = shard.tensor(name, torch.device("cuda"))
            assert found.is_cuda and torch.equal(found.cpu(), value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_second_moment_is_that_of_float64(dtype: torch.dtype) -> None:
    x = (torch.randn(9000, 2500, device="cuda") * torch.rand(2500, device="cuda").exp()).to(dtype)
    collector = second_moment.collector(2500, x.device)
    for part in x.split(4000):
        collector.add(part, None)
    exact = x.double().T @ x.double() / len(x)
    assert (collector.result().double() - exact).norm() < 1e-4 * exact.norm()
    assert torch.equal(collector.result(), collector.result().T)


@pytest.mark.parametrize(
    "text", ["int4-g128", "int4-g128-asym", "int3-g64-asym", "int2-g32", "int8-g128-asym", "int4-g32-fp16"]
)
def test_searched_scales_lose_as_little_as_on_the_cpu(text: str) -> None:
    format, w, importance = formats.parse(text), torch.randn(130, 512), torch.rand(512) ** 3
    w[3, :128], w[4] = 0.0, w[4].abs()
    ours, theirs = scales.fit(format, w.cuda(), importance.cuda()), format.fit(w, importance)
    losses = [
        float(((g.quantize(x).decode().cpu() - w).square() * importance).sum()) for g, x in ((ours, w.cuda()), (theirs, w))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


@pytest.mark.parametrize("text", ["int4-g128", "int3-g64-asym", "nf4-g64", "e4m3-row", "lut3-row", "int4-g64-floatzero"])
def test_a_solved_matrix_is_as_good_as_on_the_cpu(text: str) -> None:
    torch.manual_seed(0)
    seen, w = torch.randn(2000, 512) @ torch.randn(512, 512), torch.randn(200, 512)
    moment, errors = seen.T @ seen / 2000, []
    for device in ("cpu", "cuda"):
        found = grid.solve(w.to(device), grid.problem(moment.to(device), 2000), formats.parse(text))
        off = found.decode().cpu() - w
        errors.append(float(((off @ moment) * off).sum()))
        assert found.report["error"] == pytest.approx(errors[-1] / float(((w @ moment) * w).sum()), rel=1e-2)
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


@pytest.mark.parametrize("text", ["int4-g128", "int3-g64-asym"])
def test_a_graph_gives_the_bits_that_its_launches_give(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    format, found = formats.parse(text), []
    replayed.forget()  # what other tests solved
    for graphs in (True, False):
        if not graphs:
            monkeypatch.setattr(replayed, "refusal", lambda tensor: "no graphs")
        for seed in range(4):
            torch.manual_seed(seed)
            seen, w = torch.randn(3000, 1024, device="cuda") * torch.rand(1024, device="cuda"), torch.randn(900, 1024)
            found.append(grid.solve(w.cuda(), grid.problem(seen.T @ seen / 3000, 3000), format))
        assert [graph is not None for graph in replayed._graphs.values()] == [True] and not replayed._failed
    replayed.forget()
    for one, other in zip(found[:4], found[4:], strict=True):
        assert torch.equal(one.codes, other.codes) and one.report == other.report
        assert all(torch.equal(one.parts[name], part) for name, part in other.parts.items())


def test_a_run_that_was_cut_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    tiny("llama", vocab_size=8192, num_hidden_layers=3).to(torch.bfloat16).save_pretrained(model)
    for path in TOKENIZER.glob("tokenizer*"):
        (model / path.name).write_bytes(path.read_bytes())
    settings = {"samples": 6, "length": 64, "device": "cuda"}
    lowbit.quantize(str(model), "awq + gptq(int4-g32)", str(tmp_path / "whole"), **settings)  # type: ignore[arg-type]
    write = lowbit.pipeline.writer.Writer.write

    def cut(self: object, index: int, *args: object, **more: object) -> None:
        if index == 2:
            raise KeyboardInterrupt
        write(self, index, *args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lowbit.pipeline.writer.Writer, "write", cut)
        lowbit.quantize(str(model), "awq + gptq(int4-g32)", str(tmp_path / "cut"), **settings)  # type: ignore[arg-type]
    lowbit.quantize(str(model), "awq + gptq(int4-g32)", str(tmp_path / "cut"), **settings)  # type: ignore[arg-type]
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == two
    assert set(checkpoints.Stored(Folder(tmp_path / "cut")).formats)
