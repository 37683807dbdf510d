"""Elements against the packages that others use, code by code, and against the recipes that their tables come from."""

import functools
from statistics import NormalDist

import ml_dtypes
import numpy as np
import pytest
import torch

from lowbit import dtypes
from lowbit.core.errors import FormatError
from lowbit.testing.dtypes import sweep

MINIFLOATS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@functools.cache
def bitsandbytes():  # type: ignore[no-untyped-def]
    return pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("name", MINIFLOATS)
def test_every_code_means_what_ml_dtypes_says(name: str) -> None:
    element = dtypes.get(name)
    codes = np.arange(element.codes, dtype=np.uint8)
    theirs = torch.from_numpy(codes.view(MINIFLOATS[name]).astype(np.float32))
    ours = element.decode(torch.from_numpy(codes))
    assert torch.equal(theirs.isnan(), ours.isnan())
    kept = ~ours.isnan()
    assert torch.equal(theirs[kept].view(torch.int32), ours[kept].view(torch.int32))


@pytest.mark.parametrize("name", MINIFLOATS)
def test_rounding_is_that_of_ml_dtypes(name: str) -> None:
    """Ties to even, both zeros, subnormals; beyond the range ours saturates, so the sweep is cut there."""
    element = dtypes.get(name)
    x = sweep(name).clamp(element.minimum, element.maximum)
    theirs = x.numpy().astype(MINIFLOATS[name]).view(np.uint8)
    assert torch.equal(element.encode(x), torch.from_numpy(theirs))


@pytest.mark.parametrize("name", TORCH)
def test_rounding_is_that_of_torch(name: str) -> None:
    element = dtypes.get(name)
    x = torch.cat([sweep(name), torch.linspace(-500, 500, 200001), torch.logspace(-6, 5, 100000)])
    x = x.clamp(element.minimum, element.maximum)
    assert torch.equal(element.encode(x), x.to(TORCH[name]).view(torch.uint8))
    assert torch.equal(element.round(x), x.to(TORCH[name]).float())


@pytest.mark.parametrize(
    ("name", "range_", "normal", "subnormal"),
    [("e4m3", 448, 2**-6, 2**-9), ("e5m2", 57344, 2**-14, 2**-16), ("e3m2", 28, 0.25, 0.0625), ("e2m3", 7.5, 1, 0.125),
     ("e2m1", 6, 1, 0.5)],
)  # fmt: skip
def test_the_range_of_each_float(name: str, range_: float, normal: float, subnormal: float) -> None:
    element = dtypes.get(name)
    assert (element.minimum, element.maximum) == (-range_, range_)
    values = element.decode(torch.arange(element.codes // 2).to(torch.uint8))
    assert values[1] == subnormal and normal in values
    assert element.round(torch.tensor([1e30, -torch.inf])).tolist() == [range_, -range_]


def test_ties_of_e2m1() -> None:
    values = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -5.0, -0.1])
    assert dtypes.get("e2m1").round(values).tolist() == [0, 1, 1, 2, 2, 4, 4, -4, 0]
    assert dtypes.get("e2m1").encode(values).tolist() == [0, 2, 2, 4, 4, 6, 6, 14, 8]


def test_integers_are_offset_binary() -> None:
    element = dtypes.get("int3")
    assert element.encode(torch.tensor([-9.0, -4, -0.5, 0.5, 1.5, 9])).tolist() == [0, 0, 4, 4, 6, 7]
    assert element.decode(torch.arange(8).to(torch.uint8)).tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]


def _recipe(quantile, top: float) -> list[float]:  # type: ignore[no-untyped-def]
    """QLoRA's table for a distribution: 8 quantiles above the middle, 7 below, 0, divided by the greatest."""
    above = [quantile(top + (0.5 - top) * i / 8) for i in range(8)]
    below = [-quantile(top + (0.5 - top) * i / 7) for i in range(7)]
    return [v / above[0] for v in sorted([*above, *below, 0.0])]


def test_nf4_follows_from_the_normal_distribution() -> None:
    made = _recipe(NormalDist().inv_cdf, 1 - (1 / 32 + 1 / 30) / 2)
    assert dtypes.get("nf4").values == pytest.approx(made, abs=5e-7)  # type: ignore[attr-defined]


def test_nf4_is_bitsandbytes_to_the_last_bit() -> None:
    theirs = bitsandbytes().get_4bit_type("nf4", device="cpu")
    assert torch.equal(torch.tensor(dtypes.get("nf4").values), theirs)  # type: ignore[attr-defined]


def test_sf4_follows_from_students_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    made = _recipe(stats.t(5).ppf, 1 - (1 / 32 + 1 / 30) / 2)
    published = [-1, -0.627781, -0.454736, -0.334331, -0.237434, -0.152899, -0.074982, 0,
                 0.065513, 0.132965, 0.204661, 0.283835, 0.375805, 0.491076, 0.656781, 1]  # fmt: skip
    assert dtypes.get("sf4").values == pytest.approx(made, abs=1e-9)  # type: ignore[attr-defined]
    assert dtypes.get("sf4").values == pytest.approx(published, abs=1e-6)  # type: ignore[attr-defined]


def test_af4_is_the_published_table_for_64_and_another_one_for_128() -> None:
    theirs = bitsandbytes().get_4bit_type("af4", device="cpu", blocksize=64).flip(0)
    assert dtypes.get("af4").values == pytest.approx(theirs.tolist(), abs=1e-6)  # type: ignore[attr-defined]
    small, large = (torch.tensor(dtypes.get(name).values).abs() for name in ("af4", "af4.128"))  # type: ignore[attr-defined]
    assert ((small > large) | (small == 0) | (small == 1)).all()


def test_dynamic8_is_bitsandbytes_map() -> None:
    values = torch.tensor(dtypes.get("dynamic8").values)  # type: ignore[attr-defined]
    assert torch.equal(values, bitsandbytes().create_dynamic_map())


@pytest.mark.parametrize(
    ("name", "fact"),
    [("int9", "Use int2 .. int8"), ("int1", "Use int2 .. int8"), ("af3", "Use af4"), ("dynamic4", "Use dynamic8"),
     ("ternary2", "Use ternary"), ("binary1", "Use binary"), ("e4m4", "Unknown dtype 'e4m4'. Nearest: e4m3")],
)  # fmt: skip
def test_unknown_elements_are_refused(name: str, fact: str) -> None:
    with pytest.raises(ValueError, match=fact) as caught:
        dtypes.get(name)
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]
    assert isinstance(caught.value, FormatError) or "Unknown" in fact
