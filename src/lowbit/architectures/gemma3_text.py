"""gemma3_text - Gemma 3 without its eye: the layer of Gemma 2 with norms at q and k, five windowed layers to a global one.

Traps  As gemma2: norms multiply by (1 + w), and the MLP reads `pre_feedforward_layernorm`.
"""

from lowbit.architectures._decoder import POST_NORM, decoder

ARCHITECTURE = decoder(second="pre_feedforward_layernorm", offset=1.0, fixed=POST_NORM)
