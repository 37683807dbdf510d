"""qwen3 - Qwen 3: Llama's layer with a norm per head at q and k, before the rotation.

Traps  A scale cannot be moved through the norms at q and k; values pass by them, so v -> o stays foldable.
"""

from lowbit.architectures._decoder import decoder

ARCHITECTURE = decoder()
