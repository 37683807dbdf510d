"""qwen2 - Qwen 1.5, 2 and 2.5: Llama's layer with biases at q, k and v."""

from lowbit.architectures._decoder import decoder

ARCHITECTURE = decoder()
