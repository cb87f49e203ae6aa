"""quadgrad: integrals you can differentiate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quadgrad import _plots as _plots  # gives plans their plot
from quadgrad._core.errors import (
    IntegrandError,
    IntegrationError,
    IntegrationWarning,
    SeveredGradientWarning,
    UnmarkedJumpWarning,
)
from quadgrad._core.gradient import GradientMode, Resolve, Reuse
from quadgrad._core.gradient.error import gradient_error
from quadgrad._core.integrand import element
from quadgrad._core.plans.base import Plan, restore_plan
from quadgrad._core.result import Result
from quadgrad._core.status import Status
from quadgrad._core.verbs.integrator import KeptPlan
from quadgrad._core.verbs.quad import quad
from quadgrad._core.verbs.replay import replay

__all__ = [
    "GradientMode",
    "IntegrandError",
    "IntegrationError",
    "IntegrationWarning",
    "KeptPlan",
    "Plan",
    "Resolve",
    "Result",
    "Reuse",
    "SeveredGradientWarning",
    "Status",
    "UnmarkedJumpWarning",
    "element",
    "gradient_error",
    "quad",
    "replay",
]
__version__ = "0.1.0"
_restore_plan = restore_plan  # saved plans name it

if TYPE_CHECKING:
    from quadgrad import bridge as bridge


def __getattr__(name: str) -> Any:
    """Import the edges of the library when they are first used: ``import quadgrad`` stays fast."""
    if name == "bridge":
        import importlib

        return importlib.import_module(f"quadgrad.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
