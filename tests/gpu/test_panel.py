"""The fused panel against the solver's loop over columns, on the GPU."""

import pytest
import torch

from lowbit import formats
from lowbit.kernels import triton
from lowbit.solvers import codec, damping, ldl

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("text", ["int4-g128-asym", "int4-g32", "int2-row"])
@pytest.mark.parametrize("out", [1, 130])
def test_a_panel_equals_the_loop_over_columns(text: str, out: int) -> None:
    inputs = 128
    seen = torch.randn(1000, inputs, device="cuda") @ torch.randn(inputs, inputs, device="cuda")
    moment = seen.T @ seen / 1000
    w = torch.randn(out, inputs, device="cuda")
    grid = formats.parse(text).fit(w, search=False)
    factor = damping.factorise(moment, damping.rounding_order(moment, "activation"), 0.01)
    assert factor.lower is not None
    expected, values = ldl.solve(w, factor, codec.GridCodec(grid))
    x = w.T[factor.columns].contiguous()
    element, width = grid.format.dtype, grid.format.group[1] or inputs
    zero = None if grid.zero is None else grid.zero.T.contiguous()
    assert not triton.panel_refusal(w)
    codes, found = triton.panel(
        x, x, factor.lower, (factor.columns // width).int(), grid.scale.T.contiguous(), zero, element.minimum, element.maximum
    )
    assert (codes == expected.float().T[factor.columns]).float().mean() > 0.95
    unordered = torch.empty_like(w)
    unordered[:, factor.columns] = found.T
    assert abs(ldl.loss(w - unordered, moment) / ldl.loss(w - values, moment) - 1) < 0.05
