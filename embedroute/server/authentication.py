"""Finds who sends a request if the host authenticates its users (``auth = "host"``).

API keys are found by ``embedroute.auth``.
"""

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol, cast

from starlette.types import Scope

from embedroute.auth import Caller
from embedroute.config import Auth
from embedroute.errors import ConfigError

Authenticator = Callable[[Scope], Awaitable[Caller | None]]
"""With ``auth = "host"``: returns who sends a request, or None to reject it."""

ADVICE: Final = (
    "Pass authenticate=, or caller= for the FastAPI router, or add an authentication middleware; "
    "dependencies of a FastAPI app do not run for what is mounted in it"
)
"""What the operator of a host without authentication should do."""


def check_authenticator(authenticate: Authenticator | None, auth: Auth | None) -> None:
    """Refuse a function that would never be called: it would protect nothing.

    Raises:
        ConfigError: ``auth`` is not "host", or the function is not async.
    """
    if authenticate is None:
        return
    if auth != "host":
        issue = f'authenticate= works only with [gateway] auth = "host", and here auth = "{auth}"'
        raise ConfigError([f"{issue}. Set that, or leave authenticate= out."])
    if not _is_async(authenticate):
        name = getattr(authenticate, "__qualname__", type(authenticate).__qualname__)
        issue = f"authenticate={name} is not an async function; write it with async def."
        raise ConfigError([issue])


def _is_async(function: object) -> bool:
    """Return whether calling ``function`` makes a coroutine; partials are looked into."""
    while isinstance(function, partial):
        function = cast("partial[object]", function).func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


async def call_authenticator(authenticate: Authenticator, scope: Scope) -> Caller | None:
    """Return the caller that the host's function finds.

    Raises:
        TypeError: the function is not async, or it returns something else.
    """
    result = cast("object", authenticate(scope))
    if isinstance(result, Awaitable):
        result = cast("object", await result)
        if result is None or isinstance(result, Caller):
            return result
    raise TypeError(
        "authenticate= must be async and return an embedroute.Caller, or None to refuse, "
        f"not {type(result)}."
    )


class _User(Protocol):
    is_authenticated: object
    display_name: object


def get_user(scope: Scope) -> Caller | None:
    """Return the user whom Starlette's or Django's authentication middleware left in the scope.

    None if there is no user, or if the user is not authenticated.
    """
    user = cast("_User", scope.get("user"))
    try:
        is_authenticated = user.is_authenticated
    except (AttributeError, NotImplementedError):
        return None
    if callable(is_authenticated):
        is_authenticated = is_authenticated()
    if is_authenticated is not True:
        return None
    try:
        name = user.display_name
    except (AttributeError, NotImplementedError):
        name = user  # Django's users have no display name, and Starlette's need not have one
    return Caller(name=str(name))
