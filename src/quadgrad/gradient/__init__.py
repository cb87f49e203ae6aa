"""Gradient modes: how the value found by search becomes differentiable."""

from __future__ import annotations

from quadgrad.gradient.mode import GradientMode
from quadgrad.gradient.reuse import Reuse

__all__ = ["GradientMode", "Reuse"]
