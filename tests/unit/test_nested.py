"""Nested codes: the law of the value, prefixes, what the two-part solver gives at each rate, a folder read at several."""

from pathlib import Path

import pytest
import torch

import lowbit
from lowbit import formats
from lowbit.core.errors import FormatError, RecipeError
from lowbit.formats import Quantized, nested
from lowbit.layers.linear import QuantizedLinear
from lowbit.methods import get
from lowbit.solvers import ldl
from lowbit.statistics import Collecting
from lowbit.testing.solvers import layer, moment_of


def loss_of(found: Quantized) -> float:
    (weight, x) = layer()
    return ldl.loss(weight - found.decode(), moment_of(x)) / ldl.loss(weight, moment_of(x))


def solved(method: str, format: str) -> Quantized:
    weight, x = layer()
    made = get(method)()
    collecting = Collecting(tuple(made.needs), x.shape[1], torch.device("cpu"))
    collecting.add(x, x if collecting.reference else None)
    found: Quantized = made.solve(weight, collecting.stats(), formats.parse(format))  # type: ignore[attr-defined]
    return found


def test_the_value_of_a_code() -> None:
    """Code 1011 0110 at 8 bits: the middle of cell 3, 6.5 / 16 - 1/2 of the way over a reach of 1.4 cells."""
    parts = {"scale": torch.tensor([[0.5]], dtype=torch.bfloat16), "shares": torch.ones(7, 2)}
    code = torch.tensor([[0b10110110]], dtype=torch.uint8)
    whole = Quantized(formats.parse("nested8-row"), code, parts, (1, 1))
    expected = {8: 3.5 + 1.4 * (6.5 / 16 - 0.5), 6: 3.5 + 1.4 * (1.5 / 4 - 0.5), 5: 3.5 - 1.4 / 4, 4: 3.5, 3: 3.0, 2: 2.0}
    for bits, value in expected.items():
        read = nested.narrow(whole, bits)
        assert str(read.format) == (f"nested{bits}-row" if bits > 4 else f"int{bits}-row-floatzero")
        assert int(read.codes) == int(code) >> 8 - bits
        assert float(read.decode()) == pytest.approx(0.5 * value)


def test_every_bit_helps_and_four_and_eight_beat_nearest_values() -> None:
    whole = solved("nested", "nested8-g128")
    losses = {bits: loss_of(nested.narrow(whole, bits) if bits < 8 else whole) for bits in range(2, 9)}
    assert all(losses[bits + 1] < losses[bits] for bits in range(2, 8)), losses
    assert losses[8] < loss_of(solved("rtn", "int8-g128")) and losses[8] < 3 * loss_of(solved("gptq", "int8-g128"))
    assert losses[4] < 0.7 * loss_of(solved("rtn", "int4-g128"))


def test_a_file_of_fewer_bits_is_solved_for_them() -> None:
    for bits in (4, 6):
        assert loss_of(solved("nested", f"nested{bits}-g128")) <= 1.001 * loss_of(
            nested.narrow(solved("nested", "nested8-g128"), bits)
        )


def test_factors_of_a_rate_are_the_best() -> None:
    whole = solved("nested", "nested8-g128")
    for bits in (3, 5, 7):
        best = loss_of(nested.narrow(whole, bits))
        for place in (0, 1) if bits > 4 else (0,):
            for factor in (0.98, 1.02):
                shares = whole.parts["shares"].clone()
                shares[bits - 2, place] *= factor
                moved = Quantized(whole.format, whole.codes, {**whole.parts, "shares": shares}, whole.shape)
                assert loss_of(nested.narrow(moved, bits)) > best


def test_a_folder_is_read_at_any_rate(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lowbit.quantize(str(tiny_llama), "nested(2-8, group=64)", str(out), samples=4, length=64)
    original = str(tiny_llama)
    divergence, sizes = {}, {}
    for bits in (2, 4, 8, None):
        told = lowbit.evaluate(str(out), original, ["bundled"], 1, length=64, bits=bits)
        divergence[bits], sizes[bits] = told["texts"]["bundled"]["kl"], told["bits_per_weight"]
    assert divergence[8] == divergence[None] < divergence[4] < divergence[2]
    assert sizes[4] == pytest.approx(4.5) and sizes[2] == pytest.approx(2.5) and 8.25 < sizes[8] < 8.5
    model = lowbit.load(out, bits=3)
    packed = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert packed and {str(m.format) for m in packed} == {"int3-g64-floatzero"}


def test_what_cannot_be_read(tiny_llama: Path, tmp_path: Path) -> None:
    lowbit.quantize(str(tiny_llama), "rtn(int4-g64)", str(tmp_path / "plain"))
    with pytest.raises(FormatError, match=r"bits=3: model\.layers.*int4-g64, which has one precision"):
        lowbit.load(tmp_path / "plain", bits=3)
    with pytest.raises(FormatError, match="holds floats"):
        lowbit.load(tiny_llama, bits=3)
    with pytest.raises(FormatError, match="bits=9: nested8-g128 is read at 2 to 8 bits"):
        nested.narrow(solved("nested", "nested8-g128"), 9)
    for rates in ("3-8", "2-9", "8"):
        with pytest.raises(RecipeError, match="top bits are codes from 2 bits on"):
            lowbit.Recipe.parse(f"nested({rates})")
    assert str(lowbit.Recipe.parse("nested(2-6)")) == "nested(2-6)"
