"""What a backward pass has to say of itself: errors, evaluations, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from quadgrad.bridge.contract import Array, cut, rounding
from quadgrad.bridge.linearization import Linearization
from quadgrad.bridge.options import Info
from quadgrad.bridge.problem import Problem

__all__ = ["GIVEN", "Pulled", "gradient_error", "report"]

GIVEN = Info("given", 0, None, None, None)
"""What there is to say where the derivative was given."""


class Pulled(NamedTuple):
    """Where a backward pass was in one lane, and how wrong its gradients may be.

    With the problem, which the point may have let go by the time somebody asks.
    """

    point: Linearization
    problem: Problem | None
    errors: list[Array]


def report(seen: Sequence[Pulled], lane_shape: tuple[int, ...], nfev: int) -> Info:
    """Return what a backward pass found, over all lanes."""
    if not seen:
        return Info("none", nfev, None, None, None)
    first, problem, _ = seen[0]
    if problem is None:
        return replace(GIVEN, nfev=nfev)
    if len(seen) < prod(lane_shape):  # lanes without a derivative were left out
        return Info(first.method, nfev, problem.roughness, None, None, "some lanes have no derivative")
    by_output = [_cut(each.point.jacobian.output_error(), each.point.outputs) for each in seen]
    stack = lambda columns: tuple(
        (column[0] if len(column) == 1 else np.stack(column)).reshape(lane_shape + column[0].shape)
        for column in zip(*columns, strict=True)
    )
    note = first.complex_refusal or "" if first.options.method == "auto" else ""
    return Info(
        first.method, nfev, problem.roughness, stack(by_output), stack([each.errors for each in seen]), note
    )


def gradient_error(point: Linearization, rows: Array, found: Array, dtypes: Sequence[torch.dtype]) -> list[Array]:
    """Return for each input how wrong its gradient may be, rounded to its dtype."""
    error = point.jacobian.pull_error(rows)
    assert error is not None
    arrays = [point.inputs[i] for i in point.wanted]
    sizes = [a.size for a in arrays]
    parts = zip(cut(error, sizes), cut(found, sizes), arrays, dtypes, strict=True)
    return [
        (e if d == torch.float64 else e + rounding(f, d)).max(axis=0, initial=0.0).reshape(a.shape)
        for e, f, a, d in parts
    ]


def _cut(flat: Array | None, arrays: Sequence[Array]) -> list[Array]:
    assert flat is not None
    return [p.reshape(a.shape) for p, a in zip(cut(flat, [a.size for a in arrays]), arrays, strict=True)]
