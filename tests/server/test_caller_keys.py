"""``api_key = "header:NAME"``: each caller's own upstream key, which is shared with no other caller."""

import re

import anyio
import pytest

from embedroute import Caller, Config, ConfigError, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Secret
from embedroute.errors import EmbedrouteError
from tests.backends import apis
from tests.support.asgi_client import call
from tests.support.fake_api import FakeAPI

pytestmark = pytest.mark.anyio

HEADER = "x-openai-key"
ANNA, BERT = "sk-anna-0123456789abcdef", "sk-bert-fedcba9876543210"
REJECTED = (
    401,
    {},
    f'{{"error":{{"message":"Incorrect API key: {ANNA}","code":"invalid_api_key"}}}}',
)


def reply(body):
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    rows = [apis.numbers(text) for text in texts]
    return apis.openai_rows(rows, {"prompt_tokens": len(texts), "total_tokens": 1}, body["model"])


def make_gateway(fake, *, reference="header:X-OpenAI-Key", others=(), **endpoint):
    options = {"base_url": f"{fake.url}/v1"}
    providers = {"own": Provider(backend="openai", options={**options, "api_key": reference})}
    endpoints = [{"provider": "own", **endpoint}]
    for slug in others:
        providers[slug] = Provider(backend="openai", options={**options, "api_key": "sk-operator"})
        endpoints.append({"provider": slug})
    return Gateway(
        Config(
            gateway={"auth": "open", "debug": True},
            providers=providers,
            models={"m": Model(dimensions=16, input_types=[], endpoints=endpoints)},
        ),
        environ={},
    )


async def ask(app, key, text="a", *, extra="", headers=()):
    sent = [("content-type", "application/json"), *headers]
    sent += [(HEADER, key)] if key else []
    body = f'{{"model":"m","input":["{text}"]{extra}}}'
    return await call(app, "POST", "/v1/embeddings", sent, [body.encode()])


def keys_of(fake):
    """Return the keys of all upstream calls, in order."""
    return [received.headers["authorization"].removeprefix("Bearer ") for received in fake.requests]


async def test_the_callers_key_is_sent_upstream_and_two_keys_share_no_cache_entry():
    with FakeAPI(reply) as fake:
        app = embeddings_app(make_gateway(fake))
        answers = [await ask(app, key) for key in (ANNA, BERT, ANNA, BERT)]

    assert [200] * 4 == [answer.status for answer in answers]
    assert keys_of(fake) == [ANNA, BERT]
    cached = [answer.header("x-embedroute-cache") for answer in answers]
    assert cached == ["hits=0 misses=1"] * 2 + ["hits=1 misses=0"] * 2


async def test_a_callers_key_shares_no_cache_entry_with_the_operators_key():
    with FakeAPI(reply) as fake:
        app = embeddings_app(make_gateway(fake, others=["shared"]))
        mine = ',"provider":{"only":["own"]}'
        shared = ',"provider":{"only":["shared"]}'
        for key, extra in ((ANNA, mine), (ANNA, shared), (None, shared), (ANNA, mine)):
            answer = await ask(app, key, extra=extra)
            assert answer.status == 200

    assert keys_of(fake) == [ANNA, "sk-operator"]


@pytest.mark.parametrize(("keys", "calls"), [((ANNA, ANNA), 1), ((ANNA, BERT), 2)])
async def test_concurrent_requests_share_a_call_only_with_one_key(keys, calls):
    with FakeAPI(reply, delay=0.3) as fake:
        app = embeddings_app(make_gateway(fake))
        async with anyio.create_task_group() as group:
            for key in keys:
                group.start_soon(ask, app, key)

    assert sorted(set(keys)) == sorted(keys_of(fake))
    assert calls == len(fake.requests)


async def test_a_micro_batch_holds_the_texts_of_one_key_only():
    """While the first call of each key is in flight, the others of that key wait and are merged."""
    texts = {
        f"{name} {index}": key for name, key in (("a", ANNA), ("b", BERT)) for index in range(5)
    }
    with FakeAPI(reply, delay=0.3) as fake:
        app = embeddings_app(make_gateway(fake, micro_batch_ms=100))
        async with anyio.create_task_group() as group:
            for text, key in texts.items():
                group.start_soon(ask, app, key, text)

    sent = [
        (text, key)
        for each, key in zip(fake.requests, keys_of(fake), strict=True)
        for text in each.body["input"]
    ]
    assert len(fake.requests) < len(texts)
    assert sorted(sent) == sorted(texts.items())


async def test_a_model_may_have_endpoints_with_and_without_callers_keys():
    with FakeAPI(reply) as fake:
        app = embeddings_app(make_gateway(fake, others=["shared"]))
        answers = [await ask(app, key, text) for text in "abcdefgh" for key in (ANNA, None, BERT)]

    assert {200} == {answer.status for answer in answers}
    assert {ANNA, BERT, "sk-operator"} >= set(keys_of(fake))


async def test_a_missing_key_is_a_401_that_names_the_header():
    with FakeAPI(reply) as fake:
        answer = await ask(embeddings_app(make_gateway(fake)), None)

    assert (401, "upstream_key_required") == (answer.status, answer.error["code"])
    assert f"'{HEADER}: KEY'" in answer.error["message"]
    assert not fake.requests


async def test_without_a_key_another_endpoint_serves_the_request():
    with FakeAPI(reply) as fake:
        answer = await ask(
            embeddings_app(make_gateway(fake, others=["shared"])),
            None,
            extra=',"debug":{"trace":true}',
        )

    assert (200, "shared") == (answer.status, answer.header("x-embedroute-provider"))
    assert {"filter": "api_key", "endpoint": "own:m"}.items() <= answer.json["trace"][0].items()


@pytest.mark.parametrize("key", ["", "sk with spaces", "k" * 8193, "schlüssel"])
async def test_a_malformed_key_is_a_401(key):
    with FakeAPI(reply) as fake:
        answer = await ask(embeddings_app(make_gateway(fake)), None, headers=[(HEADER, key)])

    assert (401, "upstream_key_required") == (answer.status, answer.error["code"])
    assert "must hold one key" in answer.error["message"]


async def test_two_keys_in_one_request_are_a_401():
    with FakeAPI(reply) as fake:
        answer = await ask(embeddings_app(make_gateway(fake)), ANNA, headers=[(HEADER, BERT)])

    assert (401, 0) == (answer.status, len(fake.requests))


async def test_a_rejected_key_is_the_callers_fault_and_harms_no_other_caller():
    with FakeAPI(reply, script=[REJECTED]) as fake:
        app = embeddings_app(make_gateway(fake))
        rejected = [await ask(app, ANNA), await ask(app, ANNA)]
        accepted = await ask(app, BERT)

    assert [(401, "upstream_key_rejected")] * 2 == [
        (each.status, each.error["code"]) for each in rejected
    ]
    assert f"in the header '{HEADER}' was rejected" in rejected[0].error["message"]
    assert accepted.status == 200
    assert keys_of(fake) == [ANNA, BERT]


async def test_a_spent_account_is_said_to_be_that_of_the_callers_key():
    with FakeAPI(reply, script=[(402, {}, '{"error":{"message":"no balance"}}')]) as fake:
        answer = await ask(embeddings_app(make_gateway(fake)), ANNA)

    assert (502, "upstream_quota_exhausted") == (answer.status, answer.error["code"])
    assert (
        answer.error["message"]
        == f"The account of your key of the provider own in the header '{HEADER}' has no quota left."
    )


async def test_a_callers_key_shows_nowhere(caplog):
    """Any eight characters of a key in a row would be a leak; the upstream repeats the key."""
    debug = ',"debug":{"trace":true,"trace_level":"full","return_upstream_request":true,"return_upstream_response":true}'
    echoing = (500, {}, f'{{"error":{{"message":"key {BERT} failed"}}}}')
    with FakeAPI(reply, script=[REJECTED, echoing, echoing, echoing]) as fake, caplog.at_level(1):
        gateway = make_gateway(fake)
        app = embeddings_app(gateway)
        answers = [await ask(app, key, extra=debug) for key in (ANNA, BERT, BERT)]
    caller = Caller(name="anna", upstream_keys={HEADER: ANNA})
    records = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    shown = " ".join([*(str(answer) for answer in answers), *records, repr(gateway), repr(caller)])

    assert len(fake.requests) >= 4
    assert records
    for key in (ANNA, BERT):
        runs = {key[start : start + 8] for start in range(len(key) - 7)}
        assert not [run for run in runs if run in shown]


async def test_in_process_a_caller_has_its_keys():
    with FakeAPI(reply) as fake:
        gateway = make_gateway(fake)
        for key in (ANNA, Secret(BERT), ANNA):
            caller = Caller(name="one user", upstream_keys={HEADER.upper(): key})
            await gateway.embed("a", model="m", caller=caller)
        with pytest.raises(EmbedrouteError, match=HEADER):
            await gateway.embed("a", model="m")
        await gateway.runtime.close(await gateway.runtime.get())

    assert keys_of(fake) == [ANNA, BERT]


async def test_a_header_that_no_provider_names_is_ignored():
    with FakeAPI(reply) as fake:
        app = embeddings_app(make_gateway(fake, reference="sk-operator"))
        answer = await ask(app, "not a key")

    assert answer.status == 200
    assert keys_of(fake) == ["sk-operator"]


@pytest.mark.parametrize("keys", ["sk", {HEADER: 5}, {HEADER: ""}, {5: "sk"}, [HEADER]])
def test_keys_of_a_caller_of_another_type_are_refused_without_being_shown(keys):
    with pytest.raises(TypeError, match=re.escape("Caller(upstream_keys=…)")) as refused:
        Caller(name="a", upstream_keys=keys)

    assert "sk" not in str(refused.value)


OWN = {"own": {"backend": "openai", "api_key": "header:x-key"}}
MISTAKES = {
    "a key of the gateway": ({"keys": {"a": {"key": "header:x-key"}}}, r"\[keys.a\] key cannot be header:NAME"),
    "a proxy": ({"gateway": {"auth": "open", "proxy": "header:x-key"}}, r"\[gateway\] proxy cannot be header:NAME"),
    "another header": ({"providers": {"own": {"backend": "openai", "api_key": "sk", "extra_headers": {"x-a": "header:x-key"}}}}, "extra_headers.x-a cannot be header:NAME"),
    "no header": ({"providers": {"own": {"backend": "openai", "api_key": "header:"}}}, "header: is not the name of a header"),
    "the gateway's own": ({"providers": {"own": {"backend": "openai", "api_key": "header:Authorization"}}}, "header:Authorization is not the name"),
}  # fmt: skip


@pytest.mark.parametrize(("tables", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_reference_that_cannot_work_is_refused(tables, message):
    with pytest.raises(ConfigError, match=message):
        Gateway(Config(**{"gateway": {"auth": "open"}, "providers": OWN, **tables}), environ={})
