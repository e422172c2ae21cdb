"""An upstream that answers any number of inputs: at once under `/instant`, one call after another like a GPU under `/gpu`.

Run as `python -m benchmarks.gpu PORT`. A call under `/gpu` takes 5 ms plus 0.1 ms an input.
"""

import asyncio
import itertools
import re
import sys

import msgspec
import uvloop

from benchmarks import bodies

CALL, INPUT = 0.005, 0.0001  # seconds
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class RequestContext(msgspec.Struct):
    input: str | list[str]


class Answers:
    """Rows joined once; an answer of n is a slice of them."""

    def __init__(self) -> None:
        rows = [bodies.row(index, "base64") + b"," for index in range(2048)]
        self.rows = b"".join(rows)
        self.ends = [0, *itertools.accumulate(map(len, rows))]

    def of(self, count: int) -> bytes:
        head, tail = bodies.around(count)
        body = head + self.rows[: self.ends[count] - 1] + tail
        return HEAD % len(body) + body


class Connection(asyncio.Protocol):
    decoder = msgspec.json.Decoder(RequestContext)
    answers = Answers()
    free_at = 0.0  # on the class: one GPU, however many connections

    def connection_made(self, transport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, chunk: bytes) -> None:
        self.received += chunk
        while (end := self.received.find(b"\r\n\r\n") + 4) > 3:
            found = LENGTH.search(self.received, 0, end)
            whole = end + int(found[1]) if found else end
            if len(self.received) < whole:
                return
            self.answer(self.received[: end - 4], self.received[end:whole])
            self.received = self.received[whole:]

    def answer(self, head: bytes, body: bytes) -> None:
        inputs = self.decoder.decode(body).input
        count = 1 if isinstance(inputs, str) else len(inputs)
        reply = self.answers.of(count)
        if not head.startswith(b"POST /gpu"):
            self.transport.write(reply)
            return
        loop = asyncio.get_running_loop()
        Connection.free_at = max(loop.time(), Connection.free_at) + CALL + INPUT * count
        loop.call_at(Connection.free_at, self.transport.write, reply)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(
        Connection, "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
