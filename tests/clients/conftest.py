"""One real uvicorn and one upstream for all clients."""

import pytest

from tests.serving import Serving
from tests.upstream import Upstream


@pytest.fixture(scope="session")
def standing():
    """A server that speaks for itself, its upstream beside it; it must have said nothing when it stops."""
    with Upstream() as upstream:
        with Serving("tests.clients.served", environ={"TEST_UPSTREAM": upstream.url}, debug=False) as server:
            yield server, upstream
        assert server.said == ""


@pytest.fixture
def server(standing):
    return standing[0]


@pytest.fixture
def upstream(standing):
    """The upstream, as good as new."""
    upstream = standing[1]
    upstream.mode, upstream.delay = "honest", 0.0
    upstream.requests.clear()
    return upstream
