"""Hadamard matrices of computed orders, and the basis that they make."""

import pytest
import torch

from lowbit import formats
from lowbit.core.errors import ShapeError
from lowbit.sides import _hadamard
from lowbit.solvers import grid
from lowbit.testing.solvers import layer


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 28, 36, 60, 108, 128, 384, 768, 1536, 11008 // 43 * 4, 14336])
def test_order_is_orthonormal(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64)
    turned = _hadamard.apply(x, n)
    assert torch.allclose(turned.norm(dim=1), x.norm(dim=1))
    assert torch.allclose(_hadamard.apply(turned, n, back=True), x)
    if n <= 128:
        whole = _hadamard.apply(torch.eye(n, dtype=torch.float64), n)
        assert torch.allclose(whole.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64)), "entries of one magnitude"


def test_block_of_an_order_that_is_not_computed() -> None:
    assert _hadamard.factors(52) == () and _hadamard.block(52) == 4
    assert _hadamard.block(11008) == 256 and _hadamard.block(14336) == 14336


def test_a_block_that_does_not_divide() -> None:
    with pytest.raises(ShapeError, match="blocks of 128 do not divide 320"):
        formats.parse("int4-row-had128").fit(torch.randn(256, 320))


def test_solving_in_the_basis_loses_less_and_the_report_is_true() -> None:
    weight, x = layer()
    moment = x.T @ x / len(x)
    given = grid.problem(moment, len(x))
    plain = grid.solve(weight, given, formats.parse("int3-row"))
    turned = grid.solve(weight, given, formats.parse("int3-row-had"))
    for found in (plain, turned):
        error = weight - found.decode()
        true = float(((error @ moment) * error).sum() / ((weight @ moment) * weight).sum())
        assert found.report["error"] == pytest.approx(true, rel=1e-3)
    assert turned.report["error"] < 0.8 * plain.report["error"]  # type: ignore[operator]
