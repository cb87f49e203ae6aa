"""quadgrad: integrals you can differentiate."""

from __future__ import annotations

from quadgrad.errors import (
    IntegrandError,
    IntegrationError,
    IntegrationWarning,
    SeveredGradientWarning,
    UnmarkedJumpWarning,
)
from quadgrad.gradient import GradientMode, Reuse
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
    "Result",
    "Reuse",
    "SeveredGradientWarning",
    "Status",
    "UnmarkedJumpWarning",
    "element",
    "quad",
    "replay",
]
__version__ = "0.1.0"
