"""Runs the workers of ``embedroute serve``; import it only if uvicorn is installed."""

import os
import signal
from collections.abc import Callable
from socket import socket

import uvicorn
from uvicorn.supervisors import Multiprocess


class Supervisor(Multiprocess):
    """uvicorn's supervisor, except that SIGHUP reloads the config in each worker.

    uvicorn's own replaces the workers, with their caches, connections and breakers.
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket], reload: Callable[[], bool]
    ) -> None:
        """Pass SIGHUP on if ``reload``, which checks the config, returns True."""
        super().__init__(config, sockets=sockets)
        self._reload = reload

    def handle_hup(self) -> None:
        """Let the workers reload the config, unless it has mistakes."""
        if self._reload():
            for process in self.processes:
                if process.pid is not None and process.process.is_alive():
                    os.kill(process.pid, signal.SIGHUP)
