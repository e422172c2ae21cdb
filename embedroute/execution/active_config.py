"""Provides all that requests read of a config, in one object.

A reload of the config replaces this object in one assignment. A request takes it once, when it
begins, so it ends with the config it began with.
"""

from collections.abc import Sequence

import msgspec

from embedroute.auth import ApiKeys, Caller
from embedroute.config import Settings
from embedroute.execution.ledger import Ledger
from embedroute.protocol import Limits
from embedroute.routing import ModelRegistry, SelectionCache


class ActiveConfig(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What is made from one config for requests.

    - ``settings``: the table ``[gateway]``
    - ``limits``: the limits on what a request may contain
    - ``keys``: the API keys of the config
    - ``models``: the models and their endpoints
    - ``selections``: the selections of endpoints, which are cached
    - ``caller_key_headers``: the headers in which callers send their own keys of providers
    - ``ledger``: what records the usage of requests, or None
    """

    settings: Settings
    limits: Limits
    keys: ApiKeys
    models: ModelRegistry
    selections: SelectionCache
    caller_key_headers: Sequence[str]
    ledger: Ledger | None

    def may_debug(self, caller: Caller) -> bool:
        """Return whether a caller may see traces and upstream bodies."""
        return caller.may_debug(otherwise=self.settings.debug)
