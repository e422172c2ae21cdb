"""Request bodies as templates for wrk, and the upstream's answers: OpenAI's shapes, random unit vectors."""

import base64
import json
from functools import cache

import numpy as np
import orjson

from benchmarks.workloads import Workload

WIDTH = 1536
MARK = "@" * 12  # load.lua puts a twelve-digit number here, another one in each request
TEXT = "Passage %d of document %s: what an embedding gateway adds to a request should be small against the model."
VARIANTS = 64


def template(workload: Workload) -> str:
    """Request bodies, one a line, which wrk sends in turn."""
    variants = VARIANTS if workload.fixed else 1
    return "".join(f"{_body(workload, variant)}\n" for variant in range(variants))


def once(workload: Workload) -> bytes:
    """One body ready to send."""
    return _body(workload, 0).replace(MARK, "0" * len(MARK)).encode()


def _body(workload: Workload, variant: int) -> str:
    texts = [
        TEXT % (n, f"known {variant}" if n < workload.fixed else MARK)
        for n in range(workload.inputs)
    ]
    request = {
        "model": workload.model,
        "input": texts[0] if workload.inputs == 1 else texts,
        "encoding_format": workload.encoding,
    }
    return json.dumps(request)


@cache
def vectors() -> np.ndarray:
    rows = np.random.default_rng(1).standard_normal((2048, WIDTH), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def row(index: int, encoding: str) -> bytes:
    vector = vectors()[index]
    embedding = vector if encoding == "float" else base64.b64encode(vector.tobytes()).decode()
    return orjson.dumps(
        {"object": "embedding", "index": index, "embedding": embedding},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def around(count: int) -> tuple[bytes, bytes]:
    """Return the bytes before and after the rows of an answer."""
    usage = orjson.dumps({"prompt_tokens": 20 * count, "total_tokens": 20 * count})
    return b'{"object":"list","data":[', b'],"model":"upstream-model","usage":' + usage + b"}"


def answer(count: int, encoding: str) -> bytes:
    head, tail = around(count)
    return head + b",".join(row(index, encoding) for index in range(count)) + tail
