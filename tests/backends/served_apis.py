"""The embeddings APIs of servers and clouds, as functions from a request's JSON to the response's.

Each is written from the reference that the backend's docstring names. A vector depends only on its
input, so that a test can tell a wrong order.
"""

from tests.backends.apis import count, in_base64, numbers, openai_rows


def ollama(body):
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    return {
        "model": body["model"],
        "embeddings": [numbers(text, body.get("dimensions")) for text in texts],
        "total_duration": 14143917,
        "load_duration": 1019500,
        "prompt_eval_count": count(texts),
    }


def tei(body):
    inputs = [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]
    return [numbers(item, body.get("dimensions")) for item in inputs]


def vllm(body):
    items = body["input"] if "input" in body else [body["messages"][0]["content"]]
    rows = [numbers(item, body.get("dimensions")) for item in items]
    if body.get("encoding_format") == "base64":
        rows = [in_base64(row) for row in rows]
    tokens = count(items)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return openai_rows(rows, usage, body["model"], id="embd-1", created=1)


def cloudflare(body):
    texts = body.get("text") or body.get("queries") or body["documents"]
    rows = [numbers(text) for text in texts]
    return {
        "result": {"shape": [len(rows), len(rows[0])], "data": rows, "pooling": "mean"},
        "success": True,
        "errors": [],
        "messages": [],
    }


def watsonx(body):
    return {
        "model_id": body["model_id"],
        "created_at": "2026-11-20T10:00:00.000Z",
        "results": [{"embedding": numbers(text)} for text in body["inputs"]],
        "input_token_count": count(body["inputs"]),
    }


def titan(body):
    width = body.get("dimensions") or body.get("embeddingConfig", {}).get("outputEmbeddingLength")
    row = numbers(body.get("inputText") or body["inputImage"], width)
    answer = {"embedding": row, "inputTextTokenCount": count([body.get("inputText", "")])}
    return {**answer, "embeddingsByType": {"float": row}} if "normalize" in body else answer


def titan_image(body):
    return {**titan(body), "message": None}


def bedrock_cohere(body):
    items = body.get("texts") or body.get("inputs") or body["images"]
    kinds = body.get("embedding_types")
    rows = {
        kind: [numbers(item, body.get("output_dimension"), kind) for item in items]
        for kind in kinds or ["float"]
    }
    return {
        "id": "8f3a",
        "texts": body.get("texts", []),
        "embeddings": rows if kinds else rows["float"],
        "response_type": "embeddings_by_type" if kinds else "embeddings_floats",
    }


def nova(body):
    params = body["singleEmbeddingParams"]
    item = params["text"]["value"] if "text" in params else params["image"]["source"]["bytes"]
    row = numbers(item, params.get("embeddingDimension"))
    return {
        "embeddings": [{"embeddingType": "TEXT", "embedding": row, "truncatedCharLength": None}]
    }


def vertex_predict(body):
    width = body["parameters"].get("outputDimensionality")
    predictions = [
        {
            "embeddings": {
                "values": numbers(instance["content"], width),
                "statistics": {"token_count": count([instance["content"]]), "truncated": False},
            }
        }
        for instance in body["instances"]
    ]
    return {"predictions": predictions, "metadata": {"billableCharacterCount": 3}}


def vertex_content(body):
    parts = body["content"]["parts"]
    item = parts[0].get("text", parts)
    width = body["embedContentConfig"].get("outputDimensionality")
    tokens = count([item])
    return {
        "embedding": {"values": numbers(item, width)},
        "usageMetadata": {
            "promptTokenCount": tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}],
            "totalTokenCount": tokens,
        },
        "truncated": False,
    }


def vertex_multimodal(body):
    predictions = []
    for instance in body["instances"]:
        width = body.get("parameters", {}).get("dimension")
        item = instance.get("text") or instance["image"]["bytesBase64Encoded"]
        name = "textEmbedding" if "text" in instance else "imageEmbedding"
        predictions.append({name: numbers(item, width)})
    return {"predictions": predictions, "deployedModelId": "1"}


def gemini(body):
    rows = [
        {
            "values": numbers(
                request["content"]["parts"][0]["text"], request.get("outputDimensionality")
            )
        }
        for request in body["requests"]
    ]
    return {"embeddings": rows}
