"""Reloads the config of ``embedroute serve`` when its process gets SIGHUP."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from embedroute.config import Config
from embedroute.config_warnings import find_warnings
from embedroute.errors import ConfigError
from embedroute.gateway import Gateway
from embedroute.log_records import ConfigReloaded, ReloadRejected, write


class Reloader:
    """Reloads the config of one gateway in a thread. What comes meanwhile is one more reload."""

    def __init__(self, gateway: Gateway, load: Callable[[], Config]) -> None:
        """Use the configs that ``load`` returns for ``gateway``."""
        self._gateway = gateway
        self._load = load
        self._requested = threading.Event()
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Reload at each SIGHUP, on systems that have it. Call it in the main thread."""
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._start)

    def _start(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._requested.is_set():
            self._requested.set()
            threading.Thread(target=self.reload, name="embedroute reload", daemon=True).start()

    def reload(self) -> bool:
        """Reload the config, and log what came of it; return whether the new one is used."""
        with self._lock:
            self._requested.clear()
            try:
                config = self._load()
                self._gateway.reload_in_thread(config)
            except ConfigError as error:
                write(ReloadRejected(reason=error.message))
                return False
        for warning in find_warnings(config, self._gateway.models):
            print(f"warning: {warning}", file=sys.stderr)
        write(ConfigReloaded())
        return True
