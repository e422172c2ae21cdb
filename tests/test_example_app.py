"""The example: a service that uses the gateway from both sides, and a backend that is installed as a package."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.testing import check_backend
from example_app.acme_backend.acme_backend import Acme
from tests.support.commands import pip, run, serving
from tests.support.documents import CAT, FELINE, ROOT, SENTENCES, STOCKS, nearer_and_farther
from tests.support.serving import Serving

PACKAGE = ROOT / "example_app" / "acme_backend"
DEMO = {"authorization": "Bearer demo-key"}


@pytest.fixture(scope="module")
def service():
    with (
        Serving("example_app.main", debug=False) as server,
        httpx2.Client(base_url=server.url, timeout=120) as client,
    ):
        yield client
    assert server.said == ""


def test_notes_are_found_by_what_they_mean(service):
    for text in (STOCKS, FELINE, "bread needs time to rise"):
        assert service.post("/notes", json={"text": text}).status_code == 201

    hits = service.get("/search", params={"q": CAT, "limit": 2}).json()

    assert hits[0]["note"] == {"id": 1, "text": FELINE}
    assert [len(hits), hits[0]["score"] > hits[1]["score"]] == [2, True]


def test_clients_are_served_by_the_same_model(service):
    answer = service.post(
        "/ai/v1/embeddings", json={"model": "wordllama", "input": SENTENCES}, headers=DEMO
    )

    near, far = nearer_and_farther(answer.json())
    assert near > far


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/notes", 422),
        ("GET", "/search", 422),
        ("POST", "/ai/v1/embeddings", 401),
        ("GET", "/ai/v1/models/nothing", 401),
        ("GET", "/ai/nothing", 404),
    ],
)
def test_each_side_refuses_in_its_own_words(service, method, path, status):
    answer = service.request(method, path)

    assert answer.status_code == status
    assert list(answer.json()) == ["error" if path.startswith("/ai/v1") else "detail"]


def test_the_backend_keeps_the_contract():
    def reply(batch):
        return {"vectors": [[float(len(text)), 1.0] for text in batch.texts], "tokens": 3}

    check_backend(Acme(api_key=Secret("k")), reply=reply)


def test_the_backend_speaks_acmes_words():
    acme = Acme(api_key=Secret("k"), base_url="https://acme.test")
    batch = Batch(model="large", texts=["a", "b"], dimensions=2)

    request = acme.build(batch)
    found = acme.parse(batch, UpstreamResponse(200, {}, b'{"vectors":[[1,0],[0,1]],"tokens":7}'))

    assert (request.url, request.content) == (
        "https://acme.test/embed",
        b'{"model":"large","texts":["a","b"],"size":2}',
    )
    assert request.headers["authorization"] == Secret("Bearer k")
    assert (found.array.tolist(), found.prompt_tokens) == ([[1, 0], [0, 1]], 7)


def test_the_backend_is_as_small_as_promised():
    assert len((PACKAGE / "acme_backend.py").read_text(encoding="utf-8").splitlines()) <= 30


class AcmeUpstream(BaseHTTPRequestHandler):
    """All of Acme: it takes texts and a key, and counts letters."""

    def do_POST(self):
        sent_request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        good = (
            self.path == "/embed"
            and self.headers["authorization"] == "Bearer acme-key"
            and sent_request["model"] == "large"
        )
        vectors = [[text.count(letter) + 1 for letter in "aeiou"] for text in sent_request["texts"]]
        body = json.dumps({"vectors": vectors, "tokens": 10} if good else {"error": "no"}).encode()
        self.send_response(200 if good else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def acme():
    with ThreadingHTTPServer(("127.0.0.1", 0), AcmeUpstream) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment in which the backend is installed, beside what is installed here."""
    place = tmp_path_factory.mktemp("acme")
    pip(
        "install",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        place,
        PACKAGE,
        cwd=place,
    )
    return {"PYTHONPATH": str(place)}


EMBEDROUTE = Path(sys.executable).with_name("embedroute")


@pytest.mark.thorough
def test_an_installed_backend_is_found(tmp_path, installed):
    names = [
        line.split()[0] for line in run([EMBEDROUTE, "backends"], tmp_path, installed).splitlines()
    ]

    assert "acme" in names
    assert "acme" not in run([EMBEDROUTE, "backends"], tmp_path)


CONFIG = """
[gateway]
auth = "open"

[providers.acme]
api_key = "env:ACME_KEY"
base_url = "{url}"

[models.acme-large]
dimensions = 5
endpoints = [{{ provider = "acme", model = "large" }}]
"""


@pytest.mark.parametrize(
    ("key", "status", "tells"),
    [
        ("acme-key", 200, [[2, 1, 1, 2, 1], [1, 2, 1, 1, 1]]),
        ("wrong", 502, "upstream_credentials"),
    ],
)
@pytest.mark.thorough
def test_an_installed_backend_serves(tmp_path, installed, acme, key, status, tells):
    """As its package, through a config and over HTTP at both ends."""
    config = tmp_path / "embedroute.toml"
    config.write_text(CONFIG.format(url=acme))

    with serving(
        [EMBEDROUTE, "serve", "--port", "0"], tmp_path, {**installed, "ACME_KEY": key}
    ) as url:
        answer = httpx2.post(
            f"{url}/v1/embeddings",
            json={"model": "acme-large", "input": ["pan do", "he"]},
            timeout=120,
        )

    actual = answer.json()
    assert answer.status_code == status
    assert tells == (
        [row["embedding"] for row in actual["data"]] if status == 200 else actual["error"]["code"]
    )
