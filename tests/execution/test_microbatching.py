"""Merging small calls to a busy endpoint.

Who goes with whom, what each gets back, and what is left behind.
"""

import random
import threading
from collections import defaultdict
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import anyio
import msgspec
import numpy as np
import pytest

from embedroute import Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.backend import Accepts, Batch, Vectors
from embedroute.backends.hashed import hash_batch
from embedroute.config import CacheSettings
from embedroute.errors import (
    BatchTooLarge,
    ConnectError,
    EmbedrouteError,
    InvalidRequest,
    NoHealthyEndpoint,
    PoolTimeout,
    RateLimited,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.execution import LARGEST, MicroBatcher
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.routing import ENVELOPE, RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.upstream_errors import classify_response
from tests.fault_upstream import Upstream, vectors_of

pytestmark = pytest.mark.anyio

WIDE = Accepts(max_inputs=2048)
LONG, LONGER = 600.0, 3600.0
"""Seconds that no test takes.

Who is answered sooner did not wait for its max_wait, or its time, to run out.
"""


class BatchedEndpoint:
    """An endpoint that answers on a signal, and records the inputs and the timeout of each call."""

    def __init__(self, accepts=WIDE):
        self.batcher, self.accepts = MicroBatcher(), accepts
        self.batches, self.seconds = [], []
        self.open, self.came = anyio.Event(), defaultdict(anyio.Event)
        self.answer = lambda batch: hash_batch(batch, 8)

    async def call(self, batch, seconds):
        self.batches.append(batch)
        self.seconds.append(seconds)
        self.came[len(self.batches)].set()
        with anyio.move_on_after(seconds):
            await self.open.wait()
            return self.answer(batch)
        raise UpstreamTimeout("slow")

    async def embed(
        self, *texts, queue_key="queue_key", call=None, max_wait=LONG, timeout=LONGER, **fields
    ):
        batch, times = (
            Batch(model="m", texts=texts, **fields),
            {"max_wait": max_wait, "timeout": timeout},
        )
        return await self.batcher.embed(
            batch, queue_key, call or self.call, caps=lambda: self.accepts, **times
        )

    @property
    def requested(self):
        return [list(batch.texts) for batch in self.batches]


@asynccontextmanager
async def crowd():
    """A task group that fails, rather than hangs, when somebody waits for what never comes."""
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            yield group


async def settle():
    """Let the other tasks run until all of them wait for something outside this thread."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class Outcomes(dict):
    """The outcome of each call, an answer or an error; ``over`` is set when it ends."""

    def __init__(self):
        super().__init__()
        self.over = defaultdict(anyio.Event)

    async def keep(self, name, work):
        try:
            self[name] = await work()
        except EmbedrouteError as error:
            self[name] = error
        self.over[name].set()


async def together(endpoint, *parties, answer=None, **fields):
    """Send the first call and, while it runs, the others; then let the endpoint answer."""
    outcomes = Outcomes()
    async with crowd() as group:
        for texts in parties:
            group.start_soon(outcomes.keep, texts, partial(endpoint.embed, *texts, **fields))
            await settle()
        endpoint.answer = answer or endpoint.answer
        endpoint.open.set()
    assert endpoint.batcher._queues == {}
    return outcomes


def is_right(texts, answer):
    rows = answer.array if isinstance(answer, Vectors) else answer.vectors
    return np.array_equal(rows, [expected_vector(text, 8) for text in texts])


async def test_an_idle_endpoint_is_called_at_once():
    endpoint = BatchedEndpoint()
    endpoint.open.set()
    with anyio.fail_after(60):
        for text in "abc":
            answer, made = await endpoint.embed(text)
            assert made
            assert is_right([text], answer)

    assert [["a"], ["b"], ["c"]] == endpoint.requested
    assert endpoint.batcher._queues == {}


async def test_calls_to_a_busy_endpoint_are_merged_and_each_gets_its_own_rows():
    endpoint = BatchedEndpoint()
    parties = [("a",), ("b", "c"), ("d",), ("e", "f", "g")]
    outcomes = await together(endpoint, *parties)

    assert [["a"], ["b", "c", "d", "e", "f", "g"]] == endpoint.requested
    assert [True, True, False, False] == [outcomes[texts][1] for texts in parties]
    assert all(is_right(texts, outcomes[texts][0]) for texts in parties)


@pytest.mark.parametrize(
    ("accepts", "requested"),
    [
        (Accepts(), [3]),
        (Accepts(max_inputs=6), [3]),
        (Accepts(max_inputs=5), [2, 1]),
        (Accepts(max_inputs=3), [1, 1, 1]),
        (Accepts(max_inputs=1), [1, 1, 1]),
        (Accepts(max_tokens=60), [3]),
        (Accepts(max_tokens=59), [2, 1]),
        (Accepts(max_bytes=ENVELOPE + 258), [3]),
        (Accepts(max_bytes=ENVELOPE + 257), [2, 1]),
    ],
)
async def test_a_merged_call_stays_within_the_limits(accepts, requested):
    """Three calls of two inputs, each of 40 bytes and 10 tokens, while another call runs."""
    endpoint = BatchedEndpoint(accepts)
    parties = [(f"{at:040}", f"{at + 10:040}") for at in range(3)]
    outcomes = await together(endpoint, ("first",), *parties)

    assert sorted(requested) == sorted(len(texts) // 2 for texts in endpoint.requested[1:])
    assert all(is_right(texts, outcomes[texts][0]) for texts in parties)


async def test_a_full_call_is_sent_at_once():
    endpoint = BatchedEndpoint(Accepts(max_inputs=2))
    async with crowd() as group:
        for text in "abc":
            group.start_soon(endpoint.embed, text)
            await settle()
        assert [["a"], ["b", "c"]] == endpoint.requested
        endpoint.open.set()


@pytest.mark.parametrize("rivals", [0, 1])
async def test_no_call_waits_longer_than_max_wait(rivals):
    """The endpoint stays busy and the call is never full.

    Calls keep coming, and the wait of the first one counts.
    """
    endpoint = BatchedEndpoint()

    async def rival():
        while not endpoint.came[2].is_set():
            group.start_soon(endpoint.embed, "other")
            await anyio.sleep(0.01)

    async with crowd() as group:
        group.start_soon(endpoint.embed, "busy")
        await settle()
        group.start_soon(partial(endpoint.embed, "waits", max_wait=0.1))
        await settle()
        for _ in range(rivals):
            group.start_soon(rival)
        await endpoint.came[2].wait()
        assert endpoint.requested[1][0] == "waits"
        endpoint.open.set()


async def test_a_call_that_starts_over_does_not_wait_again():
    """Its wait counts from its arrival: it ended while another call was the leader."""
    endpoint, leads = BatchedEndpoint(), anyio.CancelScope()

    async def leader():
        with leads:
            await endpoint.embed("leads")

    async with crowd() as group:
        for work in (
            partial(endpoint.embed, "busy"),
            leader,
            partial(endpoint.embed, "follows", max_wait=0.05),
        ):
            group.start_soon(work)
            await settle()
        await anyio.sleep(0.1)
        assert [["busy"]] == endpoint.requested
        leads.cancel()
        await settle()
        assert [["busy"], ["follows"]] == endpoint.requested
        endpoint.open.set()


async def test_only_calls_with_equal_queue_keys_are_merged():
    endpoint = BatchedEndpoint()
    async with crowd() as group:
        for text, queue_key in (("a", 1), ("b", 2), ("c", 1), ("d", 2), ("e", 1)):
            group.start_soon(partial(endpoint.embed, text, queue_key=queue_key))
            await settle()
        endpoint.open.set()

    assert sorted([["a"], ["b"], ["c", "e"], ["d"]]) == sorted(endpoint.requested)
    assert endpoint.batcher._queues == {}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(100, [14, 28, 58]), (7, [1, 2, 4]), (1, [0, 0, 1]), (0, [0, 0, 0]), (None, [None] * 3)],
)
async def test_token_shares_add_up_to_the_upstreams_count(tokens, expected):
    endpoint = BatchedEndpoint()
    parties = [("x" * 4,), ("y" * 8,), ("z" * 16,)]

    def answer(batch):
        return Vectors(hash_batch(batch, 8).array, tokens)

    outcomes = await together(endpoint, ("first",), *parties, answer=answer)

    assert expected == [outcomes[texts][0].prompt_tokens for texts in parties]


@pytest.mark.parametrize(
    "fault",
    [
        UpstreamRejectedInput("bad"),
        BatchTooLarge("too many"),
        InvalidRequest("bad"),
        NoHealthyEndpoint("resting"),
    ],
)
async def test_after_an_input_error_each_call_is_made_alone(fault):
    """Or after an error of the gateway, which needs no call to occur again."""
    endpoint = BatchedEndpoint()
    parties = [("good",), ("bad",), ("fine", "too")]

    def answer(batch):
        if "bad" in batch.texts:
            raise fault
        return hash_batch(batch, 8)

    outcomes = await together(endpoint, ("first",), *parties, answer=answer)

    assert outcomes["bad",] is fault
    assert is_right(("good",), outcomes["good",][0])
    assert is_right(("fine", "too"), outcomes["fine", "too"][0])
    assert sorted(
        [["first"], ["good", "bad", "fine", "too"], ["good"], ["bad"], ["fine", "too"]]
    ) == sorted(endpoint.requested)


@pytest.mark.parametrize(
    "failure",
    [RateLimited("rest", retry_after=3), ConnectError("down"), PoolTimeout("all in use")],
)
async def test_a_failed_merged_call_fails_for_all_and_counts_once(failure):
    endpoint = BatchedEndpoint()

    def answer(batch):
        if len(batch) > 1:
            raise failure
        return hash_batch(batch, 8)

    outcomes = await together(endpoint, ("first",), ("a",), ("b",), ("c",), answer=answer)
    failures = [outcomes[text,] for text in "abc"]

    assert [type(failure)] * 3 == [type(each) for each in failures]
    assert [failure.retry_after] * 3 == [each.retry_after for each in failures]
    assert [False, True, True] == [each.already_recorded for each in failures]
    assert [["first"], ["a", "b", "c"]] == endpoint.requested


@pytest.mark.parametrize("failure", [RateLimited, ConnectError, PoolTimeout])
async def test_an_error_of_a_merged_call_is_neutral_for_all(failure):
    """For the leader too, because its call holds the inputs of the others."""
    endpoint, raised = BatchedEndpoint(), []

    def answer(batch):
        if len(batch) == 1:
            return hash_batch(batch, 8)
        raised.append(failure(f"cannot embed {batch.texts}", param="c", upstream_status=500))
        raise raised[0] from ValueError("c")

    outcomes = await together(endpoint, ("first",), ("a",), ("b",), ("c",), answer=answer)
    failures = [outcomes[text,] for text in "abc"]

    assert len({*map(id, failures), *map(id, raised)}) == 4
    for outcome in failures:
        assert "cannot embed" not in outcome.message
        assert (None, 500, None, None) == (
            outcome.param,
            outcome.upstream_status,
            outcome.__cause__,
            outcome.__context__,
        )


async def test_a_call_made_alone_does_not_keep_the_merged_error():
    endpoint = BatchedEndpoint()

    def answer(batch):
        if "bad" in batch.texts:
            raise UpstreamRejectedInput(f"cannot embed {batch.texts}")
        return hash_batch(batch, 8)

    outcomes = await together(endpoint, ("first",), ("bad",), ("b",), answer=answer)

    assert "cannot embed ('bad',)" == outcomes["bad",].message
    assert (None, None) == (outcomes["bad",].__cause__, outcomes["bad",].__context__)


@pytest.mark.parametrize("size", [LARGEST, LARGEST + 1])
async def test_a_large_batch_is_not_merged(size):
    """Small calls would take as long as the large one."""
    endpoint = BatchedEndpoint()
    large = tuple(f"text {at}" for at in range(size))
    async with crowd() as group:
        for texts in (("busy",), large, ("a",), ("b",)):
            group.start_soon(partial(endpoint.embed, *texts))
            await settle()
        endpoint.open.set()

    merged = [["busy"], [*large, "a", "b"]] if size == LARGEST else [["busy"], [*large], ["a", "b"]]
    assert merged == endpoint.requested


async def test_a_large_batch_does_not_keep_an_idle_endpoint_busy():
    endpoint = BatchedEndpoint()
    async with crowd() as group:
        for texts in (tuple(f"text {at}" for at in range(LARGEST + 1)), ("a",)):
            group.start_soon(partial(endpoint.embed, *texts))
            await settle()
        assert [LARGEST + 1, 1] == [len(texts) for texts in endpoint.requested]
        endpoint.open.set()


async def test_a_bug_in_a_leaders_call_is_raised_only_there():
    """The others start over."""
    endpoint, bugs, outcomes = BatchedEndpoint(), [], Outcomes()

    async def failing(batch, seconds):
        del seconds
        endpoint.batches.append(batch)
        raise ZeroDivisionError

    async def leader():
        try:
            await endpoint.embed("leads", call=failing)
        except ZeroDivisionError as error:
            bugs.append(error)

    async with crowd() as group:
        for work in (
            partial(endpoint.embed, "busy"),
            leader,
            partial(outcomes.keep, "it", partial(endpoint.embed, "follows")),
        ):
            group.start_soon(work)
            await settle()
        endpoint.open.set()

    assert len(bugs) == 1
    assert is_right(["follows"], outcomes["it"][0])
    assert [["busy"], ["leads", "follows"], ["follows"]] == endpoint.requested
    assert endpoint.batcher._queues == {}


@pytest.mark.parametrize(
    "when",
    ["while it waits", "while it waits alone", "while its call is under way", "as its turn comes"],
)
async def test_the_others_are_served_if_their_leader_is_cancelled(when):
    endpoint = BatchedEndpoint(
        Accepts(max_inputs=3) if "under way" in when else WIDE
    )  # three are full, and go at once
    outcomes, leads = Outcomes(), anyio.CancelScope()

    async def leader():
        with leads:
            await endpoint.embed("leads")

    async with crowd() as group:
        for work in (partial(endpoint.embed, "busy"), leader):
            group.start_soon(work)
            await settle()
        for text in () if when == "while it waits alone" else "ab":
            group.start_soon(outcomes.keep, text, partial(endpoint.embed, text))
            await settle()
        assert [["busy"], ["leads", "a", "b"]][: 1 + ("under way" in when)] == endpoint.requested
        if when == "as its turn comes":
            endpoint.open.set()
            while (queue := endpoint.batcher._queues.get("queue_key")) and queue.under_way:
                await anyio.lowlevel.checkpoint()
        leads.cancel()
        await settle()
        endpoint.open.set()

    assert all(is_right([text], answer) for text, (answer, _) in outcomes.items())
    assert len(outcomes) == (0 if when == "while it waits alone" else 2)
    assert endpoint.batcher._queues == {}


async def test_a_cancelled_follower_is_not_sent():
    endpoint, follows = BatchedEndpoint(), anyio.CancelScope()

    async def follower():
        with follows:
            await endpoint.embed("leaves")

    async with crowd() as group:
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

    assert [["busy"], ["leads", "stays"]] == endpoint.requested
    assert endpoint.batcher._queues == {}


async def test_inputs_with_content_parts_are_not_merged():
    """Tokens by modality cannot be split between requests."""
    endpoint = BatchedEndpoint()
    item = (TextPart(text="a"), ImagePart(image_url=ImageURL(url="data:image/png;base64,")))
    endpoint.answer = lambda batch: Vectors(
        np.ones((len(batch), 8), "<f4"), 5, {"image": 3, "text": 2}
    )
    got = []

    async def embed():
        got.append(await endpoint.embed(parts=[item]))

    async with crowd() as group:
        for _ in range(3):
            group.start_soon(embed)
        await settle()
        endpoint.open.set()

    assert [1, 1, 1] == [len(batch) for batch in endpoint.batches]
    assert [{"image": 3, "text": 2}] * 3 == [answer.modality_tokens for answer, _ in got]


class TimeLeft(NamedTuple):
    """Seconds that a leader and its follower have, what becomes of each, and who is asked for while the endpoint is slow."""

    leader: float
    follower: float
    outcomes: tuple[str, str]
    requested: list[list[str]]


BOTH = ["leads", "follows"]


@pytest.mark.parametrize(
    TimeLeft._fields,
    [
        TimeLeft(0.4, LONGER, ("late", "right"), [BOTH, ["leads"], ["follows"]]),
        TimeLeft(LONGER, 0.4, ("right", "late"), [["follows"], ["leads"]]),
        TimeLeft(0.4, 0.4, ("late", "late"), [BOTH, ["leads"], ["follows"]]),
        TimeLeft(LONGER, LONGER, ("right", "right"), [BOTH]),
    ],
)
async def test_each_call_has_its_own_timeout(leader, follower, outcomes, requested):
    """Each makes its own call if the merged one takes half of the time.

    One with much less time than its leader is not merged with it.
    """
    endpoint, ends = BatchedEndpoint(Accepts(max_inputs=2)), Outcomes()
    async with crowd() as group:
        group.start_soon(endpoint.embed, "busy")
        await settle()
        for text, timeout in (("leads", leader), ("follows", follower)):
            group.start_soon(ends.keep, text, partial(endpoint.embed, text, timeout=timeout))
            await settle()
        for text in [
            text for text, outcome in zip(BOTH, outcomes, strict=True) if outcome == "late"
        ]:
            await ends.over[text].wait()
        endpoint.open.set()

    assert outcomes == tuple(
        "late" if isinstance(ends[text], UpstreamTimeout) else "right" for text in BOTH
    )
    assert all(
        isinstance(end, UpstreamTimeout) or is_right([text], end[0]) for text, end in ends.items()
    )
    assert sorted([["busy"], *requested]) == sorted(endpoint.requested)
    assert endpoint.batcher._queues == {}


class Hanging(BatchedEndpoint):
    """An endpoint that never answers a call with a text that begins with "hang"."""

    async def call(self, batch, seconds):
        self.batches.append(batch)
        self.seconds.append(seconds)
        self.came[len(self.batches)].set()
        with anyio.move_on_after(seconds):
            await self.open.wait()
            if not any(text.startswith("hang") for text in batch.texts):
                return hash_batch(batch, 8)
            await anyio.sleep_forever()
        raise UpstreamTimeout("slow")


@pytest.mark.parametrize("place", range(5))
async def test_a_text_that_is_never_answered_takes_no_companion_with_it(place):
    """Wherever in the merged call it is. Each of the others is called once more."""
    endpoint = Hanging()
    texts = ["a", "b", "c", "d"]
    texts.insert(place, "hang")

    outcomes = await together(endpoint, ("first",), *[(text,) for text in texts], timeout=0.4)

    assert isinstance(outcomes.pop(("hang",)), UpstreamTimeout)
    assert all(is_right(batch, answer) for batch, (answer, _) in outcomes.items())
    assert [["first"], texts] == endpoint.requested[:2]
    assert sorted([text] for text in texts) == sorted(endpoint.requested[2:])


@pytest.mark.parametrize("hanging", [2, 3, 4, 5])
async def test_several_texts_that_are_never_answered_take_no_companion_with_them(hanging):
    """Although they are in the requests that make the first calls of their own."""
    endpoint = Hanging()
    texts = [f"hang {number}" for number in range(hanging)]
    good = ["a", "b", "c", "d"]

    outcomes = await together(
        endpoint, ("first",), *[(text,) for text in [*texts, *good]], timeout=2.0
    )

    assert all(isinstance(outcomes[text,], UpstreamTimeout) for text in texts)
    assert all(is_right([text], outcomes[text,][0]) for text in good)
    assert sorted([text] for text in [*texts, *good]) == sorted(endpoint.requested[2:])


async def test_a_slow_endpoint_gets_six_more_calls_for_a_merged_one():
    """Not one for each of its requests, which share the error of those six."""
    endpoint = Hanging()
    texts = [f"hang {number}" for number in range(12)]

    outcomes = await together(endpoint, ("first",), *[(text,) for text in texts], timeout=1.6)

    assert [["first"], texts] == endpoint.requested[:2]
    assert [[text] for text in texts[:6]] == sorted(endpoint.requested[2:])
    failures = [outcomes[text,] for text in texts]
    assert [UpstreamTimeout] * 12 == [type(failure) for failure in failures]
    assert [False] * 6 + [True] * 6 == [failure.already_recorded for failure in failures]
    _, merged, first, _, second, _, third, _ = endpoint.seconds
    assert max(merged, first) <= 0.8
    assert first > 1.3 * second > 1.3**2 * third


@pytest.mark.parametrize("leaves", ["leads", "follows", "both"])
async def test_the_others_are_served_if_a_call_made_alone_is_cancelled(leaves):
    """The leader and the first follower call alone, and the others wait for their outcome."""
    endpoint, outcomes = Hanging(), Outcomes()
    scopes = {name: anyio.CancelScope() for name in BOTH}

    async def hang(name):
        with scopes[name]:
            await outcomes.keep(name, partial(endpoint.embed, f"hang {name}", timeout=1.0))

    async with crowd() as group:
        group.start_soon(endpoint.embed, "busy")
        await settle()
        for name in BOTH:
            group.start_soon(hang, name)
            await settle()
        for text in "ab":
            group.start_soon(
                outcomes.keep, text, partial(endpoint.embed, text, timeout=1.0, max_wait=0.2)
            )
            await settle()
        endpoint.open.set()
        await endpoint.came[4].wait()
        for name in BOTH if leaves == "both" else [leaves]:
            scopes[name].cancel()

    assert all(is_right([text], outcomes[text][0]) for text in "ab")
    assert endpoint.batcher._queues == {}


async def test_a_follower_without_time_left_is_not_called_alone():
    """The merged call ends later than it should, as on a blocked event loop."""
    endpoint, outcomes = Hanging(), Outcomes()

    async def late(batch, seconds):
        if len(batch) > 1:
            await anyio.sleep(0.3)
            raise UpstreamTimeout("slow")
        return await endpoint.call(batch, seconds)

    async with crowd() as group:
        group.start_soon(endpoint.embed, "busy")
        await settle()
        for text, timeout in (("hang", 0.4), ("follows", 0.25), ("a", 3.0), ("b", 3.0)):
            work = partial(endpoint.embed, text, call=late, timeout=timeout, max_wait=0.05)
            group.start_soon(outcomes.keep, text, work)
            await settle()
        endpoint.open.set()

    assert isinstance(outcomes["follows"], UpstreamTimeout)
    assert all(is_right([text], outcomes[text][0]) for text in "ab")


async def test_a_follower_that_has_left_is_not_called_alone():
    endpoint, outcomes, follows = Hanging(), Outcomes(), anyio.CancelScope()

    async def follower():
        with follows:
            await endpoint.embed("follows", timeout=0.6)

    async with crowd() as group:
        group.start_soon(endpoint.embed, "busy")
        await settle()
        group.start_soon(outcomes.keep, "hang", partial(endpoint.embed, "hang", timeout=0.6))
        await settle()
        group.start_soon(follower)
        await settle()
        for text in "ab":
            group.start_soon(outcomes.keep, text, partial(endpoint.embed, text, timeout=0.6))
            await settle()
        endpoint.open.set()
        await endpoint.came[2].wait()
        follows.cancel()

    assert ["follows"] not in endpoint.requested
    assert all(is_right([text], outcomes[text][0]) for text in "ab")


@pytest.mark.parametrize("still_busy", [False, True])
async def test_a_call_that_starts_over_has_only_its_remaining_time(still_busy):
    endpoint, gate = BatchedEndpoint(Accepts(max_inputs=2)), anyio.Event()

    async def busy(batch, seconds):
        del seconds
        await gate.wait()
        return hash_batch(batch, 8)

    async with crowd() as group:
        group.start_soon(partial(endpoint.embed, "busy", call=busy))
        await settle()
        began = anyio.current_time()
        group.start_soon(Outcomes().keep, "leads", partial(endpoint.embed, "leads", timeout=0.1))
        await settle()
        group.start_soon(partial(endpoint.embed, "follows", max_wait=0.01, timeout=2000.0))
        await settle()
        apart = anyio.current_time() - began
        if not still_busy:
            gate.set()
        await endpoint.came[3].wait()
        endpoint.open.set()
        gate.set()

    assert [BOTH, ["follows"], ["leads"]] == [
        endpoint.requested[0],
        *sorted(endpoint.requested[1:]),
    ]
    assert 1900 < max(endpoint.seconds) <= 1999.95 + apart


async def test_a_call_without_time_to_start_over_times_out():
    """It would make its call in its last milliseconds and be too late."""
    endpoint, outcomes, leads = (
        BatchedEndpoint(Accepts(max_inputs=2)),
        Outcomes(),
        anyio.CancelScope(),
    )

    async def leader():
        with leads:
            await endpoint.embed("leads", timeout=LONG / 2)

    async with crowd() as group:
        follower = partial(
            outcomes.keep, "follows", partial(endpoint.embed, "follows", timeout=LONG / 2)
        )
        for work in (partial(endpoint.embed, "busy"), leader, follower):
            group.start_soon(work)
            await settle()
        leads.cancel()
        await outcomes.over["follows"].wait()
        endpoint.open.set()

    assert (UpstreamTimeout, True) == (
        type(outcomes["follows"]),
        outcomes["follows"].already_recorded,
    )
    assert [["busy"], BOTH] == endpoint.requested


async def test_a_cap_learned_while_calls_wait_applies_to_them():
    endpoint = BatchedEndpoint()
    outcomes = Outcomes()
    async with crowd() as group:
        for text in ("busy", *"abcd"):
            group.start_soon(outcomes.keep, text, partial(endpoint.embed, text))
            await settle()
        endpoint.accepts = Accepts(max_inputs=3)
        endpoint.open.set()

    assert [["busy"], ["a", "b", "c"], ["d"]] == endpoint.requested
    assert all(is_right([text], answer) for text, (answer, _) in outcomes.items())


@pytest.mark.parametrize("seed", range(40))
async def test_in_any_order_each_call_gets_its_own_vectors_or_error(seed):
    """Forty calls a round at random, some bad, some cancelled, some slow, some to fail.

    3200 over both event loops.
    """
    rng, max_wait = random.Random(seed), 0.002
    endpoint = BatchedEndpoint(Accepts(max_inputs=rng.choice([3, 8, 2048])))
    outcomes = Outcomes()

    async def call(batch, seconds):
        with anyio.move_on_after(seconds) as time:
            await anyio.sleep(rng.random() * 0.004)
        if time.cancelled_caught:
            raise UpstreamTimeout("slow")
        if rng.random() < 0.1:
            raise UpstreamUnavailable("down")
        if any(text.startswith("bad") for text in batch.texts):
            raise UpstreamRejectedInput("bad")
        return hash_batch(batch, 8)

    async def one(at):
        await anyio.sleep(rng.random() * 0.02)
        texts = [
            f"{rng.choice(['good', 'good', 'good', 'bad'])} {at} {part}"
            for part in range(rng.randint(1, 3))
        ]
        timeout, began = rng.choice([0.004, 0.006, LONG, LONG]), anyio.current_time()
        work = partial(
            endpoint.embed,
            *texts,
            queue_key=rng.randint(1, 2),
            call=call,
            max_wait=max_wait,
            timeout=timeout,
        )
        with anyio.move_on_after(rng.choice([0.004, 0.012, LONG])):
            await outcomes.keep(at, work)
        outcomes[at] = (
            texts,
            outcomes.get(at, "cancelled"),
            anyio.current_time() - began >= timeout - max_wait,
        )

    async with crowd() as group:
        for at in range(40):
            group.start_soon(one, at)

    assert endpoint.batcher._queues == {}
    for texts, outcome, late in outcomes.values():
        bad = any(text.startswith("bad") for text in texts)
        if isinstance(outcome, tuple):
            assert not bad
            assert is_right(texts, outcome[0])
        elif isinstance(outcome, UpstreamTimeout):
            assert late
        else:
            assert isinstance(outcome, UpstreamUnavailable) or outcome == "cancelled" or bad


# Through the gateway.


def gateway_at(*, retries=None, options=None, deadline=LONGER, spares=(), **provider):
    """A gateway whose first endpoint merges, and waits longer than a config may.

    Only a call's end makes the others go.
    """
    config = Config(
        gateway=Settings(auth="open", deadline=deadline),
        cache=CacheSettings(bytes=0),
        providers={"one": Provider(zdr=True, options=options or {}, **provider)}
        | {name: Provider(backend=ScriptedBackend(width=8)) for name in spares},
        models={
            "m": Model(
                dimensions=8,
                matryoshka=True,
                input_types=["query", "document"],
                endpoints=[
                    Endpoint(provider="one", micro_batch_ms=1.0),
                    *(Endpoint(provider=name) for name in spares),
                ],
            )
        },
    )
    gateway = Gateway(config, retries=retries, environ={})
    msgspec.structs.force_setattr(
        gateway.models.routes["m"].candidates[0], "micro_batch_ms", 1000 * LONG
    )
    return gateway


class Gate(ScriptedBackend, frozen=True, kw_only=True):
    """Answers only after it is opened: as ``answer`` does, or correctly."""

    open: anyio.Event = msgspec.field(default_factory=anyio.Event)
    answer: object = None
    width: int = 8

    async def embed(self, batch):
        self.batches.append(batch)
        await self.open.wait()
        return self.answer(batch) if callable(self.answer) else hash_batch(batch, 8)


async def ask_all(gateway, asks, gate):
    """Send all, one after the other; once all of them wait, open the gate."""
    outcomes = Outcomes()
    async with crowd() as group:
        for name, (texts, fields) in asks.items():
            group.start_soon(
                outcomes.keep, name, partial(gateway.embed, texts, model="m", **fields)
            )
            await settle()
        await anyio.wait_all_tasks_blocked()
        gate.set()
    return outcomes


async def test_requests_with_different_vector_parameters_are_not_merged():
    backend = Gate()
    gateway = gateway_at(backend=backend)
    kinds = [
        {},
        {"dimensions": 4},
        {"input_type": "query"},
        {"user": "u"},
        {"provider": {"zdr": True}},
    ]
    asks = {at: ([f"text {at}"], kinds[at % 5]) for at in range(15)}
    async with gateway.lifespan():
        outcomes = await ask_all(gateway, asks, backend.open)

    assert sorted(
        [[f"text {at}"] for at in range(5)]
        + [[f"text {at + 5}", f"text {at + 10}"] for at in range(5)]
    ) == sorted(list(batch.texts) for batch in backend.batches)
    assert [4 if at % 5 == 1 else 8 for at in range(15)] == [
        outcomes[at].vectors.shape[1] for at in range(15)
    ]


@pytest.mark.parametrize("poisoned", [False, True])
async def test_a_real_upstream_sees_fewer_calls_and_each_request_its_own_rows(poisoned):
    gate = threading.Event()

    def mode(ask):
        assert gate.wait(60)
        return "status_400" if "poison" in ask.inputs else "honest"

    with Upstream(mode) as upstream:
        gateway = gateway_at(backend="openai", options={"base_url": upstream.url})
        asks = {f"text {at}": ([f"text {at}"], {}) for at in range(20)}
        if poisoned:
            asks["poison"] = (["poison"], {})
        async with gateway.lifespan():
            outcomes = await ask_all(gateway, asks, gate)

    if poisoned:
        assert 400 == outcomes.pop("poison").status
    assert [1, 20 if poisoned else 19] == [len(ask.inputs) for ask in upstream.requests[:2]]
    assert (22 if poisoned else 2) == len(upstream.requests)
    assert all(
        np.array_equal(answer.vectors, vectors_of([text])) for text, answer in outcomes.items()
    )


async def test_a_failure_of_a_merged_call_counts_once_against_the_endpoint():
    def answer(batch):
        if len(batch) > 1:
            raise ConnectError("down")
        return hash_batch(batch, 8)

    backend = Gate(answer=answer)
    gateway = gateway_at(backend=backend, retries=RetryPolicy(repeats=0, attempts=1))
    async with gateway.lifespan():
        outcomes = await ask_all(gateway, {text: ([text], {}) for text in "abcdefgh"}, backend.open)

    assert [502] * 7 == [outcomes[text].status for text in "bcdefgh"]
    assert [1, 7] == [len(batch) for batch in backend.batches]
    [health] = gateway.healths._healths.values()
    assert 1 == health._breaker._failures


def at_most(most):
    def answer(batch):
        if len(batch) > most:
            raise BatchTooLarge("too many inputs")
        return hash_batch(batch, 8)

    return answer


async def test_a_merged_call_respects_a_cap_that_was_just_learned():
    """Half of 32 fits; the waiting calls arrived before the cap was known."""
    backend = Gate(answer=at_most(16))
    gateway = gateway_at(backend=backend)
    asks = {
        "many": ([f"text {at}" for at in range(32)], {}),
        **{text: ([text], {}) for text in "abcdefghijklmnopqrst"},
    }
    async with gateway.lifespan():
        outcomes = await ask_all(gateway, asks, backend.open)

    assert all(is_right(texts, outcomes[name]) for name, (texts, _) in asks.items())
    assert [32] == [len(batch) for batch in backend.batches if len(batch) > 16]


async def test_a_cap_is_learned_from_a_merged_call():
    backend = Gate(answer=at_most(16))
    gateway = gateway_at(backend=backend)
    async with gateway.lifespan():
        outcomes = await ask_all(
            gateway, {text: ([text], {}) for text in ["busy", *map(str, range(32))]}, backend.open
        )
        await gateway.embed([f"text {at}" for at in range(32)], model="m")

    assert all(is_right([text], answer) for text, answer in outcomes.items())
    assert [1, 32, *[1] * 32, 16, 16] == [len(batch) for batch in backend.batches]


BRIEF, WHOLE = {"order": ["one", "two"]}, {"order": ["one"], "allow_fallbacks": False}
"""With 29 other endpoints a call gets a thirtieth of the time; without others, all of it."""


@pytest.mark.parametrize(
    ("leader", "follower", "late"), [(BRIEF, WHOLE, "leads"), (WHOLE, BRIEF, "follows")]
)
async def test_no_request_of_a_merged_call_exceeds_its_timeout(leader, follower, late):
    """The request with less time is served by another endpoint, because it gets no answer in it."""
    gate = anyio.Event()

    class Endpoint(ScriptedBackend, frozen=True, kw_only=True):
        async def embed(self, batch):
            self.batches.append(batch)
            await gate.wait()
            if late in batch.texts:
                await anyio.sleep_forever()
            return hash_batch(batch, 8)

    gateway = gateway_at(
        backend=Endpoint(width=8),
        deadline=30.0,
        spares=["two", *(f"spare-{at}" for at in range(28))],
    )
    outcomes = Outcomes()
    async with gateway.lifespan(), crowd() as group:
        for text, options in (("busy", WHOLE), ("leads", leader), ("follows", follower)):
            group.start_soon(
                outcomes.keep, text, partial(gateway.embed, [text], model="m", provider=options)
            )
            await settle()
        began = anyio.current_time()
        gate.set()
        await outcomes.over[late].wait()
        took = anyio.current_time() - began

    assert {text: outcomes[text].providers for text in BOTH} == {
        text: ("two",) if text == late else ("one",) for text in BOTH
    }
    assert 0.9 < took < 5.0


@pytest.mark.parametrize("place", range(4))
async def test_only_the_own_call_of_a_text_that_is_never_answered_counts_as_a_failure(place):
    """The merged call does not."""
    gate = anyio.Event()

    class Endpoint(ScriptedBackend, frozen=True, kw_only=True):
        async def embed(self, batch):
            self.batches.append(batch)
            await gate.wait()
            if "hang" in batch.texts:
                await anyio.sleep_forever()
            return hash_batch(batch, 8)

    backend = Endpoint(width=8)
    gateway = gateway_at(backend=backend, deadline=1.0, retries=RetryPolicy(repeats=0, attempts=1))
    texts = ["a", "b", "c"]
    texts.insert(place, "hang")
    async with gateway.lifespan():
        outcomes = await ask_all(gateway, {text: ([text], {}) for text in ["first", *texts]}, gate)

    assert outcomes.pop("hang").status == 504
    for text, answer in outcomes.items():
        assert is_right([text], answer)
    assert len(backend.batches) == 6
    [health] = gateway.healths._healths.values()
    assert health._breaker._failures == 1


STATUSES = (400, 401, 402, 403, 404, 413, 422, 429, 500, 502, 503)


@pytest.mark.parametrize("status", STATUSES)
async def test_a_good_request_never_fails_because_of_a_bad_companion(status):
    """The upstream fails for every call with the bad text, with any status."""

    def answer(batch):
        if "bad" in batch.texts:
            raise classify_response(status, {"retry-after": "0.01"}, b'{"error":"no"}')
        return hash_batch(batch, 8)

    backend = Gate(answer=answer)
    gateway = gateway_at(backend=backend, retries=RetryPolicy(repeats=0, attempts=1))
    texts = ["first", "a", "bad", "b", "c"]
    async with gateway.lifespan():
        outcomes = await ask_all(gateway, {text: ([text], {}) for text in texts}, backend.open)

    assert isinstance(outcomes["bad"], EmbedrouteError)
    for text in ("a", "b", "c"):
        assert outcomes[text].vectors.tolist() == [expected_vector(text, 8).tolist()]


async def test_a_failure_of_a_merged_call_names_the_provider_to_all():
    def answer(batch):
        if len(batch) > 1:
            raise ConnectError(f"cannot embed {batch.texts}")
        return hash_batch(batch, 8)

    backend = Gate(answer=answer)
    gateway = gateway_at(backend=backend, retries=RetryPolicy(repeats=0, attempts=1))
    async with gateway.lifespan():
        outcomes = await ask_all(gateway, {text: ([text], {}) for text in "abc"}, backend.open)

    assert ["The provider one cannot be reached. Send the request again later."] * 2 == [
        outcomes[text].message for text in "bc"
    ]
