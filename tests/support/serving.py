"""Runs an ASGI app under a real server in a separate process, and captures its output.

    with Serving("tests.hosts.apps.standalone", "uvicorn") as server:
        ...  # {server.url}/v1/embeddings
    assert server.said == ""  # it stopped at the signal, and without a warning

The process runs with all warnings as errors and, by default, with asyncio's debug mode.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
LONGEST_STOP = 60.0
"""Seconds that a server may take to stop."""

SERVERS = {
    "uvicorn": [
        "uvicorn",
        "--fd",
        "{fd}",
        "--log-level",
        "warning",
        "--no-access-log",
        "--loop",
        "asyncio",
        "--http",
        "h11",
    ],
    "uvicorn-uvloop": [
        "uvicorn",
        "--fd",
        "{fd}",
        "--log-level",
        "warning",
        "--no-access-log",
        "--loop",
        "uvloop",
    ],
    "hypercorn": ["hypercorn", "--bind", "fd://{fd}", "--log-level", "warning", "--workers", "0"],
    "hypercorn-trio": ["hypercorn", "--bind", "fd://{fd}", "--log-level", "warning", "-k", "trio"],
}
"""Name → the command that serves a listening socket, given by its file descriptor."""

# After it has stopped, uvicorn raises the signal again. Only after SIGINT does Python still warn
# about unclosed resources.
STOPS = {
    "uvicorn": signal.SIGINT,
    "uvicorn-uvloop": signal.SIGINT,
    "hypercorn": signal.SIGTERM,
    "hypercorn-trio": signal.SIGTERM,
}
"""Name → the signal that stops it cleanly, with code 0."""

# On a busy machine, asyncio's debug mode prints this for the first request of any app.
SLOW = re.compile(r"^Executing <.*> took [0-9.]+ seconds\n", re.MULTILINE)


class Serving:
    """A server that runs inside ``with``. ``app`` names a module with an object ``app``."""

    def __init__(
        self,
        app: str,
        server: str = "uvicorn",
        *,
        root_path: str = "",
        environ: Mapping[str, str] | None = None,
        debug: bool = True,
        options: Sequence[str] = (),
    ):
        self.server = server
        self.port, self.said, self.code = 0, "", None
        self._environ = {
            **os.environ,
            "PYTHONASYNCIODEBUG": "1" if debug else "",
            **(environ or {}),
        }
        self._command = [
            *SERVERS[server],
            f"{app}:app",
            *(["--root-path", root_path] if root_path else []),
            *options,
        ]

    @property
    def url(self) -> str:
        """The base URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The id of the server's process."""
        return self._process.pid

    def __enter__(self) -> Self:
        # The socket listens before the server starts, so that clients wait in its backlog.
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            # Connections inherit it. uvicorn does not set it for a socket that it is given, so that
            # each response on a reused connection would take 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.port = listener.getsockname()[1]
            fd = str(listener.fileno())
            self._output = tempfile.TemporaryFile()
            self._process = subprocess.Popen(  # noqa: S603 - fixed arguments
                [
                    sys.executable,
                    "-W",
                    "error",
                    "-m",
                    *(word.replace("{fd}", fd) for word in self._command),
                ],
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[listener.fileno()],
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server by its signal; if that fails, by SIGKILL, which ``said`` then reports."""
        self._process.send_signal(STOPS[self.server])
        try:
            self.code = self._process.wait(LONGEST_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.code = self._process.wait()
        self._output.seek(0)
        said = SLOW.sub("", self._output.read().decode(errors="replace"))
        self._output.close()
        self.said = f"{said}stopped with {self.code}\n" if self.code else said
