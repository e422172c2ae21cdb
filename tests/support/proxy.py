"""A forward proxy on loopback, for CONNECT and for absolute-form requests."""

import re
import socket
import threading
from contextlib import suppress


class ForwardProxy:
    """A proxy that records the head of each request.

    It connects every tunnel to the port ``upstream``, and answers requests without TLS itself.
    ``surplus`` follows the response to CONNECT. ``refusal`` is sent instead of any response; None closes the connection after a request.
    """

    def __init__(self, upstream=0, refusal=b"", tls=None, surplus=b""):
        self.upstream, self.refusal, self.tls = upstream, refusal, tls
        self.surplus = surplus
        self.heads, self.sockets = [], []
        self.closed = threading.Event()

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.accept)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        for connection in self.sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def url(self, credentials="user:p%40ss@"):
        return f"http{'s' if self.tls else ''}://{credentials}localhost:{self.port}"

    def accept(self):
        with suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with suppress(OSError):
            if self.tls:
                client = self.tls.wrap_socket(client, server_side=True)
            self.sockets.append(client)
            while self.answer(client):
                pass
        self.closed.set()
        client.close()

    def answer(self, client):
        """Answer one request; return whether the connection stays open."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = client.recv(1)
            if not byte:
                return False
            head += byte
        self.heads.append(head)
        length = re.search(rb"content-length: ([0-9]+)", head, re.IGNORECASE)
        for _ in range(int(length[1]) if length else 0):
            client.recv(1)
        if self.refusal != b"":
            client.sendall(self.refusal or b"")
            return self.refusal is not None
        if head.startswith(b"CONNECT"):
            self.tunnel(client)
            return False
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        return True

    def tunnel(self, client):
        with socket.create_connection(("127.0.0.1", self.upstream)) as upstream:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n" + self.surplus)
            back = threading.Thread(target=copy, args=(upstream, client), daemon=True)
            back.start()
            copy(client, upstream)
            back.join()


def copy(source, target):
    """Copy bytes until ``source`` ends, then end ``target``."""
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
