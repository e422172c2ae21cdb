"""Batch limits learned from rejections: how they are learned, grow back and end.

No clock is read.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.backend import Accepts
from embedroute.errors import Measure
from embedroute.routing import (
    ENVELOPE,
    GROWS_EVERY,
    LEAST,
    BreakerPolicy,
    EndpointHealth,
    measure_inputs,
)

INPUTS, TOKENS, BYTES = Measure.INPUTS, Measure.TOKENS, Measure.BYTES
MINUTE = GROWS_EVERY


def taught(measure, *refused, now=0.0):
    health = EndpointHealth(BreakerPolicy())
    for size in refused:
        health.record_batch_too_large(now, measure, size)
    return health


def cap(health, measure, now=0.0):
    return getattr(health.caps(Accepts(), now), f"max_{measure}")


@pytest.mark.parametrize(
    ("measure", "refused", "expected"),
    [
        (INPUTS, [], None),
        (INPUTS, [2048], 1024),
        (INPUTS, [2048, 1024], 512),
        (INPUTS, [100, 2048], 50),
        (INPUTS, [33], 16),
        (INPUTS, [17], 16),
        (INPUTS, [16], None),
        (INPUTS, [2], None),
        (INPUTS, [2048, 16, 8, 4, 2], 1024),
        (TOKENS, [300_000], 150_000),
        (TOKENS, [9000], 8192),
        (TOKENS, [8192], None),
        (BYTES, [1_200_000], 600_000 + ENVELOPE),
        (BYTES, [40_000], 32_768 + ENVELOPE),
        (BYTES, [32_768], None),
    ],
)
def test_cap_is_half_of_the_smallest_rejected_call_but_at_least_the_minimum(
    measure, refused, expected
):
    health = taught(measure, *refused)

    assert expected == cap(health, measure)
    assert [None, None] == [cap(health, other) for other in Measure if other is not measure]


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (0, 32),
        (0.99, 32),
        (1, 64),
        (2, 128),
        (3, 256),
        (4, 512),
        (5, 1024),
        (6, None),
        (10, None),
        (1e9, None),
    ],
)
def test_cap_doubles_every_minute_and_ends_at_the_rejected_size(minutes, expected):
    health = taught(INPUTS, 2048, 1024, 512, 256, 128, 64)

    assert expected == cap(health, INPUTS, minutes * MINUTE)


def test_cap_that_grew_too_large_is_halved_again():
    health = taught(INPUTS, 2048, 1024, 512)
    assert 512 == cap(health, INPUTS, MINUTE)
    health.record_batch_too_large(MINUTE, INPUTS, 512)

    assert [256, 512, 1024, None] == [cap(health, INPUTS, at * MINUTE) for at in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("answered", "expected"),
    [(100, 256), (256, 256), (300, 300), (511, 511), (512, None), (5000, None)],
)
def test_an_answered_call_raises_the_cap_to_its_size(answered, expected):
    health = taught(INPUTS, 512)
    health.record_batch_fitted(0.0, INPUTS, answered)

    assert expected == cap(health, INPUTS)


def test_a_doubted_cap_doubles():
    """One caller's bad input undoes only what its own call taught."""
    health = taught(INPUTS, 2048, 1024, 512)
    caps = [cap(health, INPUTS)]
    for _ in range(4):
        health.doubt(0.0, INPUTS)
        caps.append(cap(health, INPUTS))

    assert [256, 512, 1024, None, None] == caps


@pytest.mark.parametrize(
    ("declared", "expected"),
    [({}, 50), ({"max_inputs": 100}, 50), ({"max_inputs": 10}, 10)],
)
def test_declared_and_learned_limits_both_apply(declared, expected):
    found = taught(INPUTS, 100).caps(Accepts(max_tokens=7, **declared), 0.0)

    assert (expected, 7, None) == (found.max_inputs, found.max_tokens, found.max_bytes)


@given(
    st.sampled_from(Measure),
    st.lists(
        st.tuples(
            st.floats(0, 100),
            st.sampled_from(["record_batch_too_large", "record_batch_fitted", "doubt"]),
            st.integers(1, 10**7),
        )
    ),
)
def test_a_cap_is_never_below_the_minimum_and_always_ends(measure, events):
    health, now = EndpointHealth(BreakerPolicy()), 0.0
    for wait, event, size in events:
        now += wait
        args = (now, measure) if event == "doubt" else (now, measure, size)
        getattr(health, event)(*args)
        found = cap(health, measure, now)
        assert found is None or found >= LEAST[measure]

    assert None is cap(health, measure, now + 24 * MINUTE)


@pytest.mark.parametrize(("measure", "expected"), [(INPUTS, 2), (TOKENS, 15), (BYTES, 66)])
def test_a_call_is_measured_by_inputs_estimated_tokens_or_bytes(measure, expected):
    """Each text has two quotes and a comma; "é" is two bytes."""
    assert expected == measure_inputs(["x" * 20, "é" * 20], measure)
