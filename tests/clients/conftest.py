"""Starts one real uvicorn and one upstream for all clients."""

import httpx2
import pytest

from tests.clients.served import KEY
from tests.fault_upstream import Upstream
from tests.support.serving import Serving


@pytest.fixture(scope="session")
def standing():
    """A server process and its upstream; the server must not have logged anything when it stops."""
    with Upstream() as upstream:
        with Serving(
            "tests.clients.served", environ={"TEST_UPSTREAM": upstream.url}, debug=False
        ) as server:
            # Its deadline is short, so do the one-time work before a test depends on the deadline.
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
    """The upstream, reset for each test."""
    upstream = standing[1]
    upstream.mode, upstream.delay = "honest", 0.0
    upstream.requests.clear()
    return upstream
