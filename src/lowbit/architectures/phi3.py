"""phi3 - Phi-3, Phi-3.5, Phi-4: Llama's layer with q, k, v in one matrix and gate, up in another.

Traps  The values are the last rows of qkv_proj, up the second half of gate_up_proj: folds take these rows alone.
"""

from lowbit.architectures import Architecture, Fold
from lowbit.architectures._decoder import NARROW, OUT

QKV = ("self_attn.qkv_proj",)
WIDEN = ("mlp.gate_up_proj",)

ARCHITECTURE = Architecture(
    stages=(QKV, OUT, WIDEN, NARROW),
    folds=(
        Fold("input_layernorm", QKV, "self_attn"),
        Fold(QKV[0], OUT, OUT[0], heads=True),
        Fold("post_attention_layernorm", WIDEN, "mlp"),
        Fold(WIDEN[0], NARROW, NARROW[0], rows=(0.5, 1.0)),
    ),
    writers=OUT + NARROW,
)
