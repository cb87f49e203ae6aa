"""What a rule makes of the columns of a derivative integrand on cells, and where their values come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import bound_error, null_rule_error, weigh
from quadgrad._core.estimates.sums import blur_of_x
from quadgrad._core.gradient.edges import look_at_edges
from quadgrad._core.integrand import Integrand
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import apply
from quadgrad._core.rules import RuleTensors
from quadgrad._core.search.task import noise

__all__ = ["Look", "Sampler", "look", "sampler_of", "split_outputs"]

FALLS_OFF = 0.5
"""Decay per pair of degrees below which a cell's error falls so fast under bisection that its halves show it."""


@dataclass(frozen=True)
class Sampler:
    """Where values come from, for cells, places tau on them, ``(m,)`` or ``(m, n)``, and x and the factors there.

    ``columns`` are ``width`` columns, ``(m, n, width)``; ``outputs`` f itself, ``(m, n, outputs)``, and what
    replay makes of it when each output changes, ``(m, n, outputs, columns)``. With ``weight`` ``(batch,
    outputs)`` each column is the weighted sum over the outputs; else those of the outputs are kept apart.
    ``block`` is how many nodes are looked at at a time.
    """

    columns: Callable[[IntervalPlan, Tensor, Tensor, Tensor], Tensor]
    outputs: Callable[[IntervalPlan, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    width: int
    block: int
    weight: Tensor | None = None

    def cells_at_once(self, nodes: int) -> int:
        """Return how many cells with so many nodes to look at at a time."""
        return max(1, self.block // nodes)


def sampler_of(
    columns: Integrand, f: Integrand, derivative: Integrand, block: int, weight: Tensor | None = None
) -> Sampler:
    """Return what takes values from functions; ``derivative`` has a set of columns for each real output of f."""

    def outputs(cells: IntervalPlan, _: Tensor, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        y = f(x, cells.owner).detach()
        y = y.reshape(*x.shape, -1)
        return y, split_outputs(derivative(x, cells.owner).detach(), y.shape[2], y.is_complex())

    (width,) = columns.event or (0,)
    return Sampler(lambda cells, _, x, factor: columns(x, cells.owner).detach(), outputs, width, block, weight)


def split_outputs(y: Tensor, outputs: int, is_complex: bool) -> Tensor:
    """Return the columns of a derivative integrand, one set for each real output, as those of each output of f."""
    if not is_complex:
        return y.unflatten(2, (outputs, -1))
    return torch.view_as_complex(y.unflatten(2, (outputs, 2, -1)).movedim(3, -1).contiguous())


@dataclass(frozen=True)
class Look:
    """What the rule makes of cells, shape ``(n, columns)``; ``falls_off`` tells whether the null rules do.

    ``hidden`` is the error of what lies beyond the outermost nodes, ``gaps`` ``(n, 2, columns)`` what the rule
    makes of it. ``highest`` are the highest coefficients of the interpolating polynomial, ``last`` what the
    integrand is at the last node.
    """

    value: Tensor
    error: Tensor
    floor: Tensor
    rounding: Tensor
    falls_off: Tensor
    hidden: Tensor
    gaps: Tensor
    highest: Tensor
    last: Tensor


def look(problem: Problem, rule: RuleTensors, cells: IntervalPlan, sampler: Sampler, alone: bool = True) -> Look:
    """Look at cells, and unless they are compared with others that did, at their edges, too."""
    layout, eps = problem.pieces.lay_out(cells), noise(problem)
    edges = look_at_edges(rule, layout, problem.pieces.rounding.eps) if alone else None
    tau = rule.nodes if edges is None else torch.cat((rule.nodes[:, None].expand(-1, len(cells)), edges.tau))
    x, factor = layout.nodes(tau)
    y = sampler.columns(cells, tau, x, factor)
    # Sums are formed in double precision, whatever f is called with.
    y = y.to(torch.promote_types(y.dtype, factor.dtype))
    values, m = y * factor[..., None], len(rule.nodes)
    values, beside, y = values[:m], values[m:], y[:m]
    sums = weigh(rule, values, values.abs())
    hidden = torch.zeros_like(sums.value) if edges is None else edges.hidden(rule, sums, beside)
    pairs = sums.nulls[0::2].abs() + sums.nulls[1::2].abs()
    falls_off = ((pairs[:-1] - 2.0 * eps * sums.size) <= FALLS_OFF * pairs[1:]).all(0)
    blur = blur_of_x(rule, layout, y, sums.variation, problem.pieces.rounding.eps)
    error, _, highest = null_rule_error(rule, sums.nulls, sums.size.add(blur, alpha=0.5 / eps), eps)
    # At infinity any power may begin below the coefficients that are seen: there their decay is not continued.
    far = ~layout.nodes(rule.nodes.new_tensor([0.0, 1.0]))[0].isfinite().all(0)[:, None]
    error, falls_off = torch.maximum(error, highest * far), falls_off & ~far
    error, floor, _ = bound_error(error, sums.size, blur, eps)
    rounding = torch.minimum(blur, sums.size).nan_to_num(0.0, 0.0, 0.0)
    value = sums.value.masked_fill(error.isinf(), 0.0)
    gaps = apply(rule.gaps, values).movedim(0, 1)
    return Look(value, error, floor, rounding, falls_off, hidden, gaps, highest, values[-1])
