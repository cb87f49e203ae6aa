"""Random integrals with exact values and gradients, in every way of calling: where quad is wrong and silent."""

from __future__ import annotations

from benchmarks.fuzz.page import measure

__all__ = ["measure"]
