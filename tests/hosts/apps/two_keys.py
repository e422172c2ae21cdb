"""The gateway's application for two tenants, with the default limits."""

from embedroute import Config, Gateway, embeddings_app

app = embeddings_app(
    Gateway(
        Config(
            gateway={"auth": "keys"},
            keys={"one": {"key": "sk-one"}, "two": {"key": "sk-two"}},
            providers={"hashed": {}},
            models={"hash": {"dimensions": 8, "endpoints": [{"provider": "hashed"}]}},
        )
    )
)
