"""Tests every metric of a served gateway: it is scraped after traffic that must move it."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.serving import Serving
from tests.support.wait import until


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("metrics") / "store.sqlite"


@pytest.fixture(scope="module")
def url(store):
    """The second gateway that uses a store; the first one has written a vector to it."""
    environ = {"EMBEDROUTE_TEST_STORE": str(store)}
    with Serving("tests.telemetry.served", environ=environ, debug=False) as server:
        assert send(server.url, "m", "shared") == 200
    with Serving("tests.telemetry.served", environ=environ, debug=False) as server:
        yield server.url


def send(url, model, *texts):
    # Otherwise the weights of the endpoints decide which one is called first.
    order = {"order": ["limited", "good"]} if model == "m" else {}
    body = {"model": model, "input": list(texts), "provider": order}
    return httpx2.post(f"{url}/v1/embeddings", json=body, timeout=30).status_code


def scrape(url):
    """The value of each sample by its name and labels, without the prefix of the names."""
    text = httpx2.get(f"{url}/metrics", timeout=30).text
    return {
        (sample.name.removeprefix("embedroute_"), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples.get((name, *sorted(labels.items())), 0.0)


def differences(before, after):
    return {key: after[key] - before.get(key, 0.0) for key in after if after[key]}


@pytest.fixture(scope="module")
def moved(url):
    """By how much each sample has moved while requests of each kind were served."""
    before = scrape(url)
    assert send(url, "m", "shared", "new") == 200
    assert send(url, "m", "new") == 200
    for _ in range(3):
        assert send(url, "b", "text") >= 500
    return differences(before, scrape(url))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("requests_total", {"model": "m", "status": "200", "dialect": "openai"}, 2),
        ("request_duration_seconds_count", {"model": "m"}, 2),
        ("request_duration_seconds_bucket", {"model": "m", "le": "+Inf"}, 2),
        ("upstream_duration_seconds_count", {"provider": "good", "model": "m"}, 1),
        (
            "upstream_requests_total",
            {"provider": "good", "model": "m", "outcome": "answered"},
            1,
        ),
        (
            "upstream_requests_total",
            {"provider": "limited", "model": "m", "outcome": "rate_limited"},
            1,
        ),
        ("inputs_total", {"model": "m"}, 3),
        ("tokens_total", {"model": "m", "kind": "served"}, 3),
        ("tokens_total", {"model": "m", "kind": "billed"}, 1),
        ("cost_usd_total", {"model": "m"}, 2e-6),
        ("retries_total", {"model": "m"}, 1),
        ("batch_inputs_sum", {"provider": "good", "model": "m"}, 1),
        ("cache_requests_total", {"tier": "memory", "result": "hit"}, 1),
        ("cache_requests_total", {"tier": "memory", "result": "miss"}, 5),
        ("cache_requests_total", {"tier": "store", "result": "hit"}, 1),
        ("cache_requests_total", {"tier": "store", "result": "miss"}, 4),
        ("breaker_state", {"endpoint": "broken:b"}, 2),
    ],
)
def test_traffic_moves_each_metric(moved, name, labels, expected):
    assert value(moved, name, **labels) == pytest.approx(expected)


@pytest.mark.thorough
def test_the_gauges_show_requests_and_calls_that_wait(url, store):
    def gauges():
        samples = scrape(url)
        return value(samples, "inflight"), value(samples, "queue", endpoint="waiting:w")

    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(send, url, "w", f"text {at}") for at in range(3)]
        until(lambda: gauges() == (3, 2))
        store.with_suffix(".released").touch()
        assert [200] * 3 == [answer.result() for answer in answers]

    until(lambda: gauges() == (0, 0))


@pytest.mark.thorough
def test_failed_calls_of_the_store_are_counted(url, store):
    def failures():
        return value(scrape(url), "store_errors_total", store="sqlite")

    assert failures() == 0
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("DROP TABLE vectors")
        connection.commit()
    assert send(url, "m", "while the store is broken") == 200

    until(lambda: failures() > 0)
