"""The answers of the health checks.

Liveness says that the event loop runs. Readiness says that the gateway can serve a request: it can
open its transport, and the host is not shutting down. It does not depend on upstreams, because a
load balancer would then remove every instance at once.
"""

from typing import Final

LIVE: Final = b'{"status":"live"}'
READY: Final = b'{"status":"ready"}'
STOPPING: Final = b'{"status":"stopping"}'
