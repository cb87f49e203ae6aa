"""Integrals you can differentiate, of TensorFlow functions, in TensorFlow tensors.

``quad``, ``qmc``, ``replay``, ``trapezoid``, ``simpson``, ``cumulative_trapezoid`` and ``cumulative_simpson`` have
the names, options and results of torch's in :mod:`quadgrad`; ``element`` marks vectors in ``args``,
``gradient_error`` estimates the error of a ``qmc``'s gradient; ``wrap`` makes NumPy and SciPy code differentiable.
``antiderivative``, ``spline``, ``romb``, ``expectation``, ``vegas`` and ``Integrator`` are torch's alone.
"""

from __future__ import annotations

from quadgrad._core.errors import (
    BridgeError,
    BridgeWarning,
    IntegrandError,
    IntegrationError,
    IntegrationWarning,
    SeveredGradientWarning,
    UnmarkedJumpWarning,
)
from quadgrad._core.plans.base import Plan
from quadgrad._core.status import Status
from quadgrad.tensorflow import _framework as _framework  # says what to do where there is no TensorFlow
from quadgrad.tensorflow._call import element
from quadgrad.tensorflow._fixed import replay
from quadgrad.tensorflow._qmc import gradient_error, qmc
from quadgrad.tensorflow._quad import quad
from quadgrad.tensorflow._result import Result
from quadgrad.tensorflow._sampled import cumulative_simpson, cumulative_trapezoid, simpson, trapezoid
from quadgrad.tensorflow._wrap import wrap

__all__ = [
    "BridgeError",
    "BridgeWarning",
    "IntegrandError",
    "IntegrationError",
    "IntegrationWarning",
    "Plan",
    "Result",
    "SeveredGradientWarning",
    "Status",
    "UnmarkedJumpWarning",
    "cumulative_simpson",
    "cumulative_trapezoid",
    "element",
    "gradient_error",
    "qmc",
    "quad",
    "replay",
    "simpson",
    "trapezoid",
    "wrap",
]


def __dir__() -> list[str]:
    """Show what is public."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
