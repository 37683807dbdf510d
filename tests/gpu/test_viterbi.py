"""The search of trellis codes on a GPU against that of the CPU."""

import pytest
import torch

from lowbit import dtypes
from lowbit.dtypes._trellis import Trellis
from lowbit.kernels.cuda import _viterbi
from lowbit.kernels.encoding import encode

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["trellis1", "trellis2", "trellis3", "trellis4", "trellis8", "trellis1.5", "trellis2.5",
                                  "trellis3.5", "trellis_pair2", "trellis_short2"])  # fmt: skip
def test_as_near_as_on_the_cpu(name: str) -> None:
    element = dtypes.get(name)
    assert isinstance(element, Trellis) and not _viterbi.refusal(element, torch.device("cuda"))
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    here, there = element.encode(x), encode(element, x.cuda()).cpu()
    near, as_near = ((element.decode(codes) - x).square().mean() for codes in (here, there))
    assert as_near == pytest.approx(float(near), rel=0.01)
    assert (here == there).float().mean() > 0.7


def test_another_search_where_the_rule_is_another() -> None:
    element = dtypes.get("mcg2")
    assert isinstance(element, Trellis) and "rule" in _viterbi.refusal(element, torch.device("cuda"))
    x = torch.randn(16, 32)
    assert torch.equal(encode(element, x.cuda()).cpu(), element.encode(x.cuda()).cpu())
