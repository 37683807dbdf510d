"""A text tokenized in pieces gives the tokens of the whole."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lowbit.pipeline import text, tokenizing

TOKENIZER = Path(__file__).parents[2] / "models" / "lowbit-tiny"


class Counting:
    """A tokenizer that counts its calls; restless: no two of its tokens are the same."""

    is_fast = True

    def __init__(self, restless: bool = False) -> None:
        self._plain = AutoTokenizer.from_pretrained(TOKENIZER)
        self._restless = restless
        self.calls: list[int] = []

    def __call__(self, told: str | list[str], **how: Any) -> dict[str, Any]:
        self.calls.append(1 if isinstance(told, str) else len(told))
        found = dict(self._plain(told, **how))
        if self._restless and not isinstance(told, str):
            found["input_ids"] = [[n * 10**6 + i for i in ids] for n, ids in enumerate(found["input_ids"])]
        return found


@pytest.fixture
def long_text() -> str:
    words = text.read("bundled")[:20000]
    return words + " ".join(["a"] * 500) + "\n\n" * 20 + "\u00e9\u4e16\U0001f600" * 200 + words[::-1]


@pytest.mark.parametrize(("piece", "overlap"), [(1000, 200), (3777, 500)])
def test_pieces_give_the_tokens_of_the_whole(long_text: str, monkeypatch: pytest.MonkeyPatch, piece: int, overlap: int) -> None:
    monkeypatch.setattr(tokenizing, "PIECE", piece)
    monkeypatch.setattr(tokenizing, "OVERLAP", overlap)
    tokenizer = Counting()
    found = tokenizing.ids(tokenizer, long_text)
    assert tokenizer.calls == [-(-len(long_text) // piece)]
    assert found == tokenizer(long_text, add_special_tokens=False)["input_ids"]


def test_pieces_that_never_agree_are_left(long_text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "PIECE", 4000)
    tokenizer = Counting(restless=True)
    found = tokenizing.ids(tokenizer, long_text)
    assert len(tokenizer.calls) == 2 and found == Counting()(long_text, add_special_tokens=False)["input_ids"]


def test_a_short_text_is_taken_whole() -> None:
    tokenizer = Counting()
    assert tokenizing.ids(tokenizer, "A short text.") and tokenizer.calls == [1]
