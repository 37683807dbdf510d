"""Bytes of each layout are those that the original toolkits write."""

import numpy as np
import pytest
import torch

from lowbit import dtypes, layouts
from lowbit.testing.layouts import codes_of


def pack(name: str, codes: torch.Tensor, bits: float) -> torch.Tensor:
    packed: torch.Tensor = layouts.shelf.get(name).pack(codes, bits)
    return packed


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("n", [32, 100, 131])
def test_dense_is_compressed_tensors_pack_quantized(bits: int, n: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = codes_of(7, n, bits)
    theirs = helpers.pack_to_int32((codes.int() - (1 << (bits - 1))).to(torch.int8), bits)
    assert torch.equal(pack("dense", codes, bits), theirs)


def test_dense_by_hand() -> None:
    """3 bits: 1, 2, 3, ... least significant bit first; the eleventh code straddles two words."""
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 7]], dtype=torch.uint8)
    stream = sum(int(c) << (3 * i) for i, c in enumerate(codes[0]))
    words = [stream & 0xFFFFFFFF, stream >> 32]
    assert [w & 0xFFFFFFFF for w in pack("dense", codes, 3)[0].tolist()] == words
    assert pack("dense", torch.tensor([[1, 0, 0, 1]], dtype=torch.uint8), 1).tolist() == [[9]]


def test_dense_is_compressed_tensors_nvfp4() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    codes = codes_of(6, 64, 4)
    theirs = helpers.pack_fp4_to_uint8(dtypes.get("e2m1").decode(codes).bfloat16())
    assert torch.equal(pack("dense", codes, 4).view(torch.uint8), theirs)


def test_dense_is_compressed_tensors_mxfp6() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.mxfp6.helpers")
    codes = codes_of(6, 64, 6)
    theirs = helpers.pack_fp6_to_uint8(dtypes.get("e2m3").decode(codes).bfloat16())
    assert torch.equal(pack("dense", codes, 6).view(torch.uint8), theirs)


def test_trits_hold_ggufs_digits() -> None:
    """TQ1_0 keeps the same five digits as a fraction of 3**5, first digit first."""
    quants = pytest.importorskip("gguf.quants")
    digits = codes_of(1, 256, 1.6).numpy()
    block = quants.quantize((digits.astype(np.float32) - 1), quants.GGMLQuantizationType.TQ1_0)[0]
    # its first 160 weights: 32 bytes, byte j holds weights j, j + 32, .., j + 128
    ours = pack("trits", torch.from_numpy(digits[:, :160].reshape(5, 32).T[:, ::-1].copy().reshape(1, 160)), 1.6)[0].numpy()
    assert np.array_equal((ours.astype(int) * 256 + 242) // 243, block[:32])


def test_bytes_are_float8_bits() -> None:
    x = torch.randn(4, 32) * 100
    packed = pack("dense", dtypes.get("e4m3").encode(x), 8)
    assert torch.equal(packed.view(torch.float8_e4m3fn).float(), x.to(torch.float8_e4m3fn).float())
