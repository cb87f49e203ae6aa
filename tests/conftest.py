"""What every test shares: hypothesis' settings, a quiet TensorFlow, and which tests run where.

Tests marked ``gpu`` are skipped where there is no GPU; those that import TensorFlow run in one worker.
"""

import os

import pytest
import torch
from hypothesis import settings

# No deadline: the first call into torch may take seconds. Derandomized: every run tests the same examples,
# so that a failure is the change's. `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("quadgrad", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False, max_examples=1000)
settings.load_profile("quadgrad")

# Read when TensorFlow is imported. Warnings are seen, which way it computes is not told; one thread, as for torch.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its sums would depend on the processor, and it says so
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch finds no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
