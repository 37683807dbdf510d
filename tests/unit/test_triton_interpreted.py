"""The Triton kernels in Triton's interpreter, on the CPU, against the float64 product of the decoded matrix.

The interpreter rounds to bfloat16 by cutting off, so that bfloat16 is compared at half its precision.
It must be chosen before triton is first imported, so the tests of this file run in a process of their own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowbit import formats
from lowbit.kernels import packing

INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
inside = pytest.mark.skipif(not INSIDE, reason="runs in the process that test_in_the_interpreter starts")


@pytest.mark.skipif(INSIDE, reason="already in the interpreter")
def test_in_the_interpreter() -> None:
    source = Path(__file__).parents[2] / "src"
    path = os.pathsep.join(p for p in (str(source), os.environ.get("PYTHONPATH", "")) if p)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout[-4000:]


def quantized(text: str, rows: int, inputs: int) -> formats.Quantized:
    torch.manual_seed(rows + inputs)
    return formats.parse(text).fit(torch.randn(rows, inputs), search=False).quantize(torch.randn(rows, inputs))


CASES = [
    ("int4-g128", 64, 512, 1, torch.bfloat16),
    ("int4-g128-asym", 80, 384, 3, torch.float16),
    ("int4-g32-asym", 72, 96, 17, torch.bfloat16),
    ("int4-g64", 64, 512, 2, torch.float16),
    ("int4-row", 30, 200, 5, torch.bfloat16),
    ("int8-row", 33, 136, 16, torch.bfloat16),
    ("int8-g128-asym", 64, 256, 1, torch.float16),
    ("int3-g128-asym", 64, 1024, 4, torch.bfloat16),
    ("int3-g32", 40, 96, 1, torch.float16),
    ("int2-g64-asym", 64, 1024, 15, torch.bfloat16),
]


@inside
@pytest.mark.parametrize(("text", "rows", "inputs", "tokens", "dtype"), CASES)
def test_product_equals_the_decoded_matrix(text: str, rows: int, inputs: int, tokens: int, dtype: torch.dtype) -> None:
    from lowbit.kernels.triton import linear

    q = quantized(text, rows, inputs)
    stored = packing.pack(q)
    packed, parts = packing.split(q.format, stored, q.shape)
    prepared = linear.prepare(q.format, packed, parts, q.shape)
    x = torch.randn(tokens, inputs).to(dtype)
    exact = x.double() @ q.decode().double().T
    blocks = linear.planes(q.format).blocks(inputs)
    for slices in sorted({1, blocks}):
        how = linear.Tiles(32, 16, slices, 4, 2)
        y = linear.product(x, prepared, q.format, rows, how)
        assert (y.double() - exact).norm() / exact.norm() < (6e-3 if dtype == torch.bfloat16 else 5e-4)
        assert not prepared["count"].any()
    early = linear.product(x, prepared, q.format, rows, linear.Tiles(32, 16, 1, 4, 2, True))
    assert (early.double() - exact).norm() / exact.norm() < 8e-3


@inside
@pytest.mark.parametrize(("text", "rows", "inputs", "tokens", "dtype"), CASES)
def test_matrix_is_the_decoded_matrix(text: str, rows: int, inputs: int, tokens: int, dtype: torch.dtype) -> None:
    from lowbit.kernels.triton import linear

    q = quantized(text, rows, inputs)
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    w = linear.matrix(linear.prepare(q.format, packed, parts, q.shape), q.format, q.shape, dtype)
    if dtype == torch.float16:
        assert torch.equal(w, q.decode().to(dtype))
    torch.testing.assert_close(w.float(), q.decode(), rtol=2**-7, atol=0)


@inside
@pytest.mark.parametrize("text", ["int4-g32-asym", "int3-g32", "nf4-g32"])
def test_a_panel_equals_the_loop_over_columns(text: str) -> None:
    from lowbit.kernels import triton
    from lowbit.solvers import codec, damping, ldl

    torch.manual_seed(0)
    out, inputs = 10, 96
    inputs_seen = torch.randn(400, inputs) @ torch.randn(inputs, inputs)
    moment = inputs_seen.T @ inputs_seen / 400
    w = torch.randn(out, inputs)
    grid = formats.parse(text).fit(w, search=False)
    factor = damping.factorise(moment, damping.rounding_order(moment, "activation"), 0.01)
    expected_codes, expected = ldl.solve(w, factor, codec.GridCodec(grid))
    x = w.T[factor.columns].contiguous()
    element = grid.format.dtype
    levels = None if text.startswith("int") else element.decode(torch.arange(element.codes, dtype=torch.uint8)).sort().values
    zero = None if grid.zero is None else grid.zero.T.contiguous()
    codes, values = triton.panel(
        x,
        x,
        factor.lower,
        (factor.columns // 32).int(),
        grid.scale.T.contiguous(),
        zero,
        element.minimum,
        element.maximum,
        levels,
    )
    codes = codes if levels is None else levels[codes.long()]
    same = codes == expected_codes.float().T[factor.columns]
    assert same.float().mean() > 0.97  # the order of sums moves a few codes across a rounding boundary
    loss = ldl.loss(w - expected, moment)
    found = torch.empty_like(w)
    found[:, factor.columns] = values.T
    assert abs(ldl.loss(w - found, moment) / loss - 1) < 0.02


@inside
@pytest.mark.parametrize("text", ["int4-g32-floatzero", "lut2-row"])
def test_solvers_by_panels_equal_their_loops(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding with feedback and a sweep after it: the kernel's codes and values are those of the loops in torch."""
    from lowbit.solvers import codec, damping, descent, ldl, panels

    torch.manual_seed(0)
    seen = torch.randn(500, 160) @ torch.randn(160, 160)
    moment, w = seen.T @ seen / 500, torch.randn(3, 160)
    factor = damping.factorise(moment, damping.rounding_order(moment, "activation"), 0.01)
    rounding = codec.codec(formats.parse(text).fit(w, search=False))
    wanted = ldl.solve(w, factor, rounding)
    swept = descent.sweep(w, moment, rounding, *wanted)
    monkeypatch.setattr(panels.triton, "panel_refusal", lambda weight: "")
    for found, expected in ((ldl.solve(w, factor, rounding), wanted), (descent.sweep(w, moment, rounding, *wanted), swept)):
        assert (rounding.stored(found[0]) == rounding.stored(expected[0])).float().mean() > 0.99
        assert (found[1] - expected[1]).norm() < 0.05 * expected[1].norm()


@inside
@pytest.mark.parametrize("name", ["llama", "qwen2"])
@torch.no_grad()
def test_a_step_equals_the_forward_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.kernels.triton import _step
    from lowbit.layers import joined, step
    from lowbit.serving.loop import Loop
    from lowbit.testing._tiny import tiny

    monkeypatch.setattr(step.kernels, "find", lambda device: _step)
    model = tiny(name, sliding_window=None)
    ids = torch.randint(3, 256, (1, 20))
    wanted = model(ids).logits[0]
    joined.join(model, model.config)
    assert not step.refusal(model)
    loop = Loop(model)
    loop._make_room(40)
    loop._prompt(ids[:, :17])
    assert loop._step is not None
    for p in range(17, 20):
        found = loop._step(ids[:, p : p + 1], torch.tensor([[p]]))[0]
        assert torch.allclose(found, wanted[p], atol=1e-4)


@inside
def test_the_first_of_equal_logits_is_taken() -> None:
    from lowbit.kernels.triton._step import Taking

    logits = torch.randn(1, 3000)
    logits[0, [70, 2500, 2999]] = 9.0
    token, position, number = torch.tensor([[5]]), torch.tensor([[11]]), torch.tensor([2])
    written, take = torch.zeros(6, dtype=torch.long), Taking(3000, torch.device("cpu"))
    for chosen in (70, 2500, 2999):
        take(logits, token, position, written, number)
        assert int(token) == chosen
        logits[0, chosen] = -1.0
    assert written.tolist() == [0, 0, 70, 2500, 2999, 0]
    assert (int(position), int(number), int(take._count)) == (14, 5, 0)


@inside
@torch.no_grad()
def test_a_loop_takes_the_tokens_of_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.kernels.triton import _step
    from lowbit.serving import loop
    from lowbit.testing._tiny import tiny

    monkeypatch.setattr(loop.step.kernels, "find", lambda device: _step)
    model = tiny("llama", sliding_window=None)
    model.generation_config.eos_token_id = None
    ids = torch.randint(3, 256, (1, 9))
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)
    made = loop.Loop(model)
    assert list(made.tokens(ids, 6)) == wanted[0, 9:].tolist()
    assert made._step is not None


@inside
@pytest.mark.parametrize("text", ["int4-g32-fp32", "int3-g64-asym-fp32"])
def test_searched_scales_lose_as_little_as_those_of_the_format(text: str) -> None:
    from lowbit.kernels import scales

    torch.manual_seed(0)
    format, w, importance = formats.parse(text), torch.randn(5, 128), torch.rand(128) ** 3
    w[3, :64], w[4] = 0.0, w[4].abs()
    assert not scales.refusal(format)
    wanted, found = format.fit(w, importance), scales.searched(format, w, importance)
    losses = [float(((g.quantize(w).decode() - w).square() * importance).sum()) for g in (wanted, found)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert all(wanted.parts[n].dtype == found.parts[n].dtype for n in wanted.parts)
    torch.testing.assert_close(found.scale.abs(), wanted.scale.abs(), rtol=1e-4, atol=0)  # a sign may be a tie


@inside
def test_a_refit_by_the_kernel_is_that_of_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.kernels import triton
    from lowbit.solvers import descent, ldl

    torch.manual_seed(0)
    seen, w = torch.randn(900, 576) @ torch.randn(576, 576), torch.randn(35, 576)
    moment, grid = seen.T @ seen / 900, formats.parse("int3-g32-asym-fp32").fit(w, search=False)
    codes = grid.format.dtype.decode(grid.encode(w))
    values = grid.inner(grid.encode(w))
    wanted = descent.refit(w, moment, grid, codes, values)
    monkeypatch.setattr(triton, "panel_refusal", lambda weight: "")
    found = descent.refit(w, moment, grid, codes, values)
    torch.testing.assert_close(found[0].scale, wanted[0].scale, rtol=1e-4, atol=0)
    assert ldl.loss(w - found[1], moment) == pytest.approx(ldl.loss(w - wanted[1], moment), rel=1e-4)
