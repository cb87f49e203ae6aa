"""What every test shares: hypothesis' settings, and skipping of GPU tests where there is no GPU."""

import pytest
import torch
from hypothesis import settings

# No deadline: the first call into torch may take seconds. Derandomized: every run tests the same examples,
# so that a failure is the change's. `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("quadgrad", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False, max_examples=1000)
settings.load_profile("quadgrad")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch finds no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
