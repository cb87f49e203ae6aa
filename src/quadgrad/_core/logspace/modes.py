"""Other modes of an integrand given by its logarithm, on an infinite interval.

There the rule's nodes are so far apart that between two of them a second mode may hide behind the valley before it.
So log f is looked at once at places that lie by a constant ratio farther out; what is highest among its neighbours
there brackets a mode, which the slopes of log f, as differences tell them, find by halving. See ADR 46.
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

PER_OCTAVE, FIRST, LAST = 3, 2, 14
"""So many places an octave from x = 2^2 to 2^14, on each side. The valley before a mode is halfway to it, or two
thirds if it is half as wide as the others: one of the next two places is higher than those before."""

LEVEL = 5.0
"""A mode is found where log f is no more than this below it on both sides."""

REACH = 40.0
"""One that is so far below what was found elsewhere does not matter."""

HALVINGS, ASIDE = 40, 2.0**-10
"""How often a bracket is halved at most; how far beside a place the slope is measured, as a part of its distance
from the nearer end."""


@dataclass(frozen=True)
class Modes:
    """Places ``(k,)`` from the lower end of pieces, how wide modes there are; the calls of f, ``(batch,)``."""

    row: Tensor
    place: Tensor
    width: Tensor
    calls: Tensor

    def are_in(self, row: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """Tell which cells hold a mode that is narrower than they are."""
        begin, width = torch.where(start < 0.0, 1.0 + start, start)[:, None], (stop - start)[:, None]
        inside = (self.place >= begin) & (self.place <= begin + width) & (width > self.width)
        return (inside & (row[:, None] == self.row)).any(1)


class _Line:
    """log f along whole pieces, the ``row`` of each of ``k``."""

    def __init__(self, task: Problem, row: Tensor) -> None:
        self.task, self.row, self.owner = task, row, row // task.pieces.count
        zeros = torch.zeros(row.shape, dtype=torch.float64, device=row.device)
        self.layout: Layout = lay_out(task.pieces, row, zeros, zeros + 1.0, None)

    def at(self, tau: Tensor) -> Tensor:
        """Return the log of f times dx/dtau at places ``(m, k)``, ``(m, k, components)``; -inf where f is none."""
        x, factor = self.layout.nodes(tau)
        step = max(1, self.task.block // len(tau))
        parts: list[Tensor] = []
        for low in range(0, max(1, len(self.row)), step):
            part = slice(low, low + step)
            y = self.task.integrand(x[:, part], self.owner[part]).detach().double()
            parts.append(y.reshape(*y.shape[:2], -1) + factor[:, part].log()[..., None])
        y = torch.cat(parts, 1)
        return torch.where(y < torch.inf, y, -torch.inf)


def find_modes(task: Problem, first: IntervalPlan) -> Modes | None:
    """Look for modes on whole pieces among the cells that a search starts from; None if there is none."""
    line = _Line(task, first.row[first.stop - first.start == 1.0])
    if not len(line.row):
        return None
    places = _places(first.row.device)
    y = line.at(places[:, None].expand(-1, len(line.row)))
    calls = total(torch.full_like(line.row, len(places)), line.owner, task.batch)
    # Each component of each integral has a highest value of its own.
    components = torch.arange(y.shape[2], device=y.device)
    which = line.owner[:, None] * y.shape[2] + components
    tops = y.new_full((task.batch * y.shape[2],), -torch.inf)
    tops = tops.scatter_reduce(0, which.flatten(), y.amax(0).flatten(), "amax")
    at, piece, component = _summits(y).nonzero().unbind(1)
    around = torch.stack((at, at + 2))
    bracket, level = places[around], y[around, piece, component]
    line = _Line(task, line.row[piece])
    bracket, top, steps = _climb(line, component, bracket, level)
    calls = calls + total(steps, line.owner, task.batch)
    own = line.owner * y.shape[2] + component
    tops = tops.scatter_reduce(0, own, top, "amax")
    kept = top > tops[own] - REACH
    row, low, high = line.row[kept], *bracket[:, kept]
    return Modes(row, 0.5 * (low + high), high - low, calls)


def _climb(line: _Line, component: Tensor, bracket: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Halve brackets ``(2, k)`` around modes; return them, how high they are, and the calls of f that took.

    ``level`` is log f at both ends; it is done where they are level with the middle.
    """
    pick, top = component[None, :, None], torch.full_like(bracket[0], -torch.inf)
    calls = torch.zeros_like(line.row)
    open_ = torch.ones_like(line.row, dtype=torch.bool)
    for _ in range(HALVINGS):
        if not bool(open_.any()):
            break
        middle = bracket.mean(0, keepdim=True)
        aside = ASIDE * torch.minimum(middle, 1.0 - middle).minimum(bracket.diff(dim=0))
        here, beside = (line.at(t).gather(2, pick)[..., 0] for t in (middle, middle + aside))
        top, calls = torch.maximum(top, torch.where(open_, here[0], -torch.inf)), calls + 2 * open_
        open_ = open_ & (level < here - LEVEL).any(0)
        side = torch.stack((beside[0] > here[0], beside[0] <= here[0])) & open_
        bracket, level = torch.where(side, middle, bracket), torch.where(side, here, level)
    return bracket, top, calls


def _places(device: torch.device) -> Tensor:
    """Return places by constant ratios of their distances from both ends, ``(m,)``."""
    out = torch.arange(PER_OCTAVE * FIRST, PER_OCTAVE * LAST, dtype=torch.float64, device=device)
    out = torch.exp2(-out / PER_OCTAVE)
    even = torch.linspace(0.25, 0.75, 5, dtype=torch.float64, device=device)[1:-1]
    return torch.cat((out.flip(0), even, 1.0 - out))


def _summits(y: Tensor) -> Tensor:
    """Tell which inner places are much higher than those beside them, ``(m - 2, n, components)``."""
    before, here, after = y[:-2], y[1:-1], y[2:]
    return (here >= before) & (here > after) & (here - torch.minimum(before, after) > LEVEL)
