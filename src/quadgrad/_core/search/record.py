"""From what search found to the plan that is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.lanes import export, largest
from quadgrad._core.mesh.cells import GEOMETRIC, LINEAR
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.plans.interval import Ends, Plan
from quadgrad._core.rules import Rule
from quadgrad._core.search.task import Found

__all__ = ["make_ends", "make_plan"]


def make_plan(found: Found, pieces: Pieces, batch_shape: tuple[int, ...], rule: Rule) -> Plan:
    """Return the cells as plain tensors that may outlive a transform."""
    tensors = rule.tensors(torch.float64, found.row.device)
    row, start, stop, error = found.row, found.start, found.stop, largest(found.cell_error)
    nodes, weights = tensors.nodes, tensors.weights
    if in_transform() or torch.is_inference_mode_enabled():
        row, start, stop, error, nodes, weights = map(export, (row, start, stop, error, nodes, weights))
    ends = make_ends(found.kind, tensors.shares)
    return Plan(
        rule.name, batch_shape, pieces.count, pieces.infinite, row, start, stop, error, nodes, weights, ends
    )


def make_ends(kind: Tensor | None, shares: Tensor) -> Ends | None:
    """Return which cells of a plan close in on an end, by the kinds of all its cells."""
    if kind is None:
        return None
    kind = export(kind)
    return Ends.at(kind != LINEAR, kind - (GEOMETRIC + 1), export(shares))
