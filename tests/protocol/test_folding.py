"""Content parts that are only texts are one text to a model whose APIs take no parts."""

import pytest

from embedroute.errors import InvalidRequest
from embedroute.protocol import Limits, fold_parts_in_steps, make_request
from embedroute.testing import ScriptedBackend
from tests.regressions.requesting import ask, gateway_of, inputs_of

pytestmark = pytest.mark.anyio

TEXT_API = {"accepts": {"modalities": ["text"]}}
MULTIMODAL_API = {"accepts": {"modalities": ["text", "image"]}}
MULTIMODAL = {"modalities": ["text", "image"]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}}


def item(*texts):
    return {"content": [{"type": "text", "text": text} for text in texts]}


@pytest.mark.parametrize("facts", [{}, MULTIMODAL])
@pytest.mark.parametrize(
    ("inputs", "sent"),
    [
        ([item("one")], ["one"]),
        ([item("one"), item("two")], ["one", "two"]),
        ([item("one", "two"), item("three")], ["one\ntwo", "three"]),
    ],
)
async def test_text_parts_are_folded_for_an_api_without_parts(facts, inputs, sent):
    backend = ScriptedBackend(width=8)
    gateway = gateway_of({"a": backend}, endpoints={"a": TEXT_API}, models={"m": facts})

    answer = await ask(gateway, input=inputs)

    assert 200 == answer.status
    assert [sent] == inputs_of(backend)


async def test_folded_parts_share_the_cache_with_texts():
    backend = ScriptedBackend(width=8)
    gateway = gateway_of({"a": backend}, endpoints={"a": TEXT_API})
    await ask(gateway, input=["one"])

    answer = await ask(gateway, input=[item("one")])

    assert "hits=1 misses=0" == answer.header("x-embedroute-cache")
    assert 1 == len(backend.batches)


async def test_parts_stay_parts_for_an_api_that_takes_them():
    text_only, multimodal = ScriptedBackend(width=8), ScriptedBackend(width=8)
    gateway = gateway_of(
        {"a": text_only, "b": multimodal},
        endpoints={"a": {**TEXT_API, "price": 1}, "b": {**MULTIMODAL_API, "price": 1000}},
        models={"m": MULTIMODAL},
    )

    assert 200 == (await ask(gateway, input=[item("one", "two")])).status

    assert [] == text_only.batches
    assert [2] == [len(parts) for parts in inputs_of(multimodal)[0]]


async def test_images_are_still_refused_by_a_text_model():
    gateway = gateway_of({"a": ScriptedBackend(width=8)}, endpoints={"a": TEXT_API})

    answer = await ask(gateway, input=[item("one"), {"content": [IMAGE]}])

    assert (400, "unsupported_modality") == (answer.status, answer.error["code"])


async def test_a_folded_text_may_be_too_long():
    gateway = gateway_of(
        {"a": ScriptedBackend(width=8)}, endpoints={"a": TEXT_API}, max_text_characters=8
    )

    answer = await ask(gateway, input=[item("one"), item("12345678", "1")])

    assert (400, "input[1]", "context_length_exceeded") == (
        answer.status,
        answer.error["param"],
        answer.error["code"],
    )


async def test_an_error_names_the_field_of_the_request():
    gateway = gateway_of(
        {"a": ScriptedBackend(width=8)}, endpoints={"a": TEXT_API}, max_text_characters=8
    )

    answer = await ask(gateway, input=None, inputs=[item("one"), item("12345678", "1")])

    assert (400, "inputs[1]") == (answer.status, answer.error["param"])


async def test_each_input_is_folded_in_its_own_step():
    """The event loop runs between the steps of a large request."""
    request = make_request({"model": "m", "input": [item("one", "two")] * 64}, Limits())

    steps = fold_parts_in_steps(request, Limits())

    assert 64 == sum(1 for _ in steps)


async def test_the_permission_is_checked_before_folding():
    gateway = gateway_of(
        {"a": ScriptedBackend(width=8)}, endpoints={"a": TEXT_API}, max_text_characters=8
    )

    answer = await ask(gateway, path="/v1/embeddings?explain=1", input=[item("12345678", "1")])

    assert (403, "debug_not_allowed") == (answer.status, answer.error["code"])


async def test_a_forecast_folds_too():
    backend = ScriptedBackend(width=8)
    gateway = gateway_of({"a": backend}, endpoints={"a": TEXT_API}, debug=True)

    answer = await ask(gateway, path="/v1/embeddings?explain=1", input=[item("one")])

    assert (200, [[1]]) == (answer.status, [row["chunks"] for row in answer.json["order"]])


async def test_folds_in_process():
    backend = ScriptedBackend(width=8)
    gateway = gateway_of({"a": backend}, endpoints={"a": TEXT_API})

    await gateway.embed([item("one")], model="m")

    assert [["one"]] == inputs_of(backend)
    with pytest.raises(InvalidRequest):
        await gateway.embed([item("")], model="m")
