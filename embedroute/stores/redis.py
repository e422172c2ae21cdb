"""Stores in Redis or Valkey, for processes of several hosts.

The client is redis-py with the parser of hiredis. ``StoreWorker`` calls it from one thread and
reads for all waiting requests at once, so a request costs less than with a client on the event loop
(docs/guides/scale-out.md). The server bounds the memory by its own ``maxmemory``.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from embedroute.config import StoreSettings
from embedroute.errors import MissingExtra
from embedroute.stores.base import Charge, ModelEntries, Refusal, StoreKey
from embedroute.stores.leases import ROUNDING, SURPLUS, Demand, Grant
from embedroute.stores.usage import UsageGroup, UsageRow, UsageSums, start_of, sum_rows

PREFIX: Final = "embedroute:1:"
"""The start of all keys, with the version of their format."""
MODELS: Final = f"{PREFIX}models"
"""A hash: digest of the name of a model → its name."""
CONNECT_TIMEOUT: Final = 1.0
READ_TIMEOUT: Final = 1.0
"""Seconds without a byte of an answer. Requests wait less (``[store] timeout``)."""
SCANNED: Final = 1000
"""Keys that one SCAN looks at."""


# KEYS are, for each charge, the amount that was spent and a hash of reservations. ARGV are the
# reservation, the seconds until it expires, and limit and amount of each charge. A script sees the
# time of the server, which all hosts have in common. Numbers are exact up to 2^53.
_RESERVE: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for index = 1, #KEYS / 2 do
  local left = tonumber(ARGV[2 * index + 1]) - tonumber(redis.call('GET', KEYS[2 * index - 1]) or 0)
  local reserved = redis.call('HGETALL', KEYS[2 * index])
  for at = 1, #reserved, 2 do
    local amount, expires = string.match(reserved[at + 1], '(%d+) ([%d.]+)')
    if tonumber(expires) <= now then
      redis.call('HDEL', KEYS[2 * index], reserved[at])
    else
      left = left - tonumber(amount)
    end
  end
  if tonumber(ARGV[2 * index + 2]) > left then
    return {index - 1, string.format('%.0f', left)}
  end
end
for index = 1, #KEYS / 2 do
  local value = ARGV[2 * index + 2] .. string.format(' %.6f', now + ARGV[2])
  redis.call('HSET', KEYS[2 * index], ARGV[1], value)
end
return {-1, '0'}
"""
_SETTLE: Final = """
for index = 1, #KEYS / 2 do
  redis.call('HDEL', KEYS[2 * index], ARGV[1])
  redis.call('INCRBY', KEYS[2 * index - 1], ARGV[index + 1])
end
"""

# The arithmetic of `leases.lease`. KEYS are the pools: hashes of `used`, `at`, and of the lease of
# each holder under "l:" and its name. ARGV are the holder, the seconds of the lease, and the fields
# of each demand from its capacity on.
_LEASE: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local mine = 'l:' .. ARGV[1]
local answer = {}
for index, key in ipairs(KEYS) do
  local capacity, refill, spent, least, most =
    unpack(ARGV, 5 * index - 2, 5 * index + 2)
  capacity, refill, spent = tonumber(capacity), tonumber(refill), tonumber(spent)
  least, most = tonumber(least), tonumber(most)
  local used, at, owned, leased, others, gone = 0, now, 0, 0, 0, {}
  local fields = redis.call('HGETALL', key)
  for position = 1, #fields, 2 do
    local name, value = fields[position], fields[position + 1]
    if name == 'used' then used = tonumber(value)
    elseif name == 'at' then at = tonumber(value)
    else
      local units, expires = string.match(value, '(%d+) ([%d.]+)')
      units = tonumber(units)
      leased = leased + units
      if tonumber(expires) <= now then gone[#gone + 1] = name
      elseif name == mine then owned = units
      else others = others + units end
    end
  end
  if refill > 0 then
    used = math.max(used - math.max(now - at, 0) * refill, leased)
    used = math.max(used + spent - owned, others)
  else
    used = others
  end
  local left = capacity - used
  local units = math.min(math.max(owned - spent, 0), most)
  if least <= left + ROUNDING then
    local surplus = math.max(math.floor((left - least) / SURPLUS + ROUNDING), 0)
    units = math.max(units, least + math.min(most - least, surplus))
  end
  used = used + units
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  if units > 0 then
    local value = string.format('%d %.6f', units, now + ARGV[2])
    redis.call('HSET', key, mine, value)
  else
    redis.call('HDEL', key, mine)
  end
  redis.call('HSET', key, 'used', string.format('%.17g', used), 'at', string.format('%.6f', now))
  local expires = tonumber(ARGV[2])
  if refill > 0 then expires = math.max(math.max(used, 0) / refill, expires) end
  redis.call('PEXPIRE', key, string.format('%.0f', math.min(expires * 1000 + 1, 9e12)))
  answer[index] = {string.format('%.0f', units), string.format('%.17g', capacity - used)}
end
return answer
""".replace("ROUNDING", f"{ROUNDING:.17g}").replace("SURPLUS", str(SURPLUS))

_READ_KEYS: Final = """
local version = redis.call('GET', KEYS[2]) or ''
if version ~= '' and version == ARGV[1] then return {version} end
return {version, redis.call('HVALS', KEYS[1])}
"""
_PUT_KEY: Final = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return {0} end
redis.call('SET', KEYS[2], ARGV[3])
return {1}
"""
_DROP_KEY: Final = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return {0} end
redis.call('SET', KEYS[2], ARGV[2])
return {1}
"""
_KEYS: Final = (f"{PREFIX}keys", f"{PREFIX}keys:version")
# KEYS are a mark that the batch was added, the stream of rows, and the hash of each day. ARGV are
# the seconds after which a day is removed, the oldest time of a row in milliseconds, the number of
# rows, the rows, and for each sum the position of its hash, its field and its amount.
_ADD_USAGE: Final = """
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', 86400) then return end
local rows = tonumber(ARGV[3])
for index = 4, 3 + rows do redis.call('XADD', KEYS[2], '*', 'row', ARGV[index]) end
redis.call('XTRIM', KEYS[2], 'MINID', '~', ARGV[2])
for index = 4 + rows, #ARGV, 3 do
  redis.call('HINCRBY', KEYS[tonumber(ARGV[index])], ARGV[index + 1], ARGV[index + 2])
end
for index = 3, #KEYS do redis.call('EXPIRE', KEYS[index], ARGV[1]) end
"""
_USAGE: Final = f"{PREFIX}usage"
"""The stream of rows; a hash of sums has the day at the end of its name."""
_LISTED: Final = 1000
"""Rows that are read at once."""


class _Script(Protocol):
    """A script that redis-py loads when the server does not have it."""

    def __call__(self, keys: Sequence[str], args: Sequence[object]) -> Sequence[Any]: ...


class _Pipeline(Protocol):
    """The part of redis-py's pipeline that is used here."""

    def set(self, name: bytes, value: bytes, *, px: int) -> object: ...
    def hset(self, name: str, key: str, value: str) -> object: ...
    def strlen(self, name: bytes) -> object: ...
    def execute(self) -> list[int]: ...


class _Client(Protocol):
    """The part of redis-py's client that is used here."""

    def ping(self) -> object: ...
    def close(self) -> None: ...
    def mget(self, keys: Sequence[bytes]) -> Sequence[bytes | None]: ...
    def unlink(self, *names: bytes) -> int: ...
    def hgetall(self, name: str) -> Mapping[bytes, bytes]: ...
    def scan_iter(self, match: str, count: int) -> Iterator[bytes]: ...
    def register_script(self, script: str) -> _Script: ...
    def pipeline(self, *, transaction: bool) -> _Pipeline: ...
    def xrange(
        self, name: str, min: str, max: str, count: int
    ) -> Sequence[tuple[bytes, Mapping[bytes, bytes]]]: ...


class RedisStore:
    """The store of ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` and ``unix://``."""

    def __init__(self, url: str, settings: StoreSettings) -> None:
        """Check the URL, without a connection.

        Raises:
            MissingExtra: redis-py is not installed.
            ValueError: the URL is invalid.
        """
        del settings  # the server has its own limit
        try:
            redis = import_module("redis")
        except ImportError:
            raise MissingExtra("redis", "redis") from None
        scheme, _, rest = url.partition("://")
        self._url = f"{scheme.lower().replace('valkey', 'redis')}://{rest}"
        if not (urlsplit(self._url).hostname or scheme == "unix"):
            raise ValueError("the URL names no host")
        retry = import_module("redis.retry").Retry(import_module("redis.backoff").NoBackoff(), 0)
        # No command is repeated: `StoreWorker` handles failures. Every server has RESP2.
        options = {
            "retry": retry,
            "protocol": 2,
            "socket_timeout": READ_TIMEOUT,
            "single_connection_client": True,
        }
        if scheme != "unix":
            options["socket_connect_timeout"] = CONNECT_TIMEOUT
            options["socket_keepalive"] = True
        make = redis.Redis.from_url
        self._make = cast("Callable[[], _Client]", lambda: make(self._url, **options))
        import_module("redis.connection").parse_url(self._url)  # raises ValueError
        self._client: _Client | None = None
        self._prefixes: dict[str, bytes] = {}
        self._named: set[str] = set()

    def open(self) -> None:
        """Connect. Redis's errors say what is wrong."""
        client = self._make()
        try:
            client.ping()
        except BaseException:
            client.close()
            raise
        self._client = client
        self._named.clear()  # the server may have been emptied

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def _server(self) -> _Client:
        if self._client is None:
            self.open()
        return cast("_Client", self._client)

    def get_vectors(self, keys: Sequence[StoreKey]) -> Sequence[bytes | None]:
        """Return the value of each key, or None if there is none."""
        return self._server.mget([self._name(key) for key in keys])

    def put_vectors(self, entries: Sequence[tuple[StoreKey, bytes]], seconds: float) -> None:
        """Store values in one round trip."""
        milliseconds = max(int(seconds * 1000), 1)
        pipeline = self._server.pipeline(transaction=False)
        for model in {key.model for key, _ in entries} - self._named:
            pipeline.hset(MODELS, _digest(model), model)
            self._named.add(model)
        for key, value in entries:
            pipeline.set(self._name(key), value, px=milliseconds)
        pipeline.execute()

    def drop_vectors(self, keys: Sequence[StoreKey]) -> None:
        """Remove the values of ``keys``."""
        self._server.unlink(*[self._name(key) for key in keys])

    def count_vectors(self) -> Sequence[ModelEntries]:
        """Count the entries of each model, sorted by its name. It reads all keys."""
        return sorted(map(self._count, self._models()), key=lambda each: each.model)

    def _count(self, model: str) -> ModelEntries:
        count = size = 0
        for names in self._scan(model):
            pipeline = self._server.pipeline(transaction=False)
            for name in names:
                pipeline.strlen(name)
            sizes = [each for each in pipeline.execute() if each]
            count += len(sizes)
            size += sum(sizes)
        return ModelEntries(model=model, entries=count, bytes=size)

    def purge_vectors(self, model: str | None) -> int:
        """Remove the entries of ``model``, or all; return how many there were."""
        models = self._models() if model is None else [model]
        return sum(self._server.unlink(*names) for each in models for names in self._scan(each))

    def reserve(
        self, reservation: str, charges: Sequence[Charge], seconds: float
    ) -> Refusal | None:
        """Reserve all charges, or none of them."""
        keys = [key for each in charges for key in _counter_keys(each.counter)]
        amounts = [number for each in charges for number in (each.limit, each.amount)]
        run = self._server.register_script(_RESERVE)
        index, left = run(keys, [reservation, seconds, *amounts])
        return None if int(index) < 0 else Refusal(int(index), int(left))

    def settle(self, reservation: str, spent: Sequence[tuple[str, int]]) -> None:
        """Release a reservation, and add what was spent."""
        keys = [key for counter, _ in spent for key in _counter_keys(counter)]
        run = self._server.register_script(_SETTLE)
        run(keys, [reservation, *(amount for _, amount in spent)])

    def lease(self, holder: str, demands: Sequence[Demand], seconds: float) -> Sequence[Grant]:
        """Replace what ``holder`` holds of each limit, in one script."""
        fields = [
            value
            for each in demands
            for value in (each.capacity, each.refill, each.spent, each.least, each.most)
        ]
        run = self._server.register_script(_LEASE)
        rows = run([f"{PREFIX}pool:{each.counter}" for each in demands], [holder, seconds, *fields])
        return [Grant(int(units), float(available)) for units, available in rows]

    def read_keys(self, version: str) -> tuple[str, Sequence[bytes] | None]:
        """Return a text that changes with the keys, and all keys unless it is ``version``."""
        answer = self._server.register_script(_READ_KEYS)(_KEYS, [version])
        return answer[0].decode(), answer[1] if len(answer) > 1 else None

    def put_key(self, name: str, value: bytes) -> bool:
        """Store a key; return False if there is one with this name."""
        run = self._server.register_script(_PUT_KEY)
        return bool(run(_KEYS, [name, value, secrets.token_hex(8)])[0])

    def drop_key(self, name: str) -> bool:
        """Remove a key; return whether there was one."""
        run = self._server.register_script(_DROP_KEY)
        return bool(run(_KEYS, [name, secrets.token_hex(8)])[0])

    def add_usage(self, batch: str, rows: Sequence[UsageRow], days: int) -> None:
        """Add rows and their sums in one script, once for each ``batch``.

        Rows older than ``days`` are removed in blocks, so some remain for longer.
        """
        seconds = days * 86_400
        oldest = int((time.time() - seconds) * 1000)
        sums = sum_rows(rows)
        hashes = list(dict.fromkeys(f"{_USAGE}:{group.day}" for group in sums))
        amounts: list[object] = []
        for group, values in sums.items():
            position = 3 + hashes.index(f"{_USAGE}:{group.day}")
            for name, amount in zip(UsageSums._fields, values, strict=True):
                if amount:
                    field = msgspec.json.encode([*group[1:], name])
                    amounts += [position, field, int(amount)]
        run = self._server.register_script(_ADD_USAGE)
        encoded = [msgspec.json.encode(row) for row in rows]
        run(
            [f"{_USAGE}:batch:{batch}", _USAGE, *hashes],
            [seconds + 86_400, oldest, len(rows), *encoded, *amounts],
        )

    def sum_usage(self, since: str, caller: str | None) -> Sequence[tuple[UsageGroup, UsageSums]]:
        """Return the sums of each group from the day ``since`` on, of one caller or of all."""
        start = f"{_USAGE}:"
        names = self._server.scan_iter(f"{start}????-??-??", SCANNED)
        days = sorted({name.decode().removeprefix(start) for name in names})
        found: dict[UsageGroup, dict[str, int]] = {}
        for day in days:
            if day < since:
                continue
            for field, amount in self._server.hgetall(f"{start}{day}").items():
                *labels, name = msgspec.json.decode(field, type=list[str])
                if caller in {None, labels[0]}:
                    found.setdefault(UsageGroup(day, *labels), {})[name] = int(amount)
        return [(group, UsageSums(**values)) for group, values in found.items()]

    def list_usage(self, since: str) -> Iterator[UsageRow]:
        """Yield the rows from the day ``since`` on, in the order in which they were written."""
        start = start_of(since)
        last = str(int(start * 1000))
        while rows := self._server.xrange(_USAGE, last, "+", _LISTED):
            for number, fields in rows:
                row = msgspec.json.decode(fields[b"row"], type=UsageRow)
                if row.at >= start:
                    yield row
                last = f"({number.decode()}"

    def _models(self) -> Sequence[str]:
        return [name.decode() for name in self._server.hgetall(MODELS).values()]

    def _scan(self, model: str) -> Iterator[list[bytes]]:
        names: list[bytes] = []
        for name in self._server.scan_iter(f"{PREFIX}v:{_digest(model)}:*", SCANNED):
            names.append(name)
            if len(names) == SCANNED:
                yield names
                names = []
        if names:
            yield names

    def _name(self, key: StoreKey) -> bytes:
        prefix = self._prefixes.get(key.model)
        if prefix is None:
            prefix = self._prefixes[key.model] = f"{PREFIX}v:{_digest(key.model)}:".encode()
        return prefix + key.digest


def _counter_keys(counter: str) -> tuple[str, str]:
    return f"{PREFIX}spent:{counter}", f"{PREFIX}reserved:{counter}"


def _digest(model: str) -> str:
    """Return a name that contains no character with a meaning in patterns."""
    return hashlib.blake2b(model.encode(errors="surrogatepass"), digest_size=8).hexdigest()
