"""Tests clients that are rejected before their body is read, with real servers."""

import http.client
import json
import time
from contextlib import closing

import pytest

from tests.hosts.gateways import KEY
from tests.support.serving import SERVERS, Serving

BODY = json.dumps({"model": "hash", "input": "a"}).encode()


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request):
    with Serving("tests.hosts.apps.standalone", request.param) as serving:
        yield serving
    assert serving.said == ""


def ask(client, key, pause):
    """Send headers and body separately, as many clients do, and return the status."""
    client.putrequest("POST", "/v1/embeddings")
    for name, value in {
        "content-type": "application/json",
        "content-length": len(BODY),
        "authorization": f"Bearer {key}",
    }.items():
        client.putheader(name, value)
    client.endheaders()
    time.sleep(pause)
    client.send(BODY)
    with client.getresponse() as answer:
        answer.read()
        return answer.status


@pytest.mark.parametrize(("pause", "times"), [(0.05, 3), (0.0, 100)])
@pytest.mark.thorough
def test_a_rejected_client_gets_the_response_and_can_send_another_request(server, pause, times):
    """Its connection is neither reset nor closed without a response, whenever its body arrives."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=180)) as client:
        for _ in range(times):
            assert [401, 200] == [ask(client, key, pause) for key in ("sk-wrong", KEY)]
