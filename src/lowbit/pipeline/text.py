"""text - a text, a jsonl file, a `datasets` name, "generated", "bundled", or several of them joined by + -> windows of tokens.

Idea      One rule for calibration and evaluation (DESIGN.md section 8): the whole text is tokenized once; a window is the
          beginning-of-text token, where the tokenizer has one, followed by the next tokens; windows do not overlap. Of several
          texts each gives the same number of windows, or all that it has.
Defaults  64 windows of 2048 tokens, or of the model's context when that is shorter.
Traps     A text shorter than one window is an error, not a short window: a second moment of few tokens has no rank.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import CalibrationError
from lowbit.pipeline import tokenizing

BUILT_IN = ("bundled", "pydoc")
GENERATED = "generated"
SAMPLES = 64
LENGTH = 2048


@dataclass(frozen=True)
class Windows:
    """Tokens [windows, length] of one text. name: what the user called it. digest: of the tokens, for model cards."""

    name: str
    tokens: Tensor

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.tokens.to(torch.int64).numpy().tobytes()).hexdigest()[:16]


def read(name: str, room: str = "pipeline") -> str:
    """The text called `name`: "bundled", "pydoc", a .txt, .md or .jsonl file, or a datasets name.

    "pydoc" is Python's own documentation; a datasets name is "owner/name" or "owner/name:split". room: whose
    bundled text ("pipeline": for calibration, "evaluation": held out). Raises CalibrationError.
    """
    if name == "bundled":
        return resources.files(f"lowbit.{room}").joinpath("bundled.txt").read_text(encoding="utf-8")
    if name == "pydoc":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[t] for t in sorted(topics))
    check(name, room)
    path = Path(name)
    if path.is_file():
        return _jsonl(path) if path.suffix == ".jsonl" else _plain(path)
    return _dataset(name)


def several(name: str) -> list[str]:
    """The texts that A+B names; a file whose own name has a + is one."""
    return [name] if Path(name).is_file() else name.split("+")


def admit(name: str) -> None:
    """Refuse what can be no calibration text, before any is read. Raises CalibrationError."""
    for one in several(name):
        if one != GENERATED:
            check(one)


def calibration(
    name: str, tokenizer: Any, length: int, count: int | None = None, write: Callable[[int], Windows] | None = None
) -> Windows:
    """At most `count` windows of the texts that `name` tells. write: makes so many of "generated" ones (None: the bundled
    text stands for them). Raises CalibrationError."""
    names, found = several(name), list[Tensor]()
    share = None if count is None else -(-count // len(names))
    for one in names:
        if one == GENERATED and write and share:
            found.append(write(share).tokens)
            continue
        one = "bundled" if one == GENERATED else one
        found.append(windows(one, read(one), tokenizer, length, share).tokens)
    return Windows(name, torch.cat(found)[:count])


def check(name: str, room: str = "pipeline") -> None:
    """Refuse what can be no text, before any is read. room: as of `read`. Raises CalibrationError."""
    path = Path(name)
    if name in BUILT_IN or path.is_file():
        return
    if path.suffix in {".txt", ".jsonl", ".md"} or name.startswith((".", "/", "~")) or "/" not in name:
        kind = "this is a folder" if path.is_dir() else "there is no such file"
        other = GENERATED if room == "pipeline" else "pydoc"
        raise CalibrationError(f"{name}: {kind}. Give a text or jsonl file, 'bundled', '{other}' or a datasets name.")
    if importlib.util.find_spec("datasets") is None:
        fact = "no such file, and a datasets name needs the package 'datasets'"
        raise CalibrationError(f"{name}: {fact}. pip install 'lowbit[hub]'.")


def _plain(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: byte {error.start} is no UTF-8 text. Convert the file to UTF-8.") from error
    if not text.strip():
        raise CalibrationError(f"{path}: the file holds no text. Give a longer one.")
    return text


def _jsonl(path: Path) -> str:
    """The "text" (or the "content" of "messages") of each line, joined by blank lines."""
    parts = []
    for number, line in enumerate(_plain(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            parts.append(row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CalibrationError(
                f'{path}, line {number}: no JSON object with "text" or "messages". Mend this line.'
            ) from error
    return "\n\n".join(parts)


def _dataset(name: str, characters: int = 4_000_000) -> str:
    """The first `characters` of a dataset's "text" column (streamed)."""
    import datasets  # type: ignore[import-not-found,unused-ignore]

    repo, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(repo, split=split or "train", streaming=True)
        parts: list[str] = []
        size = 0
        for row in rows:
            parts.append(row["text"])
            size += len(parts[-1])
            if size > characters:
                break
    except (OSError, ValueError, KeyError) as error:
        raise CalibrationError(f"{name}: the dataset cannot be read ({error}). Give a file or another name.") from error
    return "\n\n".join(parts)


def windows(name: str, text: str, tokenizer: Any, length: int, count: int | None = None) -> Windows:
    """Cut `text` into at most `count` windows of `length` tokens (None: all). Raises CalibrationError when there is not one."""
    if length < 2:
        raise CalibrationError(f"length {length}: a window has at least 2 tokens. Use 512 to 2048.")
    bos = tokenizer.bos_token_id
    body = length if bos is None else length - 1
    limit = None if count is None else (count + 1) * body * 16  # no tokenizer needs more than 16 characters a token on average
    ids = tokenizing.ids(tokenizer, text[:limit])
    found = len(ids) // body
    if found == 0:
        raise CalibrationError(
            f"{name}: {len(ids)} tokens make no window of {length}. Give a longer text or a smaller --length."
        )
    found = min(found, count or found)
    tokens = torch.tensor(ids[: found * body], dtype=torch.long).view(found, body)
    if bos is not None:
        tokens = torch.cat([torch.full((found, 1), bos, dtype=torch.long), tokens], 1)
    return Windows(name, tokens)


def spread(found: Tensor, count: int) -> Tensor:
    """At most `count` of windows [windows, length], from all over the text: neighbours are of one kind."""
    return found[torch.linspace(0, len(found) - 1, min(count, len(found))).round().long()]


def generated(model: Any, tokenizer: Any, length: int, count: int, seed: int, batch: int = 32) -> Windows:
    """Windows that the model itself writes: sampled at temperature 1 from the beginning-of-text token.

    Needs no data; the text is on the model's own distribution. Cost: count * length decode steps / batch.
    """
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_id or 0
    torch.manual_seed(seed)
    rows = []
    for first in range(0, count, batch):
        prompt = torch.full((min(batch, count - first), 1), start, dtype=torch.long, device=model.device)
        with torch.no_grad():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=length - 1,
                min_new_tokens=length - 1,
                pad_token_id=start,
            )
        rows.append(out.cpu())
    return Windows(GENERATED, torch.cat(rows))
