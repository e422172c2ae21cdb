"""Tests of errors as Python objects: copying, pickling and base classes."""

import copy
import pickle
import sys

import pytest

from embedroute import errors
from embedroute.errors import (
    ConfigError,
    EmbedrouteError,
    MethodNotAllowed,
    MissingExtra,
    RateLimited,
    UpstreamError,
)
from embedroute.server import error_headers
from tests.support.commands import run
from tests.support.documents import ROOT


def tree(root):
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


OWN_ARGUMENTS = {
    ConfigError: (["[gateway] auth is required", "two\nlines"],),
    MissingExtra: ("local", "wordllama"),
    MethodNotAllowed: ("DELETE", "GET, HEAD"),
}
"""Classes whose first argument is not a message."""


def example(kind):
    if kind in OWN_ARGUMENTS:
        error = kind(*OWN_ARGUMENTS[kind])
    elif issubclass(kind, UpstreamError):
        error = kind(
            "It failed.", param="input[3]", code="a_code", retry_after=7, upstream_status=418
        )
        error.matched_text, error.provider, error.already_recorded = "its words", "up", True
    else:
        error = kind("It failed.", param="input[3]", code="a_code", retry_after=7)
    error.add_note("while testing")
    return error


KINDS = [kind for kind in tree(EmbedrouteError) if kind.__module__.startswith("embedroute.")]
WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda error, p=protocol: pickle.loads(pickle.dumps(error, p))  # noqa: S301 - our own
        for protocol in range(6)
    },
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_can_be_copied_and_pickled(kind, way):
    error = example(kind)
    other = way(error)

    assert other is not error
    assert type(other) is kind
    assert (other.args, other.message, str(other)) == (error.args, error.message, str(error))
    assert vars(other) == vars(error)
    assert {"param", "code", "retry_after", "__notes__"} <= set(vars(other))


def test_changing_a_copy_does_not_change_the_original():
    error = RateLimited("It failed.", retry_after=7)
    other = copy.copy(error)
    other.message, other.retry_after = "Changed.", 1

    assert (error.message, error.retry_after) == ("It failed.", 7)


def test_the_module_exports_every_error_class():
    assert {kind.__name__ for kind in KINDS} <= {*errors.__all__}


def test_a_missing_extra_is_an_import_error():
    """So `try: import embedroute.fastapi` works as for any other package."""
    probe = """
import sys
sys.modules["fastapi"] = None  # as if it were not installed
try:
    import embedroute.fastapi
except ImportError as error:
    print(type(error).__name__, error)
"""

    actual = run([sys.executable, "-c", probe], ROOT)

    assert (
        actual.strip()
        == "MissingExtra fastapi is not installed; run: pip install 'embedroute[fastapi]'"
    )
    assert issubclass(MissingExtra, ConfigError)


NOT_RETRYABLE = (
    errors.BudgetExceeded,
    errors.NotCached,
    errors.RequestError,
    errors.Rejected,
    errors.TooManyTokens,
    errors.UpstreamAuthError,
    errors.UpstreamRejectedInput,
)
"""Classes whose errors the same request meets again, except for a body that was slow."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_retryable_unless_it_lasts(kind):
    is_lasting = issubclass(kind, NOT_RETRYABLE) and kind is not errors.BodyTimeout

    assert kind.retryable is not is_lasting


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.UpstreamAuthError("The key is rejected."), True),
        (errors.Rejected("It is rejected."), True),
        (errors.TooManyTokens("It is too large."), True),
        (errors.InvalidRequest("It is wrong."), False),
        (errors.InputFailed("It fails."), False),
        (errors.BodyTimeout("It is slow."), False),
        (errors.UpstreamUnavailable("It is down."), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_only_a_lasting_error_whose_cause_is_not_the_request_denies_a_retry(error, header):
    assert header is ((b"x-should-retry", b"false") in error_headers(error, error.status))
