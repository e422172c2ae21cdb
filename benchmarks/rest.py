"""What the rest of connections costs: CPU and connections at a steady rate, with and without it.

    python -m benchmarks.rest [REQUESTS_PER_SECOND] [SECONDS]

The upstream is a process of its own that answers after 20 ms with one 1536-number base64 vector; client and upstream
run under uvloop. CPU time is the client's.
"""

import asyncio
import subprocess
import sys
import time
from base64 import b64encode

import uvloop

from embedroute.backend import UpstreamRequest
from embedroute.transport import ExchangeLimits
from embedroute.transport.http1.pool import Http1Transport

LATENCY = 0.02
BODY = b'{"data":[{"index":0,"embedding":"%b"}]}' % b64encode(bytes(4 * 1536))
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


class Upstream(asyncio.Protocol):
    """Answers each request after LATENCY; each comes in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = transport

    def data_received(self, _data: bytes) -> None:
        """Answer later."""
        asyncio.get_running_loop().call_later(LATENCY, self.transport.write, ANSWER)


async def serve() -> None:
    """Print the port, and serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


async def measure(port: int, rest: float, rate: int, seconds: float) -> str:
    """Send ``rate`` requests a second, each at its time, also if earlier ones are not answered."""
    transport, limits = Http1Transport(), ExchangeLimits(rest=rest)
    request = UpstreamRequest.json(
        f"http://127.0.0.1:{port}/v1/embeddings", {"model": "m", "input": ["text"]}
    )
    tasks: list[asyncio.Task[object]] = []
    took: list[float] = []

    async def send() -> None:
        began = time.perf_counter()
        await transport.send(request, 10.0, limits)
        took.append(time.perf_counter() - began)

    async def run(seconds: float) -> float:
        began = time.perf_counter()
        for at in range(int(rate * seconds)):
            await asyncio.sleep(max(0, began + at / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(send()))
        await asyncio.gather(*tasks)
        return time.perf_counter() - began

    await run(1.0)  # the connections are made
    tasks.clear()
    took.clear()
    before = time.process_time()
    elapsed = await run(seconds)
    cpu = time.process_time() - before
    connections = sum(len(pool.open) for pool in transport._pools.values())  # noqa: SLF001 - nothing else counts them
    await transport.aclose()
    return (
        f"rest {rest * 1000:3.0f} ms: {len(took) / elapsed:5.0f} requests/s, {cpu / len(took) * 1e6:4.0f} µs CPU each, "
        f"median {sorted(took)[len(took) // 2] * 1000:.1f} ms, {connections} connections"
    )


def main(rate: int = 1000, seconds: float = 5.0) -> None:
    """Measure with and without the rest in turn, three times."""
    upstream = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.rest", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with upstream:
        assert upstream.stdout is not None
        port = int(upstream.stdout.readline())
        for rest in (0.0, 0.05) * 3:
            print(uvloop.run(measure(port, rest, rate, seconds)), flush=True)
        assert upstream.stdin is not None
        upstream.stdin.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        uvloop.run(serve())
    else:
        main(*map(int, sys.argv[1:]))
