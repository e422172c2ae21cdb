"""Makes a gateway, forks, embeds in the child and then in the parent, and prints the results as JSON.

Run it as ``python -m tests.hosts.forking asyncio|trio`` with ``TEST_UPSTREAM`` set.
"""

import json
import os
import sys
import threading
from pathlib import Path

import anyio

from embedroute import embeddings_app
from tests.hosts.gateways import make


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


before = descriptors()
gateway = make()
embeddings_app(gateway)
opened, threads = descriptors() - before, threading.active_count()


async def embed(text: str) -> list[float]:
    answer = await gateway.embed(text, model="far")
    return [float(number) for number in answer.vectors[0]]


def said(who: str) -> None:
    vectors = [anyio.run(embed, f"{who} {at}", backend=sys.argv[1]) for at in range(2)]
    sys.stdout.write(
        json.dumps({"who": who, "opened": opened, "threads": threads, "vectors": vectors}) + "\n"
    )
    sys.stdout.flush()


child = os.fork()
if child == 0:
    said("child")
    sys.exit(0)
_, status = os.waitpid(child, 0)
said("parent")
sys.exit(status)
