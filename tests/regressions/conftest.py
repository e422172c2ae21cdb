"""Provides two upstreams for all tests here; they are reset before each case."""

import pytest

from tests.regressions.requesting import WIDTH, ScriptedUpstream


@pytest.fixture(scope="session")
def _standing():
    with ScriptedUpstream() as first, ScriptedUpstream() as second:
        yield first, second


@pytest.fixture
def upstreams(_standing):
    for upstream in _standing:
        upstream.tell("honest")
        upstream.width, upstream.limit = WIDTH, 2
        upstream.requests.clear()
    return _standing
