"""How model names are resolved, and how config and catalogue are merged, with all mistakes reported."""

import pytest

from embedroute.backend import Accepts, Secret
from embedroute.config import ApiKey as ConfigKey
from embedroute.config import (
    Config,
    Endpoint,
    KnownProvider,
    Model,
    Provider,
    Settings,
    catalogue,
    known_providers,
)
from embedroute.errors import InvalidRequest, ModelNotFound, NoEligibleProvider
from embedroute.plugins import map_known_providers
from embedroute.protocol import SPELLINGS
from embedroute.routing import build_registry
from embedroute.testing import ScriptedBackend


class WideBackend(ScriptedBackend):
    accepts = Accepts(tokens=True, modalities=("text", "image"), max_inputs=100)


class NoInputBackend(ScriptedBackend):
    accepts = Accepts(texts=False)


def built(config, *, shipped=None, known=None, backends=None):
    made = backends or {slug: WideBackend() for slug in config.providers}
    return build_registry(
        config,
        made,
        shipped or {},
        known or {},
        map_known_providers(config, known or {}),
        namespaces=("google", "mistral"),
    )


def directory(providers=("openai", "azure", "tei/eu", "tei"), **models):
    config = Config(
        providers={slug: Provider() for slug in providers},
        models=models
        or {
            "small": Model(
                endpoints=[
                    Endpoint(provider="openai", model="text-small"),
                    Endpoint(provider="azure"),
                ]
            ),
            "BAAI/bge-m3": Model(endpoints=[Endpoint(provider="tei/eu")]),
            "odd:floor": Model(endpoints=[Endpoint(provider="tei")]),
            "tei/own": Model(endpoints=[Endpoint(provider="openai", model="x")]),
            "text-small": Model(endpoints=[Endpoint(provider="azure", model="other")]),
        },
    )
    found, mistakes = built(config)
    assert [] == mistakes
    return found


DIRECTORY = directory()


def resolved(name, provider=None):
    """Space, public name, ``provider:upstream`` of each candidate, and the sort."""
    route = DIRECTORY.resolve(name, provider)
    return route.name, route.public_name, [item.name for item in route.candidates], route.sort


@pytest.mark.parametrize(
    ("name", "provider", "found"),
    [
        # a bare name is the model, with all its endpoints
        ("small", None, ("small", "small", ["openai:text-small", "azure:small"], None)),
        # a slash alone makes no provider
        ("BAAI/bge-m3", None, ("BAAI/bge-m3", "BAAI/bge-m3", ["tei/eu:BAAI/bge-m3"], None)),
        # a declared name wins over a provider that it could name
        ("tei/own", None, ("tei/own", "tei/own", ["openai:x"], None)),
        # provider/name pins the endpoint, by the public or by the upstream's name
        ("azure/small", None, ("small", "small", ["azure:small"], None)),
        ("openai/small", None, ("small", "small", ["openai:text-small"], None)),
        ("openai/text-small", None, ("small", "small", ["openai:text-small"], None)),
        ("azure/text-small", None, ("text-small", "text-small", ["azure:other"], None)),
        ("tei/eu/BAAI/bge-m3", None, ("BAAI/bge-m3", "BAAI/bge-m3", ["tei/eu:BAAI/bge-m3"], None)),
        # the longest slug that fits
        ("tei/eu/x", None, ("tei/eu/x", "x", ["tei/eu:x"], None)),
        ("tei/x", None, ("tei/x", "x", ["tei:x"], None)),
        ("tei/us/x", None, ("tei/us/x", "us/x", ["tei:us/x"], None)),
        # an undeclared model's space is its provider's own
        ("openai/new", None, ("openai/new", "new", ["openai:new"], None)),
        ("azure/new", None, ("azure/new", "new", ["azure:new"], None)),
        (
            "openai/openai/new",
            None,
            ("openai/openai/new", "openai/new", ["openai:openai/new"], None),
        ),
        # the provider argument pins, by slug, base or vendor
        ("small", "azure", ("small", "small", ["azure:small"], None)),
        ("small", "Azure", ("small", "small", ["azure:small"], None)),
        ("BAAI/bge-m3", "tei", ("BAAI/bge-m3", "BAAI/bge-m3", ["tei/eu:BAAI/bge-m3"], None)),
        ("BAAI/bge-m3", "tei/eu", ("BAAI/bge-m3", "BAAI/bge-m3", ["tei/eu:BAAI/bge-m3"], None)),
        # an identical prefix is redundant, once
        ("azure/small", "azure", ("small", "small", ["azure:small"], None)),
        ("openai/new", "openai", ("openai/new", "new", ["openai:new"], None)),
        (
            "openai/openai/new",
            "openai",
            ("openai/openai/new", "openai/new", ["openai:openai/new"], None),
        ),
        ("tei/eu/x", "tei", ("tei/eu/x", "x", ["tei/eu:x"], None)),
        ("tei/eu/x", "tei/eu", ("tei/eu/x", "x", ["tei/eu:x"], None)),
        ("openai/", "openai", ("openai/openai/", "openai/", ["openai:openai/"], None)),
        # in a conflict the provider argument is authoritative and the name stays whole
        ("azure/new", "openai", ("openai/azure/new", "azure/new", ["openai:azure/new"], None)),
        ("BAAI/other", "openai", ("openai/BAAI/other", "BAAI/other", ["openai:BAAI/other"], None)),
        # the prefix is compared as names are
        ("OpenAI/new", "openai", ("openai/new", "new", ["openai:new"], None)),
        ("OpenAI/new", "OpenAI", ("openai/new", "new", ["openai:new"], None)),
        ("TEI/EU/x", "Tei/eu", ("tei/eu/x", "x", ["tei/eu:x"], None)),
        # the provider argument finds what that provider calls so, as the prefix does
        ("text-small", "openai", ("small", "small", ["openai:text-small"], None)),
        # one provider's name for a model finds it, with all its endpoints
        ("other", None, ("text-small", "text-small", ["azure:other"], None)),
        # a base slug means itself before its variants
        ("new", "tei", ("tei/new", "new", ["tei:new"], None)),
        # suffixes, on everything
        ("small:floor", None, ("small", "small", ["openai:text-small", "azure:small"], "price")),
        (
            "small:nitro",
            None,
            ("small", "small", ["openai:text-small", "azure:small"], "throughput"),
        ),
        ("azure/small:floor", None, ("small", "small", ["azure:small"], "price")),
        ("openai/new:nitro", None, ("openai/new", "new", ["openai:new"], "throughput")),
        ("small:floor", "azure", ("small", "small", ["azure:small"], "price")),
        ("azure/small:floor", "azure", ("small", "small", ["azure:small"], "price")),
        (
            "openai/new:latest",
            None,
            ("openai/new:latest", "new:latest", ["openai:new:latest"], None),
        ),
        # a model that is really called so
        ("odd:floor", None, ("odd:floor", "odd:floor", ["tei:odd:floor"], None)),
        ("odd:floor:nitro", None, ("odd:floor", "odd:floor", ["tei:odd:floor"], "throughput")),
    ],
)
def test_model_names_are_resolved_as_in_gomodel_and_openrouter(name, provider, found):
    assert found == resolved(name, provider)


@pytest.mark.parametrize(
    ("name", "provider", "found"),
    [
        ("small:query", None, ("small", None, "query")),
        ("small:document", "azure", ("small", None, "document")),
        ("small:floor:query", None, ("small", "price", "query")),
        ("small:query:nitro", None, ("small", "throughput", "query")),
        ("openai/new:document:nitro", None, ("openai/new", "throughput", "document")),
        ("odd:floor:query", None, ("odd:floor", None, "query")),
        # the last one sorts, and a suffix may be repeated
        ("small:floor:nitro", None, ("small", "throughput", None)),
        ("small:nitro:floor:floor", None, ("small", "price", None)),
        ("small:query:query", None, ("small", None, "query")),
        # a declared name may end in what looks like a fourth one
        ("odd:floor:floor:floor:floor", None, ("odd:floor", "price", None)),
    ],
)
def test_suffixes_of_a_name_combine(name, provider, found):
    route = DIRECTORY.resolve(name, provider)

    assert found == (route.name, route.sort, route.input_type)


@pytest.mark.parametrize("provider", [None, "openai"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small" + ":floor" * 4, "'model' has more than 3 suffixes; send fewer."),
        ("openai/new" + ":floor" * 4, "'model' has more than 3 suffixes; send fewer."),
        ("x" + ":floor" * 900, "'model' has more than 3 suffixes; send fewer."),
        ("x" + ":query:nitro" * 1_000_000, "'model' has more than 3 suffixes; send fewer."),
        (
            "small:query:document",
            "'model' ends in both ':query' and ':document'; send one of them.",
        ),
        (
            "small:document:floor:query",
            "'model' ends in both ':query' and ':document'; send one of them.",
        ),
    ],
)
def test_too_many_or_contradicting_suffixes_are_rejected(name, provider, message):
    with pytest.raises(InvalidRequest) as refused:
        DIRECTORY.resolve(name, provider)

    assert ("model", message) == (refused.value.param, refused.value.message)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("smal", '"small"'),
        ("BAAI/bge-m4", '"BAAI/bge-m3"'),
        ("zzz", "GET /v1/models"),
        ("openai/", "GET /v1/models"),
        ("OpenAI/small", "GET /v1/models"),
        (":floor", "odd:floor"),
        ("zzz:nitro", "GET /v1/models"),
        ("x" * 10_000, "GET /v1/models"),
        ("tei/" + "x" * 513, "512 characters"),
    ],
)
def test_an_unknown_model_is_rejected_with_a_suggestion(name, advice):
    with pytest.raises(ModelNotFound) as refused:
        DIRECTORY.resolve(name)

    assert (404, "model", "model_not_found") == (
        refused.value.status,
        refused.value.param,
        refused.value.code,
    )
    assert advice in refused.value.message
    assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("small", "tei"),
        ("tei/small", "tei"),
        ("small:floor", "tei"),
        ("tei/own", "azure"),
        ("tei/own", "tei"),
        ("own", "tei"),
    ],
)
def test_a_provider_hint_never_changes_the_vector_space_of_a_known_model(name, provider):
    """The provider may serve a model of that name, but not necessarily with the same vector space."""
    with pytest.raises(NoEligibleProvider, match="does not serve the model") as refused:
        DIRECTORY.resolve(name, provider)

    assert "provider" == refused.value.param


def test_undeclared_models_with_similar_full_names_have_separate_vector_spaces():
    one, two = DIRECTORY.resolve("tei/eu/new"), DIRECTORY.resolve("eu/new", "tei")

    assert ["tei/eu:new", "tei:eu/new"] == [route.candidates[0].name for route in (one, two)]
    assert one.name == two.name
    assert one.vector_space != two.vector_space


def test_an_upstream_name_of_two_models_is_ambiguous():
    twice = {name: Model(endpoints=[Endpoint(provider="openai", model="same")]) for name in "ab"}

    with pytest.raises(ModelNotFound):
        directory(**twice).resolve("same")


def test_an_undeclared_model_with_a_shipped_name_keeps_its_full_name():
    """Whether or not a provider of the shipped one is configured."""
    shipped = {"known": Model(dimensions=3, endpoints=[Endpoint(provider="elsewhere")])}
    found, _ = built(Config(providers={"openai": Provider()}), shipped=shipped)

    assert ["openai/known", "other"] == [
        found.resolve(f"openai/{name}").public_name for name in ("known", "other")
    ]


@pytest.mark.parametrize("provider", ["", "opnai", "tei/us", "/"])
def test_an_unknown_provider_hint_is_rejected(provider):
    with pytest.raises(InvalidRequest, match="openai, azure, tei/eu, tei") as refused:
        DIRECTORY.resolve("small", provider)

    assert "provider" == refused.value.param


SHIPPED = {
    "small": Model(
        dimensions=1536,
        matryoshka=True,
        modalities=["text"],
        max_input_tokens=8192,
        endpoints=[
            Endpoint(
                provider="openai", model="text-small", price="0.02", accepts={"max_inputs": 7}
            ),
            Endpoint(provider="azure", price="0.03"),
        ],
    ),
    "large": Model(dimensions=3072, endpoints=[Endpoint(provider="openai", model="text-large")]),
}
KNOWN = {
    "openai": KnownProvider(vendor="OpenAI", accepts={"max_inputs": 5, "max_tokens": 9}),
    "azure": KnownProvider(vendor="Azure"),
    "google-vertex": KnownProvider(vendor="Google"),
}


def join(providers, models=None, **parts):
    config = Config(
        gateway=parts.pop("gateway", Settings()),
        keys=parts.pop("keys", {}),
        providers={
            slug: item if isinstance(item, Provider) else Provider(**item)
            for slug, item in providers.items()
        },
        models=models or {},
    )
    return built(config, shipped=SHIPPED, known=KNOWN, **parts)


def test_a_shipped_model_needs_no_config_entry():
    found, mistakes = join({"openai": {}})

    assert ([], {"small", "large"}) == (mistakes, set(found.routes))
    assert ["openai:text-small"] == [item.name for item in found.routes["small"].candidates]
    assert {"small", "large"} == {item.public_name for item in found.routes.values()}


def test_endpoints_of_providers_that_are_not_configured_are_left_out():
    assert {"small"} == set(join({"azure": {}})[0].routes)
    assert {} == join({"other": {}})[0].routes


@pytest.mark.parametrize(
    ("said", "facts"),
    [
        ({}, {"dimensions": 1536, "matryoshka": True, "max_input_tokens": 8192}),
        (
            {"matryoshka": False},
            {"dimensions": 1536, "matryoshka": False, "max_input_tokens": 8192},
        ),
        (
            {"max_input_tokens": 100},
            {"dimensions": 1536, "matryoshka": True, "max_input_tokens": 100},
        ),
        ({"dimensions_allowed": [8]}, {"dimensions": 1536, "dimensions_allowed": [8]}),
        ({"input_types": []}, {"input_types": [], "modalities": ["text"]}),
    ],
)
def test_a_model_entry_inherits_shipped_values(said, facts):
    found, mistakes = join({"openai": {}}, {"small": Model(**said)})

    model = found.routes["small"].model
    assert (facts, []) == ({name: getattr(model, name) for name in facts}, mistakes)
    assert ["openai:text-small"] == [item.name for item in found.routes["small"].candidates]


@pytest.mark.parametrize(
    ("endpoint", "name", "price", "cap"),
    [
        ({"provider": "openai"}, "openai:text-small", "0.02", 7),
        ({"provider": "openai", "price": 5}, "openai:text-small", "5", 7),
        ({"provider": "openai", "model": "mine"}, "openai:mine", "0.02", 7),
        ({"provider": "openai", "accepts": {"max_inputs": 3}}, "openai:text-small", "0.02", 3),
        ({"provider": "openai/eu"}, "openai/eu:text-small", "0.02", 7),
        ({"provider": "azure"}, "azure:small", "0.03", 100),
        ({"provider": "other"}, "other:small", "None", 100),
    ],
)
def test_an_endpoint_inherits_shipped_values(endpoint, name, price, cap):
    """By the base of its slug.

    The caps: endpoint over catalogue over provider table over backend.
    """
    found, mistakes = join(
        {slug: {} for slug in ("openai", "openai/eu", "azure", "other")},
        {"small": Model(endpoints=[Endpoint(**endpoint)])},
    )

    (item,) = found.routes["small"].candidates
    assert ([], name, price, cap) == (
        mistakes,
        item.name,
        str(item.prices.get("prompt")),
        item.accepts.max_inputs,
    )


def test_shipped_provider_facts_do_not_apply_to_another_backend():
    own, other = (
        join({"openai": item})[0].providers["openai"].accepts for item in ({}, {"backend": "tei"})
    )

    assert ((5, 9), (100, None)) == (
        (own.max_inputs, own.max_tokens),
        (other.max_inputs, other.max_tokens),
    )


OF_ROWS = {
    "v3": Model(
        dimensions=4,
        endpoints=[
            Endpoint(provider=item, model=f"{item}-v3", price=5) for item in ("together", "openai")
        ],
    )
}
ROWS = {
    "together": KnownProvider(vendor="Together", backend="openai", accepts={"max_inputs": 5}),
    "openai": KnownProvider(vendor="OpenAI", backend="openai", accepts={"max_inputs": 6}),
    "azure": KnownProvider(vendor="Azure"),
}


@pytest.mark.parametrize(
    ("slug", "backend", "facts"),
    [
        # the provider's own backend, omitted or explicit
        ("together/eu", None, ("Together", "together-v3", "5", 5, 4)),
        ("together/eu", "together", ("Together", "together-v3", "5", 5, 4)),
        ("openai/eu", "openai", ("OpenAI", "openai-v3", "5", 6, 4)),
        # a known provider as the backend supplies the facts; a known slug supplies the vendor
        ("mine", "together", ("Together", "together-v3", "5", 5, 4)),
        ("azure", "together", ("Azure", "together-v3", "5", 5, 4)),
        # an installed backend supplies no facts
        ("mine", "openai", ("mine", "v3", "None", 100, None)),
        ("azure", "openai", ("Azure", "v3", "None", 100, None)),
        ("mine", "azure", ("mine", "v3", "None", 100, None)),
    ],
)
def test_shipped_facts_come_from_the_matching_provider(slug, backend, facts):
    """Vendor, upstream name, price and limit of an endpoint, and the width that its vectors must have."""
    wrong = Model(dimensions=8, endpoints=[Endpoint(provider=slug, model=facts[1])])
    models = {"v3": Model(endpoints=[Endpoint(provider=slug)]), "wrong": wrong}
    config = Config(providers={slug: Provider(backend=backend)}, models=models)

    found, mistakes = built(config, shipped=OF_ROWS, known=ROWS)

    (item,) = found.routes["v3"].candidates
    assert facts[:4] == (
        item.vendor,
        item.model,
        str(item.prices.get("prompt")),
        item.accepts.max_inputs,
    )
    assert (facts[4] is not None) == any(
        "has 4 dimensions, expected 8" in mistake for mistake in mistakes
    )


def test_provider_settings_apply_to_its_endpoints():
    facts = {
        "vendor": "ACME",
        "data_collection": "deny",
        "zdr": True,
        "stage": "beta",
        "distillable": False,
    }
    found, _ = join({"openai": facts})

    item = found.routes["small"].candidates[0]
    assert facts == {name: getattr(item, name) for name in facts}
    assert "OpenAI" == join({"openai/eu": {}})[0].providers["openai/eu"].vendor


def endpoint(provider="openai", **fields):
    return Model(endpoints=[Endpoint(provider=provider, **fields)])


@pytest.mark.parametrize(
    ("models", "mistakes"),
    [
        (
            {"m": endpoint("opnai")},
            [
                '[models.m] endpoint refers to unknown provider "opnai" (no [providers.opnai] table); did you mean "openai"?'
            ],
        ),
        ({"m": Model()}, ["[models.m] has no endpoint: list at least one configured provider"]),
        (
            {"m": Model(fallback="m", endpoints=endpoint().endpoints)},
            ['[models.m] fallback "m" is not another model of this config'],
        ),
        (
            {"m": Model(fallback="n", endpoints=endpoint().endpoints)},
            ['[models.m] fallback "n" is not another model of this config'],
        ),
        ({"m": Model(fallback="small", endpoints=endpoint().endpoints)}, []),
        (
            {"m": endpoint(accepts={"max_input": 4})},
            [
                '[models.m.endpoints.openai.accepts] unknown option "max_input"; did you mean "max_inputs"?'
            ],
        ),
        (
            {"m": endpoint(accepts={"max_inputs": "4", "dtype": 1, "tokens": 1})},
            [
                '[models.m.endpoints.openai.accepts] unknown option "dtype"; did you mean "dtypes"?',
                "[models.m.endpoints.openai.accepts] tokens must be true or false; got 1",
                '[models.m.endpoints.openai.accepts] max_inputs must be a whole number; got "4"',
            ],
        ),
        (
            {"m": endpoint(accepts={"max_inputs": 0})},
            ["[models.m.endpoints.openai.accepts] max_inputs must be at least 1"],
        ),
        (
            {"m": endpoint(accepts={"max_tokens": -1})},
            ["[models.m.endpoints.openai.accepts] max_tokens must be at least 1"],
        ),
        (
            {"m": endpoint(accepts={"max_bytes": -5})},
            ["[models.m.endpoints.openai.accepts] max_bytes must be at least 1"],
        ),
        (
            {"m": endpoint(accepts={"max_inputs": 0, "max_tokens": 0, "max_bytes": 0})},
            [
                f"[models.m.endpoints.openai.accepts] {cap} must be at least 1"
                for cap in ("max_inputs", "max_tokens", "max_bytes")
            ],
        ),
        (
            {"m": endpoint(accepts={"modalities": ["txt"]})},
            [
                '[models.m.endpoints.openai.accepts] modalities: unknown value "txt"; did you mean "text"?'
            ],
        ),
        (
            {"m": endpoint(accepts={"dtypes": ["float", "int4"]})},
            [
                '[models.m.endpoints.openai.accepts] dtypes: unknown value "int4"; did you mean "int8"?'
            ],
        ),
        (
            {"m": endpoint(accepts={"options": ["cohere"]})},
            [
                '[models.m.endpoints.openai.accepts] options: unknown value "cohere"; use google, mistral'
            ],
        ),
        (
            {"m": endpoint(accepts={"input_types": ["querry"]})},
            [
                '[models.m.endpoints.openai.accepts] input_types: unknown value "querry"; did you mean "query"?'
            ],
        ),
        (
            {"m": Model(dimensions=8, dimensions_allowed=[4, 16], endpoints=endpoint().endpoints)},
            ["[models.m] dimensions_allowed must not exceed dimensions = 8"],
        ),
        (
            {"m": Model(dimensions=8, dimensions_min=9, endpoints=endpoint().endpoints)},
            ["[models.m] dimensions_min must not exceed dimensions = 8"],
        ),
        (
            {
                "m": Model(
                    dimensions=8,
                    dimensions_allowed=[4, 8],
                    dimensions_min=8,
                    endpoints=endpoint().endpoints,
                )
            },
            [],
        ),
        (
            {"m": Model(prefixes={"querry": "q"}, endpoints=endpoint().endpoints)},
            ['[models.m] prefixes: unknown input type "querry"; did you mean "query"?'],
        ),
        (
            {"m": Model(input_types=["zzz"], endpoints=endpoint().endpoints)},
            [f'[models.m] input_types: unknown input type "zzz"; use {", ".join(SPELLINGS)}'],
        ),
        (
            {"m": Model(input_types=[], prefixes={"query": "q: "}, endpoints=endpoint().endpoints)},
            ["[models.m] prefixes cannot be used when input_types = []"],
        ),
        (
            {
                "m": Model(
                    endpoints=[*endpoint(model="x").endpoints, *endpoint(model="x").endpoints]
                )
            },
            ["[models.m] the endpoint openai:x is listed twice; list it once"],
        ),
        (
            {
                "m": Model(
                    endpoints=[*endpoint(model="x").endpoints, *endpoint(model="y").endpoints]
                )
            },
            [],
        ),
        (
            {
                "m": Model(
                    modalities=["image"],
                    endpoints=endpoint(accepts={"modalities": ["text"]}).endpoints,
                )
            },
            ["[models.m] the endpoint openai:m accepts text, the model image"],
        ),
        (
            {
                "m": Model(
                    modalities=["image"],
                    endpoints=endpoint(accepts={"modalities": ["text", "image"]}).endpoints,
                )
            },
            [],
        ),
        ({"m": endpoint("mute")}, ["[models.m] the endpoint mute:m accepts no kind of input"]),
        ({"m": endpoint("mute", accepts={"tokens": True})}, []),
        (
            {"m": Model(dimensions=1536, endpoints=endpoint(model="text-large").endpoints)},
            [
                "[models.m] the endpoint openai:text-large has 3072 dimensions, expected 1536 (different vector space)"
            ],
        ),
        (
            {
                "m": Model(
                    endpoints=[
                        *endpoint(model="text-small").endpoints,
                        *endpoint(model="text-large").endpoints,
                    ]
                )
            },
            [
                "[models.m] the endpoint openai:text-large has 3072 dimensions, expected 1536 (different vector space)"
            ],
        ),
        (
            {"small": Model(dimensions=512)},
            [
                "[models.small] the endpoint openai:text-small has 1536 dimensions, expected 512 (different vector space)"
            ],
        ),
        (
            {
                "m": Model(
                    dimensions=8, endpoints=endpoint("elsewhere", model="text-large").endpoints
                )
            },
            [],
        ),
        (
            {
                "m": Model(
                    dimensions=8, endpoints=endpoint("openai/mine", model="text-large").endpoints
                )
            },
            [],
        ),
        ({"m": Model(dimensions=8, endpoints=endpoint(model="unheard-of").endpoints)}, []),
    ],
)
def test_contradictions_in_the_config_are_reported_at_start(models, mistakes):
    """An endpoint whose facts contradict the model's would give wrong vectors, or none, and only under load."""
    providers = {
        "openai": {},
        "mute": {},
        "elsewhere": {},
        "openai/mine": {"options": {"base_url": "http://10.0.0.1"}},
    }
    backends = {slug: NoInputBackend() if slug == "mute" else WideBackend() for slug in providers}

    assert mistakes == join(providers, models, backends=backends)[1]


@pytest.mark.parametrize(
    ("slug", "good"),
    [
        ("openai", True),
        ("tei/eu", True),
        ("a", True),
        ("0.x_y-z/1", True),
        ("OpenAI", False),
        ("a b", False),
        ("-a", False),
        ("a/", False),
        ("a/b/c", False),
        ("", False),
        ("ä", False),
        ("openai\n", False),
    ],
)
def test_a_slug_has_one_form(slug, good):
    mistakes = join({slug: {}})[1]

    assert good == (not any("a slug may hold" in item for item in mistakes))


def test_ambiguous_provider_slugs_are_rejected():
    mistakes = join({"my.tei": {}, "my-tei": {}, "my_tei/x": {}})[1]

    assert [
        '[providers.my-tei] is the same name as "my.tei": case, dots, spaces and underscores are ignored'
    ] == mistakes


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("openai", True),
        ("OpenAI", True),
        ("Google", True),
        ("google-vertex/eu", True),
        ("mine", True),
        ("mine/x", True),
        ("ACME Corp", True),
        ("mine/y", False),
        ("opnai", False),
    ],
)
@pytest.mark.parametrize("place", ["gateway", "keys.team"])
@pytest.mark.parametrize("field", ["only", "ignore"])
def test_the_operators_lists_may_only_name_known_providers(name, known, place, field):
    """A typo there would send text to the provider that the list should exclude."""
    lists = {field: [name]}
    gateway = Settings(**lists) if place == "gateway" else Settings()
    keys = {} if place == "gateway" else {"team": ConfigKey(key=Secret("k"), **lists)}

    mistakes = join({"mine/x": {"vendor": "ACME Corp"}}, gateway=gateway, keys=keys)[1]

    assert known == (not mistakes)
    assert all(
        item.startswith(f'[{place}] {field}: unknown provider "{name}"') for item in mistakes
    )


def test_a_keys_model_list_may_only_name_existing_models():
    keys = {"team": ConfigKey(key=Secret("k"), models=["small", "openai/new", "smal"])}

    mistakes = join({"openai": {}}, keys=keys)[1]

    assert [
        "[keys.team] models: The model 'smal' does not exist; did you mean \"small\"?"
    ] == mistakes


def test_a_provider_that_could_not_be_built_is_reported_once():
    """Its mistake is reported already; entries that refer to it report nothing more."""
    keys = {"team": ConfigKey(key=Secret("k"), models=["small", "openai/new", "smal"])}
    models = {
        "m": endpoint(),
        "n": Model(modalities=["image"], fallback="large", endpoints=endpoint().endpoints),
    }

    mistakes = join(
        {"openai": {}, "other": {}}, models, keys=keys, backends={"other": WideBackend()}
    )[1]

    assert [
        "[keys.team] models: The model 'smal' does not exist; did you mean \"small\"?"
    ] == mistakes


def test_vendor_spellings_of_input_types_are_normalised():
    said = Model(
        input_types=["search_query", "passage"],
        prefixes={"Search_Query": "q: "},
        endpoints=endpoint().endpoints,
    )

    model = join({"openai": {}}, {"m": said})[0].routes["m"].model

    assert (["query", "document"], {"query": "q: "}) == (model.input_types, model.prefixes)


def test_the_shipped_catalogue_has_no_contradictions():
    """Every known provider switched on, every model of the catalogue declared: no mistake."""
    providers = {slug: Provider() for slug in known_providers()}
    backends = {slug: WideBackend() for slug in providers}
    models = {name: Model() for name in catalogue()}

    config = Config(providers=providers, models=models)

    found, mistakes = built(config, shipped=catalogue(), known=known_providers(), backends=backends)

    assert ([], set(catalogue())) == (mistakes, set(found.routes))
