"""Every kernel of attention that imports here, through the suite of lowbit.testing."""

import pytest
import torch

from lowbit.core.errors import KernelUnavailable
from lowbit.kernels import dispatch
from lowbit.testing import attention as suite


@pytest.mark.parametrize("name", dispatch.names(dispatch.ATTENTION))
@pytest.mark.parametrize("check", ["contract", "result"])
def test_kernel(name: str, check: str) -> None:
    try:
        dispatch.get(name)
    except KernelUnavailable as error:
        pytest.skip(str(error))
    if check == "result" and name.startswith("cuda.") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU; tests/gpu runs it")
    getattr(suite, f"check_{check}")(name)
