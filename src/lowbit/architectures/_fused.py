"""_fused - the experts of a block whose matrices lie in one tensor, from its module tree.

Idea   Experts are 3-D weights beside each other; of these, lowbit takes apart gate_up_proj and down_proj (layers/experts.py).
"""

from torch import nn

from lowbit.core.errors import ArchitectureError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def experts(layers: list[nn.Module], who: str) -> str:
    """Name of the module of fused experts in a block, "" for none. Raises ArchitectureError for other 3-D weights."""
    fused = {
        name: tuple(p.shape)
        for layer in layers
        for name, m in layer.named_modules()
        if not isinstance(m, CONVOLUTIONS)
        for p in m.parameters(recurse=False)
        if p.dim() == 3
    }
    usual = {n for layer in layers for n, m in layer.named_modules() if hasattr(m, "gate_up_proj") and hasattr(m, "down_proj")}
    odd = sorted(set(fused) - usual) or sorted(fused)[1:]
    if odd:
        raise ArchitectureError(
            f"{who}: {odd[0]} holds 3-D weights {fused[odd[0]]} that lowbit cannot take apart. "
            "Add a file to lowbit/architectures."
        )
    return next(iter(fused), "")
