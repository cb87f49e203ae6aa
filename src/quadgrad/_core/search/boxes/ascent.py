"""Uphill from a point at which f is not what the nodes around it say: to the bump of which it is the foot.

What is climbed is the size of the gap between f and the polynomials through the nodes of its cells
(:mod:`quadgrad._core.rules.fit`), which f is evaluated for again: it is rarely needed. Of a Gaussian on something
smooth that is the Gaussian alone, wherever f itself is highest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.mesh.boxes import Boxes, NewBoxes, unit_corners
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.problem import Problem
from quadgrad._core.rules.fit import fit_of
from quadgrad._core.search.boxes.held_out import COARSE, one_column
from quadgrad._core.search.boxes.neighbours import locate_points

__all__ = ["Peaks", "follow", "highest_cost"]

STEPS = 16
"""So many steps uphill at most."""

SCALES = (0.25, 0.0625, 0.015625)
"""Steps along each axis that are tried, as parts of the cell that the climb starts in."""


@dataclass
class Peaks:
    """Where f is highest in the unit cube, ``place`` and ``width`` ``(k, d)``, and how high."""

    place: Tensor
    width: Tensor
    height: Tensor

    def take(self, index: Tensor) -> Peaks:
        """Return some of them."""
        return Peaks(self.place[index], self.width[index], self.height[index])


class _Gap:
    """How far f is off the polynomials of its cells, for the integrals ``who``."""

    def __init__(self, problem: Problem, mesh: Boxes, plan: BoxPlan, who: Tensor) -> None:
        self.problem, self.mesh, self.who = problem, mesh, who
        number = torch.full((problem.batch,), -1, device=who.device)
        number[who] = torch.arange(len(who), device=who.device)
        own = plan.take(number[plan.owner] >= 0)
        self.owner, self.level, self.place = number[own.row], own.level.T, own.position.T
        coarse = (self.level.sum(0) <= COARSE).nonzero().squeeze(1)
        self.known = torch.full_like(self.owner, -1)
        self.known[coarse] = torch.arange(len(coarse), device=who.device)
        self.fit = fit_of(problem.rule)
        coefficients = torch.as_tensor(self.fit.coefficients, device=who.device)
        m, parts = coefficients.shape[1], list[Tensor]()
        step = max(1, problem.block // problem.rule.rows)
        for cells in coarse.split(step) if len(coarse) else ():
            row, level = own.row[cells], self.level[:, cells]
            new = NewBoxes(row, row, level, self.place[:, cells], problem.rule.rows)
            x, factor = mesh.nodes(mesh.lay_out(new))
            y = one_column(problem.integrand(x, row).detach()) * factor
            parts.append(coefficients @ y[:m] * torch.exp2(level.sum(0).double()))
        self.coefficients = torch.cat(parts, 1) if parts else coefficients[:, :0]
        self.cost = torch.bincount(self.owner[coarse], minlength=len(who)) * problem.rule.rows

    def cell(self, u: Tensor) -> Tensor:
        """Return the cells that points u ``(m, k, d)``, k integrals, are in."""
        whose = torch.arange(u.shape[1], device=u.device).repeat(u.shape[0])
        return locate_points(self.owner, self.level, self.place, whose, u.reshape(-1, u.shape[2]).T)

    def __call__(self, u: Tensor) -> Tensor:
        """Return the gap at points u ``(m, k, d)``, k integrals; 0 in cells that are not known."""
        x, factor = self.mesh.domain.take(self.who).place(u)
        y = one_column(self.problem.integrand(x, self.who).detach()) * factor
        cell = self.cell(u)
        low, width = unit_corners(self.level[:, cell], self.place[:, cell])
        t = ((u.reshape(-1, u.shape[2]).T - low) / width).T
        products = self.fit.products(t)
        known = self.known[cell]
        predicted = (products * self.coefficients.T[known]).sum(1)
        gap = (y - predicted.reshape(y.shape)).abs().nan_to_num_(0.0, 0.0)
        return gap * (known >= 0).reshape(y.shape)


def highest_cost(problem: Problem, plan: BoxPlan) -> Tensor:
    """Return at how many places f may be called to :func:`follow` what is seen in each integral, ``(batch,)``."""
    coarse = plan.level.sum(1) <= COARSE
    steps = STEPS * (2 * problem.rule.d * len(SCALES) + len(SCALES) + 2)
    return problem.rule.rows * torch.bincount(plan.owner[coarse], minlength=problem.batch) + 1 + steps


def follow(problem: Problem, mesh: Any, plan: BoxPlan, who: Tensor, at: Tensor) -> tuple[Peaks, Tensor]:
    """Climb from a point ``(k, d)`` of each of the integrals ``who``; return peaks and what that cost each."""
    gap, d = _Gap(problem, mesh, plan, who), problem.rule.d
    cell = gap.cell(at[None])
    width = unit_corners(gap.level[:, cell], gap.place[:, cell])[1].T
    scale = at.new_tensor(SCALES)
    eye = torch.eye(d, dtype=at.dtype, device=at.device)
    # (scales, 2 d, k, d): both ways along each axis
    moves = scale[:, None, None, None] * torch.cat((eye, -eye))[:, None] * width
    top, cost = gap(at[None])[0], gap.cost + 1
    around = top.expand(len(SCALES), 2 * d, -1)
    for _ in range(STEPS):
        u = (at + moves).clamp(1e-12, 1.0 - 1e-12)
        around = gap(u.flatten(0, 1)).unflatten(0, (len(SCALES), 2 * d))
        both = around.unflatten(1, (2, d))  # (scales, 2, d, k)
        rise, way = both.max(1)
        step = (scale[:, None, None] * (rise > top)) * (1.0 - 2.0 * way)  # the better way along each axis
        best = rise.argmax(0, keepdim=True)
        step = torch.cat((step, step.gather(0, best), 2.0 * step.gather(0, best))).movedim(1, 2) * width
        trial = (at + step).clamp(1e-12, 1.0 - 1e-12)
        points = torch.cat((u.flatten(0, 1), trial))
        heights = torch.cat((around.flatten(0, 1), gap(trial)))
        cost = cost + len(points)
        highest, index = heights.max(0)
        if not bool((highest > top).any()):
            break
        move = (highest > top)[:, None]
        at = torch.where(move, points.gather(0, index[None, :, None].expand(-1, -1, d))[0], at)
        top = torch.maximum(top, highest)
    return Peaks(at, _widths(around, top, scale, width, d), top), cost


def _widths(around: Tensor, top: Tensor, scale: Tensor, width: Tensor, d: int) -> Tensor:
    """Return how wide peaks ``(k, d)`` are, from the gaps both ways along each axis."""
    tiny = torch.finfo(top.dtype).tiny
    fall = (top.clamp_min(tiny).log() - around.clamp_min(tiny).log().unflatten(1, (2, d)).mean(1)).clamp_min(1e-3)
    sigma = scale[:, None, None] / (2.0 * fall).sqrt()  # of a Gaussian that falls so
    best = (fall.log() - math.log(0.5)).abs().argmin(0, keepdim=True)
    # What is level on top and falls at once, as a box does, is no wider than the distance at which it has fallen.
    fallen = torch.where(fall >= 0.5, scale[:, None, None], torch.inf).amin(0)
    return torch.minimum(sigma.gather(0, best)[0], fallen).T * width
