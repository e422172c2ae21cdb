"""The exact requests of the backends of servers and clouds, and how they read responses and errors."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.bedrock import Bedrock
from embedroute.backends.cloudflare import Cloudflare
from embedroute.backends.ollama import Ollama
from embedroute.backends.openrouter import OpenRouter
from embedroute.backends.sagemaker import SageMaker
from embedroute.backends.tei import TEI
from embedroute.backends.vertex import Vertex
from embedroute.backends.vllm import VLLM
from embedroute.backends.watsonx import WatsonX
from embedroute.errors import (
    BatchTooLarge,
    ContextTooLong,
    InvalidRequest,
    InvalidUpstreamResponse,
    QuotaExhausted,
    RateLimited,
    Rejected,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.inputs import ImagePart, ImageURL, TextPart

K = Secret("k")
AWS = {"access_key_id": Secret("AKIAEXAMPLE"), "secret_access_key": Secret("s3cret")}
IMAGE = ImagePart(ImageURL("data:image/png;base64,AAAA"))
LINK = ImagePart(ImageURL("https://x.example/i.png"))

OLLAMA = Ollama()
TEI_SERVER = TEI()
CLOUDFLARE = Cloudflare(api_key=K, account_id="acct")
WATSONX = WatsonX(api_key=K, project_id="p")
BEDROCK = Bedrock(api_key=K, region="us-east-1")
SAGEMAKER = SageMaker(region="us-east-1", **AWS)
VERTEX = Vertex(project="p", api_key=K)
TITAN_1 = "amazon.titan-embed-text-v1"
TITAN_2 = "amazon.titan-embed-text-v2:0"
TITAN_IMAGE = "amazon.titan-embed-image-v1"
COHERE_3 = "cohere.embed-english-v3"
COHERE_4 = "eu.cohere.embed-v4:0"
NOVA = "amazon.nova-2-multimodal-embeddings-v1:0"


def one(model="m", **fields):
    return Batch(model=model, texts=("a",), **fields)


def parts(model, *inputs, **fields):
    return Batch(model=model, parts=inputs, **fields)


REQUESTS = {
    "ollama": (OLLAMA, one(), b'{"model":"m","input":["a"],"truncate":false}'),
    "ollama options": (
        Ollama(truncate=True, keep_alive="10m", model_options={"num_ctx": 8192}),
        one(dimensions=8),
        b'{"model":"m","input":["a"],"truncate":true,"dimensions":8,"keep_alive":"10m","options":{"num_ctx":8192}}',
    ),
    "ollama compatible": (
        Ollama(base_url="http://localhost:11434/v1/"),
        one(),
        b'{"model":"m","input":["a"],"encoding_format":"base64"}',
    ),
    "tei": (TEI_SERVER, one(), b'{"inputs":["a"],"normalize":true,"truncate":false}'),
    "tei token ids": (
        TEI_SERVER,
        Batch(model="m", tokens=((1, 2), (3,))),
        b'{"inputs":[[1,2],[3]],"normalize":true,"truncate":false}',
    ),
    "tei options": (
        TEI(truncate=None, truncation_direction="left", prompts={"query": "s2p_query"}),
        one(input_type="query", dimensions=8),
        b'{"inputs":["a"],"normalize":true,"truncation_direction":"Left","prompt_name":"s2p_query","dimensions":8}',
    ),
    "tei default prompt": (
        TEI(prompt_name="passage"),
        one(),
        b'{"inputs":["a"],"normalize":true,"truncate":false,"prompt_name":"passage"}',
    ),
    "tei compatible": (
        TEI(base_url="http://localhost:3000/v1"),
        one(dimensions=8),
        b'{"model":"m","input":["a"],"encoding_format":"base64","dimensions":8}',
    ),
    "vllm": (
        VLLM(truncate_prompt_tokens=-1),
        one(),
        b'{"model":"m","input":["a"],"encoding_format":"base64","truncate_prompt_tokens":-1}',
    ),
    "vllm parts": (
        VLLM(),
        parts("m", (TextPart("a"), LINK)),
        (
            b'{"model":"m","encoding_format":"base64","messages":[{"role":"user","content":['
            b'{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"https://x.example/i.png"}}]}]}'
        ),
    ),
    "openrouter": (
        OpenRouter(api_key=K, preferences={"order": ["nebius"], "data_collection": "deny"}),
        one(input_type="document"),
        (
            b'{"model":"m","input":["a"],"encoding_format":"float","input_type":"search_document",'
            b'"provider":{"order":["nebius"],"data_collection":"deny"}}'
        ),
    ),
    "cloudflare": (CLOUDFLARE, one("@cf/baai/bge-m3"), b'{"text":["a"],"truncate_inputs":false}'),
    "cloudflare options": (
        Cloudflare(api_key=K, account_id="acct", pooling="cls", truncate_inputs=True),
        one("@cf/baai/bge-base-en-v1.5"),
        b'{"text":["a"],"pooling":"cls","truncate_inputs":true}',
    ),
    "cloudflare query": (
        Cloudflare(api_key=K, account_id="acct", instruction="Find it"),
        one("@cf/qwen/qwen3-embedding-0.6b", input_type="query"),
        b'{"queries":["a"],"instruction":"Find it","truncate_inputs":false}',
    ),
    "cloudflare document": (
        CLOUDFLARE,
        one("@cf/qwen/qwen3-embedding-0.6b", input_type="document"),
        b'{"documents":["a"],"truncate_inputs":false}',
    ),
    "cloudflare compatible": (
        Cloudflare(api_key=K, base_url="https://api.cloudflare.com/client/v4/accounts/a/ai/v1"),
        one("@cf/baai/bge-m3"),
        b'{"model":"@cf/baai/bge-m3","input":["a"]}',
    ),
    "watsonx": (
        WATSONX,
        one("ibm/slate-30m-english-rtrvr-v2"),
        b'{"inputs":["a"],"model_id":"ibm/slate-30m-english-rtrvr-v2","project_id":"p"}',
    ),
    "watsonx options": (
        WatsonX(token=K, space_id="s", truncate_input_tokens=512),
        one(),
        b'{"inputs":["a"],"model_id":"m","space_id":"s","parameters":{"truncate_input_tokens":512}}',
    ),
    "titan 1": (BEDROCK, one(TITAN_1), b'{"inputText":"a"}'),
    "titan 2": (
        BEDROCK,
        one(TITAN_2, dimensions=256),
        b'{"inputText":"a","dimensions":256,"normalize":true}',
    ),
    "titan image": (
        BEDROCK,
        parts(TITAN_IMAGE, (TextPart("a"), IMAGE), dimensions=384),
        b'{"inputText":"a","inputImage":"AAAA","embeddingConfig":{"outputEmbeddingLength":384}}',
    ),
    "cohere 3": (
        BEDROCK,
        one(COHERE_3, input_type="query"),
        b'{"texts":["a"],"input_type":"search_query","truncate":"NONE"}',
    ),
    "cohere 3 int8": (
        BEDROCK,
        one(COHERE_3, dtype="int8"),
        b'{"texts":["a"],"input_type":"search_document","embedding_types":["int8"],"truncate":"NONE"}',
    ),
    "cohere 3 image": (
        BEDROCK,
        parts(COHERE_3, (IMAGE,)),
        b'{"images":["data:image/png;base64,AAAA"],"input_type":"image"}',
    ),
    "cohere 4": (
        Bedrock(api_key=K, region="eu-west-1", truncate="end"),
        one(COHERE_4, dimensions=512, input_type="clustering"),
        b'{"texts":["a"],"input_type":"clustering","embedding_types":["float"],"output_dimension":512,"truncate":"END"}',
    ),
    "cohere 4 parts": (
        BEDROCK,
        parts(COHERE_4, (TextPart("a"), IMAGE)),
        (
            b'{"inputs":[{"content":[{"type":"text","text":"a"},{"type":"image_url","image_url":'
            b'{"url":"data:image/png;base64,AAAA"}}]}],"input_type":"search_document",'
            b'"embedding_types":["float"],"truncate":"NONE"}'
        ),
    ),
    "nova": (
        BEDROCK,
        one(NOVA, input_type="query", dimensions=1024),
        (
            b'{"taskType":"SINGLE_EMBEDDING","singleEmbeddingParams":{"embeddingPurpose":"GENERIC_RETRIEVAL",'
            b'"embeddingDimension":1024,"text":{"truncationMode":"NONE","value":"a"}}}'
        ),
    ),
    "nova image": (
        BEDROCK,
        parts(NOVA, (IMAGE,)),
        (
            b'{"taskType":"SINGLE_EMBEDDING","singleEmbeddingParams":{"embeddingPurpose":"GENERIC_INDEX",'
            b'"image":{"format":"png","source":{"bytes":"AAAA"}}}}'
        ),
    ),
    "a profile": (
        Bedrock(api_key=K, region="us-east-1", family="titan-v1"),
        one("arn:aws:bedrock:us-east-1:1:application-inference-profile/x"),
        b'{"inputText":"a"}',
    ),
    "sagemaker tei": (SAGEMAKER, one(), b'{"inputs":["a"],"normalize":true,"truncate":false}'),
    "sagemaker hf": (
        SageMaker(region="us-east-1", container="hf", **AWS),
        one(),
        b'{"inputs":["a"]}',
    ),
    "sagemaker openai": (
        SageMaker(region="us-east-1", container="openai", **AWS),
        one(dimensions=8),
        b'{"model":"m","input":["a"],"dimensions":8}',
    ),
    "vertex predict": (
        VERTEX,
        one("text-embedding-005", input_type="document", dimensions=256, options={"title": "T"}),
        (
            b'{"instances":[{"content":"a","task_type":"RETRIEVAL_DOCUMENT","title":"T"}],'
            b'"parameters":{"autoTruncate":false,"outputDimensionality":256}}'
        ),
    ),
    "vertex content": (
        VERTEX,
        one("gemini-embedding-2", input_type="query", dimensions=768),
        (
            b'{"content":{"parts":[{"text":"task: search result | query: a"}]},'
            b'"embedContentConfig":{"outputDimensionality":768,"autoTruncate":false}}'
        ),
    ),
    "vertex content of an older model": (
        Vertex(project="p", api_key=K, method="embedContent", auto_truncate=True),
        one("gemini-embedding-001", input_type="query"),
        (
            b'{"content":{"parts":[{"text":"a"}]},'
            b'"embedContentConfig":{"taskType":"RETRIEVAL_QUERY","autoTruncate":true}}'
        ),
    ),
    "vertex multimodal": (
        VERTEX,
        parts("multimodalembedding@001", (IMAGE,), (TextPart("a"),), dimensions=128),
        (
            b'{"instances":[{"image":{"bytesBase64Encoded":"AAAA"}},{"text":"a"}],'
            b'"parameters":{"dimension":128}}'
        ),
    ),
}


@pytest.mark.parametrize(("backend", "batch", "content"), REQUESTS.values(), ids=REQUESTS)
def test_builds_the_request(backend, batch, content):
    assert content == backend.build(batch).content


@pytest.mark.parametrize(
    ("backend", "model", "url"),
    [
        (OLLAMA, "m", "http://localhost:11434/api/embed"),
        (Ollama(base_url="http://h/v1/"), "m", "http://h/v1/embeddings"),
        (TEI_SERVER, "m", "http://localhost:3000/embed"),
        (TEI(base_url="http://h/v1"), "m", "http://h/v1/embeddings"),
        (VLLM(), "m", "http://localhost:8000/v1/embeddings"),
        (OpenRouter(), "m", "https://openrouter.ai/api/v1/embeddings"),
        (
            CLOUDFLARE,
            "@cf/baai/bge-m3",
            "https://api.cloudflare.com/client/v4/accounts/acct/ai/run/@cf/baai/bge-m3",
        ),
        (
            WATSONX,
            "m",
            "https://us-south.ml.cloud.ibm.com/ml/v1/text/embeddings?version=2024-03-13",
        ),
        (
            BEDROCK,
            TITAN_2,
            "https://bedrock-runtime.us-east-1.amazonaws.com/model/amazon.titan-embed-text-v2%3A0/invoke",
        ),
        (
            Bedrock(api_key=K, region="cn-north-1", family="titan-v1"),
            "arn:aws-cn:bedrock:cn-north-1:1:inference-profile/a",
            "https://bedrock-runtime.cn-north-1.amazonaws.com.cn/model/arn%3Aaws-cn%3Abedrock%3Acn-north-1%3A1%3Ainference-profile%2Fa/invoke",
        ),
        (
            SAGEMAKER,
            "e/1",
            "https://runtime.sagemaker.us-east-1.amazonaws.com/endpoints/e%2F1/invocations",
        ),
        (
            VERTEX,
            "text-embedding-005",
            "https://aiplatform.googleapis.com/v1/projects/p/locations/global/publishers/google/models/text-embedding-005:predict",
        ),
        (
            Vertex(project="p", location="eu", api_key=K),
            "gemini-embedding-2",
            "https://aiplatform.eu.rep.googleapis.com/v1/projects/p/locations/eu/publishers/google/models/gemini-embedding-2:embedContent",
        ),
        (
            Vertex(project="p", location="us-central1", api_key=K),
            "endpoints/123",
            "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1/endpoints/123:predict",
        ),
    ],
)
def test_sends_the_request_to_this_address(backend, model, url):
    assert url == backend.build(one(model)).url


@pytest.mark.parametrize(
    ("backend", "batch", "kind"),
    [
        (BEDROCK, Batch(model=TITAN_2, texts=("a", "b")), BatchTooLarge),
        (BEDROCK, parts(COHERE_3, (IMAGE,), (IMAGE,)), BatchTooLarge),
        (BEDROCK, parts(COHERE_3, (TextPart("a"), IMAGE)), UpstreamRejectedInput),
        (BEDROCK, parts(TITAN_2, (IMAGE,)), UpstreamRejectedInput),
        (BEDROCK, one(TITAN_2, input_type="query"), UpstreamRejectedInput),
        (BEDROCK, parts(TITAN_IMAGE, (IMAGE, IMAGE)), UpstreamRejectedInput),
        (BEDROCK, parts(NOVA, (IMAGE, TextPart("a"))), UpstreamRejectedInput),
        (BEDROCK, parts(NOVA, (LINK,)), InvalidRequest),
        (BEDROCK, one("unknown"), UpstreamUnavailable),
        (VLLM(), parts("m", (IMAGE,), (IMAGE,)), BatchTooLarge),
        (VERTEX, Batch(model="gemini-embedding-2", texts=("a", "b")), BatchTooLarge),
        (VERTEX, parts("text-embedding-005", (IMAGE,)), UpstreamRejectedInput),
        (VERTEX, parts("multimodalembedding@001", (IMAGE, TextPart("a"))), UpstreamRejectedInput),
    ],
)
def test_refuses_what_the_model_does_not_take(backend, batch, kind):
    with pytest.raises(kind) as caught:
        backend.build(batch)

    assert kind is type(caught.value)


COUNT = {"X-Amzn-Bedrock-Input-Token-Count": "7"}


@pytest.mark.parametrize(
    ("backend", "model", "headers", "content", "tokens"),
    [
        (OLLAMA, "m", {}, b'{"model":"m","embeddings":[[1,2]],"prompt_eval_count":4}', 4),
        (OLLAMA, "m", {}, b'{"embeddings":[[1,2]]}', None),
        (TEI_SERVER, "m", {"x-compute-tokens": "5"}, b"[[1,2]]", 5),
        (TEI_SERVER, "m", {}, b" [ [1.0, 2.0] ] ", None),
        (CLOUDFLARE, "m", {}, b'{"result":{"shape":[1,2],"data":[[1,2]]},"success":true}', None),
        (WATSONX, "m", {}, b'{"results":[{"embedding":[1,2]}],"input_token_count":3}', 3),
        (BEDROCK, TITAN_1, {}, b'{"embedding":[1,2],"inputTextTokenCount":2}', 2),
        (BEDROCK, TITAN_1, COUNT, b'{"embedding":[1,2],"inputTextTokenCount":2}', 7),
        (
            BEDROCK,
            COHERE_3,
            COUNT,
            b'{"embeddings":[[1,2]],"response_type":"embeddings_floats"}',
            7,
        ),
        (BEDROCK, COHERE_4, COUNT, b'{"embeddings":{"float":[[1,2]]}}', 7),
        (BEDROCK, NOVA, COUNT, b'{"embeddings":[{"embeddingType":"TEXT","embedding":[1,2]}]}', 7),
        (
            BEDROCK,
            NOVA,
            {"x-amzn-bedrock-input-token-count": "x"},
            b'{"embeddings":[{"embedding":[1,2]}]}',
            None,
        ),
        (SAGEMAKER, "m", {}, b"[[1,2]]", None),
        (
            VERTEX,
            "text-embedding-005",
            {},
            b'{"predictions":[{"embeddings":{"values":[1,2],"statistics":{"token_count":4.0,"truncated":false}}}]}',
            4,
        ),
        (
            VERTEX,
            "text-embedding-005",
            {},
            b'{"predictions":[{"embeddings":{"values":[1,2]}}]}',
            None,
        ),
        (
            VERTEX,
            "gemini-embedding-2",
            {},
            b'{"embedding":{"values":[1,2]},"usageMetadata":{"promptTokenCount":3}}',
            3,
        ),
        (
            VERTEX,
            "gemini-embedding-2",
            {},
            b'{"embedding":{"values":[1,2]},"usageMetadata":[]}',
            None,
        ),
        (
            VERTEX,
            "multimodalembedding@001",
            {},
            b'{"predictions":[{"imageEmbedding":[1,2]}]}',
            None,
        ),
    ],
)
def test_reads_the_vectors_and_the_tokens(backend, model, headers, content, tokens):
    found = backend.parse(one(model), UpstreamResponse(200, headers, content))

    assert ([[1, 2]], tokens) == (found.array.tolist(), found.prompt_tokens)


def test_vertex_reports_the_tokens_of_each_modality():
    usage = (
        b'{"promptTokenCount":260,"promptTokensDetails":[{"modality":"TEXT","tokenCount":2},'
        b'{"modality":"IMAGE","tokenCount":258},{"modality":"AUDIO"}]}'
    )
    content = b'{"embedding":{"values":[1]},"usageMetadata":%s}' % usage
    found = VERTEX.parse(one("gemini-embedding-2"), UpstreamResponse(200, {}, content))

    assert {"text": 2, "image": 258} == found.modality_tokens


def test_vertex_normalises_short_vectors_of_the_model_that_does_not():
    content = b'{"predictions":[{"embeddings":{"values":[3,4]}}]}'
    rows = [
        VERTEX.parse(one(model), UpstreamResponse(200, {}, content)).array[0].tolist()
        for model in ("gemini-embedding-001", "text-embedding-005")
    ]

    assert [pytest.approx([0.6, 0.8]), [3, 4]] == rows


@pytest.mark.parametrize(
    ("backend", "model", "content", "kind"),
    [
        (TEI_SERVER, "m", b"[[[1,2],[3,4]]]", InvalidUpstreamResponse),
        (
            BEDROCK,
            TITAN_IMAGE,
            b'{"embedding":[1,2],"message":"too large"}',
            InvalidUpstreamResponse,
        ),
        (BEDROCK, TITAN_1, b'{"inputTextTokenCount":2}', InvalidUpstreamResponse),
        (VERTEX, "gemini-embedding-2", b'{"embedding":{"values":[]}}', InvalidUpstreamResponse),
        (
            CLOUDFLARE,
            "m",
            b'{"result":null,"success":false,"errors":[{"code":5007,"message":"No such model"}]}',
            Rejected,
        ),
    ],
)
def test_refuses_a_response_without_vectors(backend, model, content, kind):
    with pytest.raises(UpstreamError) as caught:
        backend.parse(one(model), UpstreamResponse(200, {}, content))

    assert kind is type(caught.value)


def amazon(name):
    return {"x-amzn-ErrorType": f"{name}:http://internal.amazon.com/coral/com.amazon.bedrock/"}


GOOGLE_429 = (
    b'{"error":{"code":429,"message":"Quota exceeded for aiplatform.googleapis.com/'
    b'online_prediction_requests_per_base_model","status":"RESOURCE_EXHAUSTED","details":'
    b'[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"37.5s"}]}}'
)


@pytest.mark.parametrize(
    ("backend", "status", "headers", "content", "kind", "wait"),
    [
        (OLLAMA, 400, {}, b'{"error":"the input length exceeds the context length"}', ContextTooLong, None),
        (OLLAMA, 404, {}, b'{"error":"model \\"x\\" not found, try pulling it first"}', UpstreamModelNotFound, None),
        (OLLAMA, 503, {}, b'{"error":"server busy, please try again.  maximum pending requests exceeded"}', UpstreamUnavailable, None),
        (OLLAMA, 499, {}, b"", UpstreamUnavailable, None),
        (
            TEI_SERVER,
            413,
            {},
            b'{"error":"Input validation error: `inputs` must have less than 512 tokens. Given: 600","error_type":"Validation"}',
            ContextTooLong,
            None,
        ),
        (
            TEI_SERVER,
            422,
            {},
            b'{"error":"batch size 33 > maximum allowed batch size 32","error_type":"Validation"}',
            BatchTooLarge,
            None,
        ),
        (TEI_SERVER, 424, {}, b'{"error":"Inference failed","error_type":"Backend"}', UpstreamUnavailable, None),
        (TEI_SERVER, 429, {}, b'{"error":"Model is overloaded","error_type":"Overloaded"}', RateLimited, None),
        (CLOUDFLARE, 429, {}, b'{"success":false,"errors":[{"code":3040,"message":"Capacity temporarily exceeded"}]}', RateLimited, None),
        (CLOUDFLARE, 429, {}, b'{"success":false,"errors":[{"code":4006,"message":"you have used up your daily free allocation"}]}', QuotaExhausted, None),
        (CLOUDFLARE, 401, {}, b'{"success":false,"errors":[{"code":10000,"message":"Authentication error"}]}', UpstreamAuthError, None),
        (WATSONX, 401, {}, b'{"errors":[{"code":"authentication_token_expired","message":"Failed to authenticate the request"}],"status_code":401}', UpstreamAuthError, None),
        (WATSONX, 404, {}, b'{"errors":[{"code":"model_not_supported","message":"Model \'x\' is not supported"}],"status_code":404}', UpstreamModelNotFound, None),
        (BEDROCK, 429, amazon("ThrottlingException"), b'{"message":"Too many requests"}', RateLimited, None),
        (BEDROCK, 403, amazon("AccessDeniedException"), b'{"message":"You don\'t have access"}', UpstreamAuthError, None),
        (BEDROCK, 403, amazon("ExpiredTokenException"), b'{"message":"expired"}', UpstreamAuthError, None),
        (BEDROCK, 404, amazon("ResourceNotFoundException"), b'{"message":"Could not resolve"}', UpstreamModelNotFound, None),
        (BEDROCK, 424, amazon("ModelErrorException"), b'{"message":"x"}', UpstreamUnavailable, None),
        (BEDROCK, 408, amazon("ModelTimeoutException"), b'{"message":"x"}', UpstreamUnavailable, None),
        (
            BEDROCK,
            400,
            amazon("ValidationException"),
            b'{"message":"Invocation of model ID x with on-demand throughput isn\'t supported. Retry with an inference profile"}',
            UpstreamModelNotFound,
            None,
        ),
        (SAGEMAKER, 400, amazon("ValidationError"), b'{"message":"Endpoint m of account 1 not found."}', Rejected, None),
        (
            SAGEMAKER,
            424,
            amazon("ModelError"),
            b'{"ErrorCode":"x","OriginalStatusCode":429,"OriginalMessage":"{\\"error\\":\\"Model is overloaded\\"}","Message":"Received client error (429)"}',
            RateLimited,
            None,
        ),
        (
            SAGEMAKER,
            424,
            amazon("ModelError"),
            b'{"OriginalStatusCode":413,"OriginalMessage":"{\\"error\\":\\"`inputs` must have less than 512 tokens. Given: 600\\"}"}',
            ContextTooLong,
            None,
        ),
        (SAGEMAKER, 424, amazon("ModelError"), b'{"Message":"x"}', UpstreamUnavailable, None),
        (VERTEX, 429, {}, GOOGLE_429, RateLimited, 37.5),
        (
            VERTEX,
            400,
            {},
            b'{"error":{"code":400,"message":"5 instance(s) is allowed per prediction. Actual: 6","status":"INVALID_ARGUMENT"}}',
            BatchTooLarge,
            None,
        ),
        (VERTEX, 401, {}, b'{"error":{"code":401,"message":"x","status":"UNAUTHENTICATED"}}', UpstreamAuthError, None),
    ],
)  # fmt: skip
def test_classifies_the_errors_of_the_api(backend, status, headers, content, kind, wait):
    error = backend.map_error(UpstreamResponse(status, headers, content))

    assert (kind, wait) == (type(error), error.retry_after)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bedrock(region="US East"), "region must be"),
        (lambda: Bedrock(region="us-east-1", access_key_id=K), "both access_key_id and"),
        (lambda: SageMaker(region="/"), "region must be"),
        (lambda: Cloudflare(api_key=K), "account_id is missing"),
        (lambda: WatsonX(project_id="p"), "either api_key or token"),
        (lambda: WatsonX(api_key=K), "either project_id or space_id"),
        (lambda: Vertex(project="p", api_key=K, base_url="localhost"), "base_url must be"),
    ],
)
def test_rejects_options_from_which_no_request_can_be_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()
