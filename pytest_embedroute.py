"""Provides the pytest fixture ``check_backend``, for the tests of a backend's package.

It is a module beside the package, so that pytest does not import embedroute when it starts.
"""

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def check_backend() -> Callable[..., None]:
    """Return ``embedroute.testing.check_backend``, which checks the whole contract of a backend."""
    from embedroute.testing import check_backend  # noqa: PLC0415 - only when a test uses it

    return check_backend
