"""The least a Python proxy can be: an ASGI function that sends the body on through one HTTP client and returns the answer.

`BENCH_ENGINE` is `aiohttp` or `pyreqwest`. With `BENCH_DECODE` set it decodes request and answer with msgspec,
vectors left as they are, and encodes both again: what any gateway that looks at its traffic has to do. `BENCH_ROUTES`
maps paths to upstream URLs.
"""

import os
from collections.abc import Awaitable, Callable

import msgspec

ROUTES: dict[str, str] = msgspec.json.decode(os.environ["BENCH_ROUTES"])
ENGINE = os.environ["BENCH_ENGINE"]
DECODE = bool(os.environ.get("BENCH_DECODE"))
JSON = {"content-type": "application/json", "authorization": "Bearer upstream"}

type_of_post = Callable[[str, bytes], Awaitable[bytes]]


class Request(msgspec.Struct, omit_defaults=True):
    model: str
    input: str | list[str]
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None


class Row(msgspec.Struct):
    object: str
    index: int
    embedding: msgspec.Raw


class Answer(msgspec.Struct):
    object: str
    data: list[Row]
    model: str
    usage: dict[str, int]


encoder = msgspec.json.Encoder()
requests = msgspec.json.Decoder(Request)
answers = msgspec.json.Decoder(Answer)


def over_aiohttp() -> type_of_post:
    import aiohttp  # noqa: PLC0415

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers=JSON,
    )

    async def post(url: str, body: bytes) -> bytes:
        async with session.post(url, data=body) as response:
            return await response.read()

    return post


def over_pyreqwest() -> type_of_post:
    from pyreqwest.client import ClientBuilder  # noqa: PLC0415

    client = ClientBuilder().default_headers(JSON).no_proxy().http1_only().build()

    async def post(url: str, body: bytes) -> bytes:
        response = await client.post(url).body_bytes(body).build().send()
        return (await response.bytes()).to_bytes()

    return post


class Bare:
    """The client is made in the first request: it wants a running loop."""

    post: type_of_post | None = None

    async def __call__(self, scope, receive, send) -> None:
        post = self.post = (
            self.post or {"aiohttp": over_aiohttp, "pyreqwest": over_pyreqwest}[ENGINE]()
        )
        body = await read(receive)
        if DECODE:
            body = encoder.encode(requests.decode(body))
        answer = await post(ROUTES[scope["path"]], body)
        if DECODE:
            answer = encoder.encode(answers.decode(answer))
        await reply(send, answer)


async def read(receive) -> bytes:
    message = await receive()
    body = message["body"]
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    return body


async def reply(send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = Bare()
