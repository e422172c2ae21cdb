"""Tests that real hosts under real servers serve the gateway and stop cleanly."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx2
import numpy as np
import pytest

from embedroute.testing import expected_vector
from tests.fault_upstream import Upstream, vector_of
from tests.hosts.gateways import KEY, WIDTH
from tests.support.serving import Serving
from tests.support.slow import slow_unless, thorough_unless
from tests.support.wait import until

TEXTS = ["one", "zwei", "три"]


class Host(NamedTuple):
    """``mount`` is the gateway's path, ``entry`` its entry point; ``servers`` can run the host."""

    app: str
    mount: str
    entry: str
    servers: tuple[str, ...]


ASYNCIO = ("uvicorn", "hypercorn")
ALL = (*ASYNCIO, "hypercorn-trio")
HOSTS = [
    Host("fastapi_mount", "/ai", "mount", ALL),
    Host("fastapi_lifespan", "/ai", "mount", ALL),
    Host("fastapi_router", "/ai", "router", ALL),
    Host("fastapi_middleware", "/ai", "middleware", ALL),
    Host("starlette_middleware", "/ai", "middleware", ALL),
    Host("starlette_nested", "/deep/ai", "mount", ALL),
    Host("litestar_mount", "/ai", "mount", ALL),
    Host("quart_middleware", "/ai", "middleware", ASYNCIO),
    Host("quart_trio_middleware", "/ai", "middleware", ("hypercorn-trio",)),
    Host("django_middleware", "/ai", "middleware", ASYNCIO),
    Host("standalone", "", "mount", ALL),
]


class Case(NamedTuple):
    """``prefix`` is what clients put before the host's own paths."""

    host: Host
    server: str
    root_path: str = ""
    prefix: str = ""


# These route requests exactly as another of the hosts does.
SAME_PATHS = {"fastapi_lifespan", "starlette_middleware"}
ROOTED = [host for host in HOSTS if host.app not in SAME_PATHS and "uvicorn" in host.servers]

# uvicorn prepends the root path to the path; hypercorn leaves the path as the proxy sent it.
CASES = [
    *(Case(host, server) for host in HOSTS for server in host.servers),
    *(Case(host, "uvicorn-uvloop", "/proxy") for host in ROOTED),
    *(Case(host, "hypercorn", "/proxy", "/proxy") for host in ROOTED),
]


def is_quick(case):
    """Return whether it is not slow: each host under one server, and one under every."""
    return case.server == "uvicorn" or case.host.app in {"fastapi_mount", "quart_trio_middleware"}


TIERS = [
    *slow_unless(is_quick, [case for case in CASES if case.host.app not in SAME_PATHS]),
    *slow_unless(
        lambda _case: False,
        [case for case in CASES if case.host.app in SAME_PATHS and not is_quick(case)],
    ),
    *thorough_unless(
        lambda _case: False,
        [case for case in CASES if case.host.app in SAME_PATHS and is_quick(case)],
    ),
]


def name_of(case):
    return f"{case.host.app}-{case.server}{case.root_path and '-root'}"


class Visit(NamedTuple):
    """The results of one host: responses by name, upstream connections, and the server's log.

    All upstream connections have been closed.
    """

    answers: dict[str, tuple]
    connections: int
    said: str


def visit(case):
    with Upstream() as upstream:
        serving = Serving(
            f"tests.hosts.apps.{case.host.app}",
            case.server,
            root_path=case.root_path,
            environ={"TEST_UPSTREAM": upstream.url},
        )
        with serving, httpx2.Client(base_url=serving.url, trust_env=False, timeout=120) as client:
            answers = {name: ask(client, *what) for name, what in requests_for(case).items()}
        until(lambda: not upstream.open)
        return Visit(answers, upstream.connections, serving.said)


def requests_for(case):
    mount = case.prefix + case.host.mount
    sent_request = {
        "hashed": ("POST", f"{mount}/v1/embeddings", "hash"),
        "upstream": ("POST", f"{mount}/v1/embeddings", "far"),
        "trailing slash": ("POST", f"{mount}/v1/embeddings/", "hash"),
        "unknown model": ("POST", f"{mount}/v1/embeddings", "gone"),
        "no key": ("POST", f"{mount}/v1/embeddings", None),
        "method": ("GET", f"{mount}/v1/embeddings"),
        "models": ("GET", f"{mount}/v1/models"),
        "model": ("GET", f"{mount}/v1/models/far"),
        "openrouter": ("GET", f"{mount}/v1/embeddings/models"),
        "unknown path": ("GET", f"{mount}/v1/nothing"),
        "host": ("GET", f"{case.prefix}/hello"),
    }
    if case.host.entry != "middleware":
        sent_request["short"] = ("POST", f"{mount}/embeddings", "hash")
    if case.host.entry == "mount":
        sent_request["openapi"] = ("GET", f"{mount}/openapi.json")
    if case.prefix and case.host.app != "starlette_nested":
        # Starlette cannot route to a nested mount if the path does not contain the root path.
        sent_request["proxy that strips"] = ("POST", f"{case.host.mount}/v1/embeddings", "hash")
    return sent_request


def ask(client, method, path, model=""):
    headers = {"authorization": f"Bearer {KEY}"} if model is not None else {}
    body = {"json": {"model": model, "input": TEXTS}} if method == "POST" else {}
    reply = client.request(method, path, headers=headers, **body)
    try:
        return reply.status_code, gist(reply.json())
    except ValueError:
        return reply.status_code, reply.text


def gist(body):
    """Return what distinguishes one response from another: vectors, ids, or an error's code."""
    if isinstance(body, str):
        return body
    if "error" in body:
        return body["error"]["code"]
    if "openapi" in body:
        return list(body["paths"])
    if "data" not in body:
        return body.get("id", body)
    ids = [row.get("id") for row in body["data"]]
    if all(ids):
        return ids
    return {np.array(row["embedding"], "<f4").tobytes() for row in body["data"]}


def expected_of(case):
    hashed = 200, {expected_vector(text, WIDTH).tobytes() for text in TEXTS}
    answers = {
        "hashed": hashed,
        "trailing slash": hashed,
        "short": hashed,
        "proxy that strips": hashed,
        "upstream": (200, {vector_of(text, WIDTH).tobytes() for text in TEXTS}),
        "unknown model": (404, "model_not_found"),
        "no key": (401, "invalid_api_key"),
        "method": (405, "method_not_allowed"),
        "models": (200, ["hash", "wide", "far", "hashed"]),
        "openrouter": (200, ["hash", "wide", "far", "hashed"]),
        "model": (200, "far"),
        "openapi": (
            200,
            ["/v1/embeddings", "/v1/embeddings/models", "/v1/models", "/v1/models/{id}"],
        ),
        "unknown path": (404, "not_found"),
        "host": (200, "hello"),
    }
    if case.host.app == "standalone":
        answers["host"] = 404, "not_found"
    return {name: answers[name] for name in requests_for(case)}


@pytest.fixture(scope="module")
def visits(request):
    """The visits that the selected tests need, run three at a time."""
    cases = dict.fromkeys(
        item.callspec.params["case"] for item in request.session.items if item.path == request.path
    )
    with ThreadPoolExecutor(3) as pool:
        yield {case: pool.submit(visit, case) for case in cases}


@pytest.mark.parametrize("case", TIERS, ids=name_of)
def test_a_host_serves_the_gateway_and_its_own_routes(visits, case):
    """The gateway's responses do not depend on the host, and other paths belong to the host."""
    answers, expected = visits[case].result().answers, expected_of(case)
    if case.host.entry != "mount":
        # The 404 comes from the host, because the gateway does not serve this path.
        assert answers.pop("unknown path")[0] == 404
        del expected["unknown path"]

    assert expected == answers


@pytest.mark.parametrize("case", TIERS, ids=name_of)
def test_a_host_starts_and_stops_without_errors_in_its_log(visits, case):
    """One connection was opened and closed.

    Warnings are errors, so unclosed resources would be logged.
    """
    _, connections, said = visits[case].result()

    assert said == ""
    assert connections == 1
