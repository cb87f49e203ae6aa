"""From what search found to the plan that is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad.lanes import export, largest
from quadgrad.maps import Pieces
from quadgrad.plan import Ends, Plan
from quadgrad.rules import Rule
from quadgrad.search.cells import GEOMETRIC, LINEAR
from quadgrad.search.task import Found

__all__ = ["make_ends", "make_plan"]


def make_plan(found: Found, pieces: Pieces, batch_shape: tuple[int, ...], rule: Rule) -> Plan:
    """Return the cells as plain tensors that may outlive a transform."""
    tensors = rule.tensors(torch.float64, found.row.device)
    return Plan(
        rule.name, batch_shape, pieces.count, pieces.infinite,
        export(found.row), export(found.start), export(found.stop), export(largest(found.cell_error)),
        export(tensors.nodes), export(tensors.weights), make_ends(found.kind, tensors.shares),
    )  # fmt: skip


def make_ends(kind: Tensor | None, shares: Tensor) -> Ends | None:
    """Return which cells of a plan close in on an end, by the kinds of all its cells."""
    if kind is None:
        return None
    kind = export(kind)
    return Ends.at(kind != LINEAR, kind - (GEOMETRIC + 1), export(shares))
