"""The official clients of other APIs, against a gateway that serves their protocols."""

import base64

import cohere
import huggingface_hub
import numpy as np
import ollama
import openai
import pytest
import voyageai

from embedroute.testing import expected_vector
from tests.clients.served_protocols import KEY, MODEL, WIDTH
from tests.support.serving import Serving

TEXTS = ["a first text", "a second one"]


@pytest.fixture(scope="module")
def url():
    with Serving("tests.clients.served_protocols", debug=False) as server:
        yield server.url
    assert server.said == ""


def vectors_of(*texts, input_type=None):
    return [expected_vector(text, WIDTH, input_type=input_type) for text in texts]


PLAIN = vectors_of(*TEXTS)
DOCUMENTS = vectors_of(*TEXTS, input_type="document")


def azure(url, **options):
    return openai.AzureOpenAI(
        azure_endpoint=url, api_version="2024-10-21", max_retries=0, **{"api_key": KEY, **options}
    )


def test_azures_client_embeds(url):
    with azure(url) as client:
        answer = client.embeddings.create(model=MODEL, input=TEXTS)

    assert np.allclose(PLAIN, [row.embedding for row in answer.data])
    assert answer.model == MODEL


def test_azures_client_embeds_with_a_deployment_and_a_token(url):
    with azure(url, api_key=None, azure_ad_token=KEY, azure_deployment=MODEL) as client:
        answer = client.embeddings.create(model="any", input=TEXTS, dimensions=4)

    assert [4, 4] == [len(row.embedding) for row in answer.data]
    cut = PLAIN[0][:4] / np.linalg.norm(PLAIN[0][:4])
    assert np.allclose(cut, answer.data[0].embedding, atol=1e-6)


def test_azures_client_gets_azures_errors(url):
    with azure(url) as client, pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="unknown", input="a")
    with (
        azure(url, api_key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError) as wrong,
    ):
        client.embeddings.create(model=MODEL, input="a")

    assert unknown.value.code == "DeploymentNotFound"
    assert wrong.value.code == "401"


@pytest.fixture
def cohere_client(url):
    with cohere.ClientV2(api_key=KEY, base_url=url) as client:
        yield client


def test_coheres_client_embeds_texts(cohere_client):
    answer = cohere_client.embed(model=MODEL, texts=TEXTS, input_type="search_document")

    assert np.allclose(DOCUMENTS, answer.embeddings.float_)
    assert answer.texts == TEXTS
    assert answer.meta.billed_units.input_tokens > 0


def test_coheres_client_embeds_to_another_type(cohere_client):
    request = {"model": MODEL, "texts": TEXTS, "input_type": "search_query"}
    answer = cohere_client.embed(**request, embedding_types=["int8"])
    encoded = cohere_client.embed(**request, embedding_types=["base64"])

    assert answer.embeddings.int8 == [[len("query"), -1] * (WIDTH // 2)] * 2
    assert [4 * WIDTH] * 2 == [len(base64.b64decode(row)) for row in encoded.embeddings.base64]


def test_coheres_client_embeds_images_and_mixed_inputs(cohere_client):
    pixel = "data:image/png;base64,iVBORw0KGgo="
    images = cohere_client.embed(model=MODEL, images=[pixel], input_type="search_document")
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": pixel}}]
    mixed = cohere_client.embed(
        model=MODEL, inputs=[{"content": content}], input_type="search_document", output_dimension=4
    )

    assert len(images.embeddings.float_[0]) == WIDTH
    assert len(mixed.embeddings.float_[0]) == 4


def test_coheres_client_gets_coheres_errors(cohere_client, url):
    with pytest.raises(cohere.BadRequestError) as empty:
        cohere_client.embed(model=MODEL, texts=["a", ""], input_type="search_query")
    with (
        cohere.ClientV2(api_key="sk-wrong", base_url=url) as client,
        pytest.raises(cohere.UnauthorizedError),
    ):
        client.embed(model=MODEL, texts=["a"], input_type="search_query")

    assert empty.value.body["message"] == "'texts[1]' must not be empty."


@pytest.fixture
def ollama_client(url):
    with ollama.Client(host=url, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_ollamas_client_embeds(ollama_client):
    answer = ollama_client.embed(model=MODEL, input=TEXTS, truncate=True, keep_alive="5m")
    short = ollama_client.embed(model=f"{MODEL}:latest", input="a", dimensions=2)
    older = ollama_client.embeddings(model=MODEL, prompt=TEXTS[0])

    assert np.allclose(PLAIN, answer.embeddings, atol=1e-6)
    assert answer.prompt_eval_count > 0
    assert len(short.embeddings[0]) == 2
    assert np.allclose(PLAIN[0], older.embedding)


def test_ollamas_client_lists_and_shows_models(ollama_client):
    assert [MODEL] == [model.model for model in ollama_client.list().models]
    shown = ollama_client.show(MODEL)

    assert shown.modelinfo["embedding.embedding_length"] == WIDTH
    assert shown.modelinfo["embedding.context_length"] == 512
    assert "embedding" in shown.capabilities


def test_ollamas_client_gets_ollamas_errors(ollama_client):
    with pytest.raises(ollama.ResponseError) as unknown:
        ollama_client.embed(model="unknown", input="a")
    with pytest.raises(ollama.ResponseError) as option:
        ollama_client.embed(model=MODEL, input="a", options={"num_ctx": 16})

    assert unknown.value.status_code == 404
    assert unknown.value.error.startswith('model "unknown" not found')
    assert "'options.num_ctx'" in option.value.error


@pytest.mark.parametrize("path", ["/embed", f"/tei/{MODEL}/embed", f"/tei/{MODEL}"])
def test_hugging_faces_client_embeds(url, path):
    with huggingface_hub.InferenceClient(model=f"{url}{path}", token=KEY) as client:
        many = client.feature_extraction(TEXTS, prompt_name="document")
        one = client.feature_extraction(TEXTS[0], normalize=True, truncate=True)

    assert np.allclose(DOCUMENTS, many, atol=1e-6)
    assert np.allclose(PLAIN[:1], one, atol=1e-6)


def test_hugging_faces_client_gets_the_errors_of_tei(url):
    with (
        huggingface_hub.InferenceClient(model=f"{url}/embed", token=KEY) as client,
        pytest.raises(huggingface_hub.errors.HfHubHTTPError) as refused,
    ):
        client.feature_extraction("a", normalize=False)

    assert refused.value.response.json()["error_type"] == "Validation"


@pytest.fixture
def voyage_client(url):
    return voyageai.Client(api_key=KEY, base_url=f"{url}/v1", max_retries=0)


def test_voyages_client_embeds(voyage_client):
    answer = voyage_client.embed(TEXTS, model=MODEL, input_type="document")
    short = voyage_client.embed(TEXTS, model=MODEL, input_type="query", output_dimension=4)
    numbers = voyage_client.embed(TEXTS, model=MODEL, input_type="query", output_dtype="int8")

    assert np.allclose(DOCUMENTS, answer.embeddings)
    assert answer.total_tokens > 0
    assert len(short.embeddings[0]) == 4
    assert [list(row) for row in numbers.embeddings] == [[len("query"), -1] * (WIDTH // 2)] * 2


def test_voyages_client_gets_voyages_errors(voyage_client):
    with pytest.raises(voyageai.error.InvalidRequestError, match="output_dimension"):
        voyage_client.embed(TEXTS, model=MODEL, input_type="query", output_dimension=400)
