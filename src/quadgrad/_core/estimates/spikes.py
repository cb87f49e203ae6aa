"""Values at single nodes that nothing around them explains: the foot of something narrow, seen by one node alone.

That is a value that rises steeply from both its neighbours; or, beside something wide, one without which the
highest coefficients would be nothing. Noted are the places, on cells of all generations: the children of a cell
need not see again what one of its nodes has seen. What becomes of them: :mod:`quadgrad._core.search.spikes`. The
same stands in the kernel's ``spikes.h``, for one column of a cell at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import UNRESOLVED
from quadgrad._core.rules import RuleTensors

__all__ = ["ABOVE", "ALIKE", "SHARP", "find_spikes"]

SHARP = 100.0
"""A value rises steeply if it is so many times the geometric mean of its two neighbours, see ADR 45."""

ALIKE = 0.999
"""One value that is off explains the highest coefficients if this share of their squares is what it makes them."""

ABOVE = 20.0
"""But for so many eps of the largest value, which rounding explains."""

NULLS = 6
"""So many of the highest coefficients are looked at: lower ones hold more of what is wide."""


def find_spikes(
    rule: RuleTensors, values: Tensor, nulls: Tensor, decay: Tensor, unseen: Tensor, noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the spike of each column of ``values`` ``(m, n)`` or ``(m, n, columns)``.

    ``nulls`` are their signed coefficients, ``unseen`` what hides them, see
    :func:`quadgrad._core.estimates.null_rules.null_rule_error`. Returned are whether there is one, in a column that
    is not resolved, where it is in the unit interval, and how far nodes are apart there.
    """
    size, tiny = values.abs(), torch.finfo(values.dtype).tiny
    here, before, after = size[1:-1], size[:-2], size[2:]
    least = torch.maximum(torch.maximum(before, after), before.sqrt() * after.sqrt() * SHARP)
    height, highest = (here * ((here >= least) & (here > tiny))).max(0)
    nulls = nulls[:NULLS]
    whole = nulls.abs().amax(0)
    part = nulls / whole
    rows = rule.functionals[1 : 1 + NULLS]
    norm = rows.norm(dim=0)
    share, node = torch.tensordot((rows / norm).T, part, 1).abs().max(0)
    off = share / norm[node] * whole
    quiet = torch.maximum(size.amax(0), unseen) * (ABOVE * noise)
    alone = (share.square() > ALIKE * part.square().sum(0)) & (off > quiet)
    steep = height > 0.0
    node = torch.where(steep, highest + 1, node)
    nodes = rule.nodes
    last = len(nodes) - 1
    apart = nodes[(node + 1).clamp_max(last)] - nodes[(node - 1).clamp_min(0)]
    return (steep | alone) & (decay >= UNRESOLVED) & (whole < torch.inf), nodes[node], 0.5 * apart
