"""Every kernel that imports here, through the suite of lowbit.testing."""

import pytest

from lowbit.core.errors import KernelUnavailable
from lowbit.kernels import dispatch
from lowbit.testing import kernels as suite


@pytest.mark.parametrize("name", dispatch.names())
@pytest.mark.parametrize("check", ["contract", "product", "rounded", "restore", "op"])
def test_kernel(name: str, check: str) -> None:
    try:
        dispatch.get(name)
    except KernelUnavailable as error:
        pytest.skip(str(error))
    getattr(suite, f"check_{check}")(name)
