"""Tests the structs of the config: exact prices, inherited fields, and no secrets in reprs."""

from decimal import Decimal

import msgspec
import pytest

from embedroute.config import Endpoint, Model, PriceTable, Provider, catalogue, known_providers


@pytest.mark.parametrize(
    ("price", "prices"),
    [
        (None, {}),
        (0, {"prompt": "0"}),
        (0.02, {"prompt": "0.02"}),
        (0.1, {"prompt": "0.1"}),
        ("0.020", {"prompt": "0.020"}),
        ({"prompt": "0.02", "image": 0.5}, {"prompt": "0.02", "image": "0.5"}),
        ({"request": 1}, {"request": "1"}),
        ({}, {}),
    ],
)
def test_prices_are_exact(price, prices):
    """A float is converted by its shortest text: 0.1 is a tenth."""
    endpoint = msgspec.convert({"provider": "p", "price": price}, Endpoint)

    assert {kind: Decimal(text) for kind, text in prices.items()} == endpoint.prices()


@pytest.mark.parametrize(
    "price",
    [
        -1,
        -0.5,
        float("inf"),
        float("nan"),
        1e19,
        "NaN",
        "Infinity",
        "1_000",
        "1e3",
        "-1",
        " 1",
        "1 ",
        "1\n",
        "\u0661",
        "1" * 19,
        f"0.{'1' * 19}",
        "1.",
        "",
        True,
        [],
        {"promt": 1},
    ],
)
def test_invalid_prices_are_rejected(price):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"provider": "p", "price": price}, Endpoint)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", 0),
        ("weight", -1.0),
        ("weight", float("inf")),
        ("weight", float("nan")),
        ("quality", float("nan")),
        ("quality", 2e18),
        ("quality", -2e18),
        ("micro_batch_ms", -1),
        ("micro_batch_ms", 1001),
        ("quantization", "fp15"),
        ("model_echo", "off"),
    ],
)
def test_invalid_endpoint_numbers_are_rejected(field, value):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"provider": "p", field: value}, Endpoint)


@pytest.mark.parametrize("field", ["dimensions", "max_input_tokens", "dimensions_min"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True])
def test_counts_of_a_model_are_positive_integers(field, value):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({field: value}, Model)


FACTS = Model(
    dimensions=8,
    matryoshka=True,
    modalities=["text"],
    endpoints=[
        Endpoint(provider="a", model="up", price="1", accepts={"max_inputs": 1, "tokens": True})
    ],
)


@pytest.mark.parametrize(
    ("said", "merged"),
    [
        (Model(), FACTS),
        (Model(matryoshka=False), msgspec.structs.replace(FACTS, matryoshka=False)),
        (Model(fallback="x"), msgspec.structs.replace(FACTS, fallback="x")),
        (
            Model(endpoints=[Endpoint(provider="b")]),
            msgspec.structs.replace(FACTS, endpoints=[Endpoint(provider="b")]),
        ),
        (Model(endpoints=[Endpoint(provider="a")]), FACTS),
        (
            Model(
                endpoints=[
                    Endpoint(provider="a/eu", accepts={"max_inputs": 9}, price=PriceTable(prompt=2))
                ]
            ),
            msgspec.structs.replace(
                FACTS,
                endpoints=[
                    Endpoint(
                        provider="a/eu",
                        model="up",
                        price=PriceTable(prompt=2),
                        accepts={"max_inputs": 9, "tokens": True},
                    )
                ],
            ),
        ),
    ],
)
def test_fields_of_the_config_override_the_catalogue(said, merged):
    assert merged == said.over(FACTS)


def test_the_repr_of_a_provider_shows_option_names_without_values():
    """Any value may contain a secret: a key, or a URL with a password."""
    provider = Provider(
        backend="openai", options={"api_key": "sk-hidden", "base_url": "https://u:hidden@host"}
    )

    assert "Provider(backend='openai', options=['api_key', 'base_url'])" == repr(provider)


def test_the_shipped_data_is_read_once():
    assert catalogue() is catalogue()
    assert known_providers() is known_providers()
