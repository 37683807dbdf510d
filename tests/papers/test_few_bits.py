"""What the papers on few bits say, formula by formula: PB-LLM, BiLLM, OneBit, SpQR's scales, ternary weights."""

import math

import pytest
import torch
from torch import Tensor

from lowbit import formats, sides
from lowbit.core.errors import FormatError
from lowbit.formats import Format, Quantized
from lowbit.kernels import packing
from lowbit.methods import get
from lowbit.solvers import damping, ldl
from lowbit.statistics import Collecting, Stats
from lowbit.testing.solvers import layer, moment_of


def gaussian(out: int = 256, inputs: int = 1024) -> Tensor:
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(0))


def rounded(method: str, format: str) -> tuple[Quantized, float]:
    """A method on the correlated layer, and its tr(E H ET) / tr(W H WT)."""
    weight, x = layer()
    made = get(method)()
    collecting = Collecting(tuple(made.needs), x.shape[1], torch.device("cpu"))
    collecting.add(x, x if collecting.reference else None)
    found = made.solve(weight, collecting.stats(), formats.parse(format))  # type: ignore[attr-defined]
    return found, ldl.loss(weight - found.decode(), moment_of(x)) / ldl.loss(weight, moment_of(x))


def stored_bits(quantized: Quantized) -> float:
    return 8 * packing.bytes_of(packing.pack(quantized)) / math.prod(quantized.shape)


# ---- the distortion and the size of each format


@pytest.mark.parametrize(
    ("name", "error", "bits"),
    [
        ("binary-row", 1 - 2 / math.pi, 1.0039),
        ("ternary-row", 0.190, 1.6055),
        ("billm-g128", 0.109, 2.5),
        ("int3-g16-bilevel", 0.0167, 3.625),
        ("int4-g16-bilevel", 0.00458, 4.625),
    ],
)
def test_distortion_of_a_gaussian_and_size(name: str, error: float, bits: float) -> None:
    x, format = gaussian(), formats.parse(name)
    quantized = format.fit(x).quantize(x)
    assert float((quantized.decode() - x).square().mean()) == pytest.approx(error, rel=0.02)
    assert format.bits_per_weight((4096, 4096)) == pytest.approx(bits, abs=5e-4)
    assert stored_bits(quantized) == pytest.approx(format.bits_per_weight((256, 1024)), abs=1e-9)


# ---- PB-LLM


def test_pb_llm_keeps_what_costs_most() -> None:
    """Section 3.2: salient by w^2 / [H^-1]^2. In the storage a bit for the map and 8 for each salient weight."""
    (weight, x), found = layer(), rounded("pb_llm", "binary-g128-salient10")[0]
    moment = moment_of(x)
    moment = moment + 0.01 * moment.diagonal().mean() * torch.eye(256)
    score = weight.square() / torch.linalg.inv(moment.double()).diagonal().float().square()
    words = found.parts["salient_map"][:, :, None] >> torch.arange(32) & 1
    mask = words.flatten(1).bool()
    assert int(mask.sum()) == round(0.1 * weight.numel()) == len(found.parts["salient_values"])
    assert float(score[mask].min()) >= float(score[~mask].max()) * 0.99
    bits = 1 + 16 / 128 + 1 + 8 * 0.1 + 16 / 256
    assert stored_bits(found) == pytest.approx(bits, abs=1e-3)


def test_salient_values_have_eight_bits() -> None:
    weight = gaussian(32, 96)
    side = sides.get("salient10")
    parts = side.fit(weight)
    off = (side.decode(torch.zeros_like(weight), parts) - weight)[side.decode(torch.zeros_like(weight), parts) != 0]
    assert float(off.abs().max()) <= 0.51 * float(weight.abs().amax()) / 127


def test_salient_weights_save_a_binary_layer() -> None:
    """Figure 2: one bit alone loses nearly all, a tenth of salient weights gives most of it back."""
    assert rounded("pb_llm", "binary-g128-salient10")[1] < 0.5 * rounded("gptq", "binary-g128")[1]


# ---- BiLLM


def binary(x: Tensor) -> Tensor:
    """The paper's binarisation of the entries that are not 0, row by row: mean magnitude times sign."""
    count = (x != 0).sum(1, keepdim=True).clamp_min(1)
    return x.abs().sum(1, keepdim=True) / count * x.sign()


def test_billm_is_never_worse_than_its_formulas() -> None:
    """Equation 9, w = a sign(w) + b sign(w - a sign(w)) of salient columns, and the split of the others at the best share p."""
    x = gaussian(64, 128)
    x[:, ::17] *= 3
    order = x.square().sum(0).argsort(descending=True)
    salient, usual = x[:, order[:8]], x[:, order[8:]]
    first = binary(salient)
    lost = float((first + binary(salient - first) - salient).square().sum())
    splits = []
    for share in torch.linspace(0.1, 0.9, 80):
        small = usual.abs() <= share * usual.abs().max()
        splits.append(float((binary(usual * small) + binary(usual * ~small) - usual).square().sum()))
    ours = formats.parse("billm-g128").fit(x).quantize(x).decode()
    assert float((ours - x).square().sum()) <= (lost + min(splits)) * 1.005  # magnitudes are stored in 16 bits


def test_billm_in_a_layer() -> None:
    assert rounded("billm", "billm-g64")[1] < 0.6 * rounded("gptq", "binary-g64")[1]


# ---- OneBit


def test_signs_and_two_vectors_are_nearer_than_a_matrix_of_rank_one() -> None:
    """Proposition 2: |W - sign(W) * a bT| is at most the distance of W to its best rank-1 matrix."""
    for seed in range(3):
        weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(seed)) * torch.rand(160).exp()
        found = get("onebit")().solve(weight, Stats(), formats.parse("binary-row-svid"))  # type: ignore[attr-defined]
        u, s, v = torch.linalg.svd(weight)
        rank_one = (weight - s[0] * u[:, :1] @ v[:1]).norm()
        assert (found.decode() - weight).norm() < rank_one
        assert torch.equal(found.decode().sign(), weight.sign())


def test_svid_is_the_first_pair_of_singular_vectors() -> None:
    weight = gaussian(96, 160) * torch.linspace(0.2, 3, 160)
    u, s, v = torch.linalg.svd(weight.abs())
    found = get("onebit")().solve(weight, Stats(), formats.parse("binary-row-svid"))  # type: ignore[attr-defined]
    assert torch.allclose(found.decode().abs(), s[0] * u[:, :1].abs() @ v[:1].abs(), rtol=0.01)
    assert stored_bits(found) == pytest.approx(1 + 16 / 96 + 16 / 160, abs=1e-6)


# ---- SpQR's scales


def test_bilevel_scales_are_three_bits_on_sixteen_bit_ranges() -> None:
    """Section 4.2: scales and zeros of 3 bits in groups of 16: b + 6 / 16 + 64 / 256."""
    x, format = gaussian(48, 256), formats.parse("int3-g16-bilevel")
    parts = format.fit(x).parts
    assert int(parts["scale"].max()) == int(parts["zero"].max()) == 7
    assert format.bits_per_weight((4096, 4096)) == 3 + 6 / 16 + 64 / 256
    assert packing.pack(format.fit(x).quantize(x))["scale"].shape == (math.ceil(48 * 3 / 32), 16)


def test_bilevel_scales_beat_e4m3_at_fewer_bits() -> None:
    x = gaussian()

    def error(name: str) -> float:
        return float((formats.parse(name).fit(x).quantize(x).decode() - x).square().mean())

    assert error("int3-g16-bilevel") < 0.9 * error("int3-g16-asym-e4m3")


@pytest.mark.parametrize("name", ["int3-g16-asym-bilevel", "nf4-g16-bilevel", "int4-b16x16-bilevel"])
def test_bilevel_is_for_integers_in_rows(name: str) -> None:
    with pytest.raises(FormatError, match="bilevel is for integers in groups of one row"):
        formats.parse(name)


# ---- ternary


def test_ternary_scales_are_refitted_to_the_output() -> None:
    """gptq refits every scale in H between its sweeps, of ternary weights too."""
    assert rounded("gptq", "ternary-g64")[1] < 0.75 * rounded("rtn", "ternary-g64")[1]


def test_saliency_without_a_factor_is_that_of_the_diagonal() -> None:
    diagonal = torch.diag(torch.tensor([4.0, 1.0, 9.0]))
    assert torch.allclose(damping.salience(diagonal, 0.0), torch.tensor([16.0, 1.0, 81.0]))


def test_format_names() -> None:
    assert isinstance(formats.parse("binary-g128-salient10"), Format)
    with pytest.raises(FormatError, match="magnitudes belong to a group of one row"):
        formats.parse("billm-tensor")
