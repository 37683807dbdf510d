"""qserve - integers by token and head, nothing kept as floats: qserve4, qserve8.

In / Out  keys and values [tokens, head_dim] of a head -> codes, 16-bit scale and zero for each token.
Idea      The plain grid that a fused kernel reads fastest. What makes its keys easy is a fold into weights (SmoothAttention),
          done before, not here.
Source    QServe / QoQ (2405.04532) section 4.
Figures   head_dim 128: 4.25 bits for qserve4.
Traps     Without that fold it is the worst of the 4-bit policies: use int4-centred-rot.
"""

from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = ("qserve4",)


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    half = Half(f"int{_policy.bits(text, number, 2, 8)}-row-floatzero")
    return _policy.policy(text, half, half, _policy.read(text, words), sinks=0, recent=0)
