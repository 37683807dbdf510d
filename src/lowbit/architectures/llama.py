"""llama - Llama 2 and 3, TinyLlama, Yi, SmolLM and others of the class LlamaForCausalLM.

Every rope variant and tied embeddings are the model's own affair: nothing here depends on them. Biases move with their rows.
"""

from lowbit.architectures._decoder import decoder

ARCHITECTURE = decoder()
