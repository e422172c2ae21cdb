"""Obtains access tokens of Google Cloud with google-auth.

google-auth finds the credentials as Google's own libraries do: a file, the environment, or the
metadata server of the machine. Its requests are sent with the gateway's transport.

Source: google-auth 2.63.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

import msgspec

from embedroute.backend import Credentials, Secret, Send, UpstreamRequest, UpstreamResponse
from embedroute.errors import MissingExtra, UpstreamAuthError, UpstreamError, UpstreamUnavailable

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)

LOADERS: Final = {
    "service_account": ("google.oauth2.service_account", "from_service_account_info"),
    "authorized_user": ("google.oauth2.credentials", "from_authorized_user_info"),
}
"""Type of a file of credentials → the module and the method that load it.

Files of other types, such as workload identity, are found by GOOGLE_APPLICATION_CREDENTIALS.
"""

DEFAULT_LIFETIME: Final = 3000.0
"""Seconds for which a token is kept whose end is not known; Google's are valid for an hour."""


class GoogleCredentials(Protocol):
    """The used attributes of google-auth's credentials. ``expiry`` is in UTC, without a zone."""

    token: str | None
    expiry: dt.datetime | None
    quota_project_id: str | None

    def refresh(self, request: object) -> None:
        """Obtain a new token."""
        ...


class Response:
    """A response as google-auth reads it."""

    def __init__(self, response: UpstreamResponse) -> None:
        """Copy the response."""
        self.status = response.status
        self.headers = dict(response.headers)
        self.data = response.content


class Sender:
    """Sends the requests of google-auth, as its ``google.auth.transport.Request`` does."""

    def __init__(self, send: Send) -> None:
        """Store the function that sends a request."""
        self._send = send

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: object,
    ) -> Response:
        """Send a request; the time limit is that of the call that needs the token.

        Raises:
            google.auth.exceptions.TransportError: the request failed.
        """
        del timeout
        content = body.encode() if isinstance(body, str) else body or b""
        secrets = {name.lower(): Secret(value) for name, value in (headers or {}).items()}
        request = UpstreamRequest(url=url, content=content, headers=secrets, method=method)
        try:
            return Response(self._send(request))
        except UpstreamError as error:
            exceptions = import_module("google.auth.exceptions")
            raise exceptions.TransportError(error.message) from error


def check_installed() -> None:
    """Report a missing package at startup instead of at the first request.

    Raises:
        MissingExtra: google-auth is not installed.
    """
    if find_spec("google") is None or find_spec("google.auth") is None:
        raise MissingExtra("vertex", "google-auth")


def fetch_token(send: Send, file: str | None) -> Credentials:
    """Obtain an access token with the credentials of ``file``, or with those that are found.

    Raises:
        UpstreamAuthError: there are no credentials, or Google refuses them.
        UpstreamUnavailable: Google cannot be reached.
    """
    exceptions = import_module("google.auth.exceptions")
    try:
        credentials = _find_credentials(Sender(send), file)
        credentials.refresh(Sender(send))
    except exceptions.TransportError as error:
        raise UpstreamUnavailable("Google's token service cannot be reached.") from error
    except (exceptions.GoogleAuthError, OSError, ValueError) as error:
        name = type(error).__name__
        raise UpstreamAuthError(
            f"Google credentials cannot be obtained ({name}). Set credentials_file, or"
            " GOOGLE_APPLICATION_CREDENTIALS, or run 'gcloud auth application-default login'."
        ) from error
    if credentials.token is None:
        raise UpstreamAuthError("Google returned no access token.")
    bearer = Credentials.bearer(Secret(credentials.token)).values
    project = credentials.quota_project_id
    quota = {"x-goog-user-project": Secret(project)} if project else {}
    return Credentials(values={**bearer, **quota}, lifetime=_get_lifetime(credentials))


def _find_credentials(sender: Sender, file: str | None) -> GoogleCredentials:
    if file is None:
        found: tuple[GoogleCredentials, object]
        found = import_module("google.auth").default(scopes=SCOPES, request=sender)
        return found[0]
    info = msgspec.json.decode(Path(file).read_bytes(), type=dict[str, object])
    module, method = LOADERS.get(str(info.get("type")), LOADERS["service_account"])
    load: Callable[..., GoogleCredentials]
    load = getattr(import_module(module).Credentials, method)
    return load(info, scopes=SCOPES)


def _get_lifetime(credentials: GoogleCredentials) -> float:
    if credentials.expiry is None:
        return DEFAULT_LIFETIME
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    return max((credentials.expiry - now).total_seconds(), 0.0)
