"""layouts - codes <-> bytes. One file is one arrangement of bits; it is a bijection and its header is its specification.

Contract of a file:
    BITS                                   widths of a code that it takes
    WORD                                   dtype of what it gives
    pack(codes, bits) -> Tensor            codes uint8 [rows, n] -> packed [rows, words]
    unpack(packed, bits, n) -> Tensor      back to uint8 [rows, n]
    packed_shape(rows, n, bits) -> tuple   shape of what pack gives, without packing
"""

from lowbit.core.shelf import Shelf

shelf = Shelf(__name__, "layout")
