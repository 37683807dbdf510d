"""Tables of rows: the best intervals against all splits, tables against plain least squares, names, bits, the way to disk."""

import itertools

import pytest
import torch

from lowbit import formats, methods
from lowbit.core.errors import FormatError
from lowbit.formats import Grid, _kmeans
from lowbit.formats.lut import Tables
from lowbit.solvers import codec, descent, ldl, tables
from lowbit.statistics import Stats
from lowbit.testing.solvers import check_codec, check_feedback, layer, moment_of


def best_of_all_splits(values: torch.Tensor, weights: torch.Tensor, k: int) -> float:
    """The least weighted squared error of any k intervals of the sorted values."""
    order = values.argsort()
    x, h, n = values[order].double(), weights[order].double(), len(values)
    least = float("inf")
    for cuts in itertools.combinations(range(1, n), k - 1):
        ends, loss = [0, *cuts, n], 0.0
        for a, b in itertools.pairwise(ends):
            mean = (h[a:b] * x[a:b]).sum() / h[a:b].sum()
            loss += float((h[a:b] * (x[a:b] - mean).square()).sum())
        least = min(least, loss)
    return least


def test_kmeans_of_rows_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 12, generator=generator) ** 3
    h = torch.rand(5, 12, generator=generator) ** 3 + 1e-3
    found = _kmeans.rows(x, h, 4)
    for row in range(5):
        lost = ((x[row, :, None] - found[row]).square().amin(1) * h[row]).sum()
        assert float(lost) == pytest.approx(best_of_all_splits(x[row], h[row], 4), rel=1e-4)


@pytest.mark.parametrize(("name", "lloyd_max"), [("lut2-row", 0.1175), ("lut3-row", 0.03454), ("lut4-row", 0.009497)])
def test_errors_on_gaussian_numbers(name: str, lloyd_max: float) -> None:
    """Long rows come near the quantizer that Max (1960) computed; a row's own table is a little better."""
    weight = torch.randn(16, 4096, generator=torch.Generator().manual_seed(1))
    grid = formats.parse(name).fit(weight)
    error = float((grid.quantize(weight).decode() - weight).square().mean())
    assert 0.95 * lloyd_max < error < 1.01 * lloyd_max


def test_importance_of_each_weight() -> None:
    """Weights that matter alone get the table; importance [in] means the same for all rows."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    h = torch.full((4, 64), 1e-5)
    for row in range(4):
        h[row, row * 4 : row * 4 + 4] = 1.0
    decoded = formats.parse("lut2-row").fit(weight, h).quantize(weight).decode()
    for row in range(4):
        here = slice(row * 4, row * 4 + 4)
        assert torch.allclose(decoded[row, here], weight[row, here], atol=0.02)


def test_equal_and_unsorted_entries() -> None:
    found = Tables(torch.tensor([[3.0, 1.0, 1.0, 2.0]]))
    x = torch.tensor([[0.0, 1.0, 1.4, 1.6, 2.4, 2.6, 9.0]])
    assert found.codes(x).tolist() == [[1, 1, 1, 3, 3, 0, 0]]


def test_codec_and_feedback() -> None:
    weight, x = layer(out=32, inputs=128, tokens=1024)
    rounding = codec.codec(formats.parse("lut3-row").fit(weight))
    check_codec(rounding, weight)
    check_feedback(rounding, weight, x)


def test_refit_is_least_squares() -> None:
    """Tables are those of lstsq on LT P, H = L LT, row by row."""
    weight, x = layer(out=8, inputs=64, tokens=2048)
    moment = moment_of(x)
    grid = formats.parse("lut2-row").fit(weight)
    codes = grid.encode(weight)
    found, values = tables.refit(weight, moment, grid, codes, grid.inner(codes))
    lower = torch.linalg.cholesky(moment.double())
    for row in range(8):
        places = torch.nn.functional.one_hot(codes[row].long(), 4).double()
        expected = torch.linalg.lstsq(lower.T @ places, (lower.T @ weight[row].double())[:, None]).solution[:, 0]
        assert torch.allclose(found.parts["table"][row].double(), expected, atol=2e-5)
    assert torch.equal(values, found.inner(codes))
    assert ldl.loss(weight - values, moment) < ldl.loss(weight - grid.inner(codes), moment)


def test_alternation_never_raises_the_loss() -> None:
    weight, x = layer(out=24, inputs=128, tokens=1024)
    moment = moment_of(x)
    grid = formats.parse("lut3-row").fit(weight)
    codes: torch.Tensor = grid.encode(weight)
    values = grid.inner(codes)
    last = ldl.loss(weight - values, moment)
    for _ in range(3):
        grid, values = tables.refit(weight, moment, grid, codes, values)
        refitted = ldl.loss(weight - values, moment)
        codes, values = descent.sweep(weight, moment, codec.codec(grid), codes, values)
        swept = ldl.loss(weight - values, moment)
        assert swept <= refitted * (1 + 1e-5) and refitted <= last * (1 + 1e-5)
        last = swept


def test_entries_without_codes_stay() -> None:
    weight, moment = torch.ones(1, 8), torch.eye(8)
    format = formats.parse("lut2-row")
    grid = Grid(format, {"table": torch.tensor([[0.5, 7.0, 8.0, 9.0]]).half()}, (1, 8))
    codes = torch.zeros(1, 8, dtype=torch.uint8)
    found, _ = tables.refit(weight, moment, grid, codes, grid.inner(codes))
    assert found.parts["table"].tolist() == [[1.0, 7.0, 8.0, 9.0]]


def test_lnq_beats_squeezellm_and_tells_its_loss() -> None:
    weight, x = layer(out=32, inputs=128, tokens=2048)
    stats = Stats(2048, {"second_moment": moment_of(x)})
    loss = {}
    for name in ("squeezellm", "lnq"):
        quantized = methods.get(name)().solve(weight, stats, formats.parse("lut3-row"))  # type: ignore[attr-defined]
        loss[name] = ldl.loss(weight - quantized.decode(), stats["second_moment"])
    assert loss["lnq"] < 0.6 * loss["squeezellm"]
    told = quantized.report["error"] * ldl.loss(weight, stats["second_moment"])
    assert told == pytest.approx(loss["lnq"], rel=1e-3)


def test_bits_and_names() -> None:
    assert formats.parse("lut3-row").bits_per_weight((4096, 4096)) == 3 + 16 * 8 / 4096
    assert formats.parse("lut4") == formats.parse("lut4-row")
    for name, fact in (("lut5-row", "4, 8 or 16 values"), ("lut3-g128", "a table belongs to a row"), ("uint9-row", "2 to 8")):
        with pytest.raises(FormatError, match=fact):
            formats.parse(name)
