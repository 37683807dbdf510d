"""The side `nested`: what its bits mean, what a matrix gives at each rate, a folder read at several."""

from pathlib import Path

import pytest
import torch

import lowbit
from lowbit import formats, sides
from lowbit.core.errors import FormatError, RecipeError, ShapeError
from lowbit.formats import Quantized
from lowbit.formats._narrow import followed, narrow
from lowbit.kernels import dispatch
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


@pytest.fixture(scope="module")
def whole() -> Quantized:
    return solved("nested", "int8-g128-nested128")


def by_hand(moved: bool, code: int) -> dict[int, tuple[str, float]]:
    """What one code of 8 bits, scale 0.5, 4-bit scale -7, is at each rate."""
    side = sides.get("nested1")
    parts = side.hold(torch.tensor([[moved]]), torch.tensor([[-7.0]]).bfloat16())  # type: ignore[attr-defined]
    stored = Quantized(
        formats.parse("int8-row-nested1"),
        torch.tensor([[code + 128]], dtype=torch.uint8),
        {"scale": torch.tensor([[0.5]]).bfloat16(), **parts},
        (1, 1),
    )
    read = {bits: narrow(stored, bits) for bits in range(2, 9)}
    return {bits: (str(found.format), float(found.decode())) for bits, found in read.items()}


def test_the_value_of_a_code_at_each_rate() -> None:
    """45 * 0.5 = 22.5 lies between -3 and -4 of the 4-bit steps of -7: 21 and 28, the nearest 21."""
    found = by_hand(False, 45)
    assert found[8] == ("int8-row", 22.5)
    assert found[7] == ("int7-row-floatzero", 22.25)  # 44, 45
    assert found[6] == ("int6-row-floatzero", 22.75)  # 44 .. 47
    assert found[5] == ("int5-row-floatzero", 21.75)  # 40 .. 47
    assert found[4] == ("int4-g1", 21.0)
    assert found[3] == ("int3-g1-floatzero", 24.5)  # -4, -3
    assert found[2] == ("int2-g1-floatzero", 17.5)  # -4 .. -1
    assert by_hand(True, 45)[4] == ("int4-g1", 28.0)
    assert by_hand(True, 45)[8] == found[8]
    assert by_hand(True, 40)[4] == ("int4-g1", 14.0)  # 20 is nearest 21 from below


def test_eight_bits_are_their_own_file_and_four_nearly(whole: Quantized) -> None:
    losses = {bits: loss_of(narrow(whole, bits)) for bits in range(2, 9)}
    assert all(losses[bits + 1] < losses[bits] for bits in range(2, 8)), losses
    assert torch.equal(whole.codes, solved("gptq", "int8-g128").codes) and losses[8] == loss_of(whole)
    assert losses[4] < 1.6 * loss_of(solved("gptq", "int4-g128")) < 0.45 * loss_of(solved("rtn", "int4-g128"))
    unmoved = {**whole.parts, "nested_moves": torch.zeros_like(whole.parts["nested_moves"])}
    assert loss_of(narrow(Quantized(whole.format, whole.codes, unmoved, whole.shape), 4)) > 1.3 * losses[4]


def test_without_data_it_is_nearest_values() -> None:
    weight = layer()[0]
    found = narrow(formats.parse("int8-g128-nested128").fit(weight).quantize(weight), 4)
    near = formats.parse("int4-g128").fit(weight, search=False).quantize(weight)
    assert (found.codes != near.codes).float().mean() < 0.03  # an 8-bit value may lie on the other side of a middle


def test_a_folder_is_read_at_any_rate(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lowbit.quantize(str(tiny_llama), "nested(2-8, group=64)", str(out), samples=4, length=64)
    original = str(tiny_llama)
    divergence, sizes = {}, {}
    for bits in (2, 4, 8, None):
        told = lowbit.evaluate(str(out), original, ["bundled"], 1, length=64, bits=bits)
        divergence[bits], sizes[bits] = told["texts"]["bundled"]["kl"], told["bits_per_weight"]
    assert divergence[8] == divergence[None] < divergence[4] < divergence[2]
    assert sizes[2] == pytest.approx(2.5) and sizes[4] == pytest.approx(4.25) and sizes[8] == pytest.approx(8.25)
    assert sizes[None] == pytest.approx(9.5, abs=0.02)
    for bits, format in ((3, "int3-g64-floatzero"), (None, "int8-g64-nested64")):
        packed = [m for m in lowbit.load(out, bits=bits).modules() if isinstance(m, QuantizedLinear)]
        assert packed and {str(m.format) for m in packed} == {format}


def test_blocks_are_calibrated_behind_four_bits(whole: Quantized) -> None:
    assert torch.equal(followed(whole), narrow(whole, 4).decode()) and not torch.equal(followed(whole), whole.decode())
    assert torch.equal(followed(narrow(whole, 8)), whole.decode())
    beside = formats.parse("int8-g128-nested128-had").fit(layer()[0]).quantize(layer()[0])
    assert torch.equal(followed(beside), beside.decode())


def test_nothing_trains_codes_that_the_bits_are_about(tiny_llama: Path) -> None:
    for trainer in ("autoround", "kl_tuning", "norm_tuning"):
        with pytest.raises(
            RecipeError, match=rf"{trainer} cannot tune .*int8-g64-nested64: nested64 is about these very codes"
        ):
            lowbit.quantize(str(tiny_llama), f"nested(2-8, group=64) + {trainer}", dry_run=True)


def test_every_rate_has_a_fast_kernel(whole: Quantized) -> None:
    name = "cpu.integers"
    for bits in range(2, 9):
        for read in (narrow(whole, bits), whole):
            reasons = dict(dispatch.explain(read.format, read.shape, torch.device("cpu"), torch.float32))
            assert reasons[name] == dispatch.missing(name)


def test_what_cannot_be_read(tiny_llama: Path, tmp_path: Path, whole: Quantized) -> None:
    lowbit.quantize(str(tiny_llama), "rtn(int4-g64)", str(tmp_path / "plain"))
    with pytest.raises(FormatError, match=r"bits=3: model\.layers.*int4-g64, which has one precision"):
        lowbit.load(tmp_path / "plain", bits=3)
    with pytest.raises(FormatError, match="holds floats"):
        lowbit.load(tiny_llama, bits=3)
    with pytest.raises(FormatError, match="bits=9: int8-g128-nested128 is read at 2 to 8 bits"):
        narrow(whole, 9)
    with pytest.raises(FormatError, match="nested: the number is that of inputs"):
        formats.parse("int8-g128-nested")
    with pytest.raises(ShapeError, match=r"nested100 cannot take .*: 384 inputs in groups of 100"):
        formats.parse("int8-row-nested100").groups((4, 384))
    for rates in ("3-8", "2-9", "8", "2-4"):
        with pytest.raises(RecipeError, match="from 2 bits on to its highest rate"):
            lowbit.Recipe.parse(f"nested({rates})")
    assert str(lowbit.Recipe.parse("nested(2-6)")) == "nested(2-6)"
