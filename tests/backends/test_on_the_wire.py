"""Tests ``embedding_options`` end to end, with loopback upstreams like Gemini and Mistral."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from embedroute import Config, Gateway, embeddings_app
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

HEADERS = [("content-type", "application/json")]


def numbers(width, dtype="float"):
    """Return the vector that the upstreams send for any input."""
    return (
        [at % 100 - 50 for at in range(width)] if dtype == "int8" else [1.0] + [0.5] * (width - 1)
    )


def gemini(body):
    widths = [request.get("outputDimensionality", 3072) for request in body["requests"]]
    return {"embeddings": [{"values": numbers(width)} for width in widths]}


def mistral(body):
    row = numbers(body.get("output_dimension", 1536), body.get("output_dtype", "float"))
    if body.get("encoding_format") == "base64":
        row = base64.b64encode(np.array(row, "<f4").tobytes()).decode()
    data = [
        {"object": "embedding", "index": at, "embedding": row} for at in range(len(body["input"]))
    ]
    return {
        "object": "list",
        "data": data,
        "usage": {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0},
    }


class RecordingUpstream(ThreadingHTTPServer):
    """An upstream with the API of one provider, which records its requests."""

    def __init__(self, shape):
        self.requests = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                requests.append((self.path, dict(self.headers), body))
                answer = json.dumps(shape(body)).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                """Log nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, args=[0.01])
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()


async def ask(backend, url, model, **fields):
    config = Config(
        gateway={"auth": "open"},
        providers={backend: {"base_url": url, "api_key": "sk-upstream-key"}},
        models={model: {"endpoints": [{"provider": backend}]}},
    )
    body = json.dumps({"model": model, "input": "hello", **fields}).encode()
    return await call(embeddings_app(Gateway(config)), "POST", "/v1/embeddings", HEADERS, [body])


async def test_google_options_are_sent_to_gemini():
    google = {"output_dimensionality": 768, "task_type": "RETRIEVAL_DOCUMENT", "title": "Greetings"}
    with RecordingUpstream(gemini) as upstream:
        answer = await ask(
            "gemini", upstream.url, "gemini-embedding-001", embedding_options={"google": google}
        )
    [(path, headers, body)] = upstream.requests

    assert path.endswith("/models/gemini-embedding-001:batchEmbedContents")
    assert "sk-upstream-key" == headers["x-goog-api-key"]
    assert [(768, "RETRIEVAL_DOCUMENT", "Greetings")] == [
        (request["outputDimensionality"], request["taskType"], request["title"])
        for request in body["requests"]
    ]
    vector = np.array(answer.json["data"][0]["embedding"])
    assert (200, 768) == (answer.status, len(vector))
    assert abs(1 - np.linalg.norm(vector)) < 1e-5


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_mistral_options_are_sent_to_mistral(encoding):
    options = {"mistral": {"output_dimension": 256, "output_dtype": "int8"}}
    with RecordingUpstream(mistral) as upstream:
        answer = await ask(
            "mistral",
            upstream.url,
            "codestral-embed",
            embedding_options=options,
            encoding_format=encoding,
        )
    [(_, headers, body)] = upstream.requests

    assert "Bearer sk-upstream-key" == headers["authorization"]
    assert (256, "int8") == (body["output_dimension"], body["output_dtype"])
    row = answer.json["data"][0]["embedding"]
    found = row if encoding == "float" else np.frombuffer(base64.b64decode(row), "i1").tolist()
    assert (200, numbers(256, "int8")) == (answer.status, found)


async def test_options_of_an_unsupported_api_are_dropped_and_reported():
    with RecordingUpstream(mistral) as upstream:
        answer = await ask(
            "mistral", upstream.url, "codestral-embed", embedding_options={"google": {"title": "T"}}
        )
    [(_, _, body)] = upstream.requests

    assert 200 == answer.status
    assert not {"title", "task_type", "output_dimension"} & body.keys()
