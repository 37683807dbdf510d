"""turbo - rotated tokens on the table that is best for Gaussian numbers: turbo4, turbo3, turbo2.

In / Out  keys and values [tokens, head_dim] of a head -> codes of a table, one 16-bit scale for each token.
Idea      A turned token of norm |x| is |x| / sqrt(head_dim) times Gaussian numbers: Lloyd and Max's table loses least, and the
          norm is all that need be stored.
Source    TurboQuant (2504.19874) without its residual (QJL), which later users found to hurt; the table: HIGGS (2411.17525).
Defaults  4 sinks, 128 recent tokens. A Hadamard basis without random signs in place of a random rotation.
Figures   head_dim 64: turbo4 4.25 bits. Mean squared error on Gaussian numbers 0.0095, 0.0345, 0.1175 at 4, 3, 2 bits.
"""

from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = ("turbo4", "turbo3", "turbo2")


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    told = _policy.read(text, words, "centred")
    format = f"higgs1x{1 << _policy.bits(text, number, 2, 4)}-row-fp16-plain"
    return _policy.policy(text, Half(format, centred=told.get("centred", 0), rotated=True), Half(format, rotated=True), told)
