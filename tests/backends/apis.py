"""The embeddings APIs of providers, as functions from a request's JSON to the response's JSON.

Each is written from the provider's reference (docs/facts of the backend's docstring). A vector
depends only on its input, so that a test can tell a wrong order.
"""

import base64
import json
import struct
import zlib

WIDTH = 16


def numbers(item, width=None, dtype="float"):
    """Return the vector of an input: a text, or anything that JSON supports."""
    text = json.dumps(item, sort_keys=True)
    packed = dtype in {"binary", "ubinary"}
    count = -(-(width or WIDTH) // 8) if packed else width or WIDTH
    values = [zlib.crc32(f"{text}{at}".encode()) % 201 - 100 for at in range(count)]
    if dtype == "float":
        return [value / 128 for value in values]
    return [value + 128 for value in values] if dtype in {"uint8", "ubinary"} else values


def in_base64(row, dtype="float"):
    kind = {"float": "f", "int8": "b", "uint8": "B", "binary": "b", "ubinary": "B"}[dtype]
    return base64.b64encode(struct.pack(f"<{len(row)}{kind}", *row)).decode()


def count(items):
    return sum(len(json.dumps(item)) for item in items)


def openai_rows(rows, usage, model, **fields):
    data = [
        {"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)
    ]
    return {"object": "list", "data": data, "model": model, "usage": usage, **fields}


def documents(rows, usage, model):
    """Return documents of one chunk each."""
    data = [
        {
            "object": "list",
            "data": [{"object": "embedding", "embedding": row, "index": 0}],
            "index": index,
        }
        for index, row in enumerate(rows)
    ]
    return {"object": "list", "data": data, "model": model, "usage": usage}


def cohere(body):
    items = body.get("texts") or body.get("inputs") or body.get("images")
    rows = {}
    for kind in body["embedding_types"]:
        is_text = kind == "base64"
        made = [
            numbers(item, body.get("output_dimension"), "float" if is_text else kind)
            for item in items
        ]
        rows[kind] = [in_base64(row) for row in made] if is_text else made
    billed = {"input_tokens": count(items)}
    if "texts" not in body:
        billed["image_tokens"] = 7
    return {
        "id": "5807ee2e-0cda-445a-9ec8-864c60a06606",
        "embeddings": rows,
        "texts": [text.lower() for text in body.get("texts", [])],
        "meta": {"api_version": {"version": "2"}, "billed_units": billed, "warnings": []},
        "response_type": "embeddings_by_type",
    }


def voyage(body):
    items = body.get("input") or body["inputs"]
    items = [items] if isinstance(items, str) else items
    dtype = body.get("output_dtype") or "float"
    rows = [numbers(item, body.get("output_dimension"), dtype) for item in items]
    if body.get("encoding_format") == "base64":
        rows = [in_base64(row, dtype) for row in rows]
    tokens = count(items)
    usage = {"total_tokens": tokens}
    if "inputs" in body and isinstance(items[0], list):
        return documents(rows, usage, body["model"])
    if "inputs" in body:
        usage |= {"text_tokens": tokens - 5, "image_pixels": 5 * 560, "video_pixels": 0}
    return openai_rows(rows, usage, body["model"])


def jina(body):
    kind = body.get("embedding_type", "float")
    dtype = "float" if kind == "base64" else kind
    rows = [numbers(item, body.get("dimensions"), dtype) for item in body["input"]]
    if kind == "base64":
        rows = [in_base64(row) for row in rows]
    return openai_rows(rows, {"total_tokens": count(body["input"])}, body["model"])


def nvidia(body):
    dtype = body.get("embedding_type") or "float"
    rows = [numbers(item, body.get("dimensions"), dtype) for item in body["input"]]
    if body["encoding_format"] == "base64":
        rows = [in_base64(row) for row in rows]
    tokens = count(body["input"])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return openai_rows(rows, usage, body["model"])


def openai(body):
    items = [body["input"]] if isinstance(body["input"], str) else body["input"]
    rows = [numbers(item, body.get("dimensions")) for item in items]
    if body.get("encoding_format") == "base64":
        rows = [in_base64(row) for row in rows]
    tokens = count(items)
    return openai_rows(
        rows, {"prompt_tokens": tokens, "total_tokens": tokens}, body.get("model", "m")
    )


def nomic(body):
    tokens = count(body["texts"])
    return {
        "embeddings": [numbers(text, body.get("dimensionality")) for text in body["texts"]],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "model": body["model"],
    }


def perplexity(body):
    dtype = {"base64_int8": "int8", "base64_binary": "ubinary"}[body["encoding_format"]]
    rows = [numbers(text, body.get("dimensions"), dtype) for text in body["input"]]
    rows = [in_base64(row, dtype) for row in rows]
    tokens = count(body["input"])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "cost": {"total_cost": 0.0}}
    if isinstance(body["input"][0], list):
        return documents(rows, usage, body["model"])
    return openai_rows(rows, usage, body["model"])


def dashscope(body):
    width = body.get("parameters", {}).get("dimension")
    if "contents" in body["input"]:
        items, name = body["input"]["contents"], "index"
        usage = {"input_tokens": count(items), "image_tokens": 3}
    else:
        items, name = body["input"]["texts"], "text_index"
        usage = {"total_tokens": count(items)}
    rows = [{"embedding": numbers(item, width), name: at} for at, item in enumerate(items)]
    return {"output": {"embeddings": rows[::-1]}, "usage": usage, "request_id": "1ba9"}


def minimax(body):
    return {
        "vectors": [numbers(text) for text in body["texts"]],
        "total_tokens": count(body["texts"]),
        "base_resp": {"status_code": 0, "status_msg": ""},
    }


def snowflake(body):
    rows = [[numbers(text)] for text in body["text"]]
    return openai_rows(rows, {"total_tokens": count(body["text"])}, body["model"])


def huggingface(body):
    return [numbers(text) for text in body["inputs"]]
