"""Other modes of an integrand given by its logarithm, on an infinite interval, by the slopes of log f at nodes.

There the nodes are so far apart that a second mode lies between two of them and log f rises from one towards it
where its values do not show that: a valley lies before. Where log f rises at one node and falls at the next, as the
slopes tell that differences give, the mode is bracketed, and found by halving.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import Layout, lay_out
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import total

__all__ = ["Modes", "find_modes"]

HIDDEN = 20.0
"""A mode is looked for where log f may be so much larger between two nodes than at them."""

LEVEL = 5.0
"""It is found where log f is no more than this below it on both sides."""

REACH = 40.0
"""A mode that is so far below what was found elsewhere does not matter."""

FIRST, LAST = 2, 14
"""Places are two an octave from x = 2^2 to 2^14: a mode is seen from places between the valley before it, about
halfway if it is as wide as the others, and itself."""

HALVINGS, ASIDE = 40, 2.0**-10
"""How often a bracket is halved at most; how far beside a place log f is called for its slope, as a part of that."""


@dataclass(frozen=True)
class Modes:
    """Places ``(k,)`` from the lower end of pieces, how wide the modes there are, and the calls of f ``(batch,)``."""

    row: Tensor
    place: Tensor
    width: Tensor
    calls: Tensor

    def are_in(self, row: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """Tell which cells hold a mode that is narrower than they are."""
        begin = torch.where(start < 0.0, 1.0 + start, start)[:, None]
        width = (stop - start)[:, None]
        inside = (self.place >= begin) & (self.place <= begin + width) & (width > self.width)
        return (inside & (row[:, None] == self.row)).any(1)


class _Line:
    """log f along whole pieces, one component at each of ``k`` places."""

    def __init__(self, task: Problem, row: Tensor) -> None:
        self.task, self.row = task, row
        zeros = torch.zeros(row.shape, dtype=torch.float64, device=row.device)
        self.layout: Layout = lay_out(task.pieces, row, zeros, zeros + 1.0, None)

    def take(self, index: Tensor) -> _Line:
        return _Line(self.task, self.row[index])

    def at(self, tau: Tensor) -> Tensor:
        """Return log of f times dx/dtau at places ``(m, k)``, ``(m, k, components)``."""
        x, factor = self.layout.nodes(tau)
        owner, step = self.row // self.task.pieces.count, max(1, self.task.block // len(tau))
        blocks = (slice(low, low + step) for low in range(0, max(1, len(self.row)), step))
        y = torch.cat([self.task.integrand(x[:, part], owner[part]).detach() for part in blocks], 1).double()
        y = y.reshape(*y.shape[:2], -1) + factor.log()[..., None]
        return torch.where(y < torch.inf, y, -torch.inf)

    def slope(self, tau: Tensor, y: Tensor) -> Tensor:
        """Return its slope there, given its values: by one more call at each."""
        aside = ASIDE * torch.minimum(tau, 1.0 - tau)
        return ((self.at(tau + aside) - y) / aside[..., None]).nan_to_num(0.0, 0.0, 0.0)


def find_modes(task: Problem, first: IntervalPlan) -> Modes | None:
    """Look for modes between the rule's nodes on the whole pieces that a search starts from; None if there is none."""
    whole = first.stop - first.start == 1.0
    line = _Line(task, first.row[whole])
    if not len(line.row):
        return None
    nodes = _places(task, first.row.device)
    tau = nodes[:, None].expand(-1, len(line.row))
    y = line.at(tau)
    slope = line.slope(tau, y)
    count, batch = task.pieces.count, task.batch
    calls = total(torch.full_like(line.row, 2 * len(nodes)), line.row // count, batch)
    interval, piece, component = _brackets(nodes, y, slope).nonzero().unbind(1)
    if not len(piece):
        return Modes(line.row[:0], nodes[:0], nodes[:0], calls)
    low, high = nodes[interval], nodes[interval + 1]
    levels = torch.stack((y[interval, piece, component], y[interval + 1, piece, component]))
    line = line.take(piece)
    calls = calls + total(torch.full_like(piece, 2 * HALVINGS), line.row // count, batch)
    pick = component[None, :, None]
    for _ in range(HALVINGS):
        middle = (0.5 * (low + high))[None]
        value = line.at(middle)
        rises = line.slope(middle, value).gather(2, pick)[0, :, 0] > 0.0
        value = value.gather(2, pick)[0, :, 0]
        open_ = (levels < value - LEVEL).any(0)
        low, high = torch.where(rises & open_, middle[0], low), torch.where(~rises & open_, middle[0], high)
        levels = torch.stack((
            torch.where(rises & open_, value, levels[0]), torch.where(~rises & open_, value, levels[1])
        ))  # fmt: skip
        if not bool(open_.any()):
            break
    highest = y.amax(0).new_full((batch, y.shape[2]), -torch.inf)
    owner = line.row // count
    here = levels.amax(0)
    index = owner * y.shape[2] + component
    flat = highest.flatten().scatter_reduce(0, index, here, "amax")
    whole_owner = first.row[whole] // count
    tops = y.amax(0).flatten()
    flat = flat.scatter_reduce(
        0,
        (whole_owner[:, None] * y.shape[2] + torch.arange(y.shape[2], device=owner.device)).flatten(),
        tops,
        "amax",
    )
    kept = here > flat[index] - REACH
    return Modes(line.row[kept], (0.5 * (low + high))[kept], (high - low)[kept], calls)


def _places(task: Problem, device: torch.device) -> Tensor:
    """Return the rule's nodes, and closer to both ends places farther out by a constant ratio, ``(m,)``."""
    nodes = task.rule.tensors(torch.float64, device).nodes
    out = torch.exp2(-torch.arange(2 * FIRST, 2 * LAST, dtype=torch.float64, device=device) / 2)
    return torch.cat((nodes, out, 1.0 - out)).sort().values


def _brackets(tau: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """Tell between which nodes log f may rise to much more than it is at them: ``(m - 1, n, components)``.

    Where it rises from one node and falls to the next a concave function lies below both tangents.
    """
    width, left, right = tau.diff()[:, None, None], y[:-1], y[1:]
    up, down = slope[:-1], -slope[1:]
    meet = ((right + down * width - left) / (up + down)).clamp_min(0.0)
    peak = left + up * torch.minimum(meet, width)
    finite = left.isfinite() & right.isfinite()
    return (up > 0.0) & (down > 0.0) & finite & (peak > torch.maximum(left, right) + HIDDEN)
