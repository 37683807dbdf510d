"""The solver engine: test vectors, the equality with GPTQ, what must never rise, and what happens when H is no good."""

import pytest
import torch
from torch import Tensor

from lowbit import formats
from lowbit.solvers import damping, descent, grid, ldl
from lowbit.solvers.codec import GridCodec
from lowbit.solvers.target import corrected
from lowbit.testing.solvers import check_codec, check_feedback, layer, moment_of

H4 = torch.tensor([[4, 1, 0.5, 0.25], [1, 3, 1, 0.5], [0.5, 1, 2, 1], [0.25, 0.5, 1, 1.5]])


class Integers:
    """An unbounded unit grid, `width` columns at a time."""

    height = 1

    def __init__(self, width: int = 1) -> None:
        self.width = width

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        return x.round(), x.round()


class Checkerboard:
    """Vectors of 8 integers (times a step) with an even sum: a lattice, as codebooks of the next bit rates are."""

    width, height, step = 8, 1, 0.01

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        y = x / self.step
        q = y.round()
        odd = q.sum(1, keepdim=True) % 2 != 0
        worst = (y - q).abs().argmax(1, keepdim=True)
        other = q.scatter_add(1, worst, torch.where((y - q).gather(1, worst) >= 0, 1.0, -1.0))
        q = torch.where(odd, other, q)
        return q.sum(1, keepdim=True), q * self.step


class Tile:
    """16 rows by 16 columns that share one of 64 steps, chosen in the rounding: the rows of a tile depend on each other."""

    width = height = 16

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        tiles = x.reshape(-1, 1, 16, 16)
        steps = (0.002 * 1.05 ** torch.arange(64.0))[None, :, None, None]
        tried = (tiles / steps).round().clamp(-4, 3) * steps
        best = (tried - tiles).square().sum((2, 3)).argmin(1)
        values = tried[torch.arange(tiles.shape[0]), best].reshape(x.shape)
        return best.repeat_interleave(16)[:, None], values


def paper(weight: Tensor, moment: Tensor, step: Tensor, low: float, high: float, damp: float) -> Tensor:
    """GPTQ's algorithm 1 as printed, in float64: inverse, its Cholesky factor, errors pushed to the columns behind."""
    moment = moment.double() + damp * moment.double().diagonal().mean() * torch.eye(moment.shape[0])
    upper = torch.linalg.cholesky(torch.linalg.inv(moment), upper=True)
    w, codes = weight.double().clone(), torch.empty_like(weight)
    for j in range(w.shape[1]):
        codes[:, j] = (w[:, j] / step[:, j]).round().clamp(low, high)
        error = (w[:, j] - codes[:, j] * step[:, j]) / upper[j, j]
        w[:, j:] -= error[:, None] * upper[j, j:]
    return codes


def test_vectors_of_the_notes() -> None:
    weight = torch.tensor([[1.45, 0.35, -0.6, 0.3], [-0.6, 0.45, 0.45, 1.4], [0.4, 0.4, 0.45, 0.4]])
    factor = damping.factorise(H4, damping.rounding_order(H4, "natural"), 0.0)
    _, values = ldl.solve(weight, factor, Integers())
    assert values.tolist() == [[1, 0, 0, 0], [-1, 1, 0, 2], [0, 1, 0, 1]]
    losses = [ldl.loss(weight[r : r + 1] - values[r : r + 1], H4) for r in range(3)]
    assert losses == pytest.approx([1.47, 1.4075, 1.525], rel=1e-5)


@pytest.mark.parametrize("inputs", [64, 320])
def test_codes_equal_the_papers_algorithm(inputs: int) -> None:
    weight, x = layer(inputs=inputs)
    weight, moment = weight.double(), moment_of(x).double()
    fitted = formats.parse("int3-g64").fit(weight.float())
    fitted.__dict__["scale"] = fitted.scale.double()  # both in float64: equality must not hang on rounding of sums
    factor = damping.factorise(moment, damping.rounding_order(moment, "natural"), 0.01)
    damped = moment.double() + 0.01 * moment.diagonal().mean() * torch.eye(inputs)
    flipped = torch.linalg.cholesky(damped.flip(0, 1))
    factor.lower = flipped / flipped.diagonal()
    codes, _ = ldl.solve(weight, factor, GridCodec(fitted))
    assert torch.equal(codes.float(), paper(weight, moment, fitted.full_scale, -4, 3, 0.01).float())


def test_codes_in_float32_hardly_differ() -> None:
    weight, x = layer(inputs=320)
    moment = moment_of(x)
    fitted = formats.parse("int3-g64").fit(weight)
    factor = damping.factorise(moment, damping.rounding_order(moment, "natural"), 0.01)
    codes, _ = ldl.solve(weight, factor, GridCodec(fitted))
    assert float((codes != paper(weight, moment, fitted.full_scale.double(), -4, 3, 0.01)).float().mean()) < 2e-3


@pytest.mark.parametrize("codec", [Integers(), Checkerboard(), Tile()], ids=["columns", "vectors", "tiles"])
def test_other_codecs_need_no_other_solver(codec) -> None:  # type: ignore[no-untyped-def]
    weight, x = layer()
    if isinstance(codec, Integers):
        weight = weight * 100
    if not isinstance(codec, Tile):
        check_codec(codec, weight)
    check_feedback(codec, weight, x)


def test_descent_and_refit_never_raise_the_loss() -> None:
    weight, x = layer()
    moment = moment_of(x)
    for name in ("int4-g128", "int3-g32-asym", "int2-b32x64", "int3-g64-floatzero", "nf4-g64-dq", "nvfp4", "mxfp4", "int3-row"):
        fitted = formats.parse(name).fit(weight, moment.diagonal())
        factor = damping.factorise(moment, damping.rounding_order(moment, "activation"), 0.01)
        codes, values = ldl.solve(weight, factor, GridCodec(fitted))
        last = ldl.loss(weight - values, moment)
        for _ in range(2):
            codes, values = descent.sweep(weight, moment, GridCodec(fitted), codes, values)
            swept = ldl.loss(weight - values, moment)
            fitted, values = descent.refit(weight, moment, fitted, codes, values)
            refitted = ldl.loss(weight - values, moment)
            assert refitted <= swept * (1 + 1e-5) <= last * (1 + 1e-4), name
            assert torch.equal(fitted.decode(fitted.format.dtype.encode(codes)), values), name
            last = refitted


def test_sweeps_and_order_pay() -> None:
    weight, x = layer()
    given = grid.problem(moment_of(x), x.shape[0])
    errors = {
        (order, sweeps): grid.solve(weight, given, formats.parse("int3-g128"), order=order, sweeps=sweeps).report["error"]
        for order in ("natural", "activation")
        for sweeps in (0, 3)
    }
    assert errors["activation", 3] < 0.95 * errors["activation", 0] < 0.8 * errors["natural", 0], errors


def test_target_is_the_minimum_of_the_mismatched_objective() -> None:
    weight, reference = layer(tokens=2048)
    reference = reference.double()
    x = reference + 0.2 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moment, cross = x.T @ x / len(x), reference.T @ x / len(x)
    target = weight.double() @ cross @ torch.linalg.inv(moment)
    gaps = []
    for seed in range(3):
        q = weight + 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        objective = (reference @ weight.double().T - x @ q.double().T).square().sum() / len(x)
        gaps.append(float(objective) - ldl.loss(q.double() - target, moment))
    assert max(gaps) - min(gaps) < 1e-6 * abs(gaps[0])
    found = corrected(weight, moment.float(), cross.float(), ridge=1e-6)
    assert torch.allclose(found, target.float(), atol=2e-4 * float(target.abs().max()))
    assert torch.equal(corrected(weight, moment.float(), cross.float(), alpha=0.0), weight)


def test_equal_streams_need_no_correction_and_dead_inputs_get_none() -> None:
    weight, x = layer()
    x[:, 5] = 0
    moment = moment_of(x)
    assert torch.allclose(corrected(weight, moment, moment), weight, atol=1e-6)
    assert torch.equal(corrected(weight, moment, 1.1 * moment)[:, 5], weight[:, 5])


def test_damping_is_raised_until_there_is_a_factor() -> None:
    weight, x = layer()
    moment = moment_of(x)
    natural = torch.arange(256)
    fine = damping.factorise(moment, natural, 0.01)
    assert (fine.damp, fine.fallback) == (0.01, "")
    mean = float(moment.diagonal().mean())
    least = float(torch.linalg.eigvalsh(moment)[0])
    bent = moment - (least + 0.03 * mean) * torch.eye(256)  # its least eigenvalue is -0.03 of the mean
    raised = damping.factorise(bent, natural, 0.01)
    assert raised.damp == pytest.approx(0.05) and raised.fallback == "damp 0.05 in float32"
    hopeless = damping.factorise(moment - 2 * mean * torch.eye(256), natural, 0.01)
    assert hopeless.lower is None and hopeless.fallback == "weighted rtn on diag(H)"
    quantized = grid.solve(weight, grid.Problem(-moment + 2 * torch.diag(moment.diagonal())), formats.parse("int4-g128"))
    assert quantized.report["fallback"] == "weighted rtn on diag(H)"
    assert torch.equal(quantized.codes, formats.parse("int4-g128").fit(weight, moment.diagonal()).encode(weight))


def test_few_tokens_are_shrunk_and_better_than_nearest_values() -> None:
    weight, x = layer(tokens=8192)
    truth, few = moment_of(x), moment_of(x[:64])
    given = grid.problem(few, 64)
    assert given.report["fallback"] == "64 tokens for 256 inputs: off-diagonal of H shrunk by 0.50"
    format = formats.parse("int3-g128")
    solved = ldl.loss(weight - grid.solve(weight, given, format).decode(), truth)
    bare = ldl.loss(weight - grid.solve(weight, grid.Problem(few), format).decode(), truth)
    nearest = ldl.loss(weight - grid.nearest(weight, format, True, few.diagonal()).decode(), truth)
    assert solved < nearest < bare


def test_a_stack_of_matrices_is_rounded_as_each_alone() -> None:
    weight, x = layer(out=64)
    given = grid.problem(moment_of(x), x.shape[0])
    format = formats.parse("int4-g128-asym")
    whole = grid.solve(weight, given, format)
    parts = torch.cat([grid.solve(half, given, format).codes for half in weight.split(32)])
    assert float((whole.codes != parts).float().mean()) < 1e-3  # sums of other shapes round otherwise
