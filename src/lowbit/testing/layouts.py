"""layouts - what every arrangement of bits must pass.

In / Out  the name of a layout -> nothing, or an AssertionError that says what is wrong.
Idea      A layout is a bijection between codes and bytes for every width it takes and every shape, odd ones too.
"""

import torch
from torch import Tensor

from lowbit import layouts

SHAPES = ((1, 1), (3, 5), (2, 8), (7, 31), (5, 33), (4, 64), (3, 100), (2, 131), (0, 8), (16, 256))


def codes_of(rows: int, n: int, bits: float, seed: int = 0) -> Tensor:
    """Random codes uint8 [rows, n], least and greatest among them."""
    count = 3 if bits == 1.6 else 2 ** int(bits)
    codes = torch.randint(0, count, (rows, n), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    if codes.numel():
        codes[0, 0], codes[-1, -1] = 0, count - 1
    return codes


def check_bijection(name: str) -> None:
    """unpack(pack(codes)) is codes; shape, type and size are as declared."""
    layout = layouts.shelf.get(name)
    for bits in layout.BITS:
        for rows, n in SHAPES:
            codes = codes_of(rows, n, bits)
            packed = layout.pack(codes, bits)
            said = f"{name}, {bits} bits, {rows}x{n}"
            assert packed.dtype == layout.WORD and tuple(packed.shape) == layout.packed_shape(rows, n, bits), said
            back = layout.unpack(packed, bits, n)
            assert back.dtype == torch.uint8 and torch.equal(back, codes), said


def check_size(name: str) -> None:
    """Long rows take the bits they should."""
    layout = layouts.shelf.get(name)
    for bits in layout.BITS:
        taken = layout.pack(codes_of(2, 1280, bits), bits)
        assert taken.numel() * taken.element_size() * 8 == 2 * 1280 * bits, f"{name}, {bits} bits"


def check_tensors(name: str) -> None:
    """Strided codes and packed rows are taken; inputs stay as they were; the result does not share memory with the codes."""
    layout = layouts.shelf.get(name)
    for bits in layout.BITS:
        codes = codes_of(40, 24, bits)
        before = codes.clone()
        packed = layout.pack(codes, bits)
        assert torch.equal(layout.pack(codes.t().contiguous().t(), bits), packed), f"{name}: strides change bytes"
        assert torch.equal(layout.unpack(packed.t().contiguous().t(), bits, 24), codes), f"{name}: strides change codes"
        assert torch.equal(layout.pack(codes[3:9], bits), packed[3:9]), f"{name}: rows depend on each other"
        assert torch.equal(layout.unpack(packed[3:9], bits, 24), codes[3:9]), f"{name}: rows depend on each other"
        assert torch.equal(layout.pack(codes[1:2, 1:17], bits), layout.pack(codes[1:2, 1:17].clone(), bits)), f"{name}: one row"
        layout.unpack(packed, bits, 24).zero_()
        packed.zero_()
        assert torch.equal(codes, before), f"{name}: codes and bytes share memory"


def check_layout(name: str) -> None:
    """All of the above."""
    for check in (check_bijection, check_size, check_tensors):
        check(name)
