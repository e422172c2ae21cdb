"""Every built-in store keeps vectors, counts and removes them; and what is special about SQLite."""

import sqlite3
import stat
import sys
import threading

import pytest

from embedroute import StoreSettings
from embedroute.backend import Secret
from embedroute.errors import ConfigError
from embedroute.stores import StoreError, StoreKey, make_store
from tests.support.commands import run
from tests.support.documents import ROOT

A, B, C = (StoreKey("m", digest) for digest in (b"a" * 24, b"b" * 24, b"\0\n*?[" * 4))
OTHER = StoreKey("other:*", b"a" * 23 + b"b")
HOUR = 3600.0


def make(url, **settings):
    return make_store(StoreSettings(url=Secret(url), **settings))


@pytest.fixture
def store(store_url):
    store = make(store_url)
    store.open()
    yield store
    store.close()


def test_values_are_returned_in_the_order_of_their_keys(store):
    store.put_vectors([(A, b"1"), (C, b"\0\xff" * 3000), (OTHER, b"")], HOUR)

    assert [None, b"\0\xff" * 3000, b"1", b"", b"1"] == list(store.get_vectors([B, C, A, OTHER, A]))


def test_a_later_value_replaces_an_earlier_one(store):
    store.put_vectors([(A, b"1"), (B, b"2")], HOUR)
    store.put_vectors([(A, b"3"), (A, b"4")], HOUR)

    assert [b"4", b"2"] == list(store.get_vectors([A, B]))
    assert [("m", 2)] == [(each.model, each.entries) for each in store.count_vectors()]


def test_values_expire(store):
    store.put_vectors([(A, b"1")], 0.001)
    store.put_vectors([(B, b"2")], HOUR)
    threading.Event().wait(0.05)

    assert [None, b"2"] == list(store.get_vectors([A, B]))
    assert [1] == [each.entries for each in store.count_vectors()]


def test_values_are_counted_and_purged_by_model(store):
    store.put_vectors([(A, b"1" * 1000), (B, b"2" * 1000), (OTHER, b"3")], HOUR)
    counted = {each.model: (each.entries, each.bytes) for each in store.count_vectors()}
    assert {"m", "other:*"} == counted.keys()
    assert 2 == counted["m"][0]
    assert 2000 <= counted["m"][1] <= 3000

    assert 1 == store.purge_vectors("other:*")
    assert [b"1" * 1000, None] == list(store.get_vectors([A, OTHER]))
    assert 0 == store.purge_vectors("*")
    assert 2 == store.purge_vectors(None)
    assert [None, None] == list(store.get_vectors([A, B]))


def test_dropped_values_are_gone(store):
    store.put_vectors([(A, b"1"), (B, b"2")], HOUR)
    store.drop_vectors([A, C])

    assert [None, b"2"] == list(store.get_vectors([A, B]))


def test_a_store_can_be_opened_again(store, store_url):
    store.put_vectors([(A, b"1")], HOUR)
    store.close()
    store.close()
    store.open()
    assert [b"1"] == list(store.get_vectors([A]))
    other = make(store_url)
    other.open()
    try:
        assert [b"1"] == list(other.get_vectors([A]))
    finally:
        other.close()


def test_a_unix_socket_is_a_store_too(servers):
    store = make(servers("valkey").unix_url)
    store.open()
    store.put_vectors([(A, b"unix")], HOUR)
    assert [b"unix"] == list(store.get_vectors([A]))
    store.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("embedroute.db", "must be a URL"),
        ("sqlite:/embedroute.db", "must be a URL"),
        ("sqlite://embedroute.db", "sqlite:///PATH"),
        ("sqlite:///", "sqlite:///PATH"),
        ("sqlite:///no/such/directory/x.db", "no/such/directory does not exist"),
        ("redis://:secret@/0", "names no host"),
        ("redis://:secret@host:port/0", "ort"),
        ("postgres://user:secret@host/db", 'no store has the scheme "postgres"'),
        ("sqlit:///x.db", 'did you mean "sqlite"'),
    ],
)
def test_a_url_that_cannot_be_used_is_a_mistake_without_its_password(url, words):
    with pytest.raises(ConfigError) as caught:
        make(url)

    assert words in caught.value.message
    assert "secret" not in caught.value.message
    assert 1 == len(caught.value.mistakes)


# SQLite.


def test_only_the_user_may_read_the_file(tmp_path):
    store = make(f"sqlite:///{tmp_path / 'store.db'}")
    store.open()
    store.put_vectors([(A, b"1")], HOUR)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    store.close()

    assert {0o600} == modes


def test_the_file_of_another_program_is_not_changed(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    connection.close()

    with pytest.raises(StoreError, match="not a store"):
        make(f"sqlite:///{path}").open()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "text.db"
    path.write_text("some text " * 100)

    with pytest.raises(sqlite3.DatabaseError):
        make(f"sqlite:///{path}").open()


def sqlite_at(path, clock, **settings):
    """Return a store in SQLite whose time is ``clock[0]``."""
    url = f"sqlite:///{path}"
    return type(make(url))(url, StoreSettings(url=Secret(url), **settings), lambda: clock[0])


def keys(count):
    return [StoreKey("m", number.to_bytes(24, "big")) for number in range(count)]


def test_the_least_recently_used_values_are_evicted_and_the_file_stays_small(tmp_path):
    path = tmp_path / "store.db"
    clock = [1_000_000.0]
    store = sqlite_at(path, clock, bytes=500_000)
    store.open()
    for key in keys(1000):
        clock[0] += 100.0
        store.put_vectors([(key, b"v" * 6000)], 1e9)
        assert store.get_vectors(keys(1)) == [b"v" * 6000], "it is used again and again"

    left = [at for at, value in enumerate(store.get_vectors(keys(1000))) if value is not None]
    assert [0, *range(1000 - len(left) + 1, 1000)] == left
    assert 60 <= len(left) <= 83
    store.close()
    assert path.stat().st_size < 1_500_000


def test_expired_values_leave_the_file(tmp_path):
    clock = [1_000_000.0]
    store = sqlite_at(tmp_path / "store.db", clock)
    store.open()
    store.put_vectors([(key, b"v") for key in keys(100)], 10.0)
    clock[0] += 20.0
    store.put_vectors([(OTHER, b"w")], 10.0)
    assert 1 == store.purge_vectors(None)
    store.close()


def test_several_processes_may_create_the_file_at_once(tmp_path):
    """SQLite waits for no other process while it switches a new file to its log."""
    failures = []

    def open_and_close(url, ready):
        store = make(url)
        ready.wait()
        try:
            store.open()
            store.close()
        except sqlite3.Error as error:
            failures.append(error)

    for number in range(20):
        url = f"sqlite:///{tmp_path / f'{number}.db'}"
        ready = threading.Barrier(4)
        threads = [threading.Thread(target=open_and_close, args=(url, ready)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [] == failures


def test_several_writers_lose_nothing(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    failures = []

    def write(worker):
        store = make(url)
        store.open()
        try:
            for number in range(40):
                key = StoreKey(f"m{worker}", bytes([worker, number]) * 12)
                store.put_vectors([(key, b"v" * 6000)], HOUR)
        except sqlite3.Error as error:
            failures.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = make(url)
    store.open()
    counted = {each.model: each.entries for each in store.count_vectors()}
    store.close()

    assert [] == failures
    assert {f"m{worker}": 40 for worker in range(4)} == counted


# Stores of other packages.

PLUGIN = """
class AcmeStore:
    def __init__(self, url, settings):
        if "bad" in url:
            raise ValueError("acme has no such place")
        self.url = url
"""
PROBE = """
from embedroute import ConfigError, StoreSettings
from embedroute.backend import Secret
from embedroute.stores import make_store

for url in ("acme://place", "acme://bad", "absent://x"):
    try:
        print(type(make_store(StoreSettings(url=Secret(url)))).__name__)
    except ConfigError as error:
        print(error)
"""


def test_an_entry_point_provides_the_store_of_its_scheme(tmp_path):
    (tmp_path / "acme_store.py").write_text(PLUGIN)
    metadata = tmp_path / "acme_store-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-store\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[embedroute.stores]\nacme = acme_store:AcmeStore\nabsent = acme_store:Absent\n"
    )

    lines = run([sys.executable, "-c", PROBE], ROOT, {"PYTHONPATH": str(tmp_path)}).splitlines()

    assert "AcmeStore" == lines[0]
    assert "[store] url: acme has no such place" == lines[1]
    assert lines[2].startswith("[store] url: acme_store:Absent cannot be imported: ")
