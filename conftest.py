"""What every test and every example shares: hypothesis' settings, a quiet TensorFlow, and which of them run where.

Tests marked ``gpu`` are skipped where there is no GPU, what needs TensorFlow where it is not installed.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No deadline: the first call into torch may take seconds. Derandomized: every run tests the same examples,
# so that a failure is the change's. `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("quadgrad", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False, max_examples=1000)
settings.load_profile("quadgrad")

# TensorFlow reads these when it is imported: warnings are printed, news are not. One thread for each operation, as
# for torch, but not one for all: a Python function in a graph would hold it while it waits for TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # sums that depend on the processor, announced by two lines
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

TENSORFLOW = Path(__file__).parent / "src" / "quadgrad" / "tensorflow"

# The examples there would not even be collected. The tests say themselves that they are skipped.
collect_ignore = [] if find_spec("tensorflow") else [str(TENSORFLOW)]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch finds no CUDA device; run TensorFlow's examples beside its tests."""
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip)
        if item.path.is_relative_to(TENSORFLOW):
            item.add_marker(pytest.mark.xdist_group("tensorflow"))
