"""What serving costs when there is nothing to do: decode the request, return one fixed answer of 8 kB.

`app` is a plain ASGI function; `mounted` does the same with Starlette's Mount, Route, Request and Response.
"""

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Mount, Route

from benchmarks import bodies

ANSWER = bodies.answer(1, "base64")
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


class Request(msgspec.Struct):
    model: str
    input: str | list[str]
    encoding_format: str | None = None


requests = msgspec.json.Decoder(Request)


async def app(_scope, receive, send) -> None:
    message = await receive()
    body = message["body"]
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    requests.decode(body)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


async def embeddings(request: HTTPRequest) -> Response:
    requests.decode(await request.body())
    return Response(ANSWER, media_type="application/json")


mounted = Starlette(
    routes=[Mount("/ai", routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])]
)
