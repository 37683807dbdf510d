"""What stands around the linears on CPUs, and attention over packed tokens, in C++: odd sizes, memory that must not be read."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lowbit.kernels import pages
from lowbit.kernels.attention import Case, Held
from lowbit.kernels.cpu import _build, _replay, _step, attention
from lowbit.kernels.pages import Half
from lowbit.kernels.reference import attention as law

pytestmark = pytest.mark.skipif(bool(_build.missing()), reason=_build.missing())
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def near(found: Tensor, wanted: Tensor, more: float = 1.0) -> bool:
    return float((found.double() - wanted.double()).norm()) <= more * DTYPES[found.dtype] * float(wanted.double().norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 16, 33, 2048])
def test_norm_and_gate(dtype: torch.dtype, n: int) -> None:
    hidden, delta, weight, table = (torch.randn(shape).to(dtype) for shape in ((1, n), (1, n), n, (5, n)))
    wanted = hidden + delta
    y = _step.norm(hidden, delta, weight, 1e-5)
    assert torch.equal(hidden, wanted)
    assert near(y, torch.nn.functional.rms_norm(wanted.double(), (n,), weight.double(), 1e-5))
    row, y = _step.enter(torch.tensor([[3]]), table, weight, 1e-5)
    assert torch.equal(row[0], table[3]) and near(y, _step.norm(row.clone(), None, weight, 1e-5))
    both = 8 * torch.randn(1, 2 * n).to(dtype)
    a, b = both.double().split(n, 1)
    assert near(_step.gate(both), torch.nn.functional.silu(a) * b)
    both[0, 0] = torch.nan
    assert torch.isnan(_step.gate(both)[0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 15, 1024, 3001])
def test_the_first_of_the_likeliest_is_taken(dtype: torch.dtype, vocab: int) -> None:
    logits = torch.full((1, vocab), -3.0, dtype=dtype)
    best = {vocab // 2, vocab - 1}
    logits[0, list(best)] = -1.0
    token, position, number, written = torch.tensor([[5]]), torch.tensor([[11]]), torch.tensor([2]), torch.zeros(4).long()
    _step.Taking(vocab, logits.device)(logits, token, position, written, number)
    assert (int(token), int(position), int(number), written.tolist()) == (min(best), 12, 3, [0, 0, min(best), 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (7, 1), (32, 8)])
@pytest.mark.parametrize("past", [0, 1, 63, 64, 700])
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_of_a_step(dtype: torch.dtype, heads: tuple[int, int], past: int, threads: int) -> None:
    """Rotates, writes the new token at its place alone, and reads nothing behind it."""
    width, room = 48, past + 9
    queries, pairs = heads
    qkv, cos, sin = torch.randn(1, (queries + 2 * pairs) * width), torch.randn(room, width), torch.randn(room, width)
    held = torch.full((2, pairs, room, width), torch.nan)
    held[:, :, :past] = torch.randn(2, pairs, past, width)
    qkv, cos, sin, held = (t.to(dtype) for t in (qkv, cos, sin, held))
    before, position = held.clone(), torch.tensor([[past]])
    torch.set_num_threads(threads)
    y = _step.Attention(heads, width, 0.2, qkv.device)(qkv, cos, sin, position, *held)
    torch.set_num_threads(1)
    q, k, v = qkv.double().view(-1, width).split([queries, pairs, pairs])

    def turned(x: Tensor) -> Tensor:
        a, b = x.split(width // 2, 1)
        return (x * cos[past].double() + torch.cat([-b, a], 1) * sin[past].double()).to(dtype)

    assert near(held[0, :, past], turned(k)) and torch.equal(held[1, :, past], v.to(dtype))
    held[:, :, past] = before[:, :, past]
    assert torch.equal(held.nan_to_num(7.0), before.nan_to_num(7.0))
    keys = torch.cat([before[0, :, :past].double(), turned(k).double()[:, None]], 1).repeat_interleave(queries // pairs, 0)
    values = torch.cat([before[1, :, :past].double(), v[:, None]], 1).repeat_interleave(queries // pairs, 0)
    shares = (torch.einsum("hd,htd->ht", turned(q).double(), keys) * 0.2).softmax(1)
    assert near(y.view(queries, width), torch.einsum("ht,htd->hd", shares, values), 3)


def poisoned(x: Tensor, steps: int) -> Tensor:
    """x [batch, heads, n, ...] as a slice of what has NaN, or all bits, around it."""
    worst = torch.nan if x.is_floating_point() else -1
    whole = torch.full((x.shape[0], x.shape[1] + 1, x.shape[2] + steps, *x.shape[3:]), worst, dtype=x.dtype)
    whole[:, 1:, : x.shape[2]] = x
    return whole[:, 1:, : x.shape[2]]


@pytest.mark.parametrize("text", ["int8-row-floatzero", "int4-g32-floatzero", "int4-row-floatzero", "int2-row-floatzero"])
@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (14, 2)])
@pytest.mark.parametrize("sizes", [(0, 1, 1), (3, 37, 5), (0, 1030, 0), (4, 192, 131)])
@pytest.mark.parametrize("width", [64, 192])
def test_packed_tokens_in_slices(text: str, heads: tuple[int, int], sizes: tuple[int, int, int], width: int) -> None:
    torch.manual_seed(0)
    half, held = Half(text), []
    for _ in range(2):
        first, packed, last = (torch.randn(2, heads[1], n, width).add_(0.5) for n in sizes)
        held.append(Held(half, first, pages.encode(half, packed), last))
    q = torch.randn(2, heads[0], 1, width)
    case = Case(half, half, (width, width), heads, q.device, q.dtype, 1)
    assert not attention.supports(case)
    wanted = law.attend(q, *held, 0.15, None, None)
    around = [
        replace(
            h,
            first=poisoned(h.first, 2),
            last=poisoned(h.last, 3),
            pages={name: poisoned(page, 4) for name, page in h.pages.items()},
        )
        for h in held
    ]
    torch.set_num_threads(2)
    found = attention.attend(q, *around, 0.15, None, None)
    torch.set_num_threads(1)
    assert float((found - wanted).norm()) < 5e-5 * float(wanted.norm())
    bad = q.clone()
    bad[0, 0, 0, 3] = torch.nan
    assert torch.isnan(attention.attend(bad, *held, 0.15, None, None)[0, 0]).all()


def test_what_is_not_taken_is_said() -> None:
    def told(half: Half, width: int = 64, tokens: int = 1, paged: bool = False, dtype: torch.dtype = torch.float32) -> str:
        return attention.supports(Case(half, half, (width, width), (4, 2), torch.device("cpu"), dtype, tokens, False, paged))

    plain = Half("int4-row-floatzero")
    assert not told(plain)
    assert "2 new tokens" in told(plain, tokens=2) and "pool" in told(plain, paged=True)
    assert "groups of 48 of 48 channels; multiples of 32" in told(plain, width=48)
    assert "float16" in told(plain, dtype=torch.float16)
    assert "outliers" in told(replace(plain, outliers=1)) and "int3" in told(Half("int3-row-floatzero"))
    assert "along" in told(Half("int4-g32-floatzero", "channel"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (130, 200), (33, 2048)])
def test_a_linear_of_floats(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, weight, bias = torch.randn(1, shape[1]).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)
    wanted = x.double() @ weight.double().t()
    assert near(_step.product(x, weight, None), wanted) and near(_step.product(x, weight, bias), wanted + bias.double())


def test_a_token_that_is_not_in_the_table_reads_nothing() -> None:
    row, _ = _step.enter(torch.tensor([[7]]), torch.full((5, 16), 3.0), torch.ones(16), 1e-5)
    assert (row == 0).all()


def test_calls_written_down_are_made_again_on_what_lies_in_their_memory_then() -> None:
    hidden, weight, both = torch.randn(1, 48), torch.randn(48), torch.randn(1, 96)
    matrix = torch.randn(20, 48)

    def one() -> Tensor:
        return _step.product(_step.norm(hidden, _step.gate(both).view(1, 48), weight, 1e-5), matrix, None)

    before = hidden.clone()
    y, again = _step.recorded(one)
    first, after = y.clone(), hidden.clone()
    assert again is not None
    both.copy_(torch.randn(1, 96)), hidden.copy_(before), matrix.mul_(2)
    again()
    found, moved = y.clone(), hidden.clone()
    hidden.copy_(before)
    assert torch.equal(one(), found) and torch.equal(moved, hidden)
    assert not torch.equal(found, first) and not torch.equal(moved, after)


def test_calls_of_another_thread_are_not_written_down() -> None:
    both, other = torch.randn(1, 96), torch.randn(1, 96)

    def one() -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: _step.gate(other)).result()
        return _step.gate(both)

    with _build.writing(writing := _replay.Writing()):
        one()
    assert len(writing.calls) == 1


def test_what_torch_computes_in_between_is_not_written_down() -> None:
    both = torch.randn(1, 96)
    for one in (lambda: _step.gate(both) + 1, lambda: _step.gate(both * 2), lambda: _step.gate(both)[:, : int(both[0, 0] > 9)]):
        y, again = _step.recorded(one)
        assert again is None and torch.equal(y, one())
