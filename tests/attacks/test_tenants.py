"""Isolation of tenants: what a key can learn about another through the cache, and how much memory it can use.

Short by default. ``EMBEDROUTE_ATTACK_SCALE=20`` runs as many times as many random histories and
parallel bodies.
"""

import json
import os
import random
import socket
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from embedroute import Config, Gateway, Provider, embeddings_app
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call
from tests.support.serving import Serving
from tests.support.wait import until

SCALE = int(os.environ.get("EMBEDROUTE_ATTACK_SCALE", "1"))
KEYS = {name: f"sk-{name}" for name in ("a", "b", "c")}
WIDTH, NARROW = 8, (4, 6)
MIB = 1 << 20


def gateway_of(keys=None, **cache):
    """One matryoshka model, which every key may use, debug and forecast."""
    return Gateway(
        Config(
            gateway={"auth": "keys", "debug": True, "dialect": "openrouter"},
            keys=keys or {name: {"key": key} for name, key in KEYS.items()},
            cache=cache,
            providers={"up": Provider(backend=ScriptedBackend(width=WIDTH))},
            models={
                "m": {
                    "dimensions": WIDTH,
                    "matryoshka": True,
                    "endpoints": [{"provider": "up", "price": 1}],
                }
            },
        )
    )


async def post(app, name, query="", cache="", **fields):
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {KEYS[name]}")]
    if cache:
        headers.append(("cache-control", cache))
    body = json.dumps({"model": "m", **fields}).encode()
    answer = await call(app, "POST", f"/v1/embeddings{query}", headers, [body])
    assert answer.status == 200, answer.body
    return answer


async def answer_to(app, name, step):
    """Return what a request reveals about the cache: in the forecast, the header and the trace."""
    cache, fields = step
    forecast = (await post(app, name, "?explain=1", cache, **fields)).json
    answer = await post(app, name, "", cache, debug={"trace": True}, **fields)
    counts = [event for event in answer.json["trace"] if event["stage"] == "cache"]
    (plan,) = forecast["order"]
    return (
        answer.header("x-embedroute-cache"),
        counts,
        forecast["cache"],
        forecast["inputs"],
        (plan["cost"], plan["chunks"]),
    )


def history(seed):
    """Requests of three keys for few texts, so that most of them meet what others have embedded."""
    chance = random.Random(seed)
    steps = []
    for _ in range(30):
        fields = {"input": chance.choices("tuvw", k=chance.randint(1, 3))}
        if width := chance.choice([None, None, *NARROW]):
            fields["dimensions"] = width
        cache = chance.choice(["", "", "", "no-store", "no-cache", "no-cache, no-store"])
        steps.append((chance.choice(list(KEYS)), (cache, fields)))
    return steps


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("seed", range(12 * SCALE))
async def test_the_hit_counts_of_a_key_do_not_depend_on_other_keys(seed):
    """Three keys send requests in turn; each gets the counts that it would get alone."""
    steps = history(seed)
    shared = embeddings_app(gateway_of())
    together = [(name, await answer_to(shared, name, step)) for name, step in steps]

    for key in KEYS:
        alone = embeddings_app(gateway_of())
        expected = [await answer_to(alone, key, step) for name, step in steps if name == key]
        assert expected == [item for name, item in together if name == key]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("keys", "cache", "apart"),
    [
        ({}, {}, False),
        ({}, {"shared": False}, True),
        ({"a": {"namespace": "one"}}, {}, True),
        ({"a": {"namespace": "one"}, "b": {"namespace": "one"}}, {}, False),
        ({"a": {"namespace": "one"}, "b": {"namespace": "one"}}, {"shared": False}, False),
        ({"a": {"namespace": "one"}, "b": {"namespace": "two"}}, {}, True),
        ({"b": {"namespace": "a"}}, {"shared": False}, True),
    ],
)
async def test_only_keys_of_one_namespace_share_cache_entries(keys, cache, apart):
    """Apart, every byte of an answer is that of a first request: calls, providers and cost too."""
    tables = {name: {"key": key, **keys.get(name, {})} for name, key in KEYS.items()}
    app = embeddings_app(gateway_of(tables, **cache))
    first = await post(app, "a", input="the text of a")

    second = await post(app, "b", input="the text of a")

    facts = ("x-embedroute-attempts", "x-embedroute-provider", "x-embedroute-cache")
    assert [second.header(name) for name in facts] == (
        ["1", "up", "hits=0 misses=1"] if apart else ["0", None, "hits=0 misses=1"]
    )
    assert second.json["usage"]["cost"] == (first.json["usage"]["cost"] if apart else 0)


# Memory


def stalled(server, key, size, *, chunked):
    """Send all but the last byte of a body, and leave the connection open."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    length = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
    client.sendall(
        f"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\n{length}\r\n\r\n".encode()
    )
    piece = b" " * (64 << 10)
    framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    try:
        for _ in range(size // len(piece) - 1):
            client.sendall(framed)
    except ConnectionError:
        pass  # it was refused in the midst of its body
    client.settimeout(0.5)
    return client


def refused(client):
    """Whether the server has answered already, or closed the connection in the midst of a body."""
    try:
        head = client.recv(4096)
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    assert head.startswith(b"HTTP/1.1 503 ") or not head
    assert not head or b"\r\nretry-after: 1\r\n" in head.lower()
    return True


def memory_of(server):
    """Resident bytes of the process that serves."""
    fields = Path(f"/proc/{server.pid}/status").read_text().split("VmRSS:")[1]
    return int(fields.split()[0]) * 1024


def embedded(server, key):
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": "hash", "input": "a"}
    return httpx2.post(
        f"{server.url}/v1/embeddings", json=body, headers=headers, timeout=60
    ).status_code


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from /proc"
)
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.thorough
def test_one_key_cannot_fill_the_memory_with_endless_bodies(chunked):
    """Bodies of 32 MiB, which every one may have: two of a key fit into its quarter of 256 MiB."""
    with (
        Serving("tests.hosts.apps.two_keys", "uvicorn", debug=False) as server,
        ExitStack() as clients,
    ):
        assert embedded(server, "sk-one") == 200
        before = memory_of(server)
        waiting = []
        for _ in range(8 * SCALE):
            client = clients.enter_context(stalled(server, "sk-one", 32 * MIB, chunked=chunked))
            waiting.append(client)

        answers = [refused(client) for client in waiting]
        grown = memory_of(server) - before

        assert embedded(server, "sk-two") == 200
        assert answers.count(False) == 2
        assert grown < 200 * MIB  # 8 such bodies are 256 MiB
        for client in waiting:
            client.close()
        until(lambda: embedded(server, "sk-one") == 200)
    refusals = [line for line in server.said.splitlines() if line]
    assert all(line.startswith("request failed: status=503") for line in refusals)
