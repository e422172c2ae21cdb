"""Tests the metrics: what is counted, who may read it, and several worker processes."""

import json
import shutil
import socket
import subprocess
import sys
import time

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from embedroute import Config, Gateway, embeddings_app
from embedroute.errors import ConfigError, RateLimited
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call
from tests.support.commands import serving
from tests.support.wait import until

pytestmark = pytest.mark.anyio

KEY, PLAIN_KEY = "a-key-of-sixteen-characters", "another-key-of-16-characters"
SERVE = (sys.executable, "-m", "embedroute", "serve", "--port", "0", "--workers", "2")


def gateway_of(*backends, exposure="key", auth="keys", **options):
    names = [f"p{at}" for at in range(len(backends))]
    return Gateway(
        Config(
            gateway={"auth": auth, "metrics": exposure},
            keys={"operator": {"key": KEY, "debug": True}, "team": {"key": PLAIN_KEY}}
            if auth == "keys"
            else {},
            providers={
                name: {"backend": backend} for name, backend in zip(names, backends, strict=True)
            },
            models={
                "m": {
                    "dimensions": 8,
                    "endpoints": [
                        {"provider": name, "price": at + 1} for at, name in enumerate(names)
                    ],
                }
            },
        ),
        retries=RetryPolicy(repeats=0, first_wait=0.001),
        **options,
    )


async def post(app, **fields):
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {KEY}")]
    body = {"model": "m", "input": ["one", "two"], "provider": {"order": ["p0"]}, **fields}
    return await call(app, "POST", "/v1/embeddings", headers, [json.dumps(body).encode()])


async def scrape(app, key=KEY, accept="text/plain"):
    headers = [("authorization", f"Bearer {key}"), ("accept", accept)]
    return await call(app, "GET", "/metrics", headers)


def parse(text):
    """The value of each sample by its name and the values of its labels, in any order."""
    return {
        frozenset([sample.name.removeprefix("embedroute_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, name, *labels):
    return samples[frozenset([name, *labels])]


async def test_requests_and_calls_are_counted():
    limited = ScriptedBackend(width=8, then=RateLimited("slow down", upstream_status=429))
    app = embeddings_app(gateway_of(limited, ScriptedBackend(width=8)))
    for _ in range(2):
        answer = await post(app)
        assert answer.status == 200
    await post(app, model="unknown")

    answer = await scrape(app)

    samples = parse(answer.body.decode())
    assert answer.header("content-type").startswith("text/plain; version=")
    expected = {
        ("requests_total", "m", "200", "openai"): 2,
        ("requests_total", "other", "404", "openai"): 1,
        ("inputs_total", "m"): 4,
        ("tokens_total", "m", "billed"): 2,
        ("tokens_total", "m", "served"): 4,
        ("cost_usd_total", "m"): 4e-6,
        ("cache_requests_total", "memory", "hit"): 2,
        ("cache_requests_total", "memory", "miss"): 2,
        ("retries_total", "m"): 1,
        ("upstream_requests_total", "p0", "m", "rate_limited"): 1,
        ("upstream_requests_total", "p1", "m", "answered"): 1,
        ("request_duration_seconds_count", "m"): 2,
        ("request_duration_seconds_bucket", "m", "+Inf"): 2,
        ("upstream_duration_seconds_count", "p1", "m"): 1,
        ("batch_inputs_bucket", "p1", "m", "1.0"): 0,
        ("batch_inputs_bucket", "p1", "m", "2.0"): 1,
        ("batch_inputs_sum", "p1", "m"): 2,
        ("inflight",): 0,
        ("queue", "p0:m"): 0,
        ("breaker_state", "p0:m"): 0,
    }
    assert expected == pytest.approx({name: value(samples, *name) for name in expected})
    assert value(samples, "request_duration_seconds_sum", "m") > 0


async def test_requests_in_flight_are_counted_while_they_run():
    seen = []

    def look(batch):
        seen.append(gateway.read_state().in_flight)
        return ScriptedBackend(width=8).embed(batch)

    gateway = gateway_of(ScriptedBackend(width=8, then=look))

    await post(embeddings_app(gateway))

    assert seen == [1]
    assert gateway.read_state().in_flight == 0


async def test_the_names_of_unknown_models_are_no_labels():
    app = embeddings_app(gateway_of(ScriptedBackend(width=8)))
    for at in range(3):
        await post(app, model=f"p0/planted-{at}")

    text = (await scrape(app)).body.decode()

    samples = parse(text)
    assert value(samples, "requests_total", "other", "200", "openai") == 3
    assert value(samples, "upstream_requests_total", "p0", "other", "answered") == 3
    assert "planted" not in text


@pytest.mark.parametrize(
    ("exposure", "key", "status", "code"),
    [
        ("off", KEY, 404, "not_found"),
        ("key", "wrong-key-of-16-characters", 401, "invalid_api_key"),
        ("key", PLAIN_KEY, 403, "debug_not_allowed"),
        ("key", KEY, 200, None),
        ("open", "wrong-key-of-16-characters", 200, None),
    ],
)
async def test_the_setting_says_who_may_read_the_metrics(exposure, key, status, code):
    app = embeddings_app(gateway_of(ScriptedBackend(width=8), exposure=exposure))

    answer = await scrape(app, key)

    assert answer.status == status
    if code is not None:
        assert answer.error["code"] == code


def test_metrics_for_keys_need_keys():
    with pytest.raises(ConfigError, match=r'metrics = "key" needs keys.*Set metrics = "open"'):
        gateway_of(ScriptedBackend(width=8), exposure="key", auth="open")


async def test_openmetrics_is_served_to_clients_that_accept_it():
    app = embeddings_app(gateway_of(ScriptedBackend(width=8)))
    await post(app)

    answer = await scrape(app, accept="application/openmetrics-text; version=1.0.0")

    assert answer.header("content-type").startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


async def test_a_host_registers_the_metrics_in_its_own_registry():
    registry = CollectorRegistry()
    gateway = gateway_of(ScriptedBackend(width=8), exposure="off", metrics_registry=registry)
    app = embeddings_app(gateway)

    await post(app)

    assert registry.get_sample_value("embedroute_inputs_total", {"model": "m"}) == 2
    assert (await scrape(app)).status == 404


def test_the_error_names_the_missing_extra():
    script = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from embedroute import Config, Gateway\n"
        "Gateway(Config(gateway={'auth': 'open', 'metrics': 'open'}))\n"
    )

    found = subprocess.run(  # noqa: S603 - fixed arguments
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert "pip install 'embedroute[metrics]'" in found.stderr


CONFIG = """
[gateway]
auth = "open"
metrics = "open"
[providers.hashed]
[models.m]
dimensions = 8
endpoints = [{ provider = "hashed" }]
"""


@pytest.fixture
def workers(tmp_path):
    (tmp_path / "embedroute.toml").write_text(CONFIG)
    with serving(SERVE, tmp_path, errors=tmp_path / "errors") as url:
        until(lambda: (tmp_path / "errors").read_text().count("startup complete") == 2)
        yield url


def send_until_both_have_served(url):
    """Send requests over new connections, which the workers share; return how many were sent."""
    for at in range(40):
        answer = httpx2.post(f"{url}/v1/embeddings", json={"model": "m", "input": f"text {at}"})
        assert answer.status_code == 200
    return 40


@pytest.mark.slow
def test_each_worker_reports_the_sums_of_all(workers):
    sent = send_until_both_have_served(workers)

    found = [parse(httpx2.get(f"{workers}/metrics").text) for _ in range(8)]

    counts = {value(samples, "requests_total", "m", "200", "openai") for samples in found}
    assert counts == {sent}
    until(lambda: value(parse(httpx2.get(f"{workers}/metrics").text), "inflight") == 0)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Debian's package prometheus")
def test_prometheus_scrapes_two_workers(workers, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    target = workers.removeprefix("http://")
    (tmp_path / "prometheus.yml").write_text(
        f"""
global: {{ scrape_interval: 1s }}
scrape_configs:
  - job_name: embedroute
    static_configs: [{{ targets: ["{target}"] }}]
"""
    )
    sent = send_until_both_have_served(workers)
    process = subprocess.Popen(  # noqa: S603 - fixed arguments
        [
            shutil.which("prometheus"),
            "--config.file=prometheus.yml",
            f"--web.listen-address=127.0.0.1:{port}",
            "--storage.tsdb.path=data",
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def query(expression):
        try:
            answer = httpx2.get(
                f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression}
            )
        except httpx2.TransportError:
            return []
        if answer.status_code == 503:  # it is starting
            return []
        return [float(row["value"][1]) for row in answer.json()["data"]["result"]]

    try:
        until(lambda: query("sum(embedroute_requests_total)") == [sent])
        assert query("up") == [1.0]
        assert query("histogram_quantile(0.99, embedroute_request_duration_seconds_bucket)")[0] > 0
        time.sleep(1.1)
        assert query("sum(embedroute_requests_total)") == [sent]
    finally:
        process.terminate()
        process.wait(30)
