"""The program: its surface, its help, its exit codes, its two streams. Runs are real, on a model of two blocks."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit.cli import _bar, _progress, main
from lowbit.cli._ending import bug, guarded
from lowbit.cli._output import Output, plain
from lowbit.core.errors import CapacityError, CheckpointError, RecipeError

SURFACE = Path(__file__).with_name("surface.json")
WORDS = "The wind was up before the sun, and the boats lay on their sides in the mud. " * 40


@pytest.fixture
def lowbit(capfd, monkeypatch):
    """Run the program in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lowbit", *map(str, arguments)])
        hook = sys.excepthook
        try:
            main.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            sys.excepthook = hook
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def text(tmp_path):
    """A text of a few windows."""
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


def one_object(out):
    """What stdout holds, which must be one object and nothing else."""
    assert out.count("\n") == 1 and out.endswith("\n")
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert isinstance(found, dict)
    return found


def surface():
    """Every command with its arguments and options as they are typed."""
    group = main.typer.main.get_command(main.app)
    context = group.make_context("lowbit", ["list"])
    found = {"": [option for p in group.params for option in p.opts]}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found[name] = [" / ".join([*p.opts, *p.secondary_opts]) for p in command.params]
    return found


def test_surface_is_frozen():
    assert surface() == json.loads(SURFACE.read_text())


def test_help_lists_every_command_and_imports_none():
    code = (
        "import sys; from lowbit.cli import main; sys.argv = ['lowbit', '--help']\n"
        "try: main.main()\nexcept SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('lowbit.cli.') or m in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for name in main.commands():
        assert any(re.match(rf"  {name} +[A-Z].*\.$", line) for line in lines), name
    assert lines[-1] == "['lowbit.cli._ending', 'lowbit.cli.main']"


@pytest.mark.parametrize("arguments", [[name, "--help"] for name in main.commands()])
def test_help_of_every_command(lowbit, arguments):
    code, out, _ = lowbit(*arguments)
    assert code == 0
    assert f"  lowbit {arguments[0]}" in out and "--json" in out
    assert max(map(len, out.splitlines())) <= 90


def test_version(lowbit):
    code, out, _ = lowbit("--version")
    assert code == 0 and re.fullmatch(r"\d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["quantise"], 2, "Unknown command 'quantise'. Nearest: quantize"),
        (["quantize"], 2, "Missing argument 'MODEL'"),
        (["quantize", "x", "--sampels", "3"], 2, "--sampels"),
        (["quantize", "x", "--samples", "0"], 2, "--samples"),
    ],
)
def test_usage_errors(lowbit, arguments, code, message):
    found, out, err = lowbit(*arguments)
    assert (found, out) == (code, "") and message in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 3, "error: nowhere: there is no such folder. Give a model folder or a Hub id such as owner/name."),
        (
            ["MODEL", "gtpq(int4-g128)"],
            2,
            "error: Unknown method 'gtpq'. Nearest: gptq, gptaq, spqr. 'lowbit list methods' shows all.",
        ),
        (
            ["MODEL", "balancd"],
            2,
            "error: Unknown preset or method 'balancd'. Nearest: balanced, balanced-8bit, balanced-3bit. "
            "'lowbit list presets' and 'lowbit list methods' show all.",
        ),
        (
            ["MODEL", "gptq(int4-g100)"],
            2,
            "error: gptq(int4-g100) cannot take model.layers.0.self_attn.q_proj [128, 128]: "
            "group 100 does not divide 128 inputs. Use g128, g64, g32, g16 or row.",
        ),
        (
            ["MODEL", "rtn(int4-g128) + act(int8-g100)"],
            2,
            "error: act(int8-g100) cannot take the inputs of model.layers.0.self_attn.q_proj: "
            "group 100 does not divide 128 inputs. Use int8-token.",
        ),
        (["README.md"], 3, "error: README.md: this is a file. Give a model folder or a Hub id."),
        (
            ["MODEL", "atom(int4-g64)"],
            2,
            "error: atom(int4-g64): only formats with 8-bit columns are taken. Use int4-g64-byte128.",
        ),
        (["MODEL", "--device", "gpu"], 2, "error: device 'gpu': there is no such kind. Use cpu, cuda or cuda:N."),
        (["MODEL", "--device", "cuda:99"], 2, "error: device 'cuda:99': this machine has"),
        (
            ["MODEL", "--dry-run", "--calibration", "nowhere.txt"],
            3,
            "error: nowhere.txt: there is no such file. Give a text or jsonl file, 'bundled', 'generated' or a datasets name.",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(lowbit, tiny_llama, tmp_path, arguments, code, message):
    out_folder = tmp_path / "out"
    arguments = [str(tiny_llama) if word == "MODEL" else word for word in arguments]
    for json_too in ([], ["--json"]):
        found, out, err = lowbit("quantize", *arguments, "--out", out_folder, *json_too)
        assert (found, out) == (code, "") and err.startswith(message) and err.count("\n") == 1
    assert not out_folder.exists() and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("command", [("quantize", "--dry-run"), ("compare", "rtn(int4-g64)"), ("diagnose",)])
def test_a_place_that_cannot_be_written_to_is_refused(lowbit, tiny_llama, tmp_path, command):
    (tmp_path / "file").write_text("")
    code, out, err = lowbit(command[0], tiny_llama, *command[1:], "--out", tmp_path / "file" / "out")
    assert (code, out) == (3, "")
    assert err == f"error: {tmp_path}/file/out: {tmp_path}/file is a file. Choose another --out.\n"


def test_a_folder_without_a_tokenizer_is_refused_before_any_work(lowbit, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "model")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    code, out, err = lowbit("quantize", tmp_path / "model", "rtn(int4-g64)", "--out", tmp_path / "out")
    assert (code, out) == (3, "") and "no tokenizer can be read" in err and err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_debug_shows_where(lowbit, tiny_llama):
    with pytest.raises(RecipeError, match="Unknown method"):
        lowbit("--debug", "quantize", tiny_llama, "gtpq(int4-g128)")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RecipeError("no"), 2, "error: no\n"),
        (CheckpointError("no"), 3, "error: no\n"),
        (CapacityError("no"), 4, "error: no\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "error: [Errno 28] No space left on device\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.json"), 3, "error: [Errno 2] No such file: 'x.json'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(capsys, error, code, told):
    def run():
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(run, debug=False)()
    assert ended.value.code == code
    assert capsys.readouterr().err == told


def test_a_bug_says_so(capsys):
    bug(KeyError, KeyError("scale"), None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: KeyError: 'scale'" and "--debug" in lines[1] and len(lines) == 2


def test_output_keeps_noise_off_stdout(capfd):
    with Output(as_json=True) as output:
        print("from Python")
        os.write(1, b"from C\n")
        output.say("for readers")
        output.object({"a": float("nan"), "b": [1, {"c": float("inf")}], "d": Path("x")})
    print("afterwards")
    out, err = capfd.readouterr()
    assert out == '{"a": null, "b": [1, {"c": null}], "d": "x"}\nafterwards\n'
    assert "from Python" in err and "from C" in err and "for readers" not in out + err


def test_plain_keeps_what_json_can_say():
    value = {"a": [1, 2.5, True, None, "x"], "b": {}}
    assert plain(value) == value


def test_dry_run_tells_every_layer(lowbit, tiny_llama, tmp_path):
    target = tmp_path / "out"
    code, out, err = lowbit("quantize", tiny_llama, "gptq(int4-g128) + gptq(int8-row)@attn", "--out", target, "--dry-run")
    assert code == 0, err
    rows = [line.split() for line in out.splitlines() if "model.layers." in line]
    assert len(rows) == 14
    assert rows[0][:4] == ["model.layers.0.self_attn.q_proj", "int8-row", "gptq", "8.125"]
    assert rows[6][:4] == ["model.layers.0.mlp.down_proj", "int4-g128", "gptq", "4.125"]
    assert "gptq(int4-g128) + gptq(int8-row)@attn" in out and "peak memory about" in out and "time about" in out
    assert not target.exists()


def test_json_of_every_verb(lowbit, tiny_llama, tmp_path, text, monkeypatch):
    """One real model through all commands; stdout holds one object each time."""
    target, options = tmp_path / "out", ["--calibration", text, "--samples", 4, "--length", 64]
    code, out, err = lowbit("quantize", tiny_llama, "gptq(int4-g128)", "--out", target, *options, "--dry-run", "--json")
    assert code == 0, err
    planned = one_object(out)
    assert len(planned["outlook"]["layers"]) == 14 and planned["outlook"]["peak_memory"] > 0

    code, out, err = lowbit("quantize", tiny_llama, "gptq(int4-g128)", "--out", target, *options, "--json")
    assert code == 0, err
    made = one_object(out)
    assert made["sentence"] == "gptq(int4-g128)" and made["out"] == str(target) and len(made["layers"]) == 14
    assert made["bits_per_weight"] == pytest.approx(4.125) and made["check"]["kl"] > 0
    assert "quantize 2/2" in err
    card = (target / "README.md").read_text()
    assert "gptq(int4-g128)" in card and "## Not measured" in card

    code, out, err = lowbit("quantize", tiny_llama, "gptq(int4-g128)", "--out", target, *options, "--json")
    assert (code, out) == (3, "") and "exists already" in err

    texts = ["--text", text, "--windows", 3, "--length", 64]
    code, out, err = lowbit("evaluate", target, "--against", tiny_llama, *texts, "--json")
    assert code == 0, err
    measured = one_object(out)
    assert measured["bits_per_weight"] == pytest.approx(4.125, abs=0.01)
    assert {"perplexity", "kl", "kl_se", "top1"} <= set(measured["texts"]["words"])

    code, out, err = lowbit("inspect", target, "--json")
    assert code == 0, err
    assert {"name", "format", "bits", "bytes", "kernel"} <= set(one_object(out)["layers"][0])

    code, out, err = lowbit("generate", target, "The wind", "--tokens", 4, "--json")
    assert code == 0, err
    assert set(one_object(out)) == {"model", "prompt", "text"}

    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\nAgain\n"))
    code, out, err = lowbit("chat", target, "--tokens", 3, "--json")
    assert code == 0, err
    assert [m["role"] for m in one_object(out)["messages"]] == ["user", "assistant"] * 2

    code, out, err = lowbit("list", "methods", "--json")
    assert code == 0, err
    assert {"rtn", "gptq", "awq"} <= {row["name"] for row in one_object(out)["methods"]}


def test_json_of_a_process_of_its_own(tiny_llama):
    """Nothing that a library prints, while it loads or when it ends, reaches stdout."""
    command = [sys.executable, "-m", "lowbit", "generate", str(tiny_llama), "The wind", "--tokens", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert one_object(done.stdout)["prompt"] == "The wind"
    assert done.stderr == ""


def test_text_of_the_other_verbs(lowbit, tiny_llama, tmp_path, text):
    """What a reader sees, from the same runs."""
    target = tmp_path / "out"
    code, out, err = lowbit("quantize", tiny_llama, "rtn(int4-g128)", "--out", target)
    assert code == 0, err
    words = ["folder", "recipe", "size", "check", "KL", "took", f"next: lowbit generate {target}"]
    assert all(word in out for word in words), out
    for arguments, word in [
        (["evaluate", target, "--against", tiny_llama, "--text", text, "--windows", 2, "--length", 64], "KL, mnat"),
        (["inspect", target], "model.layers.1.mlp.down_proj"),
        (["generate", target, "The wind", "--tokens", 4], "The wind"),
        (["list"], "architectures   model families"),
        (["list", "presets"], "balanced"),
        (["list", "formats"], "int4-g128-asym        4.156   integers with an integer zero point."),
        (["list", "sides"], "rank      a low-rank matrix"),
        (["list", "kernels"], "reference.dequantize   unpack, decode, multiply"),
    ]:
        code, out, err = lowbit(*arguments)
        assert code == 0, err
        assert word in out
        assert arguments[0] != "list" or not re.search(r"(?m: $)|\A\s*\n|\n\n\Z", out), out


def test_an_interrupted_run_says_how_to_go_on(lowbit, tiny_llama, tmp_path, text, monkeypatch):
    class Interrupting(_progress.Lines):
        def block(self, index, error, seconds):
            raise KeyboardInterrupt

    target = tmp_path / "out"
    calibration = ["--calibration", text, "--samples", 2, "--length", 64]
    arguments = ["quantize", tiny_llama, "gptq(int4-g128)", "--out", target, *calibration]
    with monkeypatch.context() as patch:
        patch.setattr(main.shelf.get("quantize"), "progress", Interrupting)
        code, out, err = lowbit(*arguments)
    assert (code, out) == (130, "") and not target.exists()
    assert err.splitlines()[-1] == "  " + shlex.join(["lowbit", *map(str, arguments)])
    code, out, err = lowbit(*arguments)
    assert code == 0 and target.exists(), err


def test_progress_in_lines(capsys, monkeypatch):
    lines = _progress.Lines()
    lines.start("quantize", 4)
    lines.layer("model.layers.0.mlp.up_proj", 0.01, 1.0)
    lines._start -= 20
    lines.block(0, 0.00312, 9.21)
    lines.block(1, None, 0.4)
    lines.end()
    assert capsys.readouterr().err == "quantize 1/4 · error 0.0031 · 9.2 s · left 1:00\nquantize 2/4 · 0.4 s · left 0:20\n"


def test_progress_as_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar = _bar.Bar()
    bar.start("quantize", 2)
    bar.layer("model.layers.0.mlp.up_proj", 0.0123, 1.0)
    bar._bar.refresh()
    bar.say("a fallback [not markup]")
    bar.block(0, 0.01, 1.0)
    bar._bar.refresh()
    bar.block(1, 0.01, 1.0)
    bar.end()
    out, err = capsys.readouterr()
    assert out == ""
    for word in ("quantize", "1/2", "2/2", "model.layers.0.mlp.up_proj  error 0.0123", "left 0:0", "took 0:0", "[not markup]"):
        assert word in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err), word


@pytest.mark.parametrize(("seconds", "told"), [(4.4, "0:04"), (184, "3:04"), (3723, "1:02:03")])
def test_clock(seconds, told):
    assert _progress.clock(seconds) == told
