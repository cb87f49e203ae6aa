"""Values at single nodes that nothing around them explains: the foot of something narrow, seen by one node alone.

That is a value that rises steeply from both its neighbours; or, beside something wide, one without which the
highest coefficients would be nothing. Noted are the places, on cells of all generations: the children of a cell
need not see again what one of its nodes has seen. What becomes of them: :mod:`quadgrad._core.search.looks.spikes`.
The same stands in the kernel's ``spikes.h``, for one column of a cell at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import UNRESOLVED
from quadgrad._core.mesh.cells import NewIntervals
from quadgrad._core.reduce import apply, reals
from quadgrad._core.rules import RuleTensors

__all__ = [
    "ABOVE", "ALIKE", "JOINTLY_ALIKE", "LEFT", "NEARLY_ALIKE", "RISES", "SHARP", "Seen", "Sight", "Spikes",
    "find_alone", "find_spikes", "quiet_below",
]  # fmt: skip

SHARP = 10.0
"""Values rise from those around them if they are so many times as large, see ADR 45."""

RISES = 4
"""So many values of a column that rise are noted; where there are more, it is a wave."""

ALIKE = 0.999
"""One value that is off explains the highest coefficients if this share of their squares is what it makes them."""

JOINTLY_ALIKE, NEARLY_ALIKE, LEFT = 0.9999, 0.99, 1e-10
"""The same for all places of a first cell; kinks are much like it. Of what is smooth, beside needles, the last part
of the largest value may be left: where that is all, the second of the shares will do."""

ABOVE = 20.0
"""But for so many eps of the largest value, which rounding explains."""

BESIDE_EDGE = 4
"""What an edge saw is compared in width with the distance of the node so many farther in."""

NULLS = 6
"""So many of the highest coefficients are looked at: lower ones hold more of what is wide."""

HELD = 2**20
"""Values that are kept at most until they are looked at."""


def quiet_below(values: Tensor, unseen: Tensor, noise: float) -> Tensor:
    """Return what rounding explains of columns ``(m, n)`` or ``(m, n, columns)``.

    ``unseen`` is what hides their coefficients, see :func:`quadgrad._core.estimates.null_rules.null_rule_error`.
    """
    return torch.maximum(values.abs().amax(0), unseen) * (ABOVE * noise)


def find_spikes(
    rule: RuleTensors, values: Tensor, known: Tensor | None, nulls: Tensor, decay: Tensor, quiet: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the spikes of each column of ``values`` ``(m, n)`` or ``(m, n, columns)``.

    ``known`` ``(2, n)`` is f at the edges in the same units, NaN where it is not known; ``nulls`` are the columns'
    signed coefficients, ``quiet`` is what rounding explains. Returned are, of :data:`RISES` in each column, whether
    they are there, and at which of edge, nodes, edge.
    """
    rises, place = _rising(values.abs(), known)
    alike, node, off = _see_alone(rule.functionals[1 : 1 + NULLS], nulls[:NULLS])
    alone = (alike > ALIKE) & (off > quiet) & (decay >= UNRESOLVED) & ~rises.any(0)
    rises[0] |= alone
    place[0] = torch.where(alone, node + 1, place[0])
    return rises & values.isfinite().all(0), place


def find_alone(rule: RuleTensors, values: Tensor, quiet: Tensor) -> tuple[Tensor, Tensor]:
    """Tell where one value of first cells is off what all others say, and which, among edge, nodes, edge, looks.

    ``values`` ``(m + 5, n)`` or ``(m + 5, n, columns)`` are NaN where f is not known.
    """
    alike, place, off = _see_alone(rule.joint, apply(rule.joint, values))
    told = off * rule.joint.norm(dim=0)[place]
    left = told * (1.0 / alike - 1.0).clamp_min(0.0).sqrt()
    smooth = left < torch.maximum(LEFT * values.abs().amax(0), quiet)
    return (alike > torch.where(smooth, NEARLY_ALIKE, JOINTLY_ALIKE)) & (told > quiet), place


def _see_alone(rows: Tensor, nulls: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the one value that would make null rules what they are, if it alone were off.

    Returned are which part of the squares it explains, 0 where they are not finite, its number, and what it is off.
    """
    whole, norm = nulls.abs().amax(0), rows.norm(dim=0)
    part = nulls / whole
    share, at = torch.tensordot((rows / norm).T, part, 1).abs().max(0)
    alike = (share.square() / part.square().sum(0)).masked_fill(~(whole < torch.inf), 0.0)
    return alike, at, share * whole / norm[at]


def _rising(size: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tell where values rise from those around them, by themselves or with one neighbour, and which.

    None do where many do; the place is that among edge, nodes, edge. f at an edge counts where it is known, which
    only one column of linear nodes knows.
    """
    edges = torch.full_like(size[:2], torch.inf)
    if known is not None and size.ndim == 2:
        edges = known.abs().nan_to_num(torch.inf)
    nothing = torch.zeros_like(size[:2])
    whole = torch.cat((nothing, edges[:1], size, edges[1:], nothing))
    before, here, after = whole[1:-3], whole[2:-2], whole[3:-1]
    # two neighbours, of each place and the one before it
    both = torch.maximum(whole[1:-2], whole[2:-1]) > SHARP * torch.maximum(whole[:-3], whole[3:])
    rises = here > SHARP * torch.maximum(before, after)
    rises = rises | (both[1:] & (here >= after)) | (both[:-1] & (here > before))
    rises &= (here > torch.finfo(size.dtype).tiny) & (here < torch.inf)
    rises &= rises.sum(0) <= RISES
    rises, place = rises.to(torch.int8).topk(RISES, dim=0)
    return rises > 0, place


@dataclass(slots=True)
class Sight:
    """What a rule saw of new cells: values ``(m, n)`` or ``(m, n, columns)``, and what null rules made of them."""

    rule: RuleTensors
    cells: NewIntervals
    values: Tensor
    nulls: Tensor
    decay: Tensor
    unseen: Tensor


@dataclass(slots=True)
class Seen:
    """Cells ``(n,)`` of a rule, where they are; outer end and rate if logarithmic, or else f at the edges."""

    rule: RuleTensors
    row: Tensor
    start: Tensor
    stop: Tensor
    reach: Tensor
    scale: Tensor
    outer: Tensor | None = None
    rate: Tensor | None = None
    edges: Tensor | None = None


class Spikes:
    """Gathers what single nodes saw; what it amounts to is computed once, in the end.

    Nothing waits for it: cells are looked at many at a time, since a round may have few, and operations cost.
    """

    def __init__(self, watch: Callable[[Seen, Tensor, float], None] | None = None) -> None:
        """``watch``, too, is shown the values ``(m, n)`` or ``(m, n, columns)`` of all cells, many at a time."""
        self._watch = watch
        self._waiting: dict[tuple[bool, float, torch.Size], list[Sight]] = {}
        self._held = 0
        self._groups: list[tuple[Tensor, Tensor, Seen]] = []
        self._places: list[tuple[Tensor, Tensor, RuleTensors, NewIntervals]] = []

    def clear(self) -> None:
        """Forget all."""
        self.__init__(self._watch)

    def add(self, sight: Sight, noise: float) -> None:
        """Look for spikes in cells, now or later."""
        kind = (sight.cells.logarithmic, noise, sight.values.shape[2:])
        self._waiting.setdefault(kind, []).append(sight)
        self._held += sight.values.numel()
        if self._held > HELD:
            self._find()

    def add_places(self, off: Tensor, place: Tensor, rule: RuleTensors, cells: NewIntervals) -> None:
        """Keep places ``(n, k)`` of first cells, or ``(k,)`` of all, among edge, nodes, edge, looks, if ``off``."""
        self._places.append((off, place.expand_as(off), rule, cells))

    def _find(self) -> None:
        for (logarithmic, noise, _), sights in self._waiting.items():
            values, nulls = (torch.cat([getattr(s, name) for s in sights], 1) for name in ("values", "nulls"))
            decay, unseen = (torch.cat([getattr(s, name) for s in sights]) for name in ("decay", "unseen"))
            if values.is_complex():  # the null rules are those of the moduli
                values = reals(values, 2)
                nulls, decay, unseen = (
                    t.repeat_interleave(2, -1).reshape(*shape, *values.shape[1:])
                    for t, shape in ((nulls.abs(), nulls.shape[:1]), (decay, ()), (unseen, ()))
                )
            rule, cells = sights[0].rule, [s.cells for s in sights]
            columns = [torch.cat([getattr(c, name) for c in cells]) for name in ("row", "start", "stop")]
            names = ("reach", "scale", "outer", "rate") if logarithmic else ("reach", "scale")
            columns += [torch.cat([getattr(c.layout, name) for c in cells]) for name in names]
            seen = Seen(rule, *columns)
            if not logarithmic:
                seen.edges = torch.cat([c.at_edges * c.layout.scale for c in cells], 1)
            if self._watch is not None:
                self._watch(seen, values, noise)
            quiet = quiet_below(values, unseen, noise)
            self._groups.append((*find_spikes(rule, values, seen.edges, nulls, decay, quiet), seen))
        self._waiting.clear()
        self._held = 0

    def close(self) -> Tensor | None:
        """Return ``(k, 3)``, the row, the place, and how far nodes are apart there."""
        self._find()
        parts: list[Tensor] = []
        for here, place, cells in self._groups:
            rule = cells.rule
            here, place = (t.flatten(2) if t.ndim > 2 else t[..., None] for t in (here, place))
            at = here.nonzero()
            if not len(at):
                continue
            node, cell = place[at.unbind(1)], at[:, 1]
            start, stop = cells.start[cell], cells.stop[cell]
            lower, upper = start == 0.0, (stop == 0.0) | (stop == 1.0)
            first, last = node <= 1, node >= len(rule.nodes)
            # Beside an end of the piece f may be singular.
            ends = (lower & first) | (upper & last) if cells.rate is None else (lower | upper) & last
            kept = (~ends).nonzero().squeeze(1)
            node, cell, start, stop = (t.index_select(0, kept) for t in (node, cell, start, stop))
            nodes = torch.cat((rule.nodes.new_zeros(1), rule.nodes, rule.nodes.new_ones(1)))
            # An edge was seen by the cell on its other side too: nodes beside it are the closest of all.
            beside = torch.where((node == 0) | (node == len(nodes) - 1), BESIDE_EDGE, 1)
            around = torch.stack((node - beside, node, node + beside)).clamp(0, len(nodes) - 1)
            tau = nodes[around]
            if cells.outer is None or cells.rate is None:
                places = torch.addcmul(start, stop - start, tau)
            else:
                places = cells.outer[cell] * torch.exp(cells.rate[cell] * tau)
            parts.append(_lines(cells.row[cell], places))
        for off, place, rule, new in self._places:
            cell, column = off.nonzero().unbind(1)
            tau = _with_nodes_beside(rule)[:, place[cell, column]]
            cell, tau = cell[tau[0] > 0.0], tau[:, tau[0] > 0.0]
            if len(cell):
                places = torch.addcmul(new.start[cell], (new.stop - new.start)[cell], tau)
                parts.append(_lines(new.row[cell], places))
        return torch.cat(parts) if parts else None


def _with_nodes_beside(rule: RuleTensors) -> Tensor:
    """Return edge, nodes, edge and looks between the nodes beside them ``(3, m + 5)``; 0 for those at the edges."""
    nodes, after = rule.nodes, torch.searchsorted(rule.nodes, rule.looks)
    inner = torch.nn.functional.pad(torch.stack((nodes[:-2], nodes[1:-1], nodes[2:])), (2, 2))
    return torch.cat((inner, torch.stack((nodes[after - 1], rule.looks, nodes[after]))), 1)


def _lines(row: Tensor, places: Tensor) -> Tensor:
    """Return lines of row, place and distance of places ``(3, k)``: before, here, after."""
    return torch.stack((row.to(places.dtype), places[1], places.diff(dim=0).abs().amax(0)), 1)
