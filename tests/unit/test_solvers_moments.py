"""The second moment's precision, and methods that depend on streams and on few tokens."""

import torch

from lowbit import formats
from lowbit.methods import get
from lowbit.methods.gptaq import GPTAQ
from lowbit.methods.hqq import HQQ
from lowbit.statistics import Collecting, Stats
from lowbit.testing.solvers import layer


def test_float32_sums_are_enough() -> None:
    """131,072 tokens in batches: relative error against float64, of the whole and of the smallest eigenvalue."""
    mix = torch.randn(96, 96) @ torch.diag(torch.exp(torch.randn(96)))
    collecting = Collecting(("second_moment",), 96, torch.device("cpu"))
    exact = torch.zeros(96, 96, dtype=torch.float64)
    for _ in range(16):
        x = torch.randn(8192, 96) @ mix
        collecting.add(x)
        exact += x.double().T @ x.double()
    exact /= 131072
    found = collecting.stats()["second_moment"]
    assert torch.equal(found, found.T)
    assert float((found - exact).norm() / exact.norm()) < 1e-6
    least = torch.linalg.eigvalsh(exact)[0]
    assert abs(float(torch.linalg.eigvalsh(found.double())[0] / least) - 1) < 1e-2


def _streams(tokens: int) -> tuple[torch.Tensor, Stats, torch.Tensor]:
    """A layer, the statistics of `tokens` inputs that are off, and the full-precision inputs of other tokens."""
    weight, reference = layer(tokens=8192)
    off = torch.eye(256) + 0.3 * torch.randn(256, 256) / 16
    collecting = Collecting(("second_moment", "cross_moment"), 256, torch.device("cpu"))
    collecting.add(reference[:tokens] @ off, reference[:tokens])
    return weight, collecting.stats(), torch.stack([reference[4096:] @ off, reference[4096:]])


def test_the_correction_helps_on_held_out_tokens() -> None:
    weight, stats, (x, reference) = _streams(4096)
    format = formats.parse("int4-g128")
    lost = {
        alpha: float((reference @ weight.T - x @ GPTAQ(alpha=alpha).solve(weight, stats, format).decode().T).square().mean())
        for alpha in (0.0, 0.5, 1.0)
    }
    assert lost[1.0] < lost[0.5] < 0.6 * lost[0.0], lost


def test_few_tokens_take_no_correction() -> None:
    weight, stats, _ = _streams(200)
    format = formats.parse("int4-g128")
    assert torch.equal(GPTAQ().solve(weight, stats, format).codes, get("gptq")().solve(weight, stats, format).codes)


def test_hqq_fits_the_zero() -> None:
    """Fewer large errors, or as many: the measure never rises; with float zeros it falls."""
    weight = torch.randn(64, 256) * 0.02 + 0.003 * torch.randn(64, 1)
    for name in ("int4-g64-asym", "int3-g64-asym", "int3-g64-floatzero", "int2-g64-floatzero"):
        format = formats.parse(name)
        plain = format.fit(weight, search=False).quantize(weight).decode()
        found = HQQ().solve(weight, Stats(), format).decode()
        before, after = float((plain - weight).abs().pow(0.7).mean()), float((found - weight).abs().pow(0.7).mean())
        assert after <= before * (1 + 1e-6), name
        assert after < 0.99 * before or "asym" in name, name
