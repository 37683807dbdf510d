"""The kernels of a panel against the solver's loop over columns, on the GPU."""

import pytest
import torch

from lowbit import formats
from lowbit.kernels import triton
from lowbit.kernels.cuda import _panel
from lowbit.solvers import codec, damping, descent, ldl

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


@pytest.mark.parametrize("text", ["int4-g128", "int3-g64-asym", "nf4-g64", "lut3-row"])
@pytest.mark.parametrize(("out", "inputs"), [(3, 384), (2000, 1024)])
def test_rows_in_threads_equal_the_loop(text: str, out: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feedback and two sweeps by panel.cu, each against the loop from the same start."""
    torch.manual_seed(0)
    seen = torch.randn(4000, inputs, device="cuda") @ torch.randn(inputs, inputs, device="cuda")
    moment, w = seen.T @ seen / 4000, torch.randn(out, inputs, device="cuda")
    factor = damping.factorise(moment, damping.rounding_order(moment, "activation"), 0.01)
    rounding = codec.codec(formats.parse(text).fit(w, search=False))
    assert not _panel.refusal(w)
    found = [ldl.solve(w, factor, rounding)]
    for _ in range(2):
        found.append(descent.sweep(w, moment, rounding, *found[-1]))
    monkeypatch.setattr(_panel, "refusal", lambda weight: "not now")
    monkeypatch.setattr(triton, "panel_refusal", lambda weight: "not now")
    wanted = [ldl.solve(w, factor, rounding), *(descent.sweep(w, moment, rounding, *start) for start in found[:2])]
    for (codes, values), (expected, near) in zip(found, wanted, strict=True):
        assert (rounding.stored(codes) == rounding.stored(expected)).float().mean() > 0.95
        assert ldl.loss(w - values, moment) == pytest.approx(ldl.loss(w - near, moment), rel=0.02)
