"""mistral - Mistral 7B, Nemo, Small (text): Llama's layer with a sliding window."""

from lowbit.architectures._decoder import decoder

ARCHITECTURE = decoder()
