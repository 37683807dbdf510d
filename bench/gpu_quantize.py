"""gpu_quantize - seconds to quantize random weights of Llama-3-8B's exact shapes on NVIDIA GPUs, memory to memory, by phase.

    python bench/gpu_quantize.py [--recipe "gptq(int4-g128)"] [--blocks 32] [--windows 128] [--profile 2] [--kernels]
    torchrun --nproc_per_node=2 bench/gpu_quantize.py ...

The checkpoint lies in shared memory, and so does what is written. Four blocks are drawn; the file's header gives the others the
same bytes, so that 32 blocks take the room of four: each is read, checked and rounded as a block of its own. A small model is
quantized first. The second pass (--profile N blocks) waits for the GPU at the border of each phase, which costs time, and reads
and writes in turn: its shares count, not its sum.
"""

import argparse
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "true"  # as it is where nobody says otherwise

import torch
from _rows import keep

import lowbit
from lowbit.core import device as devices
from lowbit.core import ranks
from lowbit.formats import Format
from lowbit.kernels import scales
from lowbit.methods.awq import AWQ
from lowbit.pipeline import blocks, closing, quantize, solving, stream, writer
from lowbit.pipeline.beside import Beside
from lowbit.pipeline.progress import Silent
from lowbit.solvers import damping, descent, ldl
from lowbit.statistics import Collecting

SHAPE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
TINY = {
    **SHAPE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
}
DRAWN = 4
TOKENIZER = Path(__file__).parent.parent / "models" / "lowbit-tiny"


def checkpoint(folder: Path, shape: dict[str, Any], count: int, device: str) -> int:
    """A random bfloat16 checkpoint of `count` blocks, of which DRAWN are drawn. Bytes that its header promises."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    config = LlamaConfig(**shape, num_hidden_layers=count, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    for path in TOKENIZER.glob("tokenizer*"):
        shutil.copy(path, folder)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in LlamaForCausalLM(config).named_parameters()}
    places: dict[str, dict[str, Any]] = {}
    position = 0
    for name, size in shapes.items():
        twin = places.get(_twin(name))
        bytes_ = 2 * torch.Size(size).numel()
        told = {"dtype": "BF16", "shape": list(size), "data_offsets": [position, position + bytes_]}
        places[name] = twin or told
        position += 0 if twin else bytes_
    header = json.dumps(places).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, size in shapes.items():
            if _twin(name) == name:
                drawn = torch.randn(size, device=device).mul_(0.02) if len(size) > 1 else torch.ones(size, device=device)
                file.write(drawn.bfloat16().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return 2 * sum(torch.Size(size).numel() for size in shapes.values())


def _twin(name: str) -> str:
    """The drawn tensor that stands for `name`."""
    words = name.split(".")
    return ".".join(str(int(word) % DRAWN) if word.isdigit() else word for word in words)


def words(path: Path, windows: int, length: int) -> None:
    """A text of random words with enough tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    ids = torch.randint(300, 8000, (windows, int(1.3 * length))).tolist()
    path.write_text("\n".join(tokenizer.batch_decode(ids)), encoding="utf-8")


class Told(Silent):
    """Prints when what was done."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def _say(self, text: str) -> None:
        print(f"{time.perf_counter() - self._begun:8.2f} s  {text}", flush=True)

    def start(self, what: str, blocks: int) -> None:
        self._say(f"{what} begins")

    def block(self, index: int, error: float | None, seconds: float) -> None:
        self._say(f"step {index}" + ("" if error is None else f", error {error:.5f}"))

    def end(self) -> None:
        self._say("it ends")


class Phases:
    """Seconds by phase, each without those inside it; waits for the GPU at every border."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def _turn(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def around(self, owner: Any, name: str, phase: str) -> Callable[[], None]:
        """Count the calls of a function as a phase; gives what undoes it."""
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                return plain(*args, **kwargs)

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, plain)


PLACES = [
    (quantize.Run, "calibration", "tokenize"), (quantize.Run, "enter", "enter"), (blocks, "load", "load"),
    (stream.Paused, "_go", "forward"), (Collecting, "add", "moments"), (Collecting, "stats", "moments"),
    (damping, "factorise", "factor"), (scales, "fit", "scale search"), (Format, "fit", "scale search"),
    (ldl, "solve", "column loop"),
    (descent, "sweep", "sweeps"), (descent, "refit", "refit"), (ldl, "loss", "loss"), (solving, "solve", "solve, rest"),
    (writer.Writer, "write", "pack, write, read back"), (closing, "measure", "check"), (AWQ, "rewrite", "awq"),
]  # fmt: skip


def run(wanted: argparse.Namespace, folder: Path, text: Path) -> Any:
    """One quantization; its result."""
    name = "".join(c if c.isalnum() else "-" for c in f"{wanted.recipe} {os.environ.get('WORLD_SIZE', 1)}")
    out = folder.parent / name
    result = lowbit.quantize(
        str(folder),
        wanted.recipe,
        str(out),
        calibration=str(text),
        samples=wanted.windows,
        length=wanted.length,
        device=wanted.device,
        progress=Told(),
    )
    ranks.meet()  # all have looked into it
    if ranks.mine() == 0:
        shutil.rmtree(out)
    ranks.meet()  # nobody begins anew before it is gone
    return result


def profile(wanted: argparse.Namespace, folder: Path, text: Path) -> dict[str, float]:
    """Seconds by phase; reading and writing are done in turn, not beside."""
    phases, undo = Phases(), []
    plain = Beside.__init__

    def inline(self: Beside, device: torch.device) -> None:
        plain(self, torch.device("cpu"))

    Beside.__init__ = inline  # type: ignore[method-assign]
    refit = descent.refit
    for owner, name, phase in PLACES:
        undo.append(phases.around(owner, name, phase))
    from lowbit.solvers import grid

    defaults: Any = grid.solve.__kwdefaults__
    defaults["refit"] = descent.refit
    with phases.phase("rest"):
        run(wanted, folder, text)
    for back in undo:
        back()
    defaults["refit"] = refit
    Beside.__init__ = plain  # type: ignore[method-assign]
    return {name: round(seconds, 3) for name, seconds in sorted(phases.seconds.items(), key=lambda item: -item[1])}


def moment_error(device: str) -> float:
    """Relative error of a second moment of 16,384 bfloat16 tokens, 4096 inputs, against float64."""
    from lowbit.statistics import second_moment

    x = (torch.randn(16384, 4096, device=device) * torch.rand(4096, device=device).exp()).bfloat16()
    collector = second_moment.collector(4096, torch.device(device))
    collector.add(x, None)
    exact = x.double().T @ x.double() / len(x)
    return float((collector.result().double() - exact).norm() / exact.norm())


def kernels(wanted: argparse.Namespace, folder: Path, text: Path) -> None:
    """What the GPU did, kernel by kernel, in a run of as many blocks as the profile."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    with watch(activities=[ProfilerActivity.CUDA]) as watched:
        run(wanted, folder, text)
    rows = sorted(watched.key_averages(), key=lambda row: -row.self_device_time_total)[:40]
    for row in rows:
        print(f"{row.self_device_time_total / 1e3:10.1f} ms {row.count:8} {row.key[:150]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="gptq(int4-g128)")
    parser.add_argument("--blocks", type=int, default=32, help="0: no whole run")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--profile", type=int, default=0, metavar="BLOCKS")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small matrices, to try the command without a GPU")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints, and use those that are there")
    parser.add_argument("--folder", default="/dev/shm/lowbit")
    wanted = parser.parse_args()
    shape, rank, room = TINY if wanted.tiny else SHAPE, int(os.environ.get("RANK", "0")), Path(wanted.folder)
    counts = [n for n in dict.fromkeys([wanted.blocks, wanted.profile]) if n]
    if rank == 0 and not (wanted.keep and (room / "ready").exists()):
        shutil.rmtree(room, ignore_errors=True)
        checkpoint(room / "small", TINY, 2, wanted.device)
        for count in counts:
            checkpoint(room / f"model-{count}", shape, count, wanted.device)
        words(room / "text.txt", wanted.windows, wanted.length)
        (room / "ready").touch()
    while not (room / "ready").exists():
        time.sleep(0.1)
    short = argparse.Namespace(**{**vars(wanted), "windows": 8, "length": 256})
    run(short, room / "small", room / "text.txt")  # libraries loaded, kernels compiled
    told: dict[str, Any] = {"recipe": wanted.recipe, "windows": wanted.windows, "length": wanted.length}
    told["gpus"] = int(os.environ.get("WORLD_SIZE", "1"))
    devices.throughput(torch.device(wanted.device))
    if wanted.blocks:
        whole(wanted, shape, room / f"model-{wanted.blocks}", told, rank)
    if wanted.profile:
        folder = room / f"model-{wanted.profile}"
        run(wanted, folder, room / "text.txt")
        phases = profile(wanted, folder, room / "text.txt")
        if rank == 0:
            keep("gpu_quantize", **told, profiled_blocks=wanted.profile, phases=phases)
        if wanted.kernels:
            kernels(wanted, folder, room / "text.txt")
    if rank == 0 and not wanted.keep:
        shutil.rmtree(room)


def whole(wanted: argparse.Namespace, shape: dict[str, Any], folder: Path, told: dict[str, Any], rank: int) -> None:
    """A whole run and its row."""
    result = run(wanted, folder, folder.parent / "text.txt")
    if rank:
        return
    weights = sum(a * b for a, b in _matrices(shape)) * wanted.blocks
    error = sum(float(row["error"]) for row in result.layers) / len(result.layers)
    figures = {"blocks": wanted.blocks, "seconds": result.seconds, "weights_per_second": round(weights / result.seconds)}
    figures |= {"mean_error": round(error, 6), "kl": result.check["kl"], "bits": result.bits_per_weight}
    if wanted.device == "cuda":
        figures |= {"gpu_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1)}
        figures |= {"moment_error": moment_error(wanted.device)}
    keep("gpu_quantize", **told, **figures)


def _matrices(shape: dict[str, Any]) -> list[tuple[int, int]]:
    """The matrices of a block."""
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    narrow = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    return [
        (hidden, hidden),
        (narrow, hidden),
        (narrow, hidden),
        (hidden, hidden),
        (wide, hidden),
        (wide, hidden),
        (hidden, wide),
    ]


if __name__ == "__main__":
    main()
