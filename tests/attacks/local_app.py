"""A gateway over the local model, for attacks on it: nothing is cached."""

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
