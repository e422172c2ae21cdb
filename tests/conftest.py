"""What all tests share: async tests run on asyncio and on trio, and examples are made up the same way every time."""

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no finding, and a run that fails must fail again.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
