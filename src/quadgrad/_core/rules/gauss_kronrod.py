"""Gauss-Kronrod rules gk15 to gk61: the default of one-dimensional search."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from quadgrad._core.rules.rule import Array, Rule

NAMES = ("gk15", "gk21", "gk31", "gk41", "gk51", "gk61")


@cache
def _halves() -> Array:
    """Return the left halves of all rules: their nodes, the distance from the end, and the weight."""
    return np.loadtxt(Path(__file__).with_name("kronrod.csv"), delimiter=",")


def gauss_kronrod(name: str) -> Rule:
    """Return the rule of that name, of degree ``3 n + 1`` for ``2 n + 1`` nodes (one more where n is odd)."""
    half = _halves()[_halves()[:, 0] == float(name.removeprefix("gk")), 1:]
    nodes = np.concatenate([half[:, 0], 1.0 - half[-2::-1, 0]])
    weights = np.concatenate([half[:, 1], half[-2::-1, 1]])
    n = nodes.size // 2
    # A symmetric rule integrates odd degrees for nothing, so the degree is always odd.
    return Rule(name, nodes, weights, degree=3 * n + 1 + n % 2)
