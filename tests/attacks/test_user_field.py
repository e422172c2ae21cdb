"""One caller's ``user`` does not change what an upstream gets from the others."""

import json

import pytest

from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.backend import UpstreamResponse
from embedroute.testing import expected_vector

WIDTH = 8


class Upstream:
    """Replaces a transport and answers in OpenAI's format.

    ``refuse(user)`` returns an error message, or None to accept the request.
    """

    name = "scripted"

    def __init__(self, refuse):
        self.refuse = refuse
        self.users = []

    async def send(self, request, _timeout, _limits):
        body = json.loads(request.content)
        self.users.append(body.get("user"))
        if "user" in body and (message := self.refuse(body["user"])):
            content = {"error": {"message": message, "type": "invalid_request_error"}}
            return UpstreamResponse(400, {}, json.dumps(content).encode())
        row = {"index": 0, "embedding": expected_vector(body["input"][0], WIDTH).tolist()}
        return UpstreamResponse(200, {}, json.dumps({"data": [row]}).encode())

    async def aclose(self):
        pass


def gateway_before(upstream):
    config = Config(
        gateway={"auth": "open"},
        cache={"bytes": 0},
        providers={"acme": Provider(backend="openai", options={"api_key": "sk-1"})},
        models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "acme"}]}},
    )
    return Gateway(config, environ={}, transport=lambda: upstream)


async def status_of(gateway, user):
    try:
        await gateway.embed("a", model="m", user=user)
    except EmbedrouteError as error:
        return error.status
    return 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    "message",
    [
        "Invalid 'user': string too long. Expected a string with maximum length 64.",
        "'user' must be at most 64 characters",
        "Invalid value for 'user': it does not match the pattern",
    ],
)
async def test_a_rejected_value_is_that_callers_fault(message):
    upstream = Upstream(lambda user: message if len(user) > 64 else None)
    gateway = gateway_before(upstream)

    assert await status_of(gateway, "u" * 100) == 400
    assert await status_of(gateway, "ada") == 200
    assert upstream.users[-1] == "ada"


@pytest.mark.anyio
async def test_a_rejected_field_is_left_out_for_all_callers():
    upstream = Upstream(lambda _user: "Unsupported parameter: 'user'")
    gateway = gateway_before(upstream)

    assert [await status_of(gateway, user) for user in ("ada", "grace")] == [200, 200]
    assert upstream.users == ["ada", None, None]
