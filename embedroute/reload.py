"""Decides what a reload of the config keeps, and which changes need a restart."""

from collections.abc import Mapping
from typing import Final

from embedroute.backend import BackendBase
from embedroute.config import Config, Mistake

FIXED: Final[Mapping[str, tuple[str, ...]]] = {
    "gateway": (
        "auth",
        "ca_file",
        "dialect",
        "dns_ttl",
        "http2",
        "local_threads",
        "opentelemetry",
        "protocols",
        "proxy",
        "tls_trust",
        "transport",
    ),
    "cache": ("bytes", "ttl"),
    "store": ("url", "bytes", "cache", "timeout"),
    "limits": ("on_store_failure",),
}
"""Table → its keys that cannot change while the gateway runs."""
SERVED: Final = ("dashboard", "metrics")
"""The keys of ``[gateway]`` that cannot change from ``off`` or to it."""


def find_fixed(old: Config, new: Config) -> list[str]:
    """Return a line for each change that needs a restart."""
    changed = [
        (table, name)
        for table, names in FIXED.items()
        for name in names
        if getattr(getattr(old, table), name) != getattr(getattr(new, table), name)
    ]
    changed += [
        ("gateway", name)
        for name in SERVED
        if (getattr(old.gateway, name) == "off") != (getattr(new.gateway, name) == "off")
    ]
    return [
        Mistake(f"[{table}] {name} has changed, which needs a restart.", (table, name))
        for table, name in changed
    ]


def keep_backends(
    config: Config, old: Mapping[str, BackendBase], new: Mapping[str, BackendBase]
) -> dict[str, BackendBase]:
    """Return the ``new`` backends, or the ``old`` ones that are equal: these may be loaded.

    A backend that the host has passed as an object is always that object.
    """
    return {
        slug: old[slug] if _is_kept(config, old.get(slug), backend, slug) else backend
        for slug, backend in new.items()
    }


def _is_kept(config: Config, old: BackendBase | None, new: BackendBase, slug: str) -> bool:
    is_object = config.providers[slug].backend is new
    return not is_object and type(old) is type(new) and old == new
