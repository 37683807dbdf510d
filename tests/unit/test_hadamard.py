"""Hadamard matrices of computed orders, and the basis that they make."""

import pytest
import torch

from lowbit import formats
from lowbit.core.errors import ShapeError
from lowbit.sides import _hadamard
from lowbit.solvers import grid
from lowbit.testing.solvers import layer


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 28, 36, 60, 108, 128, 384, 768, 1536, 14336])
def test_order_is_orthonormal(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64)
    turned = _hadamard.apply(x, n)
    assert torch.allclose(turned.norm(dim=1), x.norm(dim=1))
    assert torch.allclose(_hadamard.apply(turned, n, back=True), x)
    if n <= 128:
        whole = _hadamard.apply(torch.eye(n, dtype=torch.float64), n)
        assert torch.allclose(whole.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64)), "entries of one magnitude"


@pytest.mark.parametrize("n", [28, 52, 100, 244, 344, 924, 1684, 1904])
def test_rows_of_powers_of_primes_are_orthogonal(n: int) -> None:
    """28 = 3^3 + 1, 52 = 2 (5^2 + 1), 100 = 2 (7^2 + 1), 244 = 3^5 + 1, 344 = 7^3 + 1, 1684 = 2 (29^2 + 1), 1904 = 28 * 68."""
    whole = _hadamard.apply(torch.eye(n, dtype=torch.float64), n) * n**0.5
    assert torch.allclose(whole.abs(), torch.ones(n, n, dtype=torch.float64), atol=1e-9), "entries of 1 and -1"
    assert torch.allclose(whole @ whole.T, n * torch.eye(n, dtype=torch.float64), atol=1e-6)


def test_every_order_that_the_construction_reaches() -> None:
    """The orders up to 256 that it does not reach are those known to need another construction."""
    missing = [n for n in range(4, 257, 4) if not _hadamard.factors(n)]
    assert missing == [92, 116, 156, 172, 184, 188, 232, 236]
    assert not any(_hadamard.factors(n) for n in range(3, 257) if n % 4)


def test_block_of_a_width() -> None:
    assert _hadamard.factors(92) == () and _hadamard.block(92) == 4
    models = {11008: 344, 13824: 108, 18944: 148, 29568: 924, 25600: 100, 9728: 76}
    for width, order in models.items():
        assert torch.tensor(_hadamard.factors(width)).prod() == width == _hadamard.block(width)
        assert _hadamard.factors(width)[0] == order


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
