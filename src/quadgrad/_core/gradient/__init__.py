"""Gradient modes: how the value found by search becomes differentiable."""

from __future__ import annotations

from quadgrad._core.gradient.mode import Differentiated, GradientMode, Primal, Scaled
from quadgrad._core.gradient.resolve import Resolve
from quadgrad._core.gradient.reuse import Reuse

__all__ = ["Differentiated", "GradientMode", "Primal", "Resolve", "Reuse", "Scaled"]
