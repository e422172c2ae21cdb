"""Attacks on a local model through sockets: aborted batches, and short texts beside batches.

``EMBEDROUTE_ATTACK_SCALE`` multiplies how many requests are aborted, and how long the batches are.
"""

import http.client
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.support.serving import Serving

SCALE = int(os.environ.get("EMBEDROUTE_ATTACK_SCALE", "1"))
TICKS = os.sysconf("SC_CLK_TCK")

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture
def server():
    with Serving("tests.attacks.local_app", debug=False) as server:
        assert status_of(post(server, ["load the model"])) == 200
        yield server
    assert server.said == ""


def body_of(texts):
    return json.dumps({"model": "wordllama", "input": texts, "encoding_format": "base64"}).encode()


def batch_of(name, words):
    """2048 texts, each of which no other batch has."""
    return [f"{name} {at} " + "the quick brown fox " * (words // 4) for at in range(2048)]


def post(server, texts):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/embeddings", body_of(texts), headers)
    return connection


def status_of(connection):
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def abort(server, texts):
    """Send a whole request and disconnect once it runs."""
    body = body_of(texts)
    lines = (
        "POST /v1/embeddings HTTP/1.1",
        "host: h",
        "content-type: application/json",
        f"content-length: {len(body)}",
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode() + body)
        time.sleep(0.1)


def size(server):
    """Threads, and resident megabytes."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts["Threads"]), int(facts["VmRSS"].split()[0]) / 1024


def cpu_seconds(server):
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@pytest.mark.thorough
def test_aborted_batches_leave_no_threads_memory_or_work_behind(server):
    threads, memory = size(server)
    sizes = []
    for at in range(20 * SCALE):
        abort(server, batch_of(f"aborted {at}", words=100))
        sizes.append(size(server))
    assert status_of(post(server, ["waits until the event loop is free"])) == 200
    before = cpu_seconds(server)
    time.sleep(1)

    # One more worker thread than the first request needed, and one for a large answer.
    assert max(item[0] for item in sizes) <= threads + 2
    assert max(item[1] for item in sizes) < memory + 150
    assert cpu_seconds(server) - before < 0.5


@pytest.mark.thorough
def test_a_short_text_is_answered_while_four_batches_run(server):
    """Many short texts are answered, one after the other, before the first batch.

    Their number is a ratio of two durations, so that it is the same on a slow machine.
    """
    batches = [post(server, batch_of(f"batch {name}", words=200 * SCALE)) for name in range(4)]
    ended = []

    def read(connection):
        assert status_of(connection) == 200
        ended.append(True)

    readers = [threading.Thread(target=read, args=(connection,)) for connection in batches]
    for reader in readers:
        reader.start()
    time.sleep(0.5)
    answered = 0
    while not ended and answered < 60:
        assert status_of(post(server, [f"short {answered}"])) == 200
        answered += 1
    for reader in readers:
        reader.join()

    assert len(ended) == 4
    assert answered >= 20
