"""The embedding and the output head, quantized: what is written, what loads it, what a kill leaves, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import lowbit
from lowbit import checkpoints, formats
from lowbit.checkpoints.folder import Folder
from lowbit.core.errors import CheckpointError, RecipeError
from lowbit.kernels import packing
from lowbit.layers.embedding import QuantizedEmbedding, cut, readable, scale_of
from lowbit.layers.linear import QuantizedLinear
from lowbit.pipeline import text
from lowbit.pipeline.source import tokenizer_of
from lowbit.pipeline.writer import Writer
from lowbit.testing._tiny import tiny
from lowbit.testing.killing import KillAfter, Killed, digest

SMALL: dict[str, Any] = {"samples": 3, "length": 48}
BODY = "rtn(int4-g32)"
HEAD, EMBED = "gptq(int6-g32)@head", "rtn(int8-row)@embed"
TOKENS = torch.arange(3, 43)[None]


@pytest.fixture(scope="module")
def models(_tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small random models by name, each with the byte tokenizer of the tiny Llama."""
    kinds: dict[str, tuple[str, bool]] = {
        "tied": ("llama", True), "untied": ("llama", False), "gemma2": ("gemma2", True), "gemma3": ("gemma3_text", True),
    }  # fmt: skip
    found = {}
    for name, (kind, tied) in kinds.items():
        folder = tmp_path_factory.mktemp("models") / name
        model = tiny(kind, vocab_size=258, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1)
        model.to(torch.bfloat16).save_pretrained(folder)
        for file in _tiny_llama.glob("token*"):
            shutil.copy(file, folder / file.name)
        found[name] = folder
    return found


def decoded(folder: Path, to: Path, rounded: torch.dtype = torch.float32) -> Any:
    """The folder's model with every packed matrix as plain floats (rounded to a dtype), loaded by transformers alone."""
    source = Folder(folder)
    stored = checkpoints.Stored(source)
    packed = set(stored.formats)
    tensors = {
        n: stored.tensor(n).float() for n in stored.names if n.removesuffix(".weight").partition(".weight_")[0] not in packed
    }
    tensors |= {f"{m}.weight": stored.quantized(m).decode().to(rounded).float() for m in packed}
    to.mkdir()
    settings = {k: v for k, v in source.settings.items() if k != "quantization_config"} | {"dtype": "float32"}
    (to / "config.json").write_text(json.dumps(settings))
    save_file({n: t.contiguous() for n, t in tensors.items()}, to / "model.safetensors", metadata={"format": "pt"})
    model, told = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS, use_cache=False).logits
    return found


@pytest.mark.parametrize(
    ("name", "steps"),
    [("tied", (HEAD,)), ("tied", (EMBED,)), ("untied", (HEAD, EMBED)), ("gemma2", (HEAD,)), ("gemma3", (HEAD, EMBED))],
    ids=["tied-head", "tied-embed", "untied-both", "gemma2-head", "gemma3-both"],
)
def test_the_folder_is_the_model_that_its_floats_make(
    models: dict[str, Path], tmp_path: Path, name: str, steps: tuple[str, ...]
) -> None:
    sentence = " + ".join([BODY, *steps])
    promised = lowbit.quantize(str(models[name]), sentence, str(tmp_path / "out"), dry_run=True, **SMALL)
    result = lowbit.quantize(str(models[name]), sentence, str(tmp_path / "out"), **SMALL)
    folder = Folder(tmp_path / "out")
    assert folder.settings["tie_word_embeddings"] is False
    assert folder.settings["quantization_config"]["quant_method"] == ("lowbit" if EMBED in steps else "compressed-tensors")
    wanted = logits(decoded(tmp_path / "out", tmp_path / "floats"))
    ours = lowbit.load(tmp_path / "out", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(ours), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(theirs), wanted, rtol=1e-4, atol=1e-4)
    ends = [type(ours.get_input_embeddings()), type(ours.get_output_embeddings())]
    assert (ends[0] is QuantizedEmbedding, ends[1] is QuantizedLinear) == (EMBED in steps, HEAD in steps)
    for model, place in ((ours, "ours"), (theirs, "theirs")):
        if EMBED in steps:  # files of compressed-tensors are saved by transformers' own code
            model.save_pretrained(tmp_path / place)
            again = lowbit.load(tmp_path / place, dtype=torch.float32)
            assert torch.equal(logits(again), logits(ours))
    written = sum(folder.bytes_of(n) for n in folder.names if not n.endswith("weight_shape"))
    assert written == promised.bytes
    assert {row["name"] for row in promised.outlook["layers"]} == {row["name"] for row in result.layers}
    assert {row["role"] for row in result.layers if "role" in row} == {step.partition("@")[2] for step in steps}
    assert {row["name"] for row in lowbit.inspect(str(tmp_path / "out"))["layers"]} == {r["name"] for r in result.layers}


@pytest.mark.parametrize(("body", "head"), [("int4-g32-asym", "int4-g32-asym"), ("int4-g32", "fp8-row")])
def test_a_head_alike_or_unlike_the_blocks_is_read_by_transformers_alone(
    models: dict[str, Path], tmp_path: Path, body: str, head: str
) -> None:
    lowbit.quantize(str(models["untied"]), f"rtn({body}) + rtn({head}, search=mse)@head", str(tmp_path / "out"), **SMALL)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "compressed-tensors" and "lm_head" not in settings["ignore"]
    assert any("lm_head" in group["targets"] for group in settings["config_groups"].values())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    # of zero points transformers makes floats at once, in the scales' dtype
    told = decoded(tmp_path / "out", tmp_path / "floats", torch.bfloat16 if "asym" in head else torch.float32)
    torch.testing.assert_close(logits(theirs), logits(told), rtol=1e-4, atol=1e-4)


def test_the_head_is_solved_on_the_inputs_that_it_gets(models: dict[str, Path], tmp_path: Path) -> None:
    folder = str(models["gemma3"])
    result = lowbit.quantize(folder, f"{BODY} + gptq(int3-g32)@head + {EMBED}", str(tmp_path / "out"), **SMALL)
    plain = lowbit.quantize(folder, f"{BODY} + rtn(int3-g32)@head + {EMBED}", str(tmp_path / "plain"), **SMALL)
    model = decoded(tmp_path / "out", tmp_path / "floats")
    windows = text.windows("bundled", text.read("bundled"), tokenizer_of(models["gemma3"]), SMALL["length"], SMALL["samples"])
    seen: list[Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(windows.tokens, use_cache=False)
    original = lowbit.load(folder, dtype=torch.float32).lm_head.weight
    x, solved = torch.cat(seen), model.lm_head.weight.detach()

    def error(weight: Tensor) -> float:
        return float((x @ (weight - original).T).square().sum() / (x @ original.T).square().sum())

    row = result.layers[-1]
    assert row["name"] == "lm_head" and row["tokens"] == len(x) == 144
    assert row["error"] == pytest.approx(error(solved), rel=1e-3)
    assert error(solved) < 0.8 * error(lowbit.load(tmp_path / "plain").lm_head.quantized().decode())
    assert plain.layers[0]["name"] == "model.embed_tokens"


def test_the_closing_check_measures_both_ends_as_they_are_stored(models: dict[str, Path], tmp_path: Path) -> None:
    sentence = "rtn(int8-row) + rtn(int2-g32)@head + rtn(int2-g32)@embed"
    result = lowbit.quantize(str(models["tied"]), sentence, str(tmp_path / "out"), length=48)
    told = lowbit.evaluate(str(tmp_path / "out"), str(models["tied"]), text=["bundled"], windows=4)
    assert result.check["kl"] > 0.1
    assert result.check["kl"] == pytest.approx(told["texts"]["bundled"]["kl"], rel=1e-3)


RESUMED = f"gptaq(int4-g32) + gptaq(int3-g32)@head + {EMBED}"


@pytest.fixture(scope="module")
def whole(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    lowbit.quantize(str(models["gemma2"]), RESUMED, str(out), **SMALL)
    return digest(out)


@pytest.mark.parametrize("steps", [1, 3])
def test_resume_gives_the_same_bytes(models: dict[str, Path], whole: str, tmp_path: Path, steps: int) -> None:
    with pytest.raises(Killed):
        lowbit.quantize(str(models["gemma2"]), RESUMED, str(tmp_path / "out"), progress=KillAfter(steps), **SMALL)
    lines = (tmp_path / "out.partial" / "journal.jsonl").read_text().splitlines()
    order = ["model.embed_tokens", "model.layers.0", "model.layers.1", "lm_head"]
    assert [json.loads(line)["step"] for line in lines[1:]] == order[:steps]
    lowbit.quantize(str(models["gemma2"]), RESUMED, str(tmp_path / "out"), **SMALL)
    assert digest(tmp_path / "out") == whole


@pytest.mark.parametrize("moment", ["write_end", "join"])
def test_a_kill_between_a_file_and_its_note_is_mended(
    models: dict[str, Path], whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real = getattr(Writer, moment)

    def dies(self: Writer, *arguments: Any) -> None:
        real(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Writer, moment, dies)
        with pytest.raises(Killed):
            lowbit.quantize(str(models["gemma2"]), RESUMED, str(tmp_path / "out"), **SMALL)
    lowbit.quantize(str(models["gemma2"]), RESUMED, str(tmp_path / "out"), **SMALL)
    assert digest(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        (
            f"{BODY} + gptq(int4-g32)@embed",
            r"gptq\(int4-g32\)@embed: it wants second_moment .* Use rtn\(int4-g32, search=mse\)@embed",
        ),
        (f"{BODY} + rtn(int4-g32, search=weighted)@embed", "embed_tokens is looked up"),
        (f"awq(int4-g32)@head + {BODY}", r"awq\(int4-g32\)@head: awq works on decoder blocks, lm_head is in none"),
    ],
)
def test_what_an_end_cannot_take_is_told_before_work(
    models: dict[str, Path], tmp_path: Path, sentence: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        lowbit.quantize(str(models["tied"]), sentence, str(tmp_path / "out"), **SMALL)
    assert not list(tmp_path.glob("out*"))


def test_a_model_whose_head_is_no_linear_says_so(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda self: None)
    with pytest.raises(RecipeError, match=r"@head: this selects none of the model's 15 linears\. It has embed, attn, mlp"):
        lowbit.quantize(str(models["tied"]), f"{BODY} + rtn(int4-g32)@head", str(tmp_path / "out"), **SMALL)


def test_nan_in_the_embedding_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(models["untied"], tmp_path / "broken"))
    tensors = {n: Folder(broken).tensor(n) for n in Folder(broken).names}
    tensors["model.embed_tokens.weight"][3, 5] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight: 1 of 16512 values are NaN"):
        lowbit.quantize(str(broken), f"{BODY} + {EMBED}", str(tmp_path / "out"), **SMALL)


@pytest.mark.parametrize("name", [*formats.examples(), "int5-row-asym", "int6-g128"])
def test_rows_are_those_of_the_whole_matrix(name: str) -> None:
    format = formats.parse(name)
    if readable(format):
        pytest.skip(readable(format))
    weight, rows = torch.randn(259, 256), torch.tensor([0, 258, 31, 32, 32, 200])
    quantized = format.fit(weight, search=False).quantize(weight)
    assert torch.equal(cut(format, packing.pack(quantized), quantized.shape, rows), quantized.decode()[rows])


def test_moves_leave_codes_and_scales_and_change_what_comes_out() -> None:
    weight, format = torch.randn(40, 64), formats.parse("int4-g32-asym")
    quantized = format.fit(weight, search=False).quantize(weight)
    layer = QuantizedEmbedding(format, (40, 64), packing.pack(quantized), scale=7.3)
    before = layer.stored()
    half = torch.tensor(7.3).bfloat16()
    assert torch.equal(layer(torch.tensor([[1, 39]]))[0, 1], quantized.decode()[39] * 7.3)
    rows = layer.to(torch.bfloat16)(torch.tensor([2]))
    assert torch.equal(rows[0], quantized.decode()[2].bfloat16() * half)
    assert all(torch.equal(t, before[n]) and t.dtype == before[n].dtype for n, t in layer.stored().items())
    with pytest.raises(IndexError):
        layer(torch.tensor([-1]))


def test_an_embedding_that_does_more_than_look_up_is_not_offered() -> None:
    class Normed(torch.nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return torch.nn.functional.layer_norm(super().forward(ids), (4,))

    assert scale_of(Normed(3, 4)) is None and scale_of(torch.nn.Embedding(3, 4)) == 1.0
