"""From what search found to the plan that is kept."""

from __future__ import annotations

import torch

from quadgrad.lanes import export, largest
from quadgrad.maps import Pieces
from quadgrad.plan import Ends, Plan
from quadgrad.rules import Rule
from quadgrad.search.cells import GEOMETRIC, LINEAR
from quadgrad.search.task import Found

__all__ = ["make_plan"]


def make_plan(found: Found, pieces: Pieces, batch_shape: tuple[int, ...], rule: Rule) -> Plan:
    """Return the cells as plain tensors that may outlive a transform."""
    tensors = rule.tensors(torch.float64, found.row.device)
    kind = None if found.kind is None else export(found.kind)
    ends = None
    if kind is not None and bool((kind != LINEAR).any()):
        cell = (kind != LINEAR).nonzero().squeeze(1)
        others = (kind == LINEAR).nonzero().squeeze(1)
        ends = Ends(cell, others, kind[cell] - (GEOMETRIC + 1), export(tensors.shares))
    return Plan(
        rule.name, batch_shape, pieces.count, pieces.infinite,
        export(found.row), export(found.start), export(found.stop), export(largest(found.cell_error)),
        export(tensors.nodes), export(tensors.weights), ends,
    )  # fmt: skip
