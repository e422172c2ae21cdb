"""A gateway with the local model and without a cache, for attacks on it."""

from embedroute import CacheSettings, Config, Gateway, Provider, Settings, embeddings_app

gateway = Gateway(
    Config(
        gateway=Settings(auth="open"),
        cache=CacheSettings(bytes=0),
        providers={"wordllama": Provider()},
    ),
    environ={},
)
app = embeddings_app(gateway)
