"""Where in boxes the part is that functions cut out: maps of the unit cube that lead points of a sample there.

In many dimensions nearly all of a box is outside. A map is first led towards where the functions are larger, level
by level (the cross-entropy method: R. Y. Rubinstein, *Methodol. Comput. Appl. Probab.* 1, 1999), and then fitted to
how long the lines through its points are inside. It changes how fast a sample converges, and nothing of what it
converges to.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.integrand import Argument
from quadgrad._core.mesh.grid import even_grid, level_mass
from quadgrad._core.points import make_sequence
from quadgrad._core.problem import Problem
from quadgrad._core.regions.through import Through

__all__ = ["find_guide"]

BINS = 32
"""Bins along each axis: a power of two, so that Sobol points stay evenly spread."""

POINTS, FEWER, FEW = 4096, 2048, 5
"""Points in each round, and in up to how many dimensions fewer will do."""

MISSED, SAMPLES = 2e-3, 64
"""Lines are looked at in twice as many places where this part of what they have inside is outside; at most so many.

25 discs of which a line meets up to five were taken for .6 of what they are with 4 places."""

ELITE, LEVELS = 0.1, 40
"""The share of the points that show where to go on, and rounds at most until so many are in the region."""

DAMPING = (1.0, 0.7, 0.5, 0.4, 0.3, 0.25)
"""Rounds that fit the map to the lines, and how much of what each says is followed: of later ones less, so that the
map becomes the mean of what they said."""

ROUNDS = len(DAMPING)

SMOOTHINGS = 3
"""How often a bin is averaged with its neighbours."""

EFFECTIVE, COOLINGS = 0.1, 12
"""The effective share of the points that a round is to learn from; how often weights are made more alike for it."""

LEFT = 0.25
"""The share of a map's density, all axes together, that stays even."""


def find_guide(problem: Problem, through: Through) -> tuple[Argument, Argument]:
    """Return maps ``(batch, d, bins + 1)`` and points in the regions ``(batch, d)`` as arguments of a sample.

    The problem is outside of all transforms, and its integrand is ``through``.
    """
    n, d, like = problem.batch, through.d, problem.limits.a
    sequence = make_sequence("sobol", through.dims, 1, 1, like.device)
    m = FEWER if d <= FEW else POINTS
    u = [sequence.points(k * m, m)[0].to(like.dtype)[:, None] for k in range(ROUNDS + 1)]
    each = [_Guide(part, through, u).run() for part in _parts(problem, m * max(1, d // 4))]
    edges, anchor = (torch.cat(columns) for columns in zip(*each, strict=True)) if each else (
        even_grid(n, d, BINS, like), like.new_zeros(n, d)
    )  # fmt: skip
    return Argument(edges, shared=False, element_ndim=2), Argument(anchor, shared=False, element_ndim=1)


def _parts(problem: Problem, rows: int) -> list[Problem]:
    """Return the problem in parts, of so many integrals that all points fit a block."""
    size = max(1, problem.block // rows)
    if problem.batch <= size:
        return [problem] if problem.batch else []
    return [problem.part(low, min(problem.batch, low + size)) for low in range(0, problem.batch, size)]


class _Guide:
    """The maps of some integrals."""

    def __init__(self, problem: Problem, through: Through, points: list[Tensor]) -> None:
        self.problem, self.through, self.points = problem, through, points
        n, d = problem.batch, through.d
        self._take(0)
        self.edges = even_grid(n, d, BINS, self.u)
        self.anchor = torch.full_like(self.edges[..., 0], 0.4375)

    def _take(self, number: int) -> None:
        """Go on with other points, so that what chance does to a map is not learnt again and again."""
        u = self.points[number]
        self.u = u.expand(-1, self.problem.batch, -1)
        self.bin = (u[:, 0, : self.through.d] * BINS).long().clamp_max(BINS - 1)

    def run(self) -> tuple[Tensor, Tensor]:
        """Learn the maps."""
        highest = self.u.new_full(self.u.shape[1:2], -torch.inf)
        stuck = torch.zeros_like(highest, dtype=torch.bool)
        for _ in range(LEVELS):
            v = self._ask(self.through.levels, ()).nan_to_num(-torch.inf)
            top, best = v.max(0)
            if bool((top > highest).any()):
                here = self._ask(self.through.places, (self.through.d,))
                here = here.gather(0, best[None, :, None].expand(1, -1, here.shape[2]))[0]
                self.anchor = torch.where((top > highest)[:, None], here, self.anchor)
            highest = torch.maximum(highest, top)
            level = v.kthvalue(int((1.0 - ELITE) * len(v)), dim=0).values
            # A function that is constant shows no way.
            stuck |= (level > 0.0) | (level >= top)
            if bool(stuck.all()):
                break
            self._fit((v >= level).to(self.u.dtype)[..., None].expand(*v.shape, self.through.d), ~stuck)
        for number in range(ROUNDS if self.through.d > 1 else 0):
            self._take(1 + number)
            length = self._ask(self.through.lengths, (self.through.d,))
            # A line along an axis says nothing about places along it.
            self._fit(_tempered(length.sum(-1, keepdim=True) - length) ** 2, highest > 0.0, 0.5 * DAMPING[number])
        while self.through.samples < SAMPLES and not self.through.surface:
            length, outside = self._ask(self.through.missed, (2,)).sum(0).unbind(-1)
            if not bool((outside > MISSED * length).any()):
                break
            self.through.samples *= 2
        return self.edges, self.anchor

    def _ask(self, function: object, event: tuple[int, ...]) -> Tensor:
        integrand = self.problem.integrand
        guide = Argument(self.edges, False, 2), Argument(self.anchor, False, 1)
        asked = replace(
            integrand, function=function, event=event, output_dtype=self.u.dtype,
            arguments=(*integrand.arguments, *guide),
        )  # fmt: skip
        return asked(self.u, slice(0, self.problem.batch))

    def _fit(self, weight: Tensor, which: Tensor, power: float = 1.0) -> None:
        """Fit the maps of some integrals to points of weights ``(m, batch, d)`` along each axis."""
        d = self.through.d
        mass = [
            weight.new_zeros(BINS, weight.shape[1]).index_add(0, self.bin[:, j], weight[..., j]) for j in range(d)
        ]
        fitted = _fitted(self.edges, torch.stack(mass, -1).permute(1, 2, 0) ** power)
        self.edges = torch.where(which[:, None, None], fitted, self.edges)


def _tempered(weight: Tensor) -> Tensor:
    """Return weights ``(m, batch, d)`` raised to a power at most 1, so that no few of them are all that counts."""
    weight = weight / weight.amax(0).clamp_min(torch.finfo(weight.dtype).tiny)
    power = torch.ones_like(weight[0])
    for _ in range(COOLINGS):
        now = weight**power
        few = now.sum(0) ** 2 < EFFECTIVE * len(weight) * (now**2).sum(0)
        power = torch.where(few, 0.7 * power, power)
    return torch.where(weight > 0.0, weight**power, 0.0)


def _fitted(edges: Tensor, mass: Tensor) -> Tensor:
    """Return the ends of bins ``(batch, d, bins + 1)`` that are as probable as the mass in the old ones says."""
    d = edges.shape[1]
    for _ in range(SMOOTHINGS):
        padded = torch.cat((mass[..., :1], mass, mass[..., -1:]), dim=-1)
        mass = 0.25 * (padded[..., :-2] + padded[..., 2:]) + 0.5 * mass
    total = mass.sum(-1, keepdim=True)
    even, width = LEFT / d, edges.diff(dim=-1)
    share = torch.where(total > 0.0, (1.0 - even) * mass / total + even * width, width)
    return level_mass(edges, share).clamp(0.0, 1.0)
