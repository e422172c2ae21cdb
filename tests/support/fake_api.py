"""A loopback server with the API of one provider, which records the requests that it gets.

The APIs themselves are functions in ``tests/backends/apis.py``.
"""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Received(NamedTuple):
    """A request: its path with the query, its headers by lower-case name, and its JSON body."""

    path: str
    headers: dict[str, str]
    body: dict


class FakeAPI(ThreadingHTTPServer):
    """Answers each POST with ``reply(body)`` as JSON, or with a reply of ``script`` first.

    A scripted reply is a tuple of status, headers and content. ``delay`` is in seconds, and
    ``cut`` ends a body after that many bytes although its length promises more.
    """

    daemon_threads = True

    def __init__(self, reply, script=(), *, delay=0.0, cut=None):
        self.requests: list[Received] = []
        self.script = list(script)
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = json.loads(raw)
                fake.requests.append(Received(self.path, headers, body))
                time.sleep(delay)
                status, extra, content = (
                    fake.script.pop(0) if fake.script else (200, {}, json.dumps(reply(body)))
                )
                content = content if isinstance(content, bytes) else content.encode()
                with suppress(ConnectionError):  # the client did not wait
                    self.respond(status, extra, content)
                self.close_connection = True

            def respond(self, status, extra, content):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.send_header("connection", "close")
                for name, value in extra.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[:cut])

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
