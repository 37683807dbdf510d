"""encoding - the nearest codes of an element, by the fastest search that there is for the device.

In / Out  element, values as it wants them -> codes, as `Element.encode` gives them.
Idea      The element's own search is the law; where a kernel knows a faster one it runs instead (trellises, on
          NVIDIA GPUs and x86 CPUs).
"""

from torch import Tensor

from lowbit.dtypes import Element
from lowbit.dtypes._trellis import Trellis
from lowbit.kernels.cpu import _viterbi as on_cpu


def encode(element: Element, values: Tensor) -> Tensor:
    """Codes uint8 of `values` on their device."""
    if isinstance(element, Trellis) and values.is_cuda:
        from lowbit.kernels.cuda import _viterbi

        if not _viterbi.refusal(element, values.device):
            return element.encode(values, lambda points: _viterbi.search(points, element))
    if isinstance(element, Trellis) and values.device.type == "cpu" and not on_cpu.refusal(element):
        return element.encode(values, lambda points: on_cpu.search(points, element))
    return element.encode(values)
