"""Obtains AWS credentials and signs requests with them (Signature Version 4), with botocore.

botocore is imported in the worker thread that fetches the first credentials.

Source: botocore 1.44 and the AWS reference of Signature Version 4.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Final, Protocol

import msgspec

from embedroute.backend import Credentials, Secret, UpstreamRequest, to_wire_value
from embedroute.errors import MissingExtra, UpstreamAuthError, UpstreamUnavailable

LIFETIME: Final = 300.0
"""Seconds for which keys are kept. botocore renews its own at least 10 minutes before they end."""

SECRETS: Final = frozenset({"authorization", "x-amz-security-token"})


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The options from which credentials come.

    Without ``access_key_id``, botocore searches as the AWS command line does: environment
    variables, the files of ``profile``, web identity, containers and the metadata of the machine.
    """

    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    profile: str | None = None


class FrozenKeys(Protocol):
    """The used attributes of botocore's ``ReadOnlyCredentials``."""

    access_key: str
    secret_key: str
    token: str | None


class RefreshableKeys(Protocol):
    """The used method of botocore's credentials."""

    def get_frozen_credentials(self) -> FrozenKeys:
        """Return valid keys; renew them first if they end soon."""
        ...


class Session(Protocol):
    """The used method of ``botocore.session.Session``."""

    def get_credentials(self) -> RefreshableKeys | None:
        """Search for credentials; the result is kept."""
        ...


class Signable(Protocol):
    """The used attribute of ``botocore.awsrequest.AWSRequest``."""

    headers: Mapping[str, str]


def check_keys(keys: Keys) -> None:
    """Report a missing package, or incomplete keys, at startup instead of at the first request.

    Raises:
        MissingExtra: botocore is not installed.
        ValueError: only one of the two keys is set.
    """
    if (keys.access_key_id is None) != (keys.secret_access_key is None):
        raise ValueError("set both access_key_id and secret_access_key, or neither")
    if find_spec("botocore") is None:
        raise MissingExtra("bedrock", "botocore")


def open_session(profile: str | None) -> Session:
    """Create a session of botocore, which keeps the credentials that it finds."""
    return import_module("botocore.session").Session(profile=profile)


def fetch_keys(keys: Keys, session: Session) -> Credentials:
    """Return the keys of the options, or those that ``session`` finds.

    Raises:
        UpstreamAuthError: there are none, or AWS refuses to issue them.
        UpstreamUnavailable: the service that issues them cannot be reached.
    """
    import_module("botocore.auth")  # so that signing on the event loop does not import it
    if keys.access_key_id and keys.secret_access_key:
        values = {"access_key": keys.access_key_id, "secret_key": keys.secret_access_key}
        token = {"token": keys.session_token} if keys.session_token else {}
        return Credentials(values={**values, **token})
    found = _search(session)
    if found is None:
        raise UpstreamAuthError(
            "No AWS credentials were found. Set api_key, or access_key_id and secret_access_key, "
            "or one of the sources that the AWS command line uses."
        )
    values = {"access_key": Secret(found.access_key), "secret_key": Secret(found.secret_key)}
    token = {"token": Secret(found.token)} if found.token else {}
    return Credentials(values={**values, **token}, lifetime=LIFETIME)


def _search(session: Session) -> FrozenKeys | None:
    exceptions = import_module("botocore.exceptions")
    try:
        found = session.get_credentials()
        return None if found is None else found.get_frozen_credentials()
    except exceptions.HTTPClientError as error:
        name = type(error).__name__
        raise UpstreamUnavailable(f"AWS credentials cannot be obtained now ({name}).") from error
    except (exceptions.BotoCoreError, exceptions.ClientError) as error:
        name = type(error).__name__
        raise UpstreamAuthError(f"AWS credentials cannot be obtained ({name}).") from error


def sign(
    request: UpstreamRequest, credentials: Credentials, service: str, region: str
) -> UpstreamRequest:
    """Return ``request`` with the headers that sign its method, URL, headers and bytes."""
    values = credentials.values
    token = values.get("token")
    keys = import_module("botocore.credentials").Credentials(
        values["access_key"].reveal(), values["secret_key"].reveal(), token and token.reveal()
    )
    signable: Signable = import_module("botocore.awsrequest").AWSRequest(
        method=request.method,
        url=request.url,
        data=request.content,
        headers={name: to_wire_value(value) for name, value in request.headers.items()},
    )
    import_module("botocore.auth").SigV4Auth(keys, service, region).add_auth(signable)
    headers = {
        name.lower(): Secret(value) if name.lower() in SECRETS else value
        for name, value in signable.headers.items()
    }
    return msgspec.structs.replace(request, headers=headers)
