"""examples/train_tiny.py runs on any machine and writes a model that can be used."""

import itertools
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
tiny = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "train_tiny.py")))


def test_it_trains_and_writes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(3):
        words = [f"The number {n} is {n % (i + 2)} more than it was, he said to her." for n in range(300)]
        (texts / f"{i}.txt").write_text("\n\n".join(words))
    tiny.main(texts, tmp_path / "out", steps=12, batch=4, length=32, vocabulary=320, peak=1e-2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16 and tokenizer("He", return_tensors="pt").input_ids[0, 0] == 0
    assert tokenizer.decode(tokenizer("The number 7").input_ids, skip_special_tokens=True) == "The number 7"
    told = capsys.readouterr().out
    first, last = (float(line.split()[3]) for line in told.splitlines() if line.startswith("step"))
    assert last < first - 1


def test_paragraphs_are_kept_once() -> None:
    assert list(tiny.once(["a\n\nb", "b\n\n a", "c\n\na"])) == ["a\n\nb", "c"]


def test_learning_rate() -> None:
    rates = [tiny.rate(step, 7197, 2.5e-3) for step in range(7197)]
    assert rates[199] == rates[2000] == 2.5e-3 == max(rates)
    assert rates[0] == pytest.approx(2.5e-3 / 200) and rates[-1] == pytest.approx(5e-5, rel=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[199:]))


def test_windows_begin_with_the_begin_token_and_cover_the_text() -> None:
    batches = tiny.windows(torch.arange(1, 41, dtype=torch.int32), 2, 6, 0)
    seen = torch.cat([next(batches) for _ in range(3)])
    assert (seen[:, 0] == 0).all()
    assert (seen[:, 2:] - seen[:, 1:-1] == 1).all()
    assert len(set(seen[:, 1].tolist())) == 6


def test_the_shape_and_the_tokenizer_are_lowbit_tinys(lowbit_tiny: Path) -> None:
    model = tiny.make_model(8192, 2048)
    config = json.loads((lowbit_tiny / "config.json").read_text())
    ours = model.config.to_dict()
    skipped = {"dtype", "architectures", "transformers_version"}
    assert {k: ours[k] for k in config.keys() - skipped} == {k: config[k] for k in config.keys() - skipped}
    assert sum(p.numel() for p in model.parameters()) == 12_587_904
    theirs = json.loads((lowbit_tiny / "tokenizer.json").read_text())
    made = json.loads(tiny.train_tokenizer(["a b"], 300).to_str())
    for part in ("pre_tokenizer", "post_processor", "added_tokens", "normalizer"):
        assert made[part] == theirs[part]
