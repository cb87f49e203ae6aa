"""How high a curve is: sums up to the ends of all cells, and polynomials in between, all of it differentiable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.antiderivative.coefficients import basis_of, chebyshev_sum
from quadgrad._core.antiderivative.places import Places, Spots, running_sums
from quadgrad._core.antiderivative.tail import Tails, fit_tails
from quadgrad._core.estimates.sums import extrapolated_sums
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.interval import DEPTH, Pieces
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.reduce import align, apply

__all__ = ["Heights", "Values", "sample"]

BLOCK = 2**14
"""Points evaluated at a time on the CPU: what is worked with stays in the cache."""


@dataclass(frozen=True)
class Values:
    """f dx/dtau at the nodes of a plan's cells, ``(m, n, *event)``, and what the ``tails`` of some hold.

    ``whole`` ``(q, *event)`` are the integrals beyond the nodes of the plan's extrapolated cells, in their order.
    """

    plan: IntervalPlan
    at_nodes: Tensor
    whole: Tensor

    @staticmethod
    def of(plan: IntervalPlan, at_nodes: Tensor) -> Values:
        """Extrapolate the cells that touch a singular end, in the columns that the plan holds."""
        column = plan.column
        if column is None or plan.extrapolated is None or plan.shares is None:
            return Values(plan, at_nodes, at_nodes.new_zeros((0, *at_nodes.shape[2:])))
        ends = at_nodes.index_select(1, plan.extrapolated)
        terms = apply(plan.shares.to(plan.weight), ends)
        seen = apply(plan.weight[None], ends)[0]
        return Values(plan, at_nodes, extrapolated_sums(seen, terms, column) - seen)

    @property
    def backwards(self) -> Tensor:
        """Where x falls as tau grows, ``(n,)``: nodes run towards a lower end."""
        return (self.plan.start >= 0.0) & ~self.plan.linear

    def heights(self, places: Places, upward: bool) -> Heights:
        """Return the integral from the lower limit up to x, or from x up to the upper limit."""
        plan, basis = self.plan, basis_of(self.plan.rule, self.at_nodes.device)
        missing, source = places.source < 0, places.source.clamp_min(0)
        if len(plan) == 0:
            nothing = self.at_nodes.new_zeros((len(places.owner), *self.at_nodes.shape[2:]))
            return Heights(nothing, nothing.expand(2, *nothing.shape), None, upward, nothing)
        means = basis.means(self.at_nodes, self.backwards, upward)
        integral = apply(plan.weight[None], self.at_nodes)[0].index_select(0, source)
        integral = torch.where(align(missing, integral), 0.0, integral)
        tails = None
        if len(places.tails):
            assert plan.extrapolated is not None
            # Tails stand in the order of their cells.
            integral = integral.index_copy(0, places.tails, self.whole)
            tails = self.tails()
        sums = running_sums(integral, places.owner, places.longest, upward)
        means = means.index_select(1, source)
        return Heights(sums, torch.where(align(missing, means[0]), 0.0, means), tails, upward, integral)

    def slopes(self, places: Places) -> Tensor:
        """Return the coefficients of f dx/dtau on each cell, where t grows with x: ``(m, k, *event)``."""
        if len(self.plan) == 0:
            return self.at_nodes.new_zeros((2, len(places.owner), *self.at_nodes.shape[2:]))
        slopes = basis_of(self.plan.rule, self.at_nodes.device).slopes(self.at_nodes, self.backwards)
        return slopes.index_select(1, places.source.clamp_min(0))

    def tails(self) -> Tails:
        plan = self.plan
        assert plan.extrapolated is not None
        assert plan.shares is not None
        basis, octaves = basis_of(plan.rule, self.at_nodes.device), DEPTH * math.log(2.0)
        ends = self.at_nodes.index_select(1, plan.extrapolated)
        edge, share = apply(torch.stack((basis.edge, plan.shares[-1])), ends).unbind()
        return fit_tails(self.whole, edge / octaves, share, octaves / len(plan.shares))


@dataclass(frozen=True)
class Heights:
    """Of each of ``k`` cells and tails: the integral of those before it, and its own, as a polynomial.

    ``sums`` and ``integral`` have shape ``(k, *event)``, ``means`` ``(m, k, *event)``. If not ``upward``, integrals
    run from x to the upper limit.
    """

    sums: Tensor
    means: Tensor
    tails: Tails | None
    upward: bool
    integral: Tensor

    def at(self, spots: Spots, places: Places) -> Tensor:
        """Return the integrals at points ``(p,)``: ``(p, *event)``."""
        value = self._in_cells(spots, differentiable=True)
        if self.tails is None or spots.tail is None:
            return value
        return torch.where(align(spots.tail >= 0, value), self._in_tails(self.tails, spots, places), value)

    def _in_cells(self, spots: Spots, differentiable: bool) -> Tensor:
        share = spots.shares[self.upward]
        t = 2.0 * share - 1.0 if self.upward else 1.0 - 2.0 * share
        value = chebyshev_sum(self.means, spots.cell, t, differentiable)
        return self.sums.index_select(0, spots.cell) + align(share, value) * value

    def _in_tails(self, tails: Tails, spots: Spots, places: Places) -> Tensor:
        assert spots.tail is not None and spots.depth is not None
        number = spots.tail.clamp_min(0)
        beyond = tails.at(number, spots.depth)
        # From the end that is near, all that counts is beyond x; from the other one, what is this side of it.
        near = (places.sign.index_select(0, spots.cell) > 0) == self.upward
        beyond = torch.where(align(near, beyond), beyond, tails.whole.index_select(0, number) - beyond)
        return self.sums.index_select(0, spots.cell) + beyond

    def _at_once(self, x: Tensor, owner: Tensor, places: Places) -> Tensor:
        """Return the same without derivatives: tails are looked at where they are."""
        spots = places.find(x, owner, (self.upward,))
        value = self._in_cells(spots, differentiable=False)
        if self.tails is not None and spots.tail is not None:
            where = (spots.tail >= 0).nonzero().squeeze(1)
            if len(where):
                value[where] = self._in_tails(self.tails, spots.map(lambda t: t[where]), places)
        return value

    def evaluate(self, x: Tensor, owner: Tensor, places: Places) -> Tensor:
        """Return the same of x ``(p,)`` of the given integrals, a block of points at a time."""
        size = BLOCK if x.device.type == "cpu" else 64 * BLOCK
        if len(x) <= size:
            return self._at_once(x, owner, places)
        value = self.sums.new_empty((len(x), *self.sums.shape[1:]))
        for low in range(0, len(x), size):
            part = slice(low, low + size)
            value[part] = self._at_once(x[part], owner[part], places)
        return value


def sample(integrand: Integrand, plan: IntervalPlan, pieces: Pieces, block: int) -> Values:
    """Call f at all nodes of a plan; the values carry whatever derivatives f's do."""
    size, parts, order = max(1, block // plan.tau.shape[0]), list[Tensor](), list[Tensor]()
    for places, cells in plan.groups():
        layout, owner = pieces.lay_out(cells), cells.owner
        order.append(torch.arange(len(plan), device=plan.row.device) if places is None else places)
        for low in range(0, max(1, len(cells)), size):
            part = slice(low, min(len(cells), low + size))
            x, factor = layout.nodes(plan.tau, part)
            y = integrand(x, owner[part])
            parts.append(y * align(factor, y))
    at_nodes = torch.cat(parts, dim=1)
    if len(order) > 1:
        at_nodes = at_nodes.index_select(1, torch.cat(order).argsort())
    return Values.of(plan, at_nodes)
