"""Requests of clients, byte for byte, captured or taken from the client's source."""

from typing import Any, NamedTuple

from tests.clients.served import MODEL, WIDTH

JSON = {"content-type": "application/json", "accept": "application/json"}
REQUESTS = {
    **JSON,
    "user-agent": "python-requests/2.34.2",
    "accept-encoding": "gzip, deflate",
    "accept": "*/*",
}


def python(version, **more):
    """Return the headers of openai-python, which are the same in all libraries that use it."""
    return {
        **JSON,
        "accept-encoding": "gzip, deflate",
        "user-agent": f"OpenAI/Python {version}",
        "x-stainless-lang": "python",
        "x-stainless-package-version": version,
        "x-stainless-os": "Linux",
        "x-stainless-arch": "x64",
        "x-stainless-runtime": "CPython",
        "x-stainless-runtime-version": "3.11.7",
        "x-stainless-async": "false",
        "x-stainless-retry-count": "0",
        "x-stainless-read-timeout": "600",
        **{f"x-stainless-{name.replace('_', '-')}": value for name, value in more.items()},
    }


def node(version, agent=""):
    """Return the headers of openai-node, the same in all libraries that use it.

    Undici adds the others.
    """
    return {
        **JSON,
        "user-agent": agent or f"OpenAI/JS {version}",
        "x-stainless-retry-count": "0",
        "x-stainless-lang": "js",
        "x-stainless-package-version": version,
        "x-stainless-os": "Linux",
        "x-stainless-arch": "x64",
        "x-stainless-runtime": "node",
        "x-stainless-runtime-version": "v24.19.0",
        "accept-language": "*",
        "sec-fetch-mode": "cors",
        "accept-encoding": "gzip, deflate",
    }


AI_SDK = {
    "content-type": "application/json",
    "user-agent": "ai/7.0.173 ai-sdk-provider-utils/5.0.81 node.js/24",
    "accept": "*/*",
    "accept-language": "*",
    "sec-fetch-mode": "cors",
    "accept-encoding": "gzip, deflate",
}
OPEN_WEBUI = {
    "content-type": "application/json",
    "x-openwebui-user-name": "Ada%20L",
    "x-openwebui-user-id": "1",
    "x-openwebui-user-email": "a@example.org",
    "x-openwebui-user-role": "admin",
    "accept": "*/*",
    "accept-encoding": "gzip, deflate",
    "user-agent": "Python/3.11 aiohttp/3.14.5",
}

TEXTS = ["hello", "wörld 三", "line one\nline two", "hello", "😀 emoji"]
"""The input of every captured client; some replace the line break by a space."""
FLAT = [text.replace("\n", " ") for text in TEXTS]
LANGCHAIN_TOKENS = [
    [15339, 1917],
    [15339, 11, 1268, 527, 499, 30],
    [86, 9603, 509, 220, 46091, 91416],
]
"""Of "hello world", "hello, how are you?" and "wörld 三 😀", in cl100k_base."""
LANGCHAIN_BODY = (
    '{"model":"text-embedding-3-small","input":[[15339,1917],[15339,11,1268,527,499,30],[86,9603,509,220,46091,91416]],'
    '"encoding_format":"base64"}'
)
"""What LangChain sends by default."""

GIVEN = r'"input":["hello","wörld 三","line one\nline two","hello","😀 emoji"]'
FLATTENED = GIVEN.replace(r"\n", " ")
ESCAPED = (
    r'"input": ["hello", "w\u00f6rld \u4e09", "line one\nline two", "hello", "\ud83d\ude00 emoji"]'
)
MODEL_FIRST = '{"model":"text-embedding-3-small",' + GIVEN + ',"encoding_format":"base64"}'
MODEL_LAST = "{" + GIVEN + ',"model":"text-embedding-3-small","encoding_format":"base64"}'
PRETTY = """{
  "model": "text-embedding-3-small",
  "input": [
    "hello",
    "wörld 三",
    "line one\\nline two",
    "hello",
    "😀 emoji"
  ],
  "encoding_format": "base64"
}"""
TWO = ["hello", "world"]


class Client(NamedTuple):
    """``body`` as sent, ``base64`` whether the response must be base64, ``inputs`` in order."""

    name: str
    body: str
    base64: bool
    inputs: list[Any]
    headers: dict[str, str] = JSON
    path: str = "/v1/embeddings"
    width: int = WIDTH
    model: str = MODEL


CAPTURED = [
    Client("openai-python 3.52.0", MODEL_FIRST, True, TEXTS, python("3.52.0")),
    Client(
        "openai-python 3.52.0 async",
        MODEL_FIRST,
        True,
        TEXTS,
        python("3.52.0", **{"async": "async:asyncio"}),
    ),
    Client(
        "openai-python 3.52.0, all parameters",
        '{"model":"text-embedding-3-small",'
        + GIVEN
        + ',"user":"u","dimensions":4,"encoding_format":"float"}',
        False,
        TEXTS,
        python("3.52.0"),
        width=4,
    ),
    Client(
        "openai-python 3.52.0, tokens",
        '{"model":"text-embedding-3-small","input":[[1,2],[3]],"encoding_format":"base64"}',
        True,
        [[1, 2], [3]],
        python("3.52.0"),
    ),
    Client("openai-python 2.6.0", MODEL_LAST, True, TEXTS, python("2.6.0")),
    Client(
        "openai-python 1.55.3 without numpy",
        "{" + GIVEN + ',"model":"text-embedding-3-small"}',
        False,
        TEXTS,
        python("1.55.3"),
    ),
    Client(
        "openai-python 1.3.0 without numpy",
        "{" + ESCAPED + ', "model": "text-embedding-3-small"}',
        False,
        TEXTS,
        {**JSON, "user-agent": "OpenAI/Python 1.3.0", "x-stainless-lang": "python"},
    ),
    Client(
        "langchain-openai 1.7.3, default", LANGCHAIN_BODY, True, LANGCHAIN_TOKENS, python("3.52.0")
    ),
    Client(
        "llama-index-embeddings-openai 0.6.0",
        MODEL_FIRST.replace(r"\n", " "),
        True,
        FLAT,
        python("3.52.0", read_timeout="60.0"),
    ),
    Client(
        "haystack-ai 3.4.0 text",
        '{"model":"text-embedding-3-small","input":"needle","encoding_format":"float"}',
        False,
        ["needle"],
        python("3.52.0", read_timeout="30.0"),
    ),
    Client(
        "haystack-ai 3.4.0 documents",
        MODEL_FIRST.replace("base64", "float"),
        False,
        TEXTS,
        python("3.52.0", read_timeout="30.0"),
    ),
    Client("chromadb 1.5.9", MODEL_FIRST, True, TEXTS, python("3.52.0")),
    Client(
        "pydantic-ai 2.68.0",
        '{"model":"text-embedding-3-small","input":["q"],"encoding_format":"base64"}',
        True,
        ["q"],
        python("3.52.0", **{"async": "async:asyncio"}),
    ),
    Client(
        "semantic-kernel 1.45.0",
        MODEL_FIRST,
        True,
        TEXTS,
        python("3.52.0", **{"async": "async:asyncio"}),
    ),
    Client(
        "litellm 1.83.0",
        MODEL_FIRST.replace('"base64"', "null"),
        False,
        TEXTS,
        python("3.52.0", raw_response="true"),
    ),
    Client(
        "litellm 1.106.2",
        '{"model":"text-embedding-3-small",' + GIVEN + "}",
        False,
        TEXTS,
        python("2.54.0", raw_response="true"),
    ),
    Client(
        "pgai 0.12.1",
        MODEL_LAST.replace("base64", "float"),
        False,
        TEXTS,
        {**python("1.109.1", raw_response="stream"), "accept-encoding": "gzip, deflate, zstd"},
    ),
    Client("openai-node 7.55.0", MODEL_FIRST, True, TEXTS, node("7.55.0")),
    Client("openai-node 5.23.2 of llamaindex", MODEL_FIRST, True, TEXTS, node("5.23.2")),
    Client(
        "openai-node 4.104.0 of chroma",
        PRETTY,
        True,
        TEXTS,
        {**node("4.104.0"), "accept-encoding": "gzip,deflate"},
    ),
    Client(
        "@langchain/openai 1.6.0",
        MODEL_FIRST.replace(r"\n", " "),
        True,
        FLAT,
        node("7.55.0", "langchainjs-openai/1.0.0 ((node/v24.19.0; linux; x64))"),
    ),
    Client("ai 7.0.173", MODEL_FIRST.replace("base64", "float"), False, TEXTS, AI_SDK),
    Client(
        "ai 7.0.173 with options",
        '{"model":"text-embedding-3-small",'
        + GIVEN
        + ',"encoding_format":"float","dimensions":7,"user":"u"}',
        False,
        TEXTS,
        AI_SDK,
        width=7,
    ),
    Client(
        "open-webui 0.12.4",
        "{" + ESCAPED + ', "model": "text-embedding-3-small"}',
        False,
        TEXTS,
        OPEN_WEBUI,
    ),
    Client(
        "dify-plugin 0.10.2",
        r'{"input": ["\ud83d\ude00 emoji"], "model": "text-embedding-3-small", "user": "abc-123", "encoding_format": "float"}',
        False,
        ["😀 emoji"],
        REQUESTS,
        path="/embeddings",
    ),
    Client(
        "dify-plugin 0.10.2, credentials",
        '{"input": ["ping"], "model": "text-embedding-3-small"}',
        False,
        ["ping"],
        REQUESTS,
    ),
]
IN_SOURCE = [
    Client("Dify validation", '{"input": "ping", "model": "hash"}', False, ["ping"]),
    Client(
        "Weaviate",
        '{"input":["hello","world"],"model":"hash","dimensions":4}',
        False,
        TWO,
        {**JSON, "openai-organization": ""},
        width=4,
    ),
    Client(
        "Weaviate bare",
        '{"input":["hello","world"],"model":"hash"}',
        False,
        TWO,
        {"content-type": "application/json"},
    ),
    Client(
        "Milvus",
        '{"model":"hash","input":["hello","world"],"encoding_format":"float","dimensions":4,"user":"u"}',
        False,
        TWO,
        width=4,
    ),
    Client(
        "Elastic inference",
        '{"input":["hello","world"],"model":"hash","user":"u","dimensions":4}',
        False,
        TWO,
        width=4,
    ),
    Client(
        "LangChain4j",
        '{\n  "model" : "hash",\n  "input" : [ "hello", "world" ]\n}',
        False,
        TWO,
        {**JSON, "user-agent": "langchain4j-openai"},
    ),
    Client(
        "Spring AI",
        '{"input":["hello","world"],"model":"hash","encoding_format":"float"}',
        False,
        TWO,
    ),
    Client(
        "go-openai",
        '{"input":["hello","world"],"model":"hash"}',
        False,
        TWO,
        {**JSON, "content-type": "application/json; charset=utf-8"},
    ),
    Client("go-openai of 2023", '{"input":["hello","world"],"model":"hash","user":""}', False, TWO),
    Client(
        "async-openai",
        '{"model":"hash","input":["hello","world"]}',
        False,
        TWO,
        {"content-type": "application/json", "accept": "*/*"},
    ),
    Client(
        "async-openai base64",
        '{"model":"hash","input":"hello","encoding_format":"base64"}',
        True,
        ["hello"],
    ),
    Client(
        "openai-dotnet",
        '{"input":["hello","world"],"model":"hash","encoding_format":"base64"}',
        True,
        TWO,
    ),
    Client(
        "openai-dotnet tokens",
        '{"input":[[1,2],[3]],"model":"hash","encoding_format":"base64"}',
        True,
        [[1, 2], [3]],
    ),
    Client("one array of tokens", '{"input":[5,6,7],"model":"hash"}', False, [[5, 6, 7]]),
    Client(
        "curl",
        '{"input": "hello", "model": "hash", "user": null, "dimensions": null}',
        False,
        ["hello"],
        {"content-type": "application/json", "accept": "*/*"},
    ),
]
CLIENTS = [*CAPTURED, *(client._replace(model="hash") for client in IN_SOURCE)]
