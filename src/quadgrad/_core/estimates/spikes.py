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

__all__ = ["ABOVE", "ALIKE", "RISES", "SHARP", "find_spikes", "quiet_below"]

SHARP = 10.0
"""Values rise from those around them if they are so many times as large, see ADR 45."""

RISES = 4
"""So many values of a column that rise are noted; where there are more, it is a wave."""

ALIKE = 0.999
"""One value that is off explains the highest coefficients if this share of their squares is what it makes them."""

ABOVE = 20.0
"""But for so many eps of the largest value, which rounding explains."""

NULLS = 6
"""So many of the highest coefficients are looked at: lower ones hold more of what is wide."""


def quiet_below(values: Tensor, unseen: Tensor, noise: float) -> Tensor:
    """Return what rounding explains of columns ``(m, n)`` or ``(m, n, columns)``; ``unseen`` is what hides their
    coefficients, see :func:`quadgrad._core.estimates.null_rules.null_rule_error`.
    """
    return torch.maximum(values.abs().amax(0), unseen) * (ABOVE * noise)


def find_spikes(
    rule: RuleTensors, values: Tensor, known: Tensor | None, inside: Tensor | None, nulls: Tensor, decay: Tensor,
    quiet: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Find the spikes of each column of ``values`` ``(m, n)`` or ``(m, n, columns)``.

    ``known`` ``(2, n)`` is f at the edges in the same units, NaN where it is not known; ``inside`` tells which edges are
    no ends of a piece, where f may be singular; ``nulls`` are the columns'
    signed coefficients. Returned are, of :data:`RISES` in each column, whether they are there, where in the unit
    interval, and how far nodes are apart there.
    """
    steep, highest = _rising(values.abs(), known, inside)
    nulls = nulls[:NULLS]
    whole, unresolved = nulls.abs().amax(0), decay >= UNRESOLVED
    part, rows = nulls / whole, rule.functionals[1 : 1 + NULLS]
    norm = rows.norm(dim=0)
    share, node = torch.tensordot((rows / norm).T, part, 1).abs().max(0)
    off = share / norm[node] * whole
    alone = (share.square() > ALIKE * part.square().sum(0)) & (off > quiet) & unresolved
    alone &= ~steep[0] & (whole < torch.inf)
    node = torch.cat((torch.where(alone, node + 1, highest[0])[None], highest[1:]))
    places = torch.nn.functional.pad(rule.nodes, (2, 2))
    places[-2:] = 1.0
    here = torch.cat((steep[:1] | alone, steep[1:])) & values.isfinite().all(0)
    return here, places[node + 1], torch.stack((places[node], places[node + 2]))


def _rising(size: Tensor, known: Tensor | None, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tell where values rise from those around them, by themselves or with one neighbour, and which.

    None do where many do; the place is that among edge, nodes, edge. f at an edge counts where it is known, which
    only one column of linear nodes knows.
    """
    edges = torch.full_like(size[:2], torch.inf)
    if known is not None and size.ndim == 2:
        edges = known.abs().nan_to_num(torch.inf)
    nothing = torch.zeros_like(size[:2])
    whole = torch.cat((nothing, edges[:1], size, edges[1:], nothing))
    pair = torch.maximum(whole[1:-2], whole[2:-1])
    alone = whole[2:-2] > SHARP * torch.maximum(whole[1:-3], whole[3:-1])
    both = pair > SHARP * torch.maximum(whole[:-3], whole[3:])  # of each and the one before it
    here = whole[2:-2]
    rises = alone | (both[1:] & (here >= whole[3:-1])) | (both[:-1] & (here > whole[1:-3]))
    rises &= (here > torch.finfo(size.dtype).tiny) & (here < torch.inf)
    if inside is not None and size.ndim == 2:
        rises[:: len(rises) - 1] &= inside
    few = rises.sum(0) <= RISES
    rises, place = rises.to(torch.int8).topk(RISES, dim=0)
    return (rises > 0) & few, place
