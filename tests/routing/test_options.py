"""The options of single APIs: which endpoints get them, and when they are refused."""

from typing import ClassVar

import msgspec
import pytest

from embedroute.auth import Caller
from embedroute.backend import Accepts, Options
from embedroute.backends.cohere import CohereOptions
from embedroute.errors import EmbedrouteError, InvalidRequest
from embedroute.plugins import Namespaces
from embedroute.protocol import Limits, RequestOptions, decode_request
from embedroute.routing import make_key_prefix, select_endpoints
from embedroute.testing import ScriptedBackend
from tests.routing.factories import candidate, context_for, job, route

CUTS = ("none", "start", "end")


class Cohere(ScriptedBackend, frozen=True, kw_only=True):
    accepts: ClassVar[Accepts] = Accepts(options=("cohere",))
    request_options: ClassVar[tuple[type[Options], ...]] = (CohereOptions,)


class Open(ScriptedBackend, frozen=True, kw_only=True):
    accepts: ClassVar[Accepts] = Accepts()
    forwards_fields: ClassVar[bool] = True


def at(provider, backend=None, allow_fields=(), **accepts):
    made = candidate(provider, accepts=accepts, allow_fields=allow_fields)
    return msgspec.structs.replace(made, backend=backend or ScriptedBackend())


COHERE = at("cohere", Cohere(), options=("cohere",), truncate=CUTS, dtypes=("float", "int8"))
TEI = at("tei", options=("tei",), truncate=CUTS)
PLAIN = at("plain", truncate=("none",))
SILENT = at("silent")


def select(request, *candidates, **facts):
    candidates = candidates or (COHERE, TEI, PLAIN, SILENT)
    return select_endpoints(
        route(*candidates, **facts), request, Caller(name="c"), context_for(candidates)
    )


def chosen(fields, *candidates, **facts):
    selection = select(job(**fields), *candidates, **facts)
    return {item.provider for item in selection.candidates}, selection.parameters


def options(**by_api):
    return {"embedding_options": by_api}


@pytest.mark.parametrize(
    ("fields", "providers"),
    [
        pytest.param({"truncate": "none"}, {"cohere", "tei", "plain"}, id="none"),
        pytest.param({"truncate": "start"}, {"cohere", "tei"}, id="start"),
        pytest.param(options(cohere={"truncate": "END"}), {"cohere"}, id="of one API"),
        pytest.param(options(cohere={"max_tokens": 5}), {"cohere"}, id="native"),
        pytest.param(options(cohere={"priority": 5}), {"cohere"}, id="without effect on vectors"),
        pytest.param(
            options(tei={"truncate": True, "truncation_direction": "Left"}),
            {"tei"},
            id="two fields",
        ),
        pytest.param(options(nvidia={}), {"cohere", "tei", "plain", "silent"}, id="empty"),
    ],
)
def test_only_endpoints_with_that_option_are_candidates(fields, providers):
    assert chosen(fields)[0] == providers


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"truncate": "start"}, "truncate", "asks for 'start', which no provider of this model supports. Use none, or omit"),
        (options(cohere={"max_tokens": 5}), "embedding_options.cohere.max_tokens", "would change the vectors"),
        (options(cohere={"truncate": "END"}), "embedding_options.cohere.truncate", "would change the vectors"),
        (options(jina={"task": "code.passage"}), "embedding_options.jina.task", "would change the vectors"),
        ({"truncate": "none", **options(cohere={"truncate": "END"})}, "embedding_options.cohere.truncate", "contradicts 'truncate'"),
        ({"input_type": "query", **options(jina={"task": "code.passage"})}, "embedding_options.jina.task", "contradicts 'input_type'"),
        ({"output_dtype": "int8", **options(cohere={"embedding_types": ["ubinary"]})}, "embedding_options.cohere.embedding_types", "contradicts 'output_dtype'"),
        ({"output_dtype": "int8"}, "output_dtype", "not supported by any provider"),
    ],
)  # fmt: skip
def test_an_option_that_no_endpoint_has_is_named(fields, param, words):
    with pytest.raises(InvalidRequest, match=words.replace(".", r"\.")) as caught:
        chosen(fields, PLAIN, SILENT)

    assert param == caught.value.param


def test_vectors_that_are_to_keep_their_length_cannot_be_shortened():
    """The gateway scales shortened vectors, so that one of the two would have no effect."""
    raw = options(tei={"normalize": False})
    tei = at("tei", options=("tei",), dimensions=True)

    assert chosen(raw, tei)[0] == {"tei"}
    assert chosen({"dimensions": 4, **options(tei={"normalize": True})}, tei)[0] == {"tei"}
    with pytest.raises(InvalidRequest, match="Leave one of them out") as caught:
        chosen({"dimensions": 4, **raw}, tei)
    assert "embedding_options.tei.normalize" == caught.value.param


def test_options_without_effect_are_dropped_where_no_endpoint_has_them():
    selection = select(job(**options(cohere={"priority": 5})), PLAIN)

    assert [option.name for option in selection.ignored_options] == [
        "embedding_options.cohere.priority"
    ]


def test_native_options_of_two_apis_need_an_endpoint_with_both():
    both = options(cohere={"max_tokens": 5}, tei={"normalize": False})
    either = at("either", options=("cohere", "tei"))

    assert chosen(both, COHERE, TEI, either)[0] == {"either"}
    with pytest.raises(InvalidRequest) as caught:
        chosen(both, COHERE, TEI)
    assert caught.value.param == "embedding_options.tei"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (options(cohere={"output_dimension": 8.0}), {"width": 8, "dimensions": 8}),
        (options(cohere={"embedding_types": ["int8"]}), {"dtype": "int8"}),
        (options(cohere={"embedding_types": ["base64"]}), {"dtype": "float"}),
        (options(cohere={"truncate": "START"}), {"truncate": "start"}),
        (options(cohere={"max_tokens": 5}), {"options": {"cohere": {"max_tokens": 5}}}),
    ],
)
def test_options_become_neutral_parameters(fields, expected):
    candidate = at(
        "c", options=("cohere",), truncate=CUTS, dtypes=("float", "int8"), dimensions=True
    )
    parameters = chosen(fields, candidate)[1]

    assert expected == {name: getattr(parameters, name) for name in expected}


def prefix(fields):
    selection = select(job(**fields), COHERE, TEI)
    return make_key_prefix(route(COHERE), selection.parameters, job().preferences, ("s",))


def test_cache_keys_differ_if_an_option_changes_the_vectors():
    plain = prefix({})
    keys = [
        prefix(fields)
        for fields in (
            {"truncate": "none"},
            {"truncate": "end"},
            options(cohere={"max_tokens": 5}),
            options(cohere={"max_tokens": 6}),
            options(tei={"normalize": False}),
            options(tei={"prompt_name": "query"}),
            {"truncate": "end", **options(tei={"prompt_name": "query"})},
        )
    ]

    assert len({plain, *keys}) == len(keys) + 1
    assert prefix(options(cohere={"priority": 5})) == plain
    assert prefix(options(tei={"truncate": True})) == prefix({"truncate": "end"})


def decode_with(allowed, **fields):
    body = msgspec.json.encode({"model": "m", "input": "a", **fields})
    return decode_request(body, Limits(namespaces=Namespaces(), allowed_fields=frozenset(allowed)))


def test_an_allowed_field_belongs_to_the_api_of_the_provider_that_allows_it():
    allowing = msgspec.structs.replace(COHERE, allow_fields=("max_tokens",))
    request = decode_with({"max_tokens"}, max_tokens=5)
    selection = select(request, allowing, TEI, COHERE)

    assert [each.provider for each in selection.candidates] == ["cohere"]
    assert selection.candidates == [allowing]
    assert selection.parameters.options == {"cohere": {"max_tokens": 5}}
    with pytest.raises(InvalidRequest) as caught:
        select(decode_with({"max_tokens"}, max_tokens=0), allowing)
    assert caught.value.param == "max_tokens"


def test_other_allowed_fields_are_passed_on_as_they_are():
    allowing = at("open", Open(), allow_fields=("normalize",))
    request = decode_with({"normalize"}, normalize=False)

    assert request.options == RequestOptions(fields={"normalize": False})
    selection = select(request, allowing, COHERE)
    assert selection.candidates == [allowing]
    assert selection.parameters.options == {"": {"normalize": False}}
    assert "normalize" in selection.parameters.options_key
    with pytest.raises(InvalidRequest) as caught:
        select(request, COHERE)
    assert caught.value.param == "normalize"


def test_fields_that_no_provider_allows_are_unknown():
    with pytest.raises(InvalidRequest) as caught:
        decode_with({"normalize"}, normalise=False)
    assert caught.value.param == "normalise"

    with pytest.raises(InvalidRequest) as caught:
        decode_with({"normalize"}, normalize={"a": ["x" * 513]})
    assert caught.value.param == "normalize.a[0]"


class TakenOptions(Options, frozen=True, kw_only=True):
    namespace: ClassVar[str] = "cohere"


class Taken(ScriptedBackend, frozen=True, kw_only=True):
    request_options: ClassVar[tuple[type[Options], ...]] = (TakenOptions,)


class AcmeOptions(Options, frozen=True, kw_only=True):
    namespace: ClassVar[str] = "acme"

    pooling: str | None = None


class Acme(ScriptedBackend, frozen=True, kw_only=True):
    request_options: ClassVar[tuple[type[Options], ...]] = (AcmeOptions,)


def test_a_plugin_has_a_namespace_of_its_own():
    assert Namespaces([Acme()])["acme"] is AcmeOptions
    assert "acme" not in Namespaces()
    with pytest.raises(EmbedrouteError, match="belongs to CohereOptions"):
        Namespaces([Taken()])
