"""Stores in a SQLite file, for any number of processes of one host.

The file is in WAL mode: readers do not wait for a writer. Vectors are evicted when their bytes
exceed a limit, the least recently used ones first. A transaction that was committed survives the
end of its process at any moment, but not necessarily a power failure (``synchronous = NORMAL``).
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import msgspec

from embedroute.config import StoreSettings
from embedroute.stores.base import Charge, ModelEntries, Refusal, StoreError, StoreKey
from embedroute.stores.leases import Demand, Grant, Lease, Pool, expires_at, lease
from embedroute.stores.usage import (
    UsageGroup,
    UsageRow,
    UsageSums,
    day_of,
    start_of,
    sum_rows,
)

APPLICATION: Final = 0x656D_6272
"""``application_id`` of the file, so that no other program's file is changed."""
BUSY_TIMEOUT: Final = 1.0
"""Seconds that a transaction waits for the writer of another process."""
BUSY_PAUSE: Final = 0.01
"""Seconds between two attempts to switch a new file to WAL mode."""
USED_AGAIN: Final = 60.0
"""Seconds after which a use of an entry is recorded again, so that most reads write nothing."""
EVICTED_AT_ONCE: Final = 256
"""Entries that one statement evicts at most, so that other processes need not wait long."""
ROW_OVERHEAD: Final = 128
"""Bytes of an entry in the file besides its value: key, columns and indices."""

# A rowid table: with WITHOUT ROWID, values of 6 kB would lie in the nodes of the B-tree, and take
# three times as long to read. `used` is in seconds since 1970.
_VECTORS_AND_BUDGETS: Final = """
CREATE TABLE vectors (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    model TEXT NOT NULL,
    size INTEGER NOT NULL,
    expires REAL NOT NULL,
    used REAL NOT NULL,
    value BLOB NOT NULL
);
CREATE INDEX vectors_used ON vectors (used);
CREATE TABLE totals (vectors INTEGER NOT NULL);
INSERT INTO totals VALUES (0);
CREATE TRIGGER vectors_added AFTER INSERT ON vectors
BEGIN UPDATE totals SET vectors = vectors + NEW.size; END;
CREATE TRIGGER vectors_removed AFTER DELETE ON vectors
BEGIN UPDATE totals SET vectors = vectors - OLD.size; END;
CREATE TABLE spent (counter TEXT PRIMARY KEY, amount INTEGER NOT NULL);
CREATE TABLE reserved (
    counter TEXT NOT NULL,
    reservation TEXT NOT NULL,
    amount INTEGER NOT NULL,
    expires REAL NOT NULL,
    PRIMARY KEY (counter, reservation)
);
CREATE INDEX reserved_reservation ON reserved (reservation);
"""
_LEASES: Final = """
CREATE TABLE pools (
    counter TEXT PRIMARY KEY,
    used REAL NOT NULL,
    at REAL NOT NULL,
    expires REAL NOT NULL
);
CREATE INDEX pools_expires ON pools (expires);
CREATE TABLE leases (
    counter TEXT NOT NULL,
    holder TEXT NOT NULL,
    units INTEGER NOT NULL,
    expires REAL NOT NULL,
    PRIMARY KEY (counter, holder)
);
CREATE TRIGGER pools_removed AFTER DELETE ON pools
BEGIN DELETE FROM leases WHERE counter = OLD.counter; END;
"""
_KEYS: Final = """
CREATE TABLE api_keys (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE keys_version (version TEXT NOT NULL);
INSERT INTO keys_version VALUES (hex(randomblob(8)));
"""
_USAGE: Final = """
CREATE TABLE usage (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    request TEXT NOT NULL,
    caller TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    response INTEGER,
    status INTEGER NOT NULL,
    inputs INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    billed INTEGER NOT NULL,
    served INTEGER NOT NULL,
    cost INTEGER,
    seconds REAL NOT NULL
);
CREATE INDEX usage_at ON usage (at);
CREATE TABLE usage_days (
    day TEXT NOT NULL,
    caller TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    requests INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    parts INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    inputs INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    billed INTEGER NOT NULL,
    served INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    PRIMARY KEY (day, caller, model, provider)
);
"""
SCHEMAS: Final = (_VECTORS_AND_BUDGETS, _LEASES, _KEYS, _USAGE)
"""What each version of the file adds. ``user_version`` is how many of them a file has."""


_USED: Final = """
SELECT coalesce((SELECT amount FROM spent WHERE counter = :counter), 0)
    + coalesce((SELECT sum(amount) FROM reserved WHERE counter = :counter), 0)
"""
"""What is spent and reserved in a counter."""


_ADD_USAGE: Final = (
    f"INSERT INTO usage ({', '.join(UsageRow.__struct_fields__)})"  # noqa: S608 - names of columns
    f" VALUES ({', '.join('?' * len(UsageRow.__struct_fields__))})"
)
_ADD_SUMS: Final = (
    f"INSERT INTO usage_days VALUES ({', '.join('?' * 13)})"  # noqa: S608 - question marks
    " ON CONFLICT (day, caller, model, provider) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in UsageSums._fields)
)
_REMOVE_USAGE: Final = (
    "DELETE FROM usage WHERE id IN (SELECT id FROM usage WHERE at < ? ORDER BY at LIMIT ?)"
)
REMOVED_AT_ONCE: Final = 1024
"""Old rows that one write of rows removes at most, four times as many as it adds."""


class SQLiteStore:
    """The store of ``sqlite:///relative/path`` and ``sqlite:////absolute/path``."""

    def __init__(
        self, url: str, settings: StoreSettings, clock: Callable[[], float] = time.time
    ) -> None:
        """Take the path out of the URL. ``clock`` returns the seconds since 1970.

        Raises:
            ValueError: the URL has no path, or its directory does not exist.
        """
        _, _, rest = url.partition("://")
        if not rest.startswith("/") or len(rest) == 1 or "?" in rest:
            raise ValueError(
                "write sqlite:///PATH for a path that is relative to the working directory, "
                "or sqlite:////PATH for an absolute one"
            )
        self.path: Path = Path(unquote(rest[1:])).absolute()
        if not self.path.parent.is_dir():
            raise ValueError(f"the directory {self.path.parent} does not exist")
        self._limit = settings.bytes
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._used: dict[int, float] = {}

    def open(self) -> None:
        """Open the file, and create its tables if it is new.

        Raises:
            StoreError: the file cannot be opened, or it is not a store of this version.
        """
        try:
            # Vectors reveal texts, so only the user of the gateway may read the file.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreError(f"cannot open the file: {error.strerror}") from None
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Record which entries were used, and close the file."""
        connection = self._connection
        self._connection = None
        if connection is not None:
            try:
                with _transaction(connection):
                    self._record_use(connection)
            finally:
                connection.close()

    @property
    def _file(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError("the file is closed")
        return self._connection

    def get_vectors(self, keys: Sequence[StoreKey]) -> Sequence[bytes | None]:
        """Return the value of each key, or None if there is none."""
        now = self._clock()
        digests = [key.digest for key in keys]
        query = (
            "SELECT digest, value, id, used FROM vectors "  # noqa: S608 - only question marks
            f"WHERE digest IN ({_marks(digests)}) AND expires > ?"
        )
        found: dict[bytes, bytes] = {}
        for digest, value, number, used in self._file.execute(query, (*digests, now)):
            found[digest] = value
            if now - used >= USED_AGAIN:
                self._used[number] = now
        return [found.get(digest) for digest in digests]

    def put_vectors(self, entries: Sequence[tuple[StoreKey, bytes]], seconds: float) -> None:
        """Store values in one transaction, and evict others if they are too many."""
        now = self._clock()
        rows = [
            (key.digest, key.model, len(value) + ROW_OVERHEAD, now + seconds, now, value)
            for key, value in entries
        ]
        connection = self._file
        with _transaction(connection):
            digests = [key.digest for key, _ in entries]
            # Not INSERT OR REPLACE, which runs no trigger for the row that it replaces.
            connection.execute(
                f"DELETE FROM vectors WHERE digest IN ({_marks(digests)})",  # noqa: S608 - marks
                digests,
            )
            connection.executemany(
                "INSERT INTO vectors (digest, model, size, expires, used, value)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                {row[0]: row for row in rows}.values(),
            )
            self._record_use(connection)
            self._evict(connection, now - seconds)
        connection.execute(f"PRAGMA incremental_vacuum({EVICTED_AT_ONCE})").fetchall()

    def drop_vectors(self, keys: Sequence[StoreKey]) -> None:
        """Remove the values of ``keys``."""
        digests = [key.digest for key in keys]
        query = f"DELETE FROM vectors WHERE digest IN ({_marks(digests)})"  # noqa: S608 - marks
        self._file.execute(query, digests)

    def count_vectors(self) -> Sequence[ModelEntries]:
        """Count the entries of each model, sorted by its name."""
        query = (
            "SELECT model, count(*), sum(size) FROM vectors WHERE expires > ?"
            " GROUP BY model ORDER BY model"
        )
        rows = self._file.execute(query, (self._clock(),)).fetchall()
        return [ModelEntries(model=row[0], entries=row[1], bytes=row[2]) for row in rows]

    def purge_vectors(self, model: str | None) -> int:
        """Remove the entries of ``model``, or all; return how many there were."""
        query = "DELETE FROM vectors WHERE ?1 IS NULL OR model = ?1"
        count = self._file.execute(query, (model,)).rowcount
        self._file.execute("PRAGMA incremental_vacuum").fetchall()
        return count

    def reserve(
        self, reservation: str, charges: Sequence[Charge], seconds: float
    ) -> Refusal | None:
        """Reserve all charges, or none of them."""
        now = self._clock()
        connection = self._file
        with _transaction(connection):
            connection.execute("DELETE FROM reserved WHERE expires <= ?", (now,))
            for index, (counter, limit, amount) in enumerate(charges):
                left = limit - connection.execute(_USED, {"counter": counter}).fetchone()[0]
                if amount > left:
                    return Refusal(index, left)
            connection.executemany(
                "INSERT INTO reserved (counter, reservation, amount, expires) VALUES (?, ?, ?, ?)",
                [(each.counter, reservation, each.amount, now + seconds) for each in charges],
            )
        return None

    def settle(self, reservation: str, spent: Sequence[tuple[str, int]]) -> None:
        """Release a reservation, and add what was spent."""
        connection = self._file
        with _transaction(connection):
            connection.execute("DELETE FROM reserved WHERE reservation = ?", (reservation,))
            connection.executemany(
                "INSERT INTO spent (counter, amount) VALUES (?, ?)"
                " ON CONFLICT (counter) DO UPDATE SET amount = amount + excluded.amount",
                spent,
            )

    def lease(self, holder: str, demands: Sequence[Demand], seconds: float) -> Sequence[Grant]:
        """Replace what ``holder`` holds of each limit, in one transaction."""
        connection = self._file
        with _transaction(connection):
            now = self._clock()
            connection.execute("DELETE FROM pools WHERE expires <= ?", (now,))
            return [self._lease(connection, holder, each, now, seconds) for each in demands]

    def _lease(
        self,
        connection: sqlite3.Connection,
        holder: str,
        demand: Demand,
        now: float,
        seconds: float,
    ) -> Grant:
        counter = demand.counter
        query = "SELECT used, at FROM pools WHERE counter = ?"
        used, at = connection.execute(query, (counter,)).fetchone() or (0.0, now)
        query = "SELECT holder, units, expires FROM leases WHERE counter = ?"
        rows = connection.execute(query, (counter,)).fetchall()
        leases = {name: Lease(units, expires) for name, units, expires in rows}
        pool, grant = lease(Pool(used, at, leases), demand, holder, now, seconds)
        connection.execute(
            "INSERT OR REPLACE INTO pools (counter, used, at, expires) VALUES (?, ?, ?, ?)",
            (counter, pool.used, now, expires_at(pool, demand, seconds)),
        )
        connection.execute("DELETE FROM leases WHERE counter = ?", (counter,))
        connection.executemany(
            "INSERT INTO leases (counter, holder, units, expires) VALUES (?, ?, ?, ?)",
            [(counter, name, *each) for name, each in pool.leases.items()],
        )
        return grant

    def read_keys(self, version: str) -> tuple[str, Sequence[bytes] | None]:
        """Return a text that changes with the keys, and all keys unless it is ``version``."""
        query = "SELECT version FROM keys_version"
        present = self._file.execute(query).fetchone()[0]
        if present == version:
            return version, None
        return present, [value for (value,) in self._file.execute("SELECT value FROM api_keys")]

    def put_key(self, name: str, value: bytes) -> bool:
        """Store a key; return False if there is one with this name."""
        query = "INSERT OR IGNORE INTO api_keys (name, value) VALUES (?, ?)"
        return self._change_keys(query, (name, value))

    def drop_key(self, name: str) -> bool:
        """Remove a key; return whether there was one."""
        return self._change_keys("DELETE FROM api_keys WHERE name = ?", (name,))

    def _change_keys(self, query: str, values: Sequence[object]) -> bool:
        connection = self._file
        with _transaction(connection):
            changed = connection.execute(query, values).rowcount > 0
            connection.execute("UPDATE keys_version SET version = hex(randomblob(8))")
        return changed

    def add_usage(self, batch: str, rows: Sequence[UsageRow], days: int) -> None:
        """Add rows and their sums in one transaction, and remove what is older than ``days``.

        A transaction is committed or has failed, so it can be repeated with any ``batch``.
        """
        del batch
        connection = self._file
        with _transaction(connection):
            connection.executemany(_ADD_USAGE, [msgspec.structs.astuple(row) for row in rows])
            connection.executemany(
                _ADD_SUMS, [(*group, *sums) for group, sums in sum_rows(rows).items()]
            )
            oldest = self._clock() - days * 86_400
            connection.execute("DELETE FROM usage_days WHERE day < ?", (day_of(oldest),))
            connection.execute(_REMOVE_USAGE, (start_of(day_of(oldest)), REMOVED_AT_ONCE))

    def sum_usage(self, since: str, caller: str | None) -> Sequence[tuple[UsageGroup, UsageSums]]:
        """Return the sums of each group from the day ``since`` on, of one caller or of all."""
        query = "SELECT * FROM usage_days WHERE day >= ?1 AND (?2 IS NULL OR caller = ?2)"
        rows = self._file.execute(query, (since, caller))
        return [(UsageGroup(*row[:4]), UsageSums(*row[4:])) for row in rows]

    def list_usage(self, since: str) -> Iterator[UsageRow]:
        """Yield the rows from the day ``since`` on, the oldest first."""
        names = UsageRow.__struct_fields__
        columns = ", ".join(names)
        query = f"SELECT {columns} FROM usage WHERE at >= ? ORDER BY at, id"  # noqa: S608 - names
        for row in self._file.execute(query, (start_of(since),)):
            yield UsageRow(**dict(zip(names, row, strict=True)))

    def _record_use(self, connection: sqlite3.Connection) -> None:
        used = [(when, number) for number, when in self._used.items()]
        self._used.clear()
        if used:
            connection.executemany("UPDATE vectors SET used = ? WHERE id = ?", used)

    def _evict(self, connection: sqlite3.Connection, oldest: float) -> None:
        """Remove expired entries, and the least recently used ones that exceed the limit.

        Every entry was used when it was stored, so those last used before ``oldest`` have expired.
        """
        connection.execute(
            "DELETE FROM vectors WHERE id IN"
            " (SELECT id FROM vectors WHERE used < ? ORDER BY used LIMIT ?)",
            (oldest, EVICTED_AT_ONCE),
        )
        while connection.execute("SELECT vectors FROM totals").fetchone()[0] > self._limit:
            removed = connection.execute(
                "DELETE FROM vectors WHERE id IN"
                " (SELECT id FROM vectors ORDER BY used, id LIMIT ?)",
                (self._count_excess(connection),),
            )
            if not removed.rowcount:
                break

    def _count_excess(self, connection: sqlite3.Connection) -> int:
        """Return how many of the least recently used entries exceed the limit, within bounds."""
        excess = connection.execute("SELECT vectors FROM totals").fetchone()[0] - self._limit
        sizes = connection.execute(
            "SELECT size FROM vectors ORDER BY used, id LIMIT ?", (EVICTED_AT_ONCE,)
        )
        count = 0
        for (size,) in sizes:
            count += 1
            excess -= size
            if excess <= 0:
                break
        return count


class _transaction:  # noqa: N801 - it reads as a verb in `with`
    """Begin a transaction that writes, and commit it; roll back after an error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


def _prepare(connection: sqlite3.Connection) -> None:
    # Before the first table: it decides whether the file can become smaller.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA temp_store = MEMORY")
    if _read_version(connection) == len(SCHEMAS):
        return
    with _transaction(connection):
        version = _read_version(connection)  # another process may have been faster
        for statement in _statements("".join(SCHEMAS[version:])):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {len(SCHEMAS)}")


def _read_version(connection: sqlite3.Connection) -> int:
    """Return the version of the file, 0 for an empty one.

    Raises:
        StoreError: it is another program's file, or one of a later version of embedroute.
    """
    version = _read_pragma(connection, "user_version")
    is_ours = _read_pragma(connection, "application_id") == APPLICATION
    is_empty = not connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    if (is_ours and version <= len(SCHEMAS)) or (is_empty and not version):
        return version
    raise StoreError("the file is not a store of this version of embedroute; use another path")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL mode.

    SQLite's own timeout does not apply here: while another process switches the same file, this
    fails at once.
    """
    ends = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= ends:
                raise
            time.sleep(BUSY_PAUSE)
        else:
            return


def _statements(script: str) -> Sequence[str]:
    """Split a script; ``executescript`` would commit the transaction first."""
    statements: list[str] = []
    text = ""
    for line in script.splitlines():
        text += f"{line}\n"
        if sqlite3.complete_statement(text):
            statements.append(text)
            text = ""
    return statements


def _read_pragma(connection: sqlite3.Connection, name: str) -> int:
    with closing(connection.execute(f"PRAGMA {name}")) as rows:
        return rows.fetchone()[0]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
