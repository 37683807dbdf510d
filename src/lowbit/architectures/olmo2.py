"""olmo2 - OLMo 2: norms after attention and MLP, none before; norms over the whole of q and of k.

Traps  Attention and MLP read the residual stream itself, so no norm can take up a scale: only v -> o and up -> down fold.
"""

from lowbit.architectures import Architecture
from lowbit.architectures._decoder import NARROW, OUT, POST_NORM, QKV, UP_FOLD, VALUE_FOLD, WIDEN

ARCHITECTURE = Architecture(
    stages=(QKV, OUT, WIDEN, NARROW), folds=(VALUE_FOLD, UP_FOLD), writers=OUT + NARROW, fixed=POST_NORM
)
