"""Gradient modes: how the value found by search becomes differentiable."""

from __future__ import annotations

from quadgrad.gradient.mode import Differentiated, GradientMode, Primal, Scaled
from quadgrad.gradient.resolve import Resolve
from quadgrad.gradient.reuse import Reuse

__all__ = ["Differentiated", "GradientMode", "Primal", "Resolve", "Reuse", "Scaled"]
