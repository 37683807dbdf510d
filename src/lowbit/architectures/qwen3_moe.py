"""qwen3_moe - Qwen 3 with experts (30B-A3B, 235B-A22B, Coder): Qwen 3's attention, in most layers experts for the MLP.

Traps  `mlp_only_layers` and `decoder_sparse_step` leave some layers dense: stages and folds name both kinds.
"""

from lowbit.architectures._decoder import experts_decoder

ARCHITECTURE = experts_decoder()
