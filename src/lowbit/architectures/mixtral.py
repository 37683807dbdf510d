"""mixtral - Mixtral 8x7B and 8x22B: Mistral's attention, eight experts for the MLP in every layer.

Traps  Files keep the old names: block_sparse_moe for mlp, and w1, w3, w2 for gate, up, down.
"""

from lowbit.architectures._decoder import experts_decoder

ARCHITECTURE = experts_decoder(
    renames=(
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"\.experts\.(\d+)\.w1\.", r".experts.\1.gate_proj."),
        (r"\.experts\.(\d+)\.w3\.", r".experts.\1.up_proj."),
        (r"\.experts\.(\d+)\.w2\.", r".experts.\1.down_proj."),
    ),
    published=(
        (r"\.mlp\.", ".block_sparse_moe."),
        (r"\.experts\.(\d+)\.gate_proj\.", r".experts.\1.w1."),
        (r"\.experts\.(\d+)\.up_proj\.", r".experts.\1.w3."),
        (r"\.experts\.(\d+)\.down_proj\.", r".experts.\1.w2."),
    ),
)
