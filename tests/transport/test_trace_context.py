"""Tests that upstreams get the trace context of the host's current span."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from embedroute import Config, Gateway

TRACE_ID, SPAN_ID = 0x1234567890ABCDEF1234567890ABCDEF, 0x1234567890ABCDEF
PARENT = "00-1234567890abcdef1234567890abcdef-1234567890abcdef-01"
ANSWER = json.dumps({"data": [{"index": 0, "embedding": [1.0, 0.0]}], "model": "m"}).encode()
CONTEXT = {"traceparent", "tracestate", "baggage"}


@pytest.fixture(scope="module")
def upstream():
    """An upstream, and the headers of its requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            requests.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(ANSWER)))
            self.end_headers()
            self.wfile.write(ANSWER)

        def log_message(self, *_):
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
        server.shutdown()


async def headers_of_call(upstream, *, enabled, text, extra=None):
    url, requests = upstream
    options = {"base_url": url, "api_key": "sk-upstream"}
    if extra:
        options["extra_headers"] = extra
    gateway = Gateway(
        Config(
            gateway={"auth": "open", "opentelemetry": enabled},
            cache={"bytes": 0},
            providers={"one": {"backend": "openai", "options": options}},
            models={"m": {"dimensions": 2, "endpoints": [{"provider": "one"}]}},
        ),
        environ={},
    )
    async with gateway.lifespan():
        await gateway.embed(text, model="m")
    sent = requests[-1]
    return {name: sent[name] for name in CONTEXT & sent.keys()}


def host_span():
    state = TraceState([("vendor", "1")])
    span = NonRecordingSpan(
        SpanContext(
            TRACE_ID, SPAN_ID, is_remote=False, trace_flags=TraceFlags(1), trace_state=state
        )
    )
    return trace.use_span(span)


@pytest.mark.anyio
async def test_an_upstream_gets_the_context_of_the_hosts_span_without_its_baggage(upstream):
    token = context.attach(baggage.set_baggage("user", "ada"))
    try:
        with host_span():
            sent = await headers_of_call(upstream, enabled=True, text="a")
    finally:
        context.detach(token)

    assert {"traceparent": PARENT, "tracestate": "vendor=1"} == sent


@pytest.mark.anyio
async def test_no_context_is_sent_without_a_span_or_without_the_setting(upstream):
    assert {} == await headers_of_call(upstream, enabled=True, text="b")
    with host_span():
        assert {} == await headers_of_call(upstream, enabled=False, text="c")


@pytest.mark.anyio
async def test_a_header_of_the_backends_own_is_kept(upstream):
    own = {"traceparent": PARENT.replace("1234", "4321")}
    with host_span():
        sent = await headers_of_call(upstream, enabled=True, text="d", extra=own)

    assert own["traceparent"] == sent["traceparent"]
