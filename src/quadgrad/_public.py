"""All public names. ``import quadgrad`` takes them from here, unless it is a command that starts."""

from __future__ import annotations

from dataclasses import is_dataclass

from quadgrad import _plots as _plots  # gives plans their plot
from quadgrad._config import keep_freed_memory, show_config
from quadgrad._core.antiderivative.curve import Antiderivative
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
from quadgrad._core.regions.ball import Ball, Sphere
from quadgrad._core.regions.nested import Nested
from quadgrad._core.regions.simplex import Simplex
from quadgrad._core.regions.where import Boundary, Where
from quadgrad._core.result import Result, restore_result
from quadgrad._core.sampled.romberg import romb
from quadgrad._core.sampled.simpson import cumulative_simpson, simpson
from quadgrad._core.sampled.spline import Spline, spline
from quadgrad._core.sampled.trapezoid import cumulative_trapezoid, trapezoid
from quadgrad._core.status import Status
from quadgrad._core.verbs.antiderivative import antiderivative
from quadgrad._core.verbs.certify import certify
from quadgrad._core.verbs.cubature import cubature
from quadgrad._core.verbs.expectation import expectation
from quadgrad._core.verbs.integrator import Integrator, restore_integrator
from quadgrad._core.verbs.perturbation_loss import perturbation_loss
from quadgrad._core.verbs.perturbed import Perturbed
from quadgrad._core.verbs.qmc import qmc
from quadgrad._core.verbs.quad import quad
from quadgrad._core.verbs.replay import replay
from quadgrad._core.verbs.vegas import vegas

__all__ = [
    "Antiderivative",
    "Ball",
    "Boundary",
    "GradientMode",
    "IntegrandError",
    "IntegrationError",
    "IntegrationWarning",
    "Integrator",
    "Nested",
    "Perturbed",
    "Plan",
    "Resolve",
    "Result",
    "Reuse",
    "SeveredGradientWarning",
    "Simplex",
    "Sphere",
    "Spline",
    "Status",
    "UnmarkedJumpWarning",
    "Where",
    "antiderivative",
    "certify",
    "cubature",
    "cumulative_simpson",
    "cumulative_trapezoid",
    "element",
    "expectation",
    "gradient_error",
    "keep_freed_memory",
    "perturbation_loss",
    "qmc",
    "quad",
    "replay",
    "romb",
    "show_config",
    "simpson",
    "spline",
    "trapezoid",
    "vegas",
]
_restore_plan, _restore_result, _restore_integrator = restore_plan, restore_result, restore_integrator  # in files

# Tracebacks and files then name what callers import. Classes with annotated fields stay where their annotations are
# understood.
for _name in __all__:
    if not is_dataclass(globals()[_name]):
        globals()[_name].__module__ = "quadgrad"
