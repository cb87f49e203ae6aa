"""A plan and its domain written out as plain arrays, for a replay in another framework.

With these a replay is a few sums::

    x, weights = written.x, written.weights                                 # (m, n)
    value[i] = sum over the cells j of i of sum_k weights[k, j] * f(x[k, j])  # extrapolated cells weigh 0 here ...
    value[i] += sum over the extrapolated j of epsilon(end_functionals @ (end_factor * f(x[:, j])))    # ... but
    here value[i] *= orientation[i]

and, with a zero ``d[mark, i]`` whose derivative by the mark is 1 (the mark minus itself without gradient; one more
row of plain zeros stands for no mark),

    x += lower * d[lower_mark, owner] + upper * d[upper_mark, owner]        # the nodes that move with a mark
    weights += rate * (d[upper_mark, owner] - d[lower_mark, owner])         # end_factor too, with end_rate
    value[i] += sum over the readings r of mean of f over start[r, i] + d[r, i] * [0, 1] * sign[r, i] * d[r, i]

Nodes are affine in the ends of their piece and weights in its width, so that every derivative is exact. What has to
be decided, such as which nodes move, was decided before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.gradient.boundary import Treatment, readings
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan

__all__ = ["Fractions", "Written", "place_in_pieces", "write_out"]


@dataclass(frozen=True)
class Written:
    """Arrays without gradient; see the module's docstring for what they mean together.

    Attributes
    ----------
    x, weights : Tensor, shape (m, n)
        Nodes of every cell, and by what f is multiplied there: 0 on cells that are extrapolated.
    owner : Tensor of int64, shape (n,)
        The integral of each cell, ascending.
    extrapolated, column : Tensor of int64, shape (k,)
        Cells whose integral is extrapolated to the end that they touch, and the columns of the epsilon table in
        which it is.
    end_functionals : Tensor, shape (1 + s, m)
        The rule's weights, whose sum is column 0, and those of the terms of the series.
    end_factor, end_rate : Tensor, shape (m, k)
        By what f is multiplied on these cells, and how that changes with the width of their piece.
    moving : bool
        Whether nodes follow a mark anywhere.
    lower_mark, upper_mark : Tensor of int64, shape (n,)
        Which of ``Limits.marks`` are the ends of each cell's piece and take its nodes along; their number for none.
    lower, upper, rate : Tensor, shape (m, n)
        How nodes move with these, and weights with their distance; (1, 1) zeros where nothing is moving.
    mark : Tensor of int64, shape (r,)
        The mark of each reading beside one.
    start, sign : Tensor, shape (r, batch)
        Where f is read, and the sign of the boundary term; 0 where the mark has none.
    endless : Tensor of bool, shape (r, batch)
        Where the derivative is infinite: then the square root of the move is taken for it, and f's sign for f.
    orientation : Tensor, shape (batch,)
        1, or -1 where the limits descend.
    """

    x: Tensor
    weights: Tensor
    owner: Tensor
    extrapolated: Tensor
    column: Tensor
    end_functionals: Tensor
    end_factor: Tensor
    end_rate: Tensor
    moving: bool
    lower_mark: Tensor
    upper_mark: Tensor
    lower: Tensor
    upper: Tensor
    rate: Tensor
    mark: Tensor
    start: Tensor
    sign: Tensor
    endless: Tensor
    orientation: Tensor


@dataclass(frozen=True)
class Fractions:
    """Where the nodes of a plan's cells lie in their pieces: all that a plan says of them without limits.

    ``from_lower`` and ``from_upper`` ``(m, n)`` are the distances from the ends of the piece, whose sum is 1, each
    with all its digits; ``density`` ``(m, n)`` is what f is multiplied by in a piece of width 1.
    """

    from_lower: Tensor
    from_upper: Tensor
    density: Tensor


def place_in_pieces(plan: IntervalPlan) -> Fractions:
    """Return where the nodes of a plan's cells lie in their pieces."""
    zero, one = plan.start.new_zeros(1), plan.start.new_ones(1)
    from_lower, density = Pieces(zero, one, 1, False).lay_out(plan).nodes(plan.tau)
    beyond, _ = Pieces(-one, zero, 1, False).lay_out(plan).nodes(plan.tau)
    return Fractions(from_lower, -beyond, density.expand_as(from_lower))


@torch.no_grad()
def write_out(plan: IntervalPlan, limits: Limits, treatment: Treatment | None) -> Written:
    """Write a plan out between limits, with derivatives by those marks that require grad.

    Parameters
    ----------
    plan : IntervalPlan
    limits : Limits
    treatment : Treatment, optional
        How each mark is differentiated; by the boundary alone where there is none.
    """
    fixed, dtype = limits.detach(), plan.start.dtype
    pieces = fixed.pieces()
    x, factor = pieces.lay_out(plan).nodes(plan.tau)
    rule, factor = plan.weight.to(dtype), factor.expand_as(x)
    weights = rule[:, None] * factor
    shares = rule.new_zeros(0, len(rule)) if plan.shares is None else plan.shares.to(dtype)
    functionals = torch.cat((rule[None], shares))
    ends = column = plan.row.new_zeros(0)
    if plan.extrapolated is not None and plan.column is not None and len(plan.extrapolated):
        ends, column = plan.extrapolated, plan.column.to(torch.int64)
        weights = weights.index_fill(1, ends, 0.0)
    none = x.new_zeros(1, 1)
    still = plan.row.new_zeros(len(plan))
    lower_mark, upper_mark, lower, upper, rate, end_rate = (
        still,
        still,
        none,
        none,
        none,
        torch.zeros_like(factor[:, ends]),
    )
    moving = treatment is not None and bool(treatment.moving.any())
    if moving and treatment is not None:
        marks = torch.stack([mark.expand(plan.batch) for mark in fixed.marks])[:, plan.owner]
        pathwise = torch.stack(treatment.pathwise).expand(-1, plan.batch)[:, plan.owner]
        at_lower, at_upper = (end.expand(len(plan)) for end in pieces.ends(plan.row))
        at_lower, at_upper = ((marks == end) & pathwise for end in (at_lower, at_upper))
        lower_mark, upper_mark = (
            torch.where(hit.any(0), hit.to(torch.int8).argmax(0), len(fixed.marks)) for hit in (at_lower, at_upper)
        )
        lower, upper, density = _movement(plan, pieces)
        rate = (rule[:, None] * density).index_fill(1, ends, 0.0)
        end_rate = density[:, ends]
    reads = readings(limits, plan.batch, treatment)
    batch = (0, plan.batch)
    sign = [torch.as_tensor(r.sign, dtype=dtype, device=x.device).expand(plan.batch) * r.usable for r in reads]
    return Written(
        x, weights, plan.owner, ends, column, functionals, factor[:, ends], end_rate,
        moving, lower_mark, upper_mark, lower, upper, rate,
        torch.tensor([r.mark for r in reads], dtype=torch.int64, device=x.device),
        torch.stack([r.start for r in reads]) if reads else x.new_zeros(batch),
        torch.stack(sign) if reads else x.new_zeros(batch),
        torch.stack([r.endless.expand(plan.batch) for r in reads]) if reads else x.new_zeros(batch) > 0.0,
        fixed.orient(x.new_ones(plan.batch)),
    )  # fmt: skip


def _movement(plan: IntervalPlan, pieces: Pieces) -> tuple[Tensor, Tensor, Tensor]:
    """Return how nodes move with the lower and the upper end of their piece, and factors with its width."""
    at = place_in_pieces(plan)
    lower, upper = pieces.ends(plan.row)
    no_lower, no_upper = lower.isinf(), upper.isinf()
    infinite = no_lower | no_upper
    # A half line is moved as a whole by its end.
    return (
        torch.where(infinite, (~no_lower).to(at.density), at.from_upper),
        torch.where(infinite, (~no_upper).to(at.density), at.from_lower),
        torch.where(infinite, 0.0, at.density),
    )
