"""Runs the upstream in a separate process.

``python -m tests.fault_upstream --port 9001 --mode honest --delay 0.01``

It prints its URL when it listens. It can reuse the port of a process that was just killed.
"""

import argparse
import contextlib
import sys
import threading

from tests.fault_upstream import Upstream


def main():
    options = argparse.ArgumentParser(prog="python -m tests.fault_upstream", description=__doc__)
    options.add_argument("--port", type=int, default=0, help="0 = any free one")
    options.add_argument(
        "--mode", default="honest", help="several, separated by commas, are used one per request"
    )
    options.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    options.add_argument("--width", type=int, default=8, help="numbers in a vector")
    arguments = options.parse_args()
    mode = arguments.mode.split(",")
    with Upstream(
        mode, port=arguments.port, delay=arguments.delay, width=arguments.width, remember=False
    ) as upstream:
        sys.stdout.write(f"{upstream.url}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
