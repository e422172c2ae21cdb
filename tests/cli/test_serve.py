"""Tests ``embedroute serve`` as a process: what it prints, and that it is a good server."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx2
import pytest

from embedroute.cli import main
from tests.fault_upstream import Upstream
from tests.support.commands import serving
from tests.support.tls import certified
from tests.support.wait import until

SERVE = (sys.executable, "-m", "embedroute", "serve", "--port", "0")
KEY = "sk-served-0123456789"
ORIGIN = "https://app.example"
CONFIG = f"""
[gateway]
auth = "keys"
body_timeout = 1
deadline = 4
[keys.team]
key = "{KEY}"
[providers.hashed]
[models.m]
dimensions = 8
endpoints = [{{ provider = "hashed" }}]
"""
BODY = b'{"model":"m","input":"a"}'


def write_config(place, text=CONFIG):
    (place / "embedroute.toml").write_text(text)
    return place


class Server:
    """A running ``serve`` and its log, whose lines are JSON."""

    def __init__(self, url, errors):
        self.url = url
        self._errors = errors

    @property
    def records(self):
        whole, _, _ = self._errors.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = write_config(tmp_path_factory.mktemp("serve"))
    options = [
        "--log-format",
        "json",
        "--log-level",
        "debug",
        "--cors-origin",
        ORIGIN,
        "--cors-origin",
        "https://b.example",
    ]
    errors = place / "errors"
    with serving([*SERVE, *options], place, errors=errors) as url:
        yield Server(url, errors)


def head(*headers, key=KEY):
    lines = [
        "POST /v1/embeddings HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def statuses_of(url, *pieces, count):
    """Send raw bytes, and return the statuses of ``count`` responses on the same connection."""
    with connected(url) as client:
        for piece in pieces:
            client.sendall(piece)
        return read_statuses(client, count)


def connected(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_statuses(client, count):
    """Read ``count`` responses. A server may send the head and the body of one apart."""
    received = b""
    while received.count(b'"total_tokens"') + received.count(b'"error"') < count:
        data = client.recv(65536)
        if not data:
            break
        received += data
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)]


LENGTH = f"Content-Length: {len(BODY)}"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAA")
OFFERING = head(LENGTH, *OFFER) + BODY
PLAIN = head(LENGTH) + BODY


@pytest.mark.parametrize(
    ("pieces", "count"),
    [
        ([OFFERING], 1),
        ([head(LENGTH, "Connection: upgrade", "Upgrade: H2C, foo/2") + BODY], 1),
        ([head("Transfer-Encoding: chunked", *OFFER) + CHUNKS], 1),
        ([bytes([byte]) for byte in OFFERING], 1),
        ([head(LENGTH, *OFFER), BODY], 1),
        ([OFFERING + PLAIN + OFFERING + OFFERING], 4),
        ([OFFERING * 1500], 1500),
    ],
    ids=["JDK", "others", "chunks", "bytes", "body later", "pipelined", "many"],
)
def test_a_request_that_offers_another_protocol_keeps_its_body(server, pieces, count):
    """Each client of a stock JDK offers HTTP/2 in this way."""
    assert [200] * count == statuses_of(server.url, *pieces, count=count)


def test_a_key_with_a_space_at_its_end_is_accepted(server):
    request = head(LENGTH, key=f"{KEY} \t") + BODY

    assert [200] == statuses_of(server.url, request, count=1)


def test_the_logs_are_one_json_object_a_line(server):
    httpx2.post(f"{server.url}/v1/embeddings", headers={"x-request-id": "r-json"})
    until(lambda: any(record.get("request_id") == "r-json" for record in server.records))

    records = server.records
    [summary] = [record for record in records if record["logger"] == "embedroute.serve"]
    [rejected] = [record for record in records if record.get("request_id") == "r-json"]
    assert ("keys", "m, hashed", "http1") == tuple(
        summary[name] for name in ("auth", "models", "transport")
    )
    assert summary["config"].endswith("/embedroute.toml")
    assert (401, "embedroute.access") == (rejected["status"], rejected["logger"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", rejected["time"])
    assert {"uvicorn.error", "embedroute.http"} <= {record["logger"] for record in records}


@pytest.mark.parametrize(("origin", "allowed"), [(ORIGIN, ORIGIN), ("https://evil.example", None)])
def test_web_pages_of_the_listed_origins_may_call_the_api(server, origin, allowed):
    preflight_headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    url = f"{server.url}/v1/embeddings"

    preflight = httpx2.request("OPTIONS", url, headers=preflight_headers)
    answer = httpx2.post(
        url,
        content=BODY,
        headers={
            "origin": origin,
            "authorization": f"Bearer {KEY}",
            "content-type": "application/json",
        },
    )

    name = "access-control-allow-origin"
    assert ((200 if allowed else 400), 200) == (preflight.status_code, answer.status_code)
    assert [allowed, allowed] == [preflight.headers.get(name), answer.headers.get(name)]
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


@pytest.mark.slow
def test_an_idle_connection_stays_open_for_longer_than_a_proxy_uses_it(server):
    """Uvicorn closes it after 5 s by default."""
    with connected(server.url) as client:
        for _ in range(2):
            client.sendall(PLAIN)
            assert [200] == read_statuses(client, 1)
            time.sleep(7)


SLOW = """
[gateway]
auth = "open"
body_timeout = 1
deadline = 4
[providers.up]
backend = "openai"
base_url = "{url}"
[models.m]
endpoints = [{{ provider = "up" }}]
"""


def test_a_request_in_flight_is_answered_after_sigterm(tmp_path):
    """The server waits for as long as a request may take, and is not ready meanwhile."""
    answers = []

    def ask(url):
        answers.append(httpx2.post(f"{url}/v1/embeddings", content=BODY, headers=JSON, timeout=60))

    with Upstream(delay=2.5) as upstream:
        write_config(tmp_path, SLOW.format(url=upstream.url))
        pid_file = tmp_path / "pid"
        code = "import os, pathlib, sys; pathlib.Path('pid').write_text(str(os.getpid()));"
        command = [
            sys.executable,
            "-c",
            f"{code} from embedroute.cli import main; sys.exit(main())",
        ]
        with serving([*command, *SERVE[3:]], tmp_path) as url:
            ready = httpx2.get(f"{url}/health/ready").status_code
            asking = threading.Thread(target=ask, args=[url])
            asking.start()
            until(lambda: upstream.in_flight)
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
            until(lambda: not accepts(url))
            is_in_flight = bool(upstream.in_flight)
            asking.join()

    assert (200, True, [200]) == (ready, is_in_flight, [answer.status_code for answer in answers])


JSON = {"content-type": "application/json"}


def accepts(url):
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=30).close()
    except OSError:
        return False
    return True


def test_workers_share_a_socket_and_have_gateways_of_their_own(tmp_path):
    """Here a Unix domain socket that an earlier server has left behind."""
    write_config(tmp_path)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    errors = tmp_path / "errors"
    with errors.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - fixed arguments
            [*SERVE, "--workers", "2", "--uds", str(path), "--root-path", "/api"],
            cwd=tmp_path,
            stderr=output,
        )
        until(lambda: errors.read_text().count("Application startup complete.") == 2)
        with httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://x"
        ) as client:
            headers = {**JSON, "authorization": f"Bearer {KEY}"}
            status = client.post("/v1/embeddings", content=BODY, headers=headers).status_code
        process.terminate()
        code = process.wait(60)

    assert (200, 0, False) == (status, code, path.exists())
    assert f"url        unix:{path}:/api/v1" in errors.read_text()


@pytest.mark.parametrize("root_path", ["/pre", "pre/"])
def test_paths_below_the_root_path_need_not_be_removed_by_a_proxy(tmp_path, root_path):
    write_config(tmp_path)
    headers = {"authorization": f"Bearer {KEY}"}
    with serving([*SERVE, "--root-path", root_path], tmp_path) as url:
        statuses = {
            path: httpx2.get(f"{url}{path}", headers=headers, trust_env=False).status_code
            for path in ("/v1/models", "/pre/v1/models", "/pre/pre/v1/models", "/prev1/models")
        }

    assert {
        "/v1/models": 200,
        "/pre/v1/models": 200,
        "/pre/pre/v1/models": 404,
        "/prev1/models": 404,
    } == statuses


def test_serves_https_with_a_certificate(tmp_path):
    certificate, _ = certified(write_config(tmp_path))
    files = ["--ssl-certfile", certificate, "--ssl-keyfile", tmp_path / "key.pem"]
    trusting = ssl.create_default_context(cafile=certificate)

    with serving([*SERVE, *files], tmp_path) as url:
        address = url.replace("127.0.0.1", "localhost")
        assert 200 == httpx2.get(f"{address}/health/live", verify=trusting).status_code

    assert url.startswith("https:")


def test_requires_certificates_of_clients_and_reads_an_encrypted_key(tmp_path):
    certificate, _ = certified(write_config(tmp_path))
    key, encrypted = tmp_path / "key.pem", tmp_path / "encrypted.pem"
    words = ["pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", encrypted]
    subprocess.run(["openssl", *words], check=True, capture_output=True)  # noqa: S603, S607 - fixed arguments
    files = ["--ssl-certfile", certificate, "--ssl-keyfile", encrypted]
    without, with_certificate = (ssl.create_default_context(cafile=certificate) for _ in range(2))
    with_certificate.load_cert_chain(certificate, key)

    environ = {"SSL_KEYFILE_PASSWORD": "secret"}
    with serving([*SERVE, *files, "--ssl-ca-certs", certificate], tmp_path, environ) as url:
        address = f"{url.replace('127.0.0.1', 'localhost')}/health/live"
        assert 200 == httpx2.get(address, verify=with_certificate).status_code
        with pytest.raises(httpx2.TransportError):
            httpx2.get(address, verify=without)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ssl-keyfile", "key.pem"], "TLS needs a certificate: add --ssl-certfile FILE."),
        (
            ["--ssl-certfile", "absent.pem"],
            "The TLS files (absent.pem) cannot be used: No such file or directory",
        ),
    ],
    ids=["no certificate", "no file"],
)
def test_wrong_tls_options_are_reported(words, message, tmp_path, capsys):
    path = write_config(tmp_path) / "embedroute.toml"

    assert 1 == main(["serve", "--config", str(path), *words])
    assert message in capsys.readouterr().err


def test_local_models_are_loaded_before_the_server_listens(tmp_path):
    write_config(tmp_path, '[gateway]\nauth = "open"\n[providers.wordllama]\n')
    errors = tmp_path / "errors"
    with serving([*SERVE, "--log-level", "debug"], tmp_path, errors=errors):
        before, _, _ = errors.read_text().partition("Application startup complete.")

    assert "embedroute.calls" in before
