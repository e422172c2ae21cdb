"""Tests that a disconnect cancels work that no other request shares."""

import json
import socket
import threading
import time
from contextlib import ExitStack

import httpx2
import numpy as np
import pytest

from tests.fault_upstream import STALLS, Upstream, vector_of
from tests.hosts.gateways import KEY, WIDTH
from tests.support.serving import Serving
from tests.support.wait import until

HEAD = f"POST /ai/v1/embeddings HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
SOON = 0.25
"""Seconds of waiting from a client's disconnect to the end of the upstream connection."""
PATIENCE = 120
"""Seconds for a server to start and to respond."""


@pytest.fixture(scope="module")
def upstream():
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module", params=["uvicorn", "uvicorn-uvloop", "hypercorn", "hypercorn-trio"])
def server(request, upstream):
    with Serving(
        "tests.hosts.apps.counted", request.param, environ={"TEST_UPSTREAM": upstream.url}
    ) as serving:
        # A transport may probe a host first; after this request it behaves as usual.
        upstream.mode, upstream.delay = "honest", 0.0
        for at in range(4):
            body = {"model": "far", "input": f"warm {at}"}
            httpx2.post(
                f"{serving.url}/ai/v1/embeddings",
                json=body,
                headers={"authorization": f"Bearer {KEY}"},
                trust_env=False,
                timeout=PATIENCE,
            ).raise_for_status()
        yield serving
    assert serving.said == ""


@pytest.fixture(autouse=True)
def fresh(upstream):
    until(lambda: upstream.in_flight == 0)
    upstream.mode, upstream.delay = "honest", 0.0
    upstream.requests.clear()


def tasks_of(server):
    """The number of tasks of the server's event loop that are inside embedroute."""
    return httpx2.get(f"{server.url}/tasks", trust_env=False, timeout=PATIENCE).json()


@pytest.fixture
def send(server):
    """Send a request, and return the connection without waiting for the response."""
    with ExitStack() as wires:

        def send(text):
            body = json.dumps({"model": "far", "input": text}).encode()
            wire = wires.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
            )
            wire.sendall(
                f"{HEAD}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
            )
            return wire

        yield send


def answer(wire):
    with wire:
        actual = b"".join(iter(lambda: wire.recv(65536), b""))
    body = json.loads(actual.partition(b"\r\n\r\n")[2])
    assert "data" in body, body
    return np.array(body["data"][0]["embedding"], "<f4")


@pytest.mark.parametrize("mode", sorted(STALLS))
def test_a_disconnect_cancels_the_upstream_call(server, upstream, send, mode):
    """No server cancels the work: each only reports the disconnect through ``receive()``."""
    upstream.mode = mode

    aborted = upstream.aborted
    wire = send(f"{mode} at {server.server}")
    until(lambda: upstream.in_flight)
    assert tasks_of(server) > 0
    wire.close()

    assert until(lambda: upstream.in_flight == 0) < SOON
    assert upstream.aborted == aborted + 1
    until(lambda: tasks_of(server) == 0)


def test_a_disconnect_during_the_body_leaves_nothing_open(server, upstream):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as wire:
        wire.sendall(f'{HEAD}content-length: 100\r\n\r\n{{"model":'.encode())
        until(lambda: tasks_of(server) > 0)

    until(lambda: tasks_of(server) == 0)
    assert upstream.requests == []


def test_a_half_closed_connection_still_gets_its_response(server, upstream, send):
    """Some servers treat it as a disconnect and send nothing; none logs a traceback."""
    upstream.delay = 0.05
    wire = send(f"half at {server.server}")
    wire.shutdown(socket.SHUT_WR)
    actual = b"".join(iter(lambda: wire.recv(65536), b""))

    assert actual == b"" or actual.startswith(b"HTTP/1.1 200")
    until(lambda: tasks_of(server) == 0)


def test_shared_work_continues_when_its_leader_disconnects(server, upstream, send):
    """The leader's call is cancelled; the waiter becomes the leader, and gets its vector."""
    text = f"shared at {server.server}"
    upstream.mode = ["stalled", "honest"]
    until(lambda: tasks_of(server) == 0)
    leader = send(text)
    until(lambda: upstream.in_flight == 1)
    time.sleep(0.1)  # it is watched by a task of its own soon
    alone = tasks_of(server)
    follower = send(text)
    until(lambda: tasks_of(server) > alone)
    assert len(upstream.requests) == 1
    leader.close()

    assert np.array_equal(answer(follower), vector_of(text, WIDTH))
    assert len(upstream.requests) == 2


def test_shared_work_continues_when_a_waiter_disconnects(server, upstream, send):
    text = f"waited for at {server.server}"
    upstream.delay = 0.3
    leader = send(text)
    until(lambda: upstream.in_flight == 1)
    send(text).close()

    assert np.array_equal(answer(leader), vector_of(text, WIDTH))
    assert len(upstream.requests) == 1


def test_many_simultaneous_disconnects_leave_nothing_open(server, upstream, send):
    upstream.mode = "stalled"
    wires = [send(f"{at % 5} of many at {server.server}") for at in range(20)]
    until(lambda: upstream.in_flight == 5)
    closers = [threading.Thread(target=wire.close) for wire in wires]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()

    until(lambda: upstream.in_flight == 0)
    until(lambda: tasks_of(server) == 0)
    upstream.mode = "honest"
    text = f"0 of many at {server.server}"
    assert np.array_equal(answer(send(text)), vector_of(text, WIDTH))
