"""Attention to packed keys on a GPU: the suite's cases, long pasts of many rows, CUDA graphs. Needs an NVIDIA GPU."""

import pytest
import torch

from lowbit.kernels.cuda import _attention
from lowbit.kernels.cuda._attention import FLOAT8, Side
from lowbit.testing import attention as suite

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_the_suite() -> None:
    suite.check_result("cuda.attention", "cuda")


def stored(bits: int, pages: int, heads: int, page: int, width: int) -> tuple[Side, torch.Tensor]:
    scale = (torch.rand(pages, heads, page, device="cuda") * 0.1 + 0.05).bfloat16() / (1 << bits if bits else 40)
    if bits == FLOAT8:
        codes = torch.randn(pages, heads, page, width, device="cuda").mul(30).to(torch.float8_e4m3fn)
        return Side(codes.view(torch.uint8), scale, bits), codes.double() * scale.double()[..., None]
    zero = (torch.rand(pages, heads, page, device="cuda") * 2 + (1 << bits) / 2 - 1).bfloat16()
    codes = torch.randint(0, 256, (pages, heads, page, width * bits // 8), device="cuda", dtype=torch.uint8)
    parts = torch.stack([(codes >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], -1).flatten(-2)
    return Side(codes, scale, bits, zero), (parts.double() - zero.double()[..., None]) * scale.double()[..., None]


@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (8, 8), (FLOAT8, FLOAT8), (8, 4), (4, 2)])
@pytest.mark.parametrize(("sequences", "heads", "group", "tokens"), [(1, 8, 4, 20008), (3, 2, 1, 776), (5, 1, 8, 64)])
def test_long_pasts(bits: tuple[int, int], sequences: int, heads: int, group: int, tokens: int) -> None:
    keys, k = stored(bits[0], sequences, heads, tokens, 128)
    values, v = stored(bits[1], sequences, heads, tokens, 128)
    q = torch.randn(sequences, heads * group, 128, device="cuda").bfloat16() * 2
    wanted = (q.double().view(sequences, heads, group, 128) @ k.transpose(2, 3) * 128**-0.5).softmax(-1) @ v
    for _ in range(2):
        poison = torch.full_like(q, float("nan"))
        del poison  # the next tensor of this size gets its memory
        found = _attention.attend(q, keys, values, 128**-0.5)
        error = float((found.double().view(wanted.shape) - wanted).norm() / wanted.norm())
        assert error < 4e-3, error


@pytest.mark.parametrize("page", [16, 64, 1024])
@pytest.mark.parametrize("bits", [2, 4, 8, FLOAT8])
def test_pages_in_any_order(bits: int, page: int) -> None:
    sequences, heads, tokens = 3, 2, 9216
    order = torch.randperm(sequences * tokens // page, device="cuda")

    def in_pages(x: torch.Tensor) -> torch.Tensor:
        pages = x.unflatten(2, (-1, page)).transpose(1, 2).flatten(0, 1)
        pool = torch.empty_like(pages)
        pool[order] = pages
        return pool

    whole = [stored(bits, sequences, heads, tokens, 128)[0] for _ in range(2)]
    paged = [Side(in_pages(s.codes), in_pages(s.scale), bits, None if s.zero is None else in_pages(s.zero)) for s in whole]
    q = torch.randn(sequences, heads * 4, 128, device="cuda").bfloat16() * 2
    found = _attention.attend(q, *paged, 0.1, table=order.int().view(sequences, -1).contiguous())
    assert torch.equal(found, _attention.attend(q, *whole, 0.1))


def test_in_a_cuda_graph() -> None:
    keys, _ = stored(4, 2, 2, 4096, 128)
    values, _ = stored(4, 2, 2, 4096, 128)
    q = torch.randn(2, 8, 128, device="cuda").half()
    expected = _attention.attend(q, keys, values, 0.1)
    graph, fixed = torch.cuda.CUDAGraph(), torch.zeros_like(q)
    with torch.cuda.graph(graph):
        found = _attention.attend(fixed, keys, values, 0.1)
    for _ in range(3):
        fixed.copy_(q)
        graph.replay()
        assert torch.equal(found, expected)
