"""Merging small calls to a busy endpoint: who goes with whom, what each gets back, and what is left behind."""

import random
from functools import partial

import anyio
import numpy as np
import pytest

from embedroute import Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.backend import Accepts, Batch, Vectors
from embedroute.backends.hashed import hash_batch
from embedroute.batching import Merger
from embedroute.errors import BatchTooLarge, EmbedrouteError, InputRefused, RateLimited, Unavailable
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.routing.retry import RetryPolicy
from embedroute.settings import CacheSettings
from embedroute.testing import ScriptedBackend, expected_vector
from tests.upstream import Upstream, vectors_of

pytestmark = pytest.mark.anyio

WIDE = Accepts(max_inputs=2048)


class Endpointed:
    """An endpoint that answers when it is told to, and writes down what it was asked."""

    def __init__(self, accepts=WIDE, patience=5.0):
        self.merger, self.accepts, self.patience = Merger(), accepts, patience
        self.batches, self.open = [], anyio.Event()
        self.answer = lambda batch: hash_batch(batch, 8)

    async def call(self, batch):
        self.batches.append(batch)
        await self.open.wait()
        return self.answer(batch)

    async def embed(self, *texts, terms="terms", **fields):
        batch = Batch(model="m", texts=texts, **fields)
        return await self.merger.embed(batch, terms, self.call, patience=self.patience, accepts=self.accepts)

    @property
    def asked(self):
        return [list(batch.texts) for batch in self.batches]


async def settle():
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def keeping(outcomes, name, work):
    async def run():
        try:
            outcomes[name] = await work()
        except EmbedrouteError as error:
            outcomes[name] = error

    return run


async def together(endpoint, *parties, answer=None, **fields):
    """Send the first, and while it is under way the others; then let the endpoint answer."""
    outcomes = {}
    async with anyio.create_task_group() as group:
        for texts in parties:
            group.start_soon(keeping(outcomes, texts, partial(endpoint.embed, *texts, **fields)))
            await settle()
        endpoint.answer = answer or endpoint.answer
        endpoint.open.set()
    assert endpoint.merger._queues == {}
    return outcomes


def is_right(texts, answer):
    return np.array_equal(answer.array, [expected_vector(text, 8) for text in texts])


async def test_an_idle_endpoint_is_called_at_once():
    endpoint = Endpointed(patience=60.0)
    endpoint.open.set()
    with anyio.fail_after(5):
        for text in "abc":
            answer, made = await endpoint.embed(text)
            assert made
            assert is_right([text], answer)

    assert [["a"], ["b"], ["c"]] == endpoint.asked
    assert endpoint.merger._queues == {}


async def test_calls_to_a_busy_endpoint_are_merged_and_each_gets_its_own_rows():
    endpoint = Endpointed()
    parties = [("a",), ("b", "c"), ("d",), ("e", "f", "g")]
    outcomes = await together(endpoint, *parties)

    assert [["a"], ["b", "c", "d", "e", "f", "g"]] == endpoint.asked
    assert [True, True, False, False] == [outcomes[texts][1] for texts in parties]
    assert all(is_right(texts, outcomes[texts][0]) for texts in parties)


@pytest.mark.parametrize(
    ("accepts", "asked"),
    [
        (Accepts(), [3]),
        (Accepts(max_inputs=6), [3]),
        (Accepts(max_inputs=5), [2, 1]),
        (Accepts(max_inputs=3), [1, 1, 1]),
        (Accepts(max_inputs=1), [1, 1, 1]),
        (Accepts(max_tokens=60), [3]),
        (Accepts(max_tokens=59), [2, 1]),
        (Accepts(max_bytes=258), [3]),
        (Accepts(max_bytes=257), [2, 1]),
    ],
)
async def test_a_merged_call_keeps_the_caps(accepts, asked):
    """Three calls of two inputs, each of 40 bytes and 10 tokens, behind one that is under way."""
    endpoint = Endpointed(accepts, patience=0.05)
    parties = [(f"{at:040}", f"{at + 10:040}") for at in range(3)]
    outcomes = await together(endpoint, ("first",), *parties)

    assert sorted(asked) == sorted(len(texts) // 2 for texts in endpoint.asked[1:])
    assert all(is_right(texts, outcomes[texts][0]) for texts in parties)


async def test_a_full_call_waits_no_longer():
    endpoint = Endpointed(Accepts(max_inputs=2), patience=60.0)
    async with anyio.create_task_group() as group:
        for text in "abc":
            group.start_soon(endpoint.embed, text)
            await settle()
        assert [["a"], ["b", "c"]] == endpoint.asked
        endpoint.open.set()


@pytest.mark.parametrize("rival", ["a long stream of others", "nobody"])
async def test_nobody_waits_longer_than_the_patience(rival):
    endpoint = Endpointed(patience=0.1)
    async with anyio.create_task_group() as group:
        group.start_soon(endpoint.embed, "busy")
        await settle()
        group.start_soon(endpoint.embed, "waits")
        if rival != "nobody":
            for at in range(5):
                await anyio.sleep(0.01)
                group.start_soon(endpoint.embed, f"other {at}")
        with anyio.fail_after(0.6):
            while len(endpoint.batches) < 2:  # noqa: ASYNC110 - it is watched from outside
                await anyio.sleep(0.005)
        assert endpoint.asked[1][0] == "waits"
        endpoint.open.set()


async def test_one_that_is_left_over_does_not_wait_anew():
    """Its own time counts from when it came, however often it is passed over."""
    endpoint = Endpointed(Accepts(max_inputs=3), patience=0.2)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        for texts in (["busy"], ["a"], ["b", "b", "b"], ["c", "c", "c"]):
            group.start_soon(endpoint.embed, *texts)
            await settle()
        while len(endpoint.batches) < 4:  # noqa: ASYNC110 - it is watched from outside
            await anyio.sleep(0.005)
        assert anyio.current_time() - began < 0.35
        endpoint.open.set()


async def test_only_equal_terms_are_merged():
    endpoint = Endpointed()
    async with anyio.create_task_group() as group:
        for text, terms in (("a", 1), ("b", 2), ("c", 1), ("d", 2), ("e", 1)):
            group.start_soon(partial(endpoint.embed, text, terms=terms))
            await settle()
        endpoint.open.set()

    assert sorted([["a"], ["b"], ["c", "e"], ["d"]]) == sorted(endpoint.asked)
    assert endpoint.merger._queues == {}


@pytest.mark.parametrize(
    ("tokens", "due"), [(100, [14, 28, 58]), (7, [1, 2, 4]), (1, [0, 0, 1]), (0, [0, 0, 0]), (None, [None] * 3)]
)
async def test_shares_of_the_tokens_add_up_to_what_the_upstream_said(tokens, due):
    endpoint = Endpointed()
    parties = [("x" * 4,), ("y" * 8,), ("z" * 16,)]

    def answer(batch):
        return Vectors(hash_batch(batch, 8).array, tokens)

    outcomes = await together(endpoint, ("first",), *parties, answer=answer)

    assert due == [outcomes[texts][0].prompt_tokens for texts in parties]


@pytest.mark.parametrize("fault", [InputRefused("bad"), BatchTooLarge("too many")])
async def test_after_a_fault_of_the_input_each_goes_alone(fault):
    endpoint = Endpointed()
    parties = [("good",), ("bad",), ("fine", "too")]

    def answer(batch):
        if "bad" in batch.texts:
            raise fault
        return hash_batch(batch, 8)

    outcomes = await together(endpoint, ("first",), *parties, answer=answer)

    assert outcomes["bad",] is fault
    assert is_right(("good",), outcomes["good",][0])
    assert is_right(("fine", "too"), outcomes["fine", "too"][0])
    assert sorted([["first"], ["good", "bad", "fine", "too"], ["good"], ["bad"], ["fine", "too"]]) == sorted(endpoint.asked)


async def test_a_merged_call_that_fails_fails_for_all_and_counts_once():
    endpoint = Endpointed()

    def answer(batch):
        if len(batch) > 1:
            raise RateLimited("rest", retry_after=3)
        return hash_batch(batch, 8)

    outcomes = await together(endpoint, ("first",), ("a",), ("b",), ("c",), answer=answer)
    failures = [outcomes[text,] for text in "abc"]

    assert [RateLimited] * 3 == [type(failure) for failure in failures]
    assert [3] * 3 == [failure.retry_after for failure in failures]
    assert [False, True, True] == [failure.counted for failure in failures]


async def test_a_bug_in_a_leaders_call_is_its_own():
    """The others go round again."""
    endpoint, bugs = Endpointed(), []

    async def failing(batch):
        endpoint.batches.append(batch)
        raise ZeroDivisionError

    async def leader():
        batch = Batch(model="m", texts=["leads"])
        try:
            await endpoint.merger.embed(batch, "terms", failing, patience=0.01, accepts=WIDE)
        except ZeroDivisionError as error:
            bugs.append(error)

    outcomes = {}
    async with anyio.create_task_group() as group:
        group.start_soon(endpoint.embed, "busy")
        await settle()
        group.start_soon(leader)
        await settle()
        group.start_soon(keeping(outcomes, "follows", partial(endpoint.embed, "follows")))
        await anyio.sleep(0.1)
        endpoint.open.set()

    assert len(bugs) == 1
    assert is_right(["follows"], outcomes["follows"][0])
    assert endpoint.merger._queues == {}


@pytest.mark.parametrize("when", ["while it waits", "while it waits alone", "while its call is under way", "as its turn comes"])
async def test_a_leader_that_is_cancelled_leaves_the_others_served(when):
    endpoint = Endpointed(patience=0.05 if "under way" in when else 60.0)
    outcomes, leads = {}, anyio.CancelScope()

    async def leader():
        with leads:
            await endpoint.embed("leads")

    async with anyio.create_task_group() as group:
        group.start_soon(endpoint.embed, "busy")
        await settle()
        group.start_soon(leader)
        await settle()
        if when != "while it waits alone":
            for text in "ab":
                group.start_soon(keeping(outcomes, text, partial(endpoint.embed, text)))
        await settle()
        if "under way" in when:
            await anyio.sleep(0.1)
            assert sorted(["leads", "a", "b"]) == sorted(endpoint.asked[-1])
        if when == "as its turn comes":
            endpoint.open.set()
            while (queue := endpoint.merger._queues.get("terms")) and queue.under_way:
                await anyio.lowlevel.checkpoint()
        leads.cancel()
        await settle()
        endpoint.open.set()

    assert all(is_right([text], answer) for text, (answer, _) in outcomes.items())
    assert len(outcomes) == (0 if when == "while it waits alone" else 2)
    assert endpoint.merger._queues == {}


async def test_one_that_is_cancelled_while_it_follows_is_not_sent():
    endpoint, follows = Endpointed(), anyio.CancelScope()

    async def follower():
        with follows:
            await endpoint.embed("leaves")

    async with anyio.create_task_group() as group:
        for work in (
            partial(endpoint.embed, "busy"),
            partial(endpoint.embed, "leads"),
            follower,
            partial(endpoint.embed, "stays"),
        ):
            group.start_soon(work)
            await settle()
        follows.cancel()
        await settle()
        endpoint.open.set()

    assert [["busy"], ["leads", "stays"]] == endpoint.asked
    assert endpoint.merger._queues == {}


async def test_items_of_parts_go_alone():
    """Tokens by modality could not be shared out."""
    endpoint = Endpointed()
    item = (TextPart(text="a"), ImagePart(image_url=ImageURL(url="data:image/png;base64,")))
    endpoint.answer = lambda batch: Vectors(np.ones((len(batch), 8), "<f4"), 5, {"image": 3, "text": 2})
    got = []

    async def embed():
        batch = Batch(model="m", parts=[item])
        got.append(await endpoint.merger.embed(batch, "terms", endpoint.call, patience=5.0, accepts=WIDE))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(embed)
        await settle()
        endpoint.open.set()

    assert [1, 1, 1] == [len(batch) for batch in endpoint.batches]
    assert [{"image": 3, "text": 2}] * 3 == [answer.modality_tokens for answer, _ in got]


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_the_order_each_gets_its_own_vectors_or_its_own_end(seed):
    """Forty calls a round at random, some bad, some cancelled, some to fail: 3200 over both event loops."""
    rng = random.Random(seed)
    endpoint = Endpointed(Accepts(max_inputs=rng.choice([3, 8, 2048])), patience=0.002)
    outcomes = {}

    async def call(batch):
        await anyio.sleep(rng.random() * 0.004)
        if rng.random() < 0.1:
            raise Unavailable("down")
        if any(text.startswith("bad") for text in batch.texts):
            raise InputRefused("bad")
        return hash_batch(batch, 8)

    async def one(at):
        await anyio.sleep(rng.random() * 0.02)
        texts = [f"{rng.choice(['good', 'good', 'good', 'bad'])} {at} {part}" for part in range(rng.randint(1, 3))]
        batch, terms = Batch(model="m", texts=texts), rng.randint(1, 2)
        outcomes[at] = texts, "cancelled"
        with anyio.move_on_after(rng.choice([0.004, 0.012, 60])):
            try:
                answer, _ = await endpoint.merger.embed(batch, terms, call, patience=0.002, accepts=endpoint.accepts)
            except EmbedrouteError as error:
                outcomes[at] = texts, error
            else:
                outcomes[at] = texts, answer

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for at in range(40):
                group.start_soon(one, at)

    assert endpoint.merger._queues == {}
    for texts, outcome in outcomes.values():
        bad = any(text.startswith("bad") for text in texts)
        if isinstance(outcome, Vectors):
            assert not bad
            assert is_right(texts, outcome)
        else:
            assert isinstance(outcome, Unavailable) or outcome == "cancelled" or bad


# Through the gateway.


def gateway_at(backend, *, retries=None, **model):
    return Gateway(
        Config(
            gateway=Settings(auth="open"),
            cache=CacheSettings(bytes=0),
            providers={"one": Provider(backend=backend)},
            models={
                "m": Model(dimensions=8, matryoshka=True, endpoints=[Endpoint(provider="one", micro_batch_ms=50.0)], **model)
            },
        ),
        retries=retries,
        environ={},
    )


async def ask_all(gateway, asks):
    outcomes = {}
    async with anyio.create_task_group() as group:
        for name, (texts, fields) in asks.items():
            group.start_soon(keeping(outcomes, name, partial(gateway.embed, texts, model="m", **fields)))
            await settle()
    return outcomes


async def test_requests_that_differ_in_what_makes_a_vector_are_not_merged():
    backend = ScriptedBackend(then=0.05, width=8)
    gateway = gateway_at(backend, input_types=["query", "document"])
    kinds = [
        {},
        {"dimensions": 4},
        {"input_type": "query"},
        {"user": "u"},
        {"provider": {"zdr": False, "data_collection": "allow"}},
    ]
    asks = {at: ([f"text {at}"], kinds[at % 4]) for at in range(12)}
    async with gateway.lifespan():
        outcomes = await ask_all(gateway, asks)

    for batch in backend.batches:
        assert len({at for at in range(12) if f"text {at}" in batch.texts}) == len(batch)
        assert len({int(text.rpartition(" ")[2]) % 4 for text in batch.texts}) == 1
    assert 8 == len(backend.batches)
    assert [4 if at % 4 == 1 else 8 for at in range(12)] == [outcomes[at].vectors.shape[1] for at in range(12)]


@pytest.mark.parametrize("poisoned", [False, True])
async def test_a_real_upstream_sees_fewer_calls_and_each_request_its_own_rows(poisoned):
    with Upstream(delay=0.05) as upstream:
        upstream.mode = lambda ask: "status_400" if "poison" in ask.inputs else "honest"
        config = Config(
            gateway=Settings(auth="open"),
            cache=CacheSettings(bytes=0),
            providers={"one": Provider(backend="openai", options={"base_url": upstream.url})},
            models={"m": Model(dimensions=8, endpoints=[Endpoint(provider="one", micro_batch_ms=50.0)])},
        )
        gateway = Gateway(config, environ={})
        asks = {f"text {at}": ([f"text {at}"], {}) for at in range(20)}
        if poisoned:
            asks["poison"] = (["poison"], {})
        async with gateway.lifespan():
            outcomes = await ask_all(gateway, asks)

    if poisoned:
        assert 400 == outcomes.pop("poison").status
    else:
        assert 2 == len(upstream.requests)
    assert all(np.array_equal(answer.vectors, vectors_of([text])) for text, answer in outcomes.items())


async def test_a_failure_of_a_merged_call_counts_once_against_the_endpoint():
    backend = ScriptedBackend(script=[0.02], then=Unavailable("down"), width=8)
    gateway = gateway_at(backend, retries=RetryPolicy(attempts=1))
    async with gateway.lifespan():
        outcomes = await ask_all(gateway, {text: ([text], {}) for text in "abcdefgh"})

    assert [502] * 7 == [outcomes[text].status for text in "bcdefgh"]
    assert [1, 7] == [len(batch) for batch in backend.batches]
    [health] = gateway.healths._healths.values()
    assert 1 == health._failures
