"""From what search found to the plan that is kept."""

from __future__ import annotations

import torch

from quadgrad._core._torch import in_transform
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.interval import LINEAR, Pieces
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.rules import Rule
from quadgrad._core.search.task import Found

__all__ = ["make_plan"]


def make_plan(found: Found, pieces: Pieces, batch_shape: tuple[int, ...], rule: Rule) -> IntervalPlan:
    """Return the cells as plain tensors that may outlive a transform."""
    rules = rule.tensors(torch.float64, found.row.device)
    kind = torch.full_like(found.row, LINEAR, dtype=torch.int8) if found.kind is None else found.kind
    columns = (found.row, found.cell_error, kind, rules.nodes, rules.weights, rules.shares)
    start, stop = found.start, found.stop
    if in_transform() or torch.is_inference_mode_enabled():
        columns, start, stop = tuple(map(plain, columns)), plain(start), plain(stop)
    names = ("row", "error", "kind", "tau", "weight", "shares")
    return IntervalPlan(
        rule=rule.name, batch_shape=batch_shape, pieces=pieces.count, infinite=pieces.infinite,
        start=start.to(torch.float64), stop=stop.to(torch.float64), **dict(zip(names, columns, strict=True)),
    )  # fmt: skip
