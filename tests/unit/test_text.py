"""Texts that calibrate: mixtures, and what is refused before any is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit.core.errors import CalibrationError
from lowbit.pipeline import text
from lowbit.pipeline.source import tokenizer_of


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    return tokenizer_of(tiny_llama)


def test_each_text_of_a_mixture_gives_as_many_windows(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.txt").write_text("a" * 500)
    (tmp_path / "b.txt").write_text("b" * 40)
    mixed = text.calibration(f"{tmp_path}/a.txt+{tmp_path}/b.txt", tokenizer, 16, 10).tokens
    alone = [text.calibration(f"{tmp_path}/{name}.txt", tokenizer, 16, 5).tokens for name in "ab"]
    assert [len(tokens) for tokens in alone] == [5, 2]  # all that b has
    assert torch.equal(mixed, torch.cat(alone))
    assert len(text.calibration(f"{tmp_path}/a.txt+bundled", tokenizer, 16, 3).tokens) == 3


def test_a_file_with_a_plus_in_its_name_is_one_text(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a+b.txt").write_text("a" * 100)
    assert text.several(f"{tmp_path}/a+b.txt") == [f"{tmp_path}/a+b.txt"]
    assert len(text.calibration(f"{tmp_path}/a+b.txt", tokenizer, 16).tokens) == 6


def test_the_model_writes_its_share_or_the_bundled_text_stands_for_it(tokenizer: Any) -> None:
    def write(count: int) -> text.Windows:
        return text.Windows("generated", torch.full((count, 16), 7))

    found = text.calibration("bundled+generated", tokenizer, 16, 4, write).tokens
    assert torch.equal(found[2:], torch.full((2, 16), 7)) and not torch.equal(found[:2], found[2:])
    twice = text.calibration("bundled+generated", tokenizer, 16, 4).tokens
    assert torch.equal(twice[:2], twice[2:])


def test_every_text_of_a_mixture_must_be_there(tmp_path: Path) -> None:
    text.admit("bundled+generated")
    with pytest.raises(CalibrationError, match=r"none\.txt: there is no such file"):
        text.admit(f"bundled+{tmp_path}/none.txt")
