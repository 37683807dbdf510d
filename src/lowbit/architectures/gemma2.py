"""gemma2 - Gemma 2: norms before and after attention and MLP, soft caps, windows in every other layer.

Traps  Its norms multiply by (1 + w). `post_attention_layernorm` follows the attention; the MLP reads
       `pre_feedforward_layernorm`.
"""

from lowbit.architectures._decoder import POST_NORM, decoder

ARCHITECTURE = decoder(second="pre_feedforward_layernorm", offset=1.0, fixed=POST_NORM)
