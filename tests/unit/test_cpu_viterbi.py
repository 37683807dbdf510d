"""The search of trellis codes in C++ against the element's own, for every number of fresh bits and both widths."""

import pytest
import torch
from torch import Tensor

from lowbit import dtypes
from lowbit.dtypes import _viterbi as law
from lowbit.dtypes._mul1 import mul1, mul2
from lowbit.dtypes._trellis import Trellis
from lowbit.kernels import encoding
from lowbit.kernels.cpu import _build, _viterbi

pytestmark = pytest.mark.skipif(bool(_build.missing()), reason=_build.missing())


def distance(element: Trellis, codes: Tensor, x: Tensor) -> float:
    """Mean squared error of the values that the rings `codes` [N, T] stand for."""
    values = element._code(torch.device("cpu")).table[element.states(codes).long()]
    return float((values - x).square().mean())


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("bits", range(1, 9))
def test_paths_are_those_of_the_law(bits: int, width: int) -> None:
    element = Trellis(f"test{bits}x{width}", bits, mul1 if width == 1 else mul2, width=width, length=12)
    x = torch.randn(5, 256 // width, width, generator=torch.Generator().manual_seed(bits)) * element.rms
    found, expected = _viterbi.search(x, element), law.search(x, element._code(torch.device("cpu")))
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    assert distance(element, found, x) == pytest.approx(distance(element, expected, x), rel=1e-4)
    assert (found == expected).float().mean() > 0.98


def test_encoding_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    element, values = dtypes.get("trellis_short2"), torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    assert isinstance(element, Trellis)
    found = encoding.encode(element, values)
    assert (found == element.encode(values)).float().mean() > 0.98
    calls: list[Tensor] = []
    monkeypatch.setattr(_viterbi, "search", lambda x, _: calls.append(x) or torch.zeros(len(x), 256, dtype=torch.uint8))
    assert not encoding.encode(element, values).any() and len(calls) == 1


def test_what_it_does_not_search() -> None:
    assert "no 16 roots" in _viterbi.refusal(Trellis("narrow", 6, mul1, length=8))
