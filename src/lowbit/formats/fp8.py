"""fp8 - 8-bit floats (e4m3) with one scale a tensor, a row, a token or a block of weights.

In / Out  fp8-row (= fp8), fp8-tensor, fp8-token (= row, of activations), fp8-g128, fp8-b128x128 -> the same words behind e4m3.
Idea      scale = max|w| / 448; stored in 16 bits unless a word says fp32.
Source    compressed-tensors `float-quantized`; 128x128 blocks: DeepSeek-V3 (2412.19437), section 3.3.
Figures   8 bits and the scales. Mean squared error on N(0,1), any group: 0.0007.
Traps     Scales of other tools are fp32 now and then: fp8-row-fp32 reads and writes those.
"""

from lowbit.formats import Format, with_words

EXAMPLES = ("fp8-tensor", "fp8-row", "fp8-token-fp32", "fp8-b128x128", "fp8-g128")


def parse(number: str, words: list[str]) -> Format:
    """The format fp8 with its words."""
    return with_words("-".join(["fp8", *words]), "e4m3", words)
