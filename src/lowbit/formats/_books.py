"""_books - what the heads of additive codebooks share: names, numbers of codes, the search for codes.

Idea      A step of eight weights is a sum of M vectors, one out of each codebook of 2**B. Beam search: book by book, of all
          sums so far the BEAM nearest go on. One book: the nearest vector.
Traps     A beam does not always find the nearest sum, so values may move when they are rounded again.
"""

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.formats import Format, _words

WIDTH = 8
BEAM = 8
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Scores of a temporary: what a CPU's caches hold, what keeps launches few on a GPU."""


def head(books: int, number: str, words: list[str]) -> Format:
    """The format of `books` codebooks with 2**number vectors each. Raises FormatError."""
    text = "-".join([f"aqlm{books}x{number}", *words])
    found = _words.read(text, words, only=("group", "scale"))
    if number not in {"8", "16"}:
        raise FormatError(f"{text}: codes are whole bytes. Use aqlm1x8, aqlm2x8, aqlm1x16 or aqlm2x16.")
    if found.get("group", (1, 0)) != (1, 0) or found.get("scale", "half") not in {"half", "fp16", "bf16", "fp32"}:
        raise FormatError(f"{text}: it has a scale for each row, in 16 or 32 bits. Use aqlm{books}x{number}.")
    size = 16 * WIDTH * books << int(number)
    return Format(element="uint8", scale=found.get("scale", "half"), group=(1, 0), rule="aqlm", text=text, extra_bits=size)


def sizes(format: Format) -> tuple[int, int]:
    """(M, B): codebooks, and bits of a code; both follow from the bits of all codebooks."""
    vectors = format.extra_bits // (16 * WIDTH)
    bits = 16 if vectors >= 1 << 16 else 8
    return vectors >> bits, bits


def nearest(x: Tensor, books: Tensor) -> Tensor:
    """Codes [N, M], one of each of books [M, K, 8], whose sum is near each of x [N, 8]."""
    step = max(1, CHUNK[x.device.type] // books.shape[1] // (BEAM if len(books) > 1 else 1))
    found = [_some(part, books) for part in x.split(step)]
    return torch.cat(found) if found else torch.zeros(0, len(books), dtype=torch.int64, device=x.device)


def _some(x: Tensor, books: Tensor) -> Tensor:
    rest, codes = x[:, None], torch.zeros(len(x), 1, 0, dtype=torch.int64, device=x.device)
    lost = rest.square().sum(2) / 2
    for number, book in enumerate(books):
        score = lost[:, :, None] + book.square().sum(1) / 2 - rest @ book.T
        if number == len(books) - 1:
            best = score.flatten(1).argmin(1, keepdim=True)
        else:
            best = score.flatten(1).topk(min(BEAM, score[0].numel()), 1, largest=False).indices
        source, code = best // len(book), best % len(book)
        lost = score.flatten(1).gather(1, best)
        rest = rest.gather(1, source[:, :, None].expand(-1, -1, x.shape[1])) - book[code]
        codes = torch.cat([codes.gather(1, source[:, :, None].expand(-1, -1, codes.shape[2])), code[:, :, None]], 2)
    return codes[:, 0]
