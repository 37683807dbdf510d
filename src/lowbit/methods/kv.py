"""kv - the keys and values of past tokens are held packed, by a policy of lowbit.kvcache.

In / Out  a declaration, no verb: decoder layers that its selector covers get a policy in the plan; a later one that covers them
          wins. The closing check sees the cache as it is held; config.json keeps the policy, and models that lowbit loads,
          transformers' own among them, pack their caches by it from then on.
Idea      `kv(int4-centred-rot)` for all layers, `kv(int4) + kv(int8)@layers.0` for a mixture: early layers and keys lose most.
Source    Policies name their own. Mixtures by layer: KVTuner (2502.04420).
Defaults  int4-centred-rot: of the 4-bit policies the one that loses least on lowbit-tiny. Selectors: none, or layers.A-B.
Figures   lowbit-tiny, 4 windows of 2048, KL in milli-nats: int8 0.01, int4-centred-rot 0.67, int4 2.16, kivi2 38.7.
Traps     A loader that does not know lowbit ignores it and holds floats: the same weights, more memory.
"""

from dataclasses import dataclass

from lowbit import kvcache
from lowbit.kvcache import Policy
from lowbit.methods import Method


@dataclass(frozen=True)
class Kv(Method):
    """policy: how a layer's keys and values are held, as int4-g64, int8 or kivi2."""

    policy: str = "int4-centred-rot"

    def __post_init__(self) -> None:
        self.cache()

    def cache(self) -> Policy:
        """What it declares. Raises RequestError."""
        return kvcache.parse(self.policy)
