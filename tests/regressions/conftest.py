"""Two upstreams for all tables here; each row finds them honest and with nothing to remember."""

import pytest

from tests.regressions.requesting import WIDTH, Teller


@pytest.fixture(scope="session")
def _standing():
    with Teller() as first, Teller() as second:
        yield first, second


@pytest.fixture
def upstreams(_standing):
    for upstream in _standing:
        upstream.tell("honest")
        upstream.width, upstream.limit = WIDTH, 2
        upstream.requests.clear()
    return _standing
