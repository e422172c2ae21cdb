"""One real uvicorn and one upstream for all clients."""

import httpx2
import pytest

from tests.clients.served import KEY
from tests.fault_upstream import Upstream
from tests.support.serving import Serving


@pytest.fixture(scope="session")
def standing():
    """A server that speaks for itself, its upstream beside it; it must have said nothing when it stops."""
    with Upstream() as upstream:
        with Serving(
            "tests.clients.served", environ={"TEST_UPSTREAM": upstream.url}, debug=False
        ) as server:
            # Its deadline is short, so it does what it does only once before anybody counts on that.
            for model in ("hash", "text-embedding-3-small"):
                body, headers = (
                    {"model": model, "input": "warm"},
                    {"authorization": f"Bearer {KEY}"},
                )
                httpx2.post(
                    f"{server.url}/v1/embeddings",
                    json=body,
                    headers=headers,
                    trust_env=False,
                    timeout=120,
                )
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
