"""Tests responses of megabytes: correct vectors, a responsive event loop, and few copies."""

import base64
import gc
import json
import math
import os
import platform
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from embedroute import (
    CacheSettings,
    Config,
    Embeddings,
    Endpoint,
    Gateway,
    Model,
    Provider,
    Settings,
    embeddings_app,
)
from embedroute.backend import Batch, UpstreamResponse
from embedroute.backends._json_scan import LONG, extract_vectors
from embedroute.backends._openai_response import read as read_rows
from embedroute.backends.openai import OpenAI
from embedroute.errors import InvalidUpstreamResponse
from embedroute.protocol import DIALECTS
from embedroute.runtime import LARGE, ROWS, run_cooperatively, run_in_worker, tasks
from embedroute.server import HTTPExchange
from embedroute.trace import RequestTrace
from tests.fault_upstream import vectors_of
from tests.support.asgi_client import call
from tests.support.commands import serving
from tests.support.elapsed import measured
from tests.support.slow import slow_unless, thorough_rows_unless, thorough_unless
from tests.support.tls import certified

COUNT, WIDTH = 2048, 1536
TEXTS = [f"text {at}" for at in range(COUNT)]
SIZE = COUNT * WIDTH * 4
"""The size of the vectors in bytes."""


@pytest.fixture(scope="module")
def url():
    """An upstream in a separate process, so that it does not use our interpreter."""
    command = [sys.executable, "-m", "tests.fault_upstream", "--width", str(WIDTH)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as upstream:  # noqa: S603 - our own words
        yield upstream.stdout.readline().strip()
        upstream.kill()


def gateway_at(url, **options):
    return Gateway(
        Config(
            gateway=Settings(auth="open"),
            cache=CacheSettings(bytes=0),
            providers={"one": Provider(backend=OpenAI(base_url=url, **options))},
            models={
                "m": Model(dimensions=WIDTH, matryoshka=True, endpoints=[Endpoint(provider="one")])
            },
        ),
        environ={},
    )


async def ask(app, encoding, **fields):
    body = json.dumps(
        {"model": "m", "input": TEXTS, "encoding_format": encoding, **fields}
    ).encode()
    return await call(app, "POST", "/v1/embeddings", [("content-type", "application/json")], [body])


def numbers(answer):
    embeddings = [row["embedding"] for row in answer.json["data"]]
    if isinstance(embeddings[0], str):
        return np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in embeddings])
    return np.array(embeddings, "<f4")


@pytest.mark.anyio
@pytest.mark.parametrize("asked_of", slow_unless("base64".__eq__, ["base64", "float"]))
@pytest.mark.parametrize("encoding", ["base64", "float"])
async def test_a_large_response_contains_the_right_vectors(url, asked_of, encoding):
    gateway = gateway_at(url, encoding_format=asked_of)
    async with gateway.lifespan():
        answer = await ask(embeddings_app(gateway), encoding)

    assert 200 == answer.status
    assert list(range(COUNT)) == [row["index"] for row in answer.json["data"]]
    assert {"prompt_tokens", "total_tokens"} == answer.json["usage"].keys()
    assert np.array_equal(vectors_of(TEXTS, WIDTH), numbers(answer))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "forms",
    slow_unless(
        "openai base64 float".__eq__,
        [
            "openai base64 base64",
            "openai base64 float",
            "openai float base64",
            "gemini float float",
        ],
    ),
)
@pytest.mark.thorough
def test_a_large_response_does_not_block_the_event_loop(forms, loop):
    """Measured in CPU time, without a tracer."""
    command = [sys.executable, "-m", "tests.support.loop_latency", *forms.split(), loop]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)  # noqa: S603 - our own words
    held, bound = map(float, ran.stdout.split())

    assert held > 0.0005
    assert held < bound, f"{held * 1000:.1f} ms where {bound * 1000:.1f} are the most"


@pytest.mark.anyio
async def test_sending_many_pieces_to_a_fast_client_yields_to_other_tasks():
    """``send`` never waits for a fast client, so other tasks would not run until the last piece."""
    rounds, sent_in = 0, []

    async def go_round():
        nonlocal rounds
        while True:
            rounds += 1
            await anyio.lowlevel.checkpoint()

    async def send(message):
        time.sleep(0.0005)  # noqa: ASYNC251 - it is busy
        sent_in.append((rounds, len(message.get("body", b""))))

    async with anyio.create_task_group() as group:
        group.start_soon(go_round)
        await anyio.lowlevel.checkpoint()
        exchange = HTTPExchange(
            {"type": "http", "method": "POST", "headers": []}, anyio.sleep_forever, send
        )
        async with tasks.watch(math.inf, TimeoutError) as watching:
            await exchange.send_pieces(100, iter([b"piece"] * 20), watching, in_turn=True)
        group.cancel_scope.cancel()

    assert [0, *[5] * 20, 0] == [size for _, size in sent_in]
    assert 10 <= len({at for at, _ in sent_in})


@pytest.mark.anyio
async def test_time_slices_grow_on_a_busy_event_loop():
    """To half the time that other tasks take, up to 5 ms, so that the work completes."""
    rounds = 0

    async def go_round():
        nonlocal rounds
        while True:
            rounds += 1
            time.sleep(0.006)  # noqa: ASYNC251 - it is busy
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(go_round)
        await run_cooperatively(map(time.sleep, [0.0005] * 100))
        group.cancel_scope.cancel()

    assert 5 < rounds < 50


def test_small_responses_are_read_in_one_time_slice():
    """They are parsed in the event loop's thread."""
    body = reply_of({"data": body_of(np.ones((40_000, 8), "<f4"))}).content
    sleeps = {}

    for size in (1_000_000, None):
        found = sleeps[size] = []
        sys.setprofile(
            lambda _frame, _event, what, found=found: (
                found.append(1) if what is time.sleep else None
            )
        )
        extract_vectors(body[:size], "embedding")
        sys.setprofile(None)

    assert LARGE < len(body)
    assert (0, True) == (len(sleeps[1_000_000]), len(sleeps[None]) > 0)


READING = """
from embedroute.transport.base import DEFAULT_LIMITS
import asyncio, socket, ssl, sys, uvloop
from embedroute.transport.http1.connection import AT_A_TIME, TAIL, Connection
from embedroute.backend import SecretBytes

read, rounds = {}, 0

class Counting(Connection):
    def data_received(self, data):
        read[rounds] = read.get(rounds, 0) + len(data)
        super().data_received(data)

async def serve(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 33554432\\r\\n\\r\\n" + bytes(33554432))

def go_round():
    global rounds
    rounds += 1
    asyncio.get_running_loop().call_soon(go_round)

async def main():
    loop, cert = asyncio.get_running_loop(), sys.argv[2:]
    ours = theirs = None
    if cert:
        ours, theirs = ssl.create_default_context(cafile=cert[0]), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(*cert)
    server = await asyncio.start_server(serve, "localhost", 0, family=socket.AF_INET, ssl=theirs)
    port = server.sockets[0].getsockname()[1]
    _, connection = await loop.create_connection(lambda: Counting(loop, print), "localhost", port, ssl=ours)
    answer = connection.exchange(SecretBytes(b"GET / HTTP/1.1\\r\\n\\r\\n"), b"", DEFAULT_LIMITS, None)
    connection._transport.pause_reading()
    await asyncio.sleep(0.2)
    go_round()
    connection._transport.resume_reading()
    print(len((await answer).content), max(read.values()) <= AT_A_TIME + (TAIL if cert else 262144), connection.complete)
    connection.abort()
    server.close()
    await asyncio.sleep(0)

(uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(main())
"""


@pytest.mark.parametrize(
    ("tls", "loop"),
    thorough_rows_unless(
        {(False, "uvloop"), (True, "asyncio")}.__contains__,
        [(tls, loop) for tls in (False, True) for loop in ("asyncio", "uvloop")],
    ),
)
def test_a_fast_upstream_response_is_read_in_time_slices(tmp_path, loop, tls):
    """Without this, uvloop would read 32 times 256 KiB before other tasks run."""
    cert = [certified(tmp_path)[0], str(tmp_path / "key.pem")] if tls else []
    command = [sys.executable, "-c", READING, loop, *cert]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words

    assert (f"{32 << 20} True True\n", "") == (ran.stdout, ran.stderr)


@pytest.mark.anyio
async def test_only_one_large_job_runs_at_a_time():
    """On the loop and in threads: with two jobs, all other tasks would wait for both."""
    done: list[int] = []

    def piece(work):
        time.sleep(0.001)
        done.append(work)

    async with anyio.create_task_group() as group:
        for work in range(0, 8, 2):
            group.start_soon(run_cooperatively, map(piece, [work] * 5))
            group.start_soon(run_in_worker, partial(on_thread, piece, work + 1))

    assert 8 * 5 == len(done)
    assert 8 == len(list(groupby(done)))


@pytest.mark.anyio
async def test_a_job_that_takes_too_long_loses_the_lock_once():
    """Plugin code may do that.

    The next job waits only for the rest of that time, and later ones not at all.
    """
    begun, let_go = anyio.Event(), threading.Event()
    waits = []

    async def stuck():
        begun.set()
        await run_in_worker(let_go.wait)

    async def timed(work):
        async with measured() as elapsed:
            await work()
        waits.append(elapsed)

    async with anyio.create_task_group() as group:
        group.start_soon(stuck)
        await begun.wait()
        async with anyio.create_task_group() as others:
            for work in (partial(run_cooperatively, [1]), partial(run_in_worker, int)):
                others.start_soon(timed, work)
        for work in (partial(run_cooperatively, [1]), partial(run_in_worker, int)):
            await timed(work)
        let_go.set()

    assert all(0.9 < elapsed.seconds and elapsed.ticks < 1.5 for elapsed in waits[:2])
    assert max(elapsed.ticks for elapsed in waits[2:]) < 0.5


@pytest.mark.anyio
async def test_a_long_queue_does_not_start_parallel_jobs():
    """No job takes too long, but the last one waits longer than the time limit of a single job."""
    done: list[int] = []

    async def one(work):
        await run_cooperatively(map(piece, [work] * 12))

    def piece(work):
        time.sleep(0.02)
        done.append(work)

    async with anyio.create_task_group() as group:
        for work in range(8):
            group.start_soon(one, work)

    assert 8 == len(list(groupby(done)))


@pytest.mark.anyio
async def test_an_evicted_holder_does_not_release_the_current_holder():
    begun, taken, let_go, done = anyio.Event(), anyio.Event(), threading.Event(), []

    async def overstay():
        begun.set()
        await run_in_worker(let_go.wait)
        done.append("overstayed")

    async def next_one():
        await run_cooperatively(map(work, range(20)))

    def work(at):
        taken.set()
        if at == 2:
            let_go.set()
        time.sleep(0.005)
        done.append("next")

    async with anyio.create_task_group() as group:
        group.start_soon(overstay)
        await begun.wait()
        group.start_soon(next_one)
        await taken.wait()
        group.start_soon(run_cooperatively, map(done.append, ["last"]))

    assert ["next", "last"] == [
        name for name, _ in groupby(name for name in done if name != "overstayed")
    ]
    assert "overstayed" in done[2:-1]


def on_thread(piece, work):
    for _ in range(5):
        piece(work)


def reply_of(answer):
    return UpstreamResponse(200, {}, json.dumps(answer).encode())


def text_of(row):
    return base64.b64encode(row.tobytes()).decode()


FORMS = {"base64": text_of, "float": np.ndarray.tolist}


def body_of(vectors, indexes=None, form=text_of):
    made = map(form, vectors)
    return [
        {"index": at, "embedding": row}
        for at, row in zip(indexes or range(len(vectors)), made, strict=True)
    ]


@pytest.mark.parametrize("step", ["read", "written in base64", "written in numbers"])
def test_a_large_response_is_copied_as_rarely_as_possible(step):
    """Besides the input and the output, only a few rows are in memory at a time."""
    vectors = vectors_of(TEXTS, WIDTH)
    reply = reply_of({"data": body_of(vectors), "usage": {"prompt_tokens": 5}})
    answer = Embeddings(rows=list(vectors), model="m", prompt_tokens=5, trace=RequestTrace("req_1"))
    batch = Batch(model="m", texts=TEXTS, width=WIDTH)
    gc.collect()
    tracemalloc.start()
    if step == "read":
        made = OpenAI().parse(batch, reply).array.nbytes
    else:
        made = sum(
            map(len, DIALECTS["openai"].success(answer, SimpleNamespace(base64="base64" in step)))
        )
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < made * 1.2 + (1 << 20)


def many(count=200):
    return vectors_of(TEXTS[:count], WIDTH)


def faulty(at, embedding, form):
    data = body_of(many(), form=form)
    data[at]["embedding"] = embedding
    return data


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("at", slow_unless(ROWS.__eq__, [0, ROWS, 199]))
@pytest.mark.parametrize(
    "embedding",
    [
        "AAAA",
        "AACAPw==",
        "A" * 8191 + "!",
        [1.0],
        [1.0] * (WIDTH - 1),
        [None] * WIDTH,
        ["1"] * WIDTH,
        ["]", *[1.0] * (WIDTH - 1)],
        [1.0, [1.0] * (WIDTH - 1)],
        [[1.0] * WIDTH],
        None,
        {},
        7,
        "",
        [],
    ],
    ids=repr,
)
def test_one_invalid_row_makes_a_large_response_invalid(at, embedding, form):
    """In the first group, between two groups and in the last.

    A single number must not be broadcast to a row.
    """
    reply = reply_of({"data": faulty(at, embedding, form)})

    assert len(reply.content) >= LARGE
    with pytest.raises(InvalidUpstreamResponse):
        OpenAI().parse(Batch(model="m", texts=TEXTS[:200], width=WIDTH), reply)


def some_as_numbers(row):
    return row if row["index"] % 7 else {**row, "embedding": FORMS["float"](row["vector"])}


ODDITIES = {
    "none": lambda row: row,
    "some as numbers": some_as_numbers,
    "another vector in each row": lambda row: {**row, "meta": {"embedding": [[1], ["]"], {}]}},
    "another vector in one row": lambda row: (
        {**row, "meta": {"embedding": [1]}} if row["index"] == 3 else row
    ),
    "a name with the same ending": lambda row: {
        **row,
        'my "embedding"': [0.5],
        'my "embedding': [0.5],
    },
}


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("odd", ODDITIES.values(), ids=ODDITIES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("count", "least"), [(40, LONG), pytest.param(200, LARGE, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("dtype", slow_unless("float".__eq__, ["float", "int8", "ubinary"]))
def test_large_and_small_responses_are_parsed_alike(dtype, count, least, form, odd, escaped):
    """Any order of rows, type and form of numbers, look-alikes of vectors, escaped slashes."""
    numbers = np.tile(many(count) * 100, 4)
    vectors = numbers.astype({"float": "<f4", "int8": "i1", "ubinary": "u1"}[dtype])
    rows = [
        {**row, "vector": vectors[row["index"]]}
        for row in body_of(vectors[::-1], list(reversed(range(count))), form)
    ]
    data = [{name: value for name, value in odd(row).items() if name != "vector"} for row in rows]
    reply = reply_of({"note": '"embedding": "', "data": data, "usage": {"prompt_tokens": 9}})
    if escaped:
        reply = UpstreamResponse(200, {}, reply.content.replace(b"/", b"\\/"))
    read = read_rows(Batch(model="m", texts=TEXTS[:count], dtype=dtype), reply, OpenAI().map_error)

    assert len(reply.content) >= least
    assert 9 == read.prompt_tokens
    assert vectors.dtype == read.array.dtype
    assert np.array_equal(vectors, read.array)


@pytest.mark.parametrize(
    "other", [[0.25] * WIDTH, text_of(np.ones(WIDTH, "<f4"))], ids=["numbers", "base64"]
)
@pytest.mark.parametrize(
    "row",
    [
        b'{"index":%d,"embedding":%d,"meta":{"embedding":%b}}',
        b'{"index":%d,"embedding":"%d","meta":{"embedding":%b}}',
        b'{"embedding":%b,"index":%d,"embedding":%d}',
    ],
)
def test_a_vector_outside_its_row_is_not_used(row, other):
    """Even if the row contains text like the placeholder of a vector."""
    encoded = json.dumps(other).encode()
    data = [
        row % ((encoded, at, at) if row.startswith(b'{"embedding"') else (at, at, encoded))
        for at in range(200)
    ]
    reply = UpstreamResponse(200, {}, b'{"data":[%b]}' % b",".join(data))

    assert len(reply.content) >= LARGE
    with pytest.raises(InvalidUpstreamResponse):
        OpenAI().parse(Batch(model="m", texts=TEXTS[:200], width=WIDTH), reply)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("base64", [False, True])
@pytest.mark.parametrize(
    "count",
    thorough_unless((ROWS + 1).__eq__, [ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 3 * ROWS + 5]),
)
def test_large_and_small_bodies_are_encoded_alike(dialect, base64, count):
    """Row by row: equal to the concatenated responses for the single rows."""
    vectors, job = vectors_of(TEXTS[:count], 8 * 4096), SimpleNamespace(base64=base64)

    def body(rows):
        answer = Embeddings(
            rows=rows, model='"data":[]', prompt_tokens=5, trace=RequestTrace("req_1")
        )
        return answer.large, json.loads(b"".join(DIALECTS[dialect].success(answer, job)))

    large, whole = body(list(vectors))
    singles = [body([row]) for row in vectors]

    assert (True, {False}) == (large, {single[0] for single in singles})
    assert [{**single[1]["data"][0], "index": at} for at, single in enumerate(singles)] == whole[
        "data"
    ]
    assert {**singles[0][1], "data": 0} == {**whole, "data": 0}


@pytest.mark.anyio
async def test_concurrent_large_responses_are_all_correct(url):
    """There are more of them than threads, and some are cancelled."""
    gateway = gateway_at(url)
    right, whole = [], vectors_of(TEXTS[:300], WIDTH)

    async def one(at):
        with anyio.move_on_after(0.05 if at % 3 == 2 else 60):
            answer = await gateway.embed(TEXTS[at : at + 280], model="m")
            right.append(np.array_equal(answer.vectors, whole[at : at + 280]))

    async with gateway.lifespan(), anyio.create_task_group() as group:
        for at in range(9):
            group.start_soon(one, at)

    assert len(right) >= 6
    assert all(right)


FAULTS = """
import resource

def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [b"x" * (1 << 20) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def report():
    count_faults()
    print("faults", count_faults(), file=sys.stderr)
"""
MOUNTED = f"""
import asyncio, sys
from embedroute import Config, Gateway
{FAULTS}
gateway = Gateway(Config(gateway={{"auth": "open"}}, providers={{"hashed": {{}}}}))
asyncio.run(gateway.embed("a", model="hashed/a"))
report()
"""
SERVED = f"""
import atexit, sys
from embedroute.cli import main
{FAULTS}
atexit.register(report)
sys.exit(main())
"""
SERVED_CONFIG = '[gateway]\nauth = "open"\n[providers.hashed]\n'
PAGES = 2048
"""Pages of the 8 MiB that ``count_faults`` allocates 20 times."""

only_with_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way"
)


def documented_variables():
    document = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^(MALLOC_\w+)=(\d+)$", document, re.MULTILINE))


def faults_in(errors):
    [line] = [line for line in errors.splitlines() if line.startswith("faults ")]
    return int(line.split()[1])


def faults_of_a_host(variables):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", MOUNTED]
    ran = subprocess.run(  # noqa: S603 - our own words
        command, check=True, capture_output=True, text=True, timeout=60, env=environ | variables
    )
    return faults_in(ran.stderr)


@only_with_glibc
def test_a_gateway_does_not_change_how_its_host_allocates_memory():
    """By default glibc returns the memory of large blocks to the system each time."""
    assert faults_of_a_host({}) > 10 * PAGES


@only_with_glibc
def test_the_documented_variables_keep_the_memory_of_large_responses():
    variables = documented_variables()

    assert sorted(variables) == ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"]
    assert faults_of_a_host(variables) < PAGES


@only_with_glibc
def test_serve_keeps_the_memory_of_large_responses(tmp_path):
    (tmp_path / "embedroute.toml").write_text(SERVED_CONFIG)
    errors = tmp_path / "errors"

    with serving([sys.executable, "-c", SERVED, "serve", "--port", "0"], tmp_path, errors=errors):
        pass

    assert faults_in(errors.read_text()) < PAGES
