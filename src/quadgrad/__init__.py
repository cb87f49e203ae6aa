"""quadgrad: integrals you can differentiate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quadgrad.errors import (
    IntegrandError,
    IntegrationError,
    IntegrationWarning,
    SeveredGradientWarning,
    UnmarkedJumpWarning,
)
from quadgrad.gradient import GradientMode, Resolve, Reuse
from quadgrad.gradient.estimate import gradient_error
from quadgrad.integrand import element
from quadgrad.plan import Plan
from quadgrad.result import Result
from quadgrad.status import Status
from quadgrad.verbs.kept import KeptPlan
from quadgrad.verbs.quad import quad
from quadgrad.verbs.replay import replay

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

if TYPE_CHECKING:
    from quadgrad import bridge as bridge


def __getattr__(name: str) -> Any:
    """Import the edges of the library when they are first used: ``import quadgrad`` stays fast."""
    if name == "bridge":
        import importlib

        return importlib.import_module(f"quadgrad.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
