"""Keys of the config that some versions of the gateway do not have."""

from embedroute.config import Endpoint, Model, Provider

HEDGING = "hedge = true"
MAX_CONCURRENT = "max_concurrent = {calls}"


def knows_hedging() -> bool:
    return key_of(HEDGING) in Model.__struct_fields__


def max_concurrent(calls: int) -> tuple[str, str]:
    """Return the line that bounds calls in flight, in the provider or in the endpoint, or neither."""
    line = MAX_CONCURRENT.format(calls=calls)
    if key_of(line) in Provider.__struct_fields__:
        return line, ""
    if key_of(line) in Endpoint.__struct_fields__:
        return "", line
    return "", ""


def key_of(line: str) -> str:
    return line.partition(" ")[0]
