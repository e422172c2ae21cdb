"""The stores on which the tests of this folder run."""

import pytest

from tests.support.stores import SERVERS, StoreServer


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Start each server once; the tests of one process share it."""
    running = {}

    def get(name):
        if name not in running:
            server = StoreServer(name, tmp_path_factory.mktemp(name))
            server.start()
            running[name] = server
        return running[name]

    yield get
    for server in running.values():
        server.kill()


@pytest.fixture(params=["sqlite", *SERVERS])
def store_url(request, tmp_path, servers):
    """Return the URL of an empty store."""
    return make_url(request.param, tmp_path, servers)


@pytest.fixture(params=["memory", "sqlite", *SERVERS])
def store_or_memory(request, tmp_path, servers):
    """Return the URL of an empty store, or None for the memory."""
    return None if request.param == "memory" else make_url(request.param, tmp_path, servers)


def make_url(name, tmp_path, servers):
    if name == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server = servers(name)
    empty(server.url)
    return server.url


def empty(url):
    import redis  # noqa: PLC0415 - only the cases of a server need it

    with redis.Redis.from_url(url.replace("valkey", "redis")) as client:
        client.flushall()
