"""Selects the trusted certificate authorities, for all transports."""

import ssl
from importlib import import_module

from embedroute.transport.base import TransportConfig


def create_ssl_context(connect: TransportConfig) -> ssl.SSLContext:
    """Create a context that verifies certificates and host names.

    Raises:
        OSError: a file cannot be read, or contains no certificate (``ssl.SSLError``).
    """
    file = connect.environment_file
    directory = connect.environment_dir
    if connect.tls_trust == "system" or (
        connect.tls_trust == "environment" and not (file or directory)
    ):
        # Imported only when used: it takes longer than importing all of embedroute.
        context = import_module("httpx2").create_ssl_context(trust_env=False)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if connect.tls_trust == "environment":
            context.load_verify_locations(file or None, directory or None)
    if connect.ca_file:
        context.load_verify_locations(connect.ca_file)
    return context
