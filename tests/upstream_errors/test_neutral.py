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
    try:
        raise failure from ValueError(QUOTE)
    except kind:
        told = neutral(failure)

    assert type(told) is kind
    assert (kind.status, kind.type, kind.code, kind.retryable) == (
        told.status,
        told.type,
        told.code,
        told.retryable,
    )
    assert (7, 400, "acme", None) == (
        told.retry_after,
        told.upstream_status,
        told.provider,
        told.param,
    )
    assert told.message.startswith("The provider acme ")
    assert QUOTE not in repr((told, vars(told), told.args))
    assert (None, None, None) == (told.__cause__, told.__context__, told.__traceback__)
    assert failure not in gc.get_referents(told)


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

    told = neutral(failure, "acme")

    assert type(told) is ContextTooLong
    assert ("context_length_exceeded", None) == (told.code, told.upstream_status)
    assert (
        "The provider acme rejected an input that is longer than the model's context. Shorten it."
        == told.message
    )


@pytest.mark.parametrize(
    ("failure", "given", "message"),
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
def test_a_neutral_message_names_the_provider_if_known(failure, given, message):
    told = neutral(failure, given)

    assert told.message.startswith(message)
    assert told.message == neutral(neutral(failure), given).message


def test_each_error_class_has_its_own_neutral_message():
    """A new class must not use the message of its base class."""
    assert set(KINDS) == set(MESSAGES)
    assert len(set(MESSAGES.values())) == len(MESSAGES)
    assert {kind.__name__ for kind in KINDS} <= set(errors.__all__)
