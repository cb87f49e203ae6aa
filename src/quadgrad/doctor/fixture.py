"""A fixture for pytest: name this module in a ``conftest.py``, and ask for ``gradient_doctor`` in a test.

.. code-block:: python

    pytest_plugins = ["quadgrad.doctor.fixture"]  # conftest.py


    def test_gradient_of_the_loss(gradient_doctor):
        gradient_doctor(loss, weights)

It is no plugin that pytest loads by itself: that would import torch into every run of every suite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quadgrad.doctor.check import check
from quadgrad.doctor.report import Report

__all__ = ["gradient_doctor"]


@pytest.fixture
def gradient_doctor() -> Callable[..., Report]:
    """Return :func:`quadgrad.doctor.check`, which fails the test with its report if there is a finding."""

    def examine(fn: Callable[..., Any], *inputs: Any, **options: Any) -> Report:
        __tracebackhide__ = True
        report = check(fn, *inputs, **options)
        if not report.ok:
            pytest.fail(str(report), pytrace=False)
        return report

    return examine
