"""Tests what a Python host sees: inputs of its own types, synchronous calls, and short reprs."""

import asyncio
import collections
import gc
import inspect
import os
import threading

import numpy as np
import pytest
import trio

from embedroute import ApiKey, Caller, Config, Gateway, Provider
from embedroute.backend import Secret
from embedroute.errors import InvalidRequest
from embedroute.testing import ScriptedBackend, expected_vector
from tests.fault_upstream import Upstream

WIDTH = 8


class Column:
    """A column of a data frame, as numpy sees it: pandas, polars and pyarrow have this method."""

    def __init__(self, *items):
        self.items = items

    def __array__(self, dtype=None, copy=None):
        return np.array(self.items, dtype=dtype or object)


def make(backend=None, **provider):
    return Gateway(
        Config(
            gateway={"auth": "open"},
            providers={"p": Provider(backend=backend or ScriptedBackend(width=WIDTH), **provider)},
            models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "p"}]}},
        )
    )


def remote(url):
    return Gateway(
        Config(
            gateway={"auth": "open"},
            providers={"p": {"backend": "openai", "base_url": url, "api_key": "sk-1"}},
            models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "p"}]}},
        )
    )


def test_the_signature_of_a_gateway_shows_no_variables_of_the_process():
    """``help(Gateway)`` prints it, and the variables hold keys."""
    assert "PATH" in os.environ
    assert "PATH" not in str(inspect.signature(Gateway))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array(["a", "b"], dtype=object), ["a", "b"]),
        (np.array(["a", "b"], dtype=np.dtypes.StringDType()), ["a", "b"]),
        (np.array(["a", "b", "c"])[::2], ["a", "c"]),
        (Column("a", "b"), ["a", "b"]),
        (np.array([1, 2, 3]), [(1, 2, 3)]),
        (np.array([[1, 2], [3, 4]]), [(1, 2), (3, 4)]),
        ([np.array([1]), np.array([2, 3])], [(1,), (2, 3)]),
        (collections.deque(["a", "b"]), ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        (range(1, 4), [(1, 2, 3)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_columns_and_sequences_are_embedded(inputs, expected):
    vectors = make().embed_sync(inputs, model="m").vectors

    assert np.float32 == vectors.dtype
    assert [expected_vector(item, WIDTH).tolist() for item in expected] == vectors.tolist()


@pytest.mark.parametrize(
    "inputs",
    [
        np.array("a"),
        np.array([b"a"]),
        np.array([0.5]),
        np.array(["a", None], dtype=object),
        np.array(["a", float("nan")], dtype=object),
        np.array(["2026-11-30"], dtype="datetime64[D]"),
        np.array([["a"], ["b"]]),
        np.zeros((9, 400_000)),
        Column(),
    ],
    ids=lambda value: f"{getattr(value, 'dtype', 'column')}",
)
def test_an_array_that_holds_no_inputs_is_a_bad_request(inputs):
    with pytest.raises(InvalidRequest) as caught:
        make().embed_sync(inputs, model="m")

    assert caught.value.param.startswith("input")


def test_a_column_of_pandas_is_embedded():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["b", "a", "b"]}, index=[7, 8, 9])

    vectors = make().embed_sync(frame["text"], model="m").vectors

    assert [expected_vector(text, WIDTH).tolist() for text in "bab"] == vectors.tolist()
    with pytest.raises(InvalidRequest):
        make().embed_sync(pandas.Series(["a", None]), model="m")


def test_a_synchronous_call_takes_the_arguments_of_embed():
    backend = ScriptedBackend(width=WIDTH)
    gateway = make(backend)

    embeddings = gateway.embed_sync("a", model="m", input_type="query", user="u")

    assert ("m", ("p",), 1) == (embeddings.model, embeddings.providers, len(embeddings))
    assert "query" == backend.batches[0].input_type


def test_synchronous_calls_keep_the_cache_and_no_connection_or_thread():
    before = set(threading.enumerate())
    with Upstream() as upstream:
        gateway = remote(upstream.url)
        for text in ("a", "b", "a"):
            gateway.embed_sync(text, model="m")
        gc.collect()

        assert [["a"], ["b"]] == [request.json["input"] for request in upstream.requests]
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


def test_synchronous_calls_of_several_threads_share_a_gateway():
    gateway = make()
    found = {}

    def embed(text):
        found[text] = gateway.embed_sync(text, model="m").vectors[0].tolist()

    threads = [threading.Thread(target=embed, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {text: expected_vector(text, WIDTH).tolist() for text in "abcd"} == found


@pytest.mark.parametrize("run", [asyncio.run, lambda main: trio.run(lambda: main)])
def test_a_synchronous_call_inside_an_event_loop_says_what_to_write(run):
    gateway = make()

    async def main():
        gateway.embed_sync("a", model="m")

    coroutine = main()
    with pytest.raises(RuntimeError, match=r"Write: await gateway\.embed"):
        run(coroutine)


def test_a_gateway_shows_its_providers():
    gateway = Gateway(
        Config(
            gateway={"auth": "keys"},
            keys={"team": ApiKey(key=Secret("a-key-of-sixteen-characters"))},
            providers={"openai": {"api_key": "sk-0123456789"}, "h": {"backend": "hashed"}},
            models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "h"}]}},
        )
    )
    shown = repr(gateway)

    assert shown.startswith("<Gateway auth=keys providers=openai, h models=")
    assert "sk-0123" not in shown


def test_a_config_shows_names_only():
    config = Config(
        gateway={"auth": "keys", "proxy": "http://me:secret@proxy"},
        keys={"team": ApiKey(key=Secret("a-key-of-sixteen-characters"))},
        providers={"h": {"backend": "hashed", "api_key": "sk-0123456789"}},
    )

    assert "Config(auth='keys', keys=['team'], providers=['h'], models=[])" == repr(config)


def test_embeddings_show_their_shape():
    embeddings = make().embed_sync(["a", "b"], model="m")

    assert repr(embeddings) == (
        "Embeddings(model='m', shape=(2, 8), prompt_tokens=2, providers=['p'])"
    )


@pytest.mark.parametrize(
    ("caller", "shown"),
    [
        (Caller(name="a"), "Caller(name='a')"),
        (Caller(name="a", models=["m"]), "Caller(name='a', models=frozenset({'m'}))"),
        (Caller(name="a", debug=False, only=["p"]), "Caller(name='a', debug=False, only=('p',))"),
    ],
)
def test_a_caller_shows_what_differs_from_the_defaults(caller, shown):
    assert shown == repr(caller)
