"""nf4 - 4-bit NormalFloat: quantiles of the normal distribution, 8 values above zero and 7 below.

In / Out  values in -1 .. 1 -> code i in uint8 -> the i-th value.
Idea      8 quantiles of N(0,1) from 1 - d to 1/2 and 7 from d to 1/2, without 1/2 itself, d = (1/32 + 1/30) / 2, and 0; divided
          by the greatest. Each value then takes about the same share of normally distributed weights.
Source    QLoRA (2305.14314), appendix E; bitsandbytes (same values to the last bit, same codes).
Figures   Within 4e-7 of the quantiles. Mean squared error on N(0,1), groups of 64: see formats/table.py.
Traps     The published values were made with a rounded d in float32: they are a standard now and stand here as numbers.
          bitsandbytes decides ties by its own tree.
"""

from lowbit.dtypes._table import Table

VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def element(number: str) -> Table:
    return Table("nf4", VALUES)
