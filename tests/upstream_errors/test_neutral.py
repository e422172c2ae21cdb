"""A request is told the class of a shared call's failure, and nothing that an upstream said."""

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
def test_what_a_client_acts_on_is_kept_and_every_word_is_the_gateways_own(kind):
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
def test_a_param_is_kept_if_it_means_the_same_in_another_request(param, kept):
    """An index is one of the other request's inputs."""
    assert kept == neutral(UpstreamRejectedInput("bad", param=param)).param


class AcmeError(ContextTooLong):
    """A plugin's own, which keeps what it was sent."""

    code = "acme_too_long"

    def __init__(self, body, *, limit):
        super().__init__(f"{body} is over {limit}")
        self.body = body

    @property
    def message(self):
        return self.body


def test_a_class_of_a_plugin_becomes_the_gateways_class_that_it_derives_from():
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
def test_a_message_names_the_provider_if_it_is_known(failure, given, message):
    told = neutral(failure, given)

    assert told.message.startswith(message)
    assert told.message == neutral(neutral(failure), given).message


def test_each_class_of_the_gateways_has_words_of_its_own():
    """A new one must not tell a client something else than its nearest relative means."""
    assert set(KINDS) == set(MESSAGES)
    assert len(set(MESSAGES.values())) == len(MESSAGES)
    assert {kind.__name__ for kind in KINDS} <= set(errors.__all__)
