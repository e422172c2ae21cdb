"""Tests spans and metrics: they arrive at an OTLP receiver, in a process with a real SDK."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.commands import counting_lines

HOST = """
import sys
import anyio
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from embedroute import Config, Gateway
from embedroute.errors import EmbedrouteError, RateLimited
from embedroute.testing import ScriptedBackend

url = sys.argv[1]
spans = TracerProvider()
spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
trace.set_tracer_provider(spans)
reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{url}/v1/metrics"))
meters = MeterProvider([reader])
metrics.set_meter_provider(meters)
limited = ScriptedBackend(width=8, then=RateLimited("slow down", upstream_status=429))
gateway = Gateway(
    Config(
        gateway={"auth": "open", "opentelemetry": True},
        providers={"mistral": {"backend": limited}, "local": {"backend": ScriptedBackend(width=8)}},
        models={"m": {"dimensions": 8, "endpoints": [
            {"provider": "mistral", "model": "up"}, {"provider": "local", "model": "small"}]}},
    )
)

async def main():
    with trace.get_tracer("host").start_as_current_span("POST /notes"):
        await gateway.embed(["PLANTED"], model="m", provider={"order": ["mistral", "local"]})
    try:
        await gateway.embed(["PLANTED"], model="nothing")
    except EmbedrouteError:
        pass

anyio.run(main)
spans.shutdown()
meters.shutdown()
"""


@pytest.fixture(scope="module")
def received():
    """The bodies that the receiver got, by path."""
    bodies = {"/v1/traces": [], "/v1/metrics": []}

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies[self.path].append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        host = subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-c", HOST, url],
            env={**os.environ, **counting_lines()},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert host.returncode == 0, host.stderr
    return bodies


def attributes_of(item):
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in item.attributes
    }


@pytest.fixture
def spans(received):
    """Every span with its attributes, by name."""
    found = {}
    for body in received["/v1/traces"]:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                found |= {(span.name, span.kind): span for span in scope.spans}
    return found


CLIENT, INTERNAL = 3, 1


def test_a_request_is_a_client_span_below_the_span_of_the_host(spans):
    host = spans["POST /notes", INTERNAL]

    [request] = [span for span in spans.values() if span.parent_span_id == host.span_id]

    assert (request.name, request.kind) == ("embeddings m", CLIENT)
    assert request.trace_id == host.trace_id
    assert attributes_of(request)["gen_ai.usage.input_tokens"] == 1
    calls = [span.name for span in spans.values() if span.parent_span_id == request.span_id]
    assert sorted(calls) == ["embeddings small", "embeddings up"]


def test_each_call_is_a_child_span_with_its_error(spans):
    failed = spans["embeddings up", CLIENT]

    assert {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "mistral_ai",
        "gen_ai.request.model": "up",
        "error.type": "rate_limited",
        "http.response.status_code": 429,
    }.items() <= attributes_of(failed).items()
    assert failed.status.code == 2
    assert failed.start_time_unix_nano <= failed.end_time_unix_nano


def test_a_request_that_fails_has_its_code_as_the_type_of_the_error(spans):
    span = spans["embeddings unknown", CLIENT]

    assert attributes_of(span)["error.type"] == "model_not_found"
    assert span.status.code == 2


def test_the_metrics_arrive(received):
    found = {}
    for body in received["/v1/metrics"]:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                found |= {metric.name: metric for metric in scope.metrics}

    duration = found["gen_ai.client.embeddings.duration"]
    tokens = found["gen_ai.client.embeddings.operation.input_tokens"]
    assert duration.unit == "s"
    assert sum(point.count for point in duration.histogram.data_points) == 2
    assert [point.sum for point in tokens.histogram.data_points] == [1.0]


def test_no_input_text_is_exported(received):
    assert received["/v1/traces"]
    assert not any(b"PLANTED" in body for bodies in received.values() for body in bodies)
    assert "PLANTED" not in json.dumps(str(received))
