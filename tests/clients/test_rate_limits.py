"""Real clients with their own retries, before an upstream that answers 429 with ``retry-after: 1``.

A rate limit must stay a 429, which these clients wait for. It must not become a 503 or a timeout.
"""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx2
import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from tests.clients.served import KEY, MODEL
from tests.fault_upstream import Upstream
from tests.fault_upstream.refusals import refuse
from tests.support.serving import Serving

CALLS = 8
"""Concurrent calls of each client."""
LONGEST = 30.0
"""Seconds in which every call must end."""


class LimitedUpstream(Upstream):
    """Answers ``per_second`` calls in each second, and 429 to the others."""

    def __init__(self, per_second):
        super().__init__()
        self.per_second = per_second
        self._seconds = Counter()
        self._lock = threading.Lock()

    def steps_for(self, ask):
        with self._lock:
            second = int(time.monotonic())
            self._seconds[second] += 1
            if self._seconds[second] <= self.per_second:
                return super().steps_for(ask)
        return iter(
            refuse(429, "Rate limit reached", "requests", code="rate_limit_exceeded", retry_after=1)
        )


@pytest.fixture(scope="module", params=[0, 2], ids=["always limited", "two calls a second"])
def url(request):
    with (
        LimitedUpstream(request.param) as upstream,
        Serving(
            "tests.clients.limited", environ={"TEST_UPSTREAM": upstream.url}, debug=False
        ) as server,
    ):
        yield server.url


def status_of(call):
    """Return the status with which ``call`` ends, or the name of the exception."""
    try:
        response = call()
    except openai.APIStatusError as error:
        return error.status_code
    except Exception as error:  # noqa: BLE001 - a client may raise anything
        return type(error).__name__
    return getattr(response, "status_code", 200)


def at_once(call):
    with ThreadPoolExecutor(CALLS) as pool:
        return list(pool.map(lambda at: status_of(lambda: call(f"text {at}")), range(CALLS)))


def openai_sync(url, **options):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, **options) as client:
        return at_once(lambda text: client.embeddings.create(model=MODEL, input=text))


def openai_async(url, **options):
    statuses = []

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, **options) as client:

            async def embed(at):
                try:
                    await client.embeddings.create(model=MODEL, input=f"text {at}")
                except openai.APIStatusError as error:
                    statuses.append(error.status_code)
                except openai.APIConnectionError as error:
                    statuses.append(type(error).__name__)
                else:
                    statuses.append(200)

            async with anyio.create_task_group() as group:
                for at in range(CALLS):
                    group.start_soon(embed, at)

    anyio.run(main)
    return statuses


def langchain(url, **options):
    with openai.DefaultHttpxClient() as http:
        embeddings = OpenAIEmbeddings(
            model=MODEL,
            base_url=f"{url}/v1",
            api_key=KEY,
            check_embedding_ctx_length=False,
            http_client=http,
            **options,
        )
        return at_once(lambda text: embeddings.embed_documents([text, f"{text} again"]))


def plain_httpx(url, **options):
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(headers=headers, trust_env=False, **options) as client:
        return at_once(
            lambda text: client.post(f"{url}/v1/embeddings", json={"model": MODEL, "input": text})
        )


CLIENTS = {
    "openai": (openai_sync, {}),
    "openai without retries": (openai_sync, {"max_retries": 0}),
    "openai with 5 retries": (openai_sync, {"max_retries": 5}),
    "openai with a timeout of 10 s": (openai_sync, {"timeout": 10}),
    "openai async": (openai_async, {}),
    "openai async without retries": (openai_async, {"max_retries": 0}),
    "openai async with a timeout of 10 s": (openai_async, {"timeout": 10}),
    "langchain": (langchain, {}),
    "langchain with 6 retries": (langchain, {"max_retries": 6}),
    "langchain with a timeout of 10 s": (langchain, {"request_timeout": 10}),
    "httpx2 with a timeout of 10 s": (plain_httpx, {"timeout": 10}),
}


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_a_rate_limit_stays_a_429_for_real_clients(url, client):
    embed, options = CLIENTS[client]
    began = time.monotonic()

    statuses = Counter(embed(url, **options))

    assert set(statuses) <= {200, 429}, statuses
    assert statuses.total() == CALLS
    assert time.monotonic() - began < LONGEST
