"""Obtains access tokens of Microsoft Entra with azure-identity.

azure-identity finds the credentials as Microsoft's own libraries do: in the environment, from the
workload or managed identity of the machine, or from the login of a command line. It sends its own
requests, not with the gateway's transport.

Source: azure-identity 1.27.
"""

import time
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from embedroute.backend import Credentials, Secret
from embedroute.errors import MissingExtra, UpstreamAuthError, UpstreamUnavailable


class AccessToken(Protocol):
    """A token, and its end in seconds since 1970."""

    token: str
    expires_on: int


def check_installed() -> None:
    """Report a missing package at startup instead of at the first request.

    Raises:
        MissingExtra: azure-identity is not installed.
    """
    if find_spec("azure") is None or find_spec("azure.identity") is None:
        raise MissingExtra("azure", "azure-identity")


def fetch_token(scope: str) -> Credentials:
    """Obtain an access token for ``scope``. This blocks.

    Raises:
        UpstreamAuthError: there are no credentials, or they are refused.
        UpstreamUnavailable: the token service cannot be reached.
    """
    identity = import_module("azure.identity")
    exceptions = import_module("azure.core.exceptions")
    try:
        with identity.DefaultAzureCredential() as credential:
            token: AccessToken = credential.get_token(scope)
    except exceptions.ClientAuthenticationError as error:
        raise UpstreamAuthError(
            "No Microsoft Entra token: azure-identity found no valid credentials. Set api_key, or "
            "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET."
        ) from error
    except exceptions.AzureError as error:
        raise UpstreamUnavailable("The Microsoft Entra token could not be obtained.") from error
    return Credentials.bearer(Secret(token.token), token.expires_on - time.time())
