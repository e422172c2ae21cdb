"""Tests the numbers of metrics that worker processes share in files."""

import os
import subprocess
import sys

from embedroute.telemetry import SeriesStore, add_up, is_running, read_workers

REQUESTS, CALLS = ("requests", "m", "200"), ("call", "p", "m")


def test_numbers_of_one_process_are_in_memory(tmp_path):
    store = SeriesStore(None)

    assert [[0.0] * 2, [0.0] * 3] == [store.add(REQUESTS, 2), store.add(CALLS, 3)]
    store.close()
    assert [] == list(tmp_path.iterdir())


def test_workers_read_the_numbers_of_each_other(tmp_path):
    """While they are being counted: nothing needs to be written first."""
    first, second = SeriesStore(tmp_path), SeriesStore(tmp_path)
    row, calls = first.add(REQUESTS, 2), second.add(CALLS, 1)
    shared = second.add(REQUESTS, 2)
    row[1] += 4
    calls[0] += 7
    shared[0] += 0.5
    shared[1] += 1

    workers = list(read_workers(tmp_path))

    assert [os.getpid()] * 2 == [process for process, _ in workers]
    expected = [{REQUESTS: [0.0, 4.0]}, {CALLS: [7.0], REQUESTS: [0.5, 1.0]}]
    series = [found for _, found in workers]
    assert sorted(series, key=len) == expected
    assert {REQUESTS: [0.5, 5.0], CALLS: [7.0]} == add_up(series)
    first.close()
    second.close()


def test_a_worker_that_has_ended_does_not_run():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    assert [True, False] == [is_running(os.getpid()), is_running(ended.pid)]
