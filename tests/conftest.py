"""What all tests share: async tests run on asyncio and on trio, and examples are made up the same way every time."""

import gc
import os
import sys

import pytest
from hypothesis import HealthCheck, settings

from tests.support.slow import QUICK

# A busy machine must not fail a test, and a run that fails must fail again.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def pytest_configure(config):
    """Make up fewer examples in the default run, and count no lines in most started processes.

    Counting takes longer than most of them run.
    Those of ``embedroute serve`` count them, as only they run its code.
    """
    if "not thorough" in config.option.markexpr:
        os.environ[QUICK] = "1"
    if "PYTEST_XDIST_WORKER" in os.environ:
        coverage = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
        if coverage is not None:
            os.environ["TESTS_COVERAGE_PROCESS_CONFIG"] = coverage


def pytest_collection_finish():
    """Exclude what pytest keeps of all tests from garbage collections; many tests collect."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Count no lines while a test repeats the same lines thousands of times.

    Counting doubles its time. These are property tests and those marked ``uncounted``. Other tests
    cover the same lines.
    """
    is_property = getattr(getattr(item, "function", None), "is_hypothesis_test", False)
    if not is_property and item.get_closest_marker("uncounted") is None:
        return (yield)
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
