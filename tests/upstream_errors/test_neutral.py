"""Tests that neutral errors keep their class and quote nothing from the upstream."""

import gc

import pytest

from embedroute import errors
from embedroute.errors import (
    BatchTooLarge,
    ContextTooLong,
    RateLimited,
    UpstreamAuthError,
    UpstreamError,
    UpstreamRejectedInput,
)
from embedroute.upstream_errors import MESSAGES
from embedroute.upstream_errors.neutral import neutral

QUOTE = "CANARY in a text of another"


def below(kind):
    return [kind, *(deeper for lower in kind.__subclasses__() for deeper in below(lower))]


KINDS = [kind for kind in below(UpstreamError) if kind.__module__.startswith("embedroute.")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_neutral_error_keeps_its_class_and_quotes_nothing(kind):
    failure = kind(
        f"The upstream answered 400: {QUOTE}",
        code=QUOTE,
        param=QUOTE,
        retry_after=7,
        upstream_status=400,
    )
    failure.matched_text = failure.note = QUOTE
    failure.provider = "acme"
    failure.at_capacity = True
    try:
        raise failure from ValueError(QUOTE)
    except kind:
        copy = neutral(failure)

    assert type(copy) is kind
    assert copy.at_capacity
    assert (kind.status, kind.type, kind.code, kind.retryable) == (
        copy.status,
        copy.type,
        copy.code,
        copy.retryable,
    )
    assert (7, 400, "acme", None) == (
        copy.retry_after,
        copy.upstream_status,
        copy.provider,
        copy.param,
    )
    assert copy.message.startswith("The provider acme ")
    assert QUOTE not in repr((copy, vars(copy), copy.args))
    assert (None, None, None) == (copy.__cause__, copy.__context__, copy.__traceback__)
    assert failure not in gc.get_referents(copy)


@pytest.mark.parametrize(
    ("param", "kept"),
    [
        ("input", "input"),
        ("dimensions", "dimensions"),
        ("input[3]", None),
        ("input[0]", None),
        (QUOTE, None),
        (None, None),
    ],
)
def test_keeps_a_param_that_is_valid_in_other_requests(param, kept):
    """An index is that of an input of the other request."""
    assert kept == neutral(UpstreamRejectedInput("bad", param=param)).param


class AcmeError(ContextTooLong):
    """An error class of a plugin, which stores the request."""

    code = "acme_too_long"

    def __init__(self, body, *, limit):
        super().__init__(f"{body} is over {limit}")
        self.body = body

    @property
    def message(self):
        return self.body


def test_a_plugins_error_class_becomes_its_base_class():
    failure = AcmeError(QUOTE, limit=5)
    failure.upstream_status = f"400 {QUOTE}"

    copy = neutral(failure, "acme")

    assert type(copy) is ContextTooLong
    assert ("context_length_exceeded", None) == (copy.code, copy.upstream_status)
    assert (
        "The provider acme rejected an input that is longer than the model's context. Shorten it."
        == copy.message
    )


@pytest.mark.parametrize(
    ("failure", "provider", "message"),
    [
        (
            UpstreamAuthError("x"),
            "acme",
            "The provider acme rejected the gateway's own API key.",
        ),
        (RateLimited("x"), None, "The provider limits the rate of calls."),
        (BatchTooLarge("x"), "acme", "The provider acme rejected the batch as too large."),
    ],
)
def test_a_neutral_message_names_the_provider_if_known(failure, provider, message):
    copy = neutral(failure, provider)

    assert copy.message.startswith(message)
    assert copy.message == neutral(neutral(failure), provider).message


def test_each_error_class_has_its_own_neutral_message():
    """A new class must not use the message of its base class."""
    assert set(KINDS) == set(MESSAGES)
    assert len(set(MESSAGES.values())) == len(MESSAGES)
    assert {kind.__name__ for kind in KINDS} <= set(errors.__all__)
