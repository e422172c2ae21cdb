"""No traceback frame holds an upstream key: Sentry, loguru and rich print local variables."""

import asyncio
import json
import logging
import os
import socket
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import quote

import anyio
import pytest

from embedroute import Config, ConfigError, Gateway, embeddings_app
from embedroute.backend import (
    Batch,
    HTTPBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
)
from embedroute.backends.openai import OpenAI
from embedroute.errors import EmbedrouteError
from embedroute.routing import RetryPolicy
from tests.fault_upstream import Upstream
from tests.fault_upstream.modes import MODES, STALLS
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

SCALE = int(os.environ.get("EMBEDROUTE_ATTACK_SCALE", "1"))
HERE = str(Path(__file__).parent.parent)
KEY, PASSWORD = "sk-CanaryKey-0123456789", "CanaryPass-9876543210"
FORMS = (
    *(KEY, PASSWORD, KEY[:12], KEY[-10:], PASSWORD[-10:], quote(KEY, safe="")),
    *(
        b64encode(f"{before}{text}".encode())[4:20].decode()
        for text in (KEY, PASSWORD)
        for before in ("", "me:")
    ),
)


class Leak(NamedTuple):
    """A place where a key appears: the function, its variable, and how much of the key."""

    function: str
    variable: str
    shown: str


def exceptions_of(error):
    """An exception and all that it leads to.

    Its cause, its context whether suppressed or not, and members of a group.
    """
    found, left = [], [error]
    while left:
        exception = left.pop()
        if exception is not None and not any(exception is known for known in found):
            found.append(exception)
            left += [
                exception.__cause__,
                exception.__context__,
                *getattr(exception, "exceptions", ()),
            ]
    return found


def frames_of(error):
    """The frames of the code under test, its libraries and plugins.

    Those of the tests hold the keys that they made up.
    """
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if not code.co_filename.startswith(HERE) or code.co_name in {"headers", "build", "parse"}:
            yield step.tb_frame
        step = step.tb_next


def shown(value):
    """What tools show of a variable: its repr, or what rich prints instead."""
    yield repr(value)
    if not isinstance(value, type | ModuleType):
        yield repr(list(getattr(value, "__rich_repr__", tuple)()))


def leaks_of(error):
    """Every place below an exception where a key shows."""
    for exception in exceptions_of(error):
        for text in (str(exception), *shown(exception), *getattr(exception, "__notes__", ())):
            if any(form in text for form in FORMS):
                yield Leak(type(exception).__name__, "(the exception)", text[:200])
        for frame in frames_of(exception):
            for name, value in frame.f_locals.items():
                for text in shown(value):
                    if any(form in text for form in FORMS):
                        yield Leak(frame.f_code.co_qualname, name, text[:200])


def gateway_of(backend, transport="auto", **settings):
    return Gateway(
        Config(
            gateway={"auth": "open", "transport": transport, "deadline": 0.6, **settings},
            providers={"up": {"backend": backend}},
            models={"m": {"dimensions": 8, "endpoints": [{"provider": "up"}]}},
        ),
        retries=RetryPolicy(repeats=0, first_wait=0.001),
    )


async def failure_of(gateway):
    async with gateway.lifespan():
        try:
            await gateway.embed(["a text"], model="m")
        except EmbedrouteError as error:
            return error
    return None


@pytest.fixture(scope="module")
def upstream():
    with Upstream(remember=False) as upstream:
        yield upstream


@pytest.fixture(params=["asyncio-http1", "asyncio-httpx2", "trio-httpx2"])
def transport(request):
    return request.param.partition("-")[2]


@pytest.fixture
def anyio_backend(request):
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    return params.get("transport", "asyncio").partition("-")[0]


def with_credentials(url):
    return url.replace("://", f"://me:{PASSWORD}@")


NAMES = ("api-key", "x-api-key", "x-goog-api-key")
BACKENDS = {
    "a bearer token": lambda url: OpenAI(base_url=url, api_key=Secret(KEY)),
    "headers of its own": lambda url: OpenAI(
        base_url=url, extra_headers=dict.fromkeys(NAMES, Secret(KEY))
    ),
    "credentials in the address": lambda url: OpenAI(base_url=with_credentials(url)),
}


SHORT = (
    *(
        "status_401",
        "status_500",
        "status_429",
        "key_in_400",
        "key_in_200",
        "quota_spent",
        "redirect",
        "gzip_bomb",
    ),
    *(
        "html_200",
        "truncated_json",
        "missing_row",
        "nan",
        "reset_before_headers",
        "half_body_reset",
        "bad_status_line",
    ),
)
LONG = [mode for mode in MODES if not mode.startswith(("huge", "limited")) and mode not in STALLS]
ANSWERS = LONG if SCALE > 1 else SHORT


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("mode", ANSWERS)
async def test_no_response_leaves_a_key_in_traceback_frames(transport, upstream, mode, backend):
    upstream.mode = mode

    failure = await failure_of(gateway_of(backend(upstream.url), transport))

    assert [] == list(leaks_of(failure) if failure else ())


def refused(_upstream):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def stalling(upstream):
    upstream.mode = "stalled"
    return upstream.url


NO_ANSWER = {
    "the connection is refused": refused,
    "the answer does not come": stalling,
    "there is no such host": lambda _: "http://nowhere.invalid/v1",
    "there is no such port": lambda _: "http://127.0.0.1:99999/v1",
    "its name has other letters": lambda _: "http://bücher.invalid/v1",
}


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("place", NO_ANSWER.values(), ids=NO_ANSWER)
async def test_no_failed_connection_leaves_a_key_in_traceback_frames(
    transport, upstream, place, backend
):
    url = place(upstream)
    try:
        made = gateway_of(backend(url), transport)
    except (ConfigError, ValueError) as error:  # some addresses are refused at the start
        failure = error
    else:
        failure = await failure_of(made)

    assert failure is not None
    assert [] == list(leaks_of(failure))


class CarelessBackend(HTTPBackend, frozen=True, kw_only=True):
    """A third-party backend that keeps its key in local variables."""

    api_key: Secret
    base_url: str

    def build(self, batch: Batch) -> UpstreamRequest:
        return UpstreamRequest.json(self.base_url, {"model": batch.model}, headers=self.headers())

    def parse(self, batch: Batch, reply: UpstreamResponse) -> Vectors:
        raise NotImplementedError

    def headers(self):
        return {}


class LineBreak(CarelessBackend, frozen=True, kw_only=True):
    def headers(self):
        return {"x-key": Secret(f"{self.api_key.reveal()}\r\nx: y")}


class WideLetter(CarelessBackend, frozen=True, kw_only=True):
    def headers(self):
        return {"x-key": Secret(f"{self.api_key.reveal()}€")}


class Framing(CarelessBackend, frozen=True, kw_only=True):
    def headers(self):
        return {"x-key": self.api_key, "connection": "close"}


class BuildFails(CarelessBackend, frozen=True, kw_only=True):
    def headers(self):
        signed = self.api_key.reveal()
        return {"x-key": signed, **{}[signed[:0]]}


class BuildNamesIt(CarelessBackend, frozen=True, kw_only=True):
    def headers(self):
        return {"x-key": f"€{self.api_key.reveal()}".encode("ascii").decode()}


class ParseFails(CarelessBackend, frozen=True, kw_only=True):
    def parse(self, batch, reply):
        signed = self.api_key.reveal()
        return {"signed": signed}[f"{batch}{reply}"]


class InAddress(CarelessBackend, frozen=True, kw_only=True):
    def build(self, batch):
        return UpstreamRequest.json(
            f"{self.base_url}?key={self.api_key.reveal()}", {"model": batch.model}
        )


CARELESS = (LineBreak, WideLetter, Framing, BuildFails, BuildNamesIt, ParseFails, InAddress)


@pytest.mark.parametrize("backend", CARELESS)
async def test_no_backend_error_leaves_a_key_in_traceback_frames(transport, upstream, backend):
    upstream.mode = "honest"

    failure = await failure_of(
        gateway_of(backend(base_url=upstream.url, api_key=Secret(KEY)), transport)
    )

    assert failure is not None
    assert [] == list(leaks_of(failure))


async def cancelled(gateway):
    """What a caller gets that gives up waiting, by a scope's end or by its task's."""
    got = []
    async with gateway.lifespan():
        with anyio.move_on_after(0.15):
            try:
                await gateway.embed(["a text"], model="m")
            except BaseException as error:
                got.append(error)
                raise
    return got


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("mode", ["stalled", "never_ending"])
async def test_no_cancelled_call_leaves_a_key_in_traceback_frames(
    transport, upstream, backend, mode
):
    upstream.mode = mode

    [failure] = await cancelled(gateway_of(backend(upstream.url), transport))

    assert [] == list(leaks_of(failure))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
async def test_no_gateway_frame_holds_a_key_during_a_call(upstream, backend):
    """A profiler or a debugger looks at running frames; those of httpx2 are its own."""
    upstream.mode, gateway = "stalled", gateway_of(backend(upstream.url), "http1")
    async with gateway.lifespan():
        task = asyncio.ensure_future(gateway.embed(["a text"], model="m"))
        await asyncio.sleep(0.1)
        waiting, found, looked_at = task.get_coro(), [], []
        while waiting is not None and hasattr(waiting, "cr_frame"):
            for name, value in waiting.cr_frame.f_locals.items():
                found += [
                    Leak(waiting.__qualname__, name, text)
                    for text in shown(value)
                    if any(form in text for form in FORMS)
                ]
            looked_at.append(waiting.__qualname__)
            waiting = waiting.cr_await
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    assert [] == found
    assert "Http1Transport.send" in looked_at


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://me:{PASSWORD}@127.0.0.1:1",
        f"http://me:{PASSWORD}@[::1",
        f"http://me:{PASSWORD}@x:0",
    ],
)
async def test_no_failed_proxy_leaves_its_password_in_traceback_frames(proxy):
    try:
        gateway = gateway_of(
            OpenAI(base_url="https://127.0.0.1:2/v1", api_key=Secret(KEY)), proxy=proxy
        )
    except ConfigError as error:
        failure = error
    else:
        failure = await failure_of(gateway)

    assert failure is not None
    assert [] == list(leaks_of(failure))


BAD_TOML = {
    "no TOML": f'[providers.openai]\napi_key = "{KEY}"\n[[',
    "an unknown option": f'[gateway]\nauth = "open"\n[providers.openai]\napi_key = "{KEY}"\ncolour = 1',
    "an option of another type": f'[gateway]\nauth = "open"\n[providers.openai]\napi_key = "{KEY}"\nbase_url = 1',
    "a key that no header carries": f'[gateway]\nauth = "open"\n[providers.openai]\napi_key = "{KEY}\\n{KEY}"',
    "a variable of the environment": '[gateway]\nauth = "open"\n[providers.openai]\napi_key = "env:UP_KEY"\ncolour = 1',
}


@pytest.mark.parametrize("text", BAD_TOML.values(), ids=BAD_TOML)
def test_no_config_error_leaves_a_key_in_traceback_frames(text, tmp_path):
    (tmp_path / "embedroute.toml").write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        Gateway.from_file(tmp_path / "embedroute.toml", environ={"UP_KEY": KEY})

    assert [] == list(leaks_of(caught.value))


@pytest.mark.parametrize("auth", [{}, {"EMBEDROUTE_AUTH": "keys"}, {"EMBEDROUTE_AUTH": "none"}])
def test_no_environment_error_leaves_a_key_in_traceback_frames(auth):
    with pytest.raises(ConfigError) as caught:
        Gateway.from_env(environ={"OPENAI_API_KEY": KEY, **auth})

    assert [] == list(leaks_of(caught.value))


async def test_no_bug_is_logged_with_a_key_in_traceback_frames(upstream, caplog):
    """Over HTTP a bug is logged with its traceback, which such a tool shows as well."""
    caplog.set_level(logging.DEBUG)
    upstream.mode = "honest"
    made = gateway_of(OpenAI(base_url=with_credentials(upstream.url), api_key=Secret(KEY)), "http1")
    made.cache = None  # a bug of ours, for once
    body = json.dumps({"model": "m", "input": ["a text"]}).encode()

    answer = await call(
        embeddings_app(made),
        "POST",
        "/v1/embeddings",
        [("content-type", "application/json")],
        [body],
    )

    [logged] = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert answer.status == 500
    assert [] == list(leaks_of(logged))
