"""Serves an empty JSON object to every POST, over plain sockets or TLS."""

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class EmptyObjects(BaseHTTPRequestHandler):
    """Records the path and the headers of each request in the server."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, dict(self.headers)))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


class EmptyObjectServer(ThreadingHTTPServer):
    """Listens on a free port of ``host``. It prints no error of a client."""

    def __init__(self, host="127.0.0.1"):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), EmptyObjects)
        self.requests = []

    def handle_error(self, *_):
        pass
