"""Cells that are extrapolated to an end of their piece: derivatives there, and how far replay's are from them.

Each derivative's terms are a series of their own, which is extrapolated to the end as search would. Replay instead
extrapolates the terms of f; its derivative is the sum of the derivative's terms times the weights that f's terms
have in the limit. How far the two are apart, the *gap*, depends on the column of the epsilon table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import COLUMNS, extrapolate
from quadgrad._core.estimates.null_rules import SAFETY, null_rule_error, weigh
from quadgrad._core.estimates.singular_ends import NEAREST, conclude
from quadgrad._core.estimates.sums import blur_of_x
from quadgrad._core.gradient.columns import Sampler
from quadgrad._core.gradient.edges import look_at_edges
from quadgrad._core.gradient.layers import look_beyond
from quadgrad._core.mesh.interval import DEPTH
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import apply, total
from quadgrad._core.rules import RuleTensors
from quadgrad._core.search.task import noise

__all__ = ["SingularEnds", "choose_columns", "draw_closer", "join_outputs", "largest_of_groups", "measure_ends"]

ENOUGH = 0.01
"""An error below this part of the tolerance is good enough: higher columns are not looked at."""

AIM = 0.1
"""Cells are drawn closer to their end until the gap is this part of the tolerance."""

WOBBLE = 4.0
"""Weights are compared with those of terms that are off by this many eps: high columns amplify rounding."""


@dataclass(frozen=True)
class SingularEnds:
    """What is known of the cells that are extrapolated, ``k`` of them, of columns or groups of columns.

    ``value`` ``(k, columns)`` are the integrals of all columns; of groups ``size`` is the largest modulus,
    ``floor`` what rounding of f adds, ``noise`` what that of f and x does. ``error`` and ``gap`` ``(k, COLUMNS,
    columns)`` are replay's error and how far it is from the derivative's own limit, in each column of the epsilon
    table, ``layer`` what of ``error`` lies between the nodes and the end. ``room`` ``(k,)`` are the octaves left
    before nodes coincide.
    """

    owner: Tensor
    value: Tensor
    size: Tensor
    floor: Tensor
    noise: Tensor
    error: Tensor
    gap: Tensor
    layer: Tensor
    room: Tensor

    def error_on(self, plan: IntervalPlan) -> Tensor:
        """Return the error of these cells, summed for each integral, in the plan's columns."""
        assert plan.column is not None
        chosen = plan.column.to(torch.int64)[:, None, None].expand(-1, 1, self.error.shape[2])
        return total(self.error.gather(1, chosen)[:, 0], self.owner, plan.batch)


def largest_of_groups(errors: Tensor, groups: Sequence[Tensor] | None) -> Tensor:
    """Return the largest of each group's columns, which stand along the last dimension."""
    if groups is None:
        return errors
    return torch.stack([errors.index_select(-1, group).amax(-1) for group in groups], dim=-1)


def join_outputs(y: Tensor, weight: Tensor | None) -> Tensor:
    """Return columns ``(..., n, outputs, columns)`` as real ones, or their sum weighted by ``(n, outputs)``."""
    if weight is not None:
        y = (y * weight.conj()[..., None]).sum(-2)
        return y.real if y.is_complex() else y
    return torch.view_as_real(y.resolve_conj()).movedim(-1, -2).flatten(-3) if y.is_complex() else y.flatten(-2)


def measure_ends(
    problem: Problem,
    rule: RuleTensors,
    cells: IntervalPlan,
    sampler: Sampler,
    groups: Sequence[Tensor] | None,
) -> SingularEnds:
    """Look at cells that are extrapolated."""
    layout, owner = problem.pieces.lay_out(cells), cells.owner
    # Nodes run from the far edge towards the end: what lies before the first of them is looked at, too.
    edges, m = look_at_edges(rule, layout, problem.pieces.rounding.eps), len(rule.nodes)
    tau = torch.cat((rule.nodes[:, None].expand(-1, len(cells)), edges.tau[:1]))
    x, factor = layout.nodes(tau)
    # Sums are formed in double precision, whatever f is called with.
    f, y = (t.to(torch.promote_types(t.dtype, factor.dtype)) for t in sampler.outputs(cells, tau, x, factor))
    weights = None if sampler.weight is None else sampler.weight[owner]
    joined = join_outputs(y, weights)
    values, beside = (joined * factor[..., None]).split((m, 1))
    f, y, joined, factor, values = f[:m], y[:m], joined[:m], factor[:m], values.flatten(1)
    sums, terms, eps = weigh(rule, values, values.abs()), apply(rule.shares, values), noise(problem)
    blur = blur_of_x(
        rule, layout, joined, sums.value.reshape(joined.shape[1:]), problem.pieces.rounding.eps
    ).flatten()
    hidden = edges.hidden(rule, sums, beside).flatten()
    unseen, decay, highest = null_rule_error(rule, sums.nulls, sums.size.add(blur, alpha=0.5 / eps), eps)
    errors = (unseen, hidden, blur)
    end = conclude(
        sums.value, terms, torch.ones_like(blur, dtype=torch.bool), errors, sums.size, (problem.tolerance.rtol, eps)
    )
    lost, blur = end.error.isinf(), blur.nan_to_num(0.0, 0.0)
    floor = end.floor.masked_fill(lost, 0.0)
    beyond = look_beyond(problem, cells, end, sums.value, terms, sampler).flatten()
    rest = torch.maximum(end.error - end.doubt, floor + blur).nan_to_num(torch.inf) + beyond
    # On a part of a cell the first coefficient that the nodes do not show counts.
    of_term, value = highest * decay.clamp_min(0.0), end.value.masked_fill(lost, 0.0)
    value, own_error, rest, of_term, floor, blur, beyond = (
        t.unflatten(0, (len(cells), -1)) for t in (value, end.error + beyond, rest, of_term, floor, blur, beyond)
    )
    terms, changes = (apply(rule.shares, t) for t in (f * factor[..., None], y * factor[..., None, None]))
    error, gap = _replayed(terms, changes, weights, (value, own_error, rest, of_term), eps)
    size, floor, rounding, error, gap, beyond = (
        largest_of_groups(t, groups) for t in (value.abs(), floor, floor + blur, error, gap, beyond)
    )
    numbers = problem.pieces.rounding
    room = layout.octaves_left(4.0 * numbers.eps, max(NEAREST, numbers.tiny**0.5)).floor().clamp_min(0.0)
    return SingularEnds(owner, value, size, floor, rounding, error, gap, beyond, room)


def _replayed(
    terms: Tensor, changes: Tensor, weights: Tensor | None, own: tuple[Tensor, Tensor, Tensor, Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """Return replay's error and gap in each column of the epsilon table, shape ``(n, COLUMNS, columns)``.

    ``terms`` ``(s, n, outputs)`` are those of f, ``changes`` ``(s, n, outputs, columns)`` their derivatives.
    ``own`` is what the derivatives' own series give: value, error, the error but for the limit's, and that of a
    term. The error follows from the gap, or from how far replay's last entries in that column are apart: the
    smaller counts.
    """
    own_value, own_error, own_rest, own_part = own
    signs = torch.tensor([1.0 if k % 4 in (0, 3) else -1.0 for k in range(terms.shape[0])], device=terms.device)
    off = terms * (1.0 + WOBBLE * eps * signs.to(terms.dtype)).reshape(-1, 1, 1)
    last, before = terms[-1].abs(), terms[-2].abs()
    ratio = torch.where(before > 0, last / torch.where(before > 0, before, 1.0), 2.0 * (last > 0)).amax(-1)
    rest = own_rest / (1.0 - ratio.clamp(0.0, 0.999)[:, None]) ** 2
    errors: list[Tensor] = []
    gaps: list[Tensor] = []
    grows = torch.zeros_like(rest, dtype=torch.bool)
    for column in range(COLUMNS):
        entries = [_weights(terms, column, back) for back in (1, 2, 3)]
        entries.append(_weights(off, column, 1))
        limit, once, twice, other = (join_outputs((w[..., None] * changes).sum(0), weights) for w in entries)
        doubt = (other - limit).abs()
        gap = ((limit - own_value).abs() + doubt).nan_to_num(torch.inf, torch.inf)
        step, earlier = (limit - once).abs(), (once - twice).abs()
        decay = (step / earlier.clamp_min(torch.finfo(step.dtype).tiny)).clamp_max(0.99)
        drift = SAFETY * step * (decay / (1.0 - decay)).clamp_min(1.0) + earlier
        # Column 2 may sum even what grows towards the end, but to a number that is no integral.
        grown = (step >= earlier) & (step > rest + own_part)
        grows = grows | (grown & (column > 0))
        apart = drift.masked_fill(grown | grows, torch.inf) + doubt + rest
        errors.append(torch.minimum(own_error + gap, apart.nan_to_num(torch.inf, torch.inf)))
        gaps.append(gap)
    return torch.stack(errors, dim=1), torch.stack(gaps, dim=1)


def _weights(terms: Tensor, column: int, back: int) -> Tensor:
    """Return the derivative of a column's last entry, or one further ``back``, by each term."""

    def limit(terms: Tensor) -> Tensor:
        return extrapolate(terms, column)[column][-back]

    value, pull, *_ = torch.func.vjp(limit, terms)
    return pull(torch.ones_like(value))[0].conj()


def choose_columns(plan: IntervalPlan, ends: SingularEnds | None, asked: Tensor) -> IntervalPlan:
    """Let replay extrapolate in the lowest column whose error is small for all groups, or else the smallest.

    ``asked`` ``(batch, groups)`` is the error that each derivative may have.
    """
    if ends is None:
        return plan
    excess = _excess(ends, ends.error, asked)
    best, column = excess[:, 0], torch.zeros_like(ends.owner)
    for k in range(1, COLUMNS):
        better = (excess[:, k] < best) & (best > ENOUGH)
        best, column = torch.where(better, excess[:, k], best), column.masked_fill(better, k)
    return plan.with_column(column)


def _excess(ends: SingularEnds, error: Tensor, asked: Tensor) -> Tensor:
    """Return the largest error of each cell in each column, as a part of what is asked, shape ``(k, COLUMNS)``."""
    asked = asked[ends.owner, None]
    return torch.where(asked.isinf(), 0.0, error / asked).amax(2)


def draw_closer(plan: IntervalPlan, ends: SingularEnds | None, asked: Tensor, late: Tensor) -> IntervalPlan:
    """Part the cells of ``late`` integrals where no column is good, so close to the end that the plain sum is.

    How close follows from what the plain sum misses now: over DEPTH octaves it has come down from the whole value.
    """
    if ends is None or plan.extrapolated is None:
        return plan
    aim, missed = AIM * asked[ends.owner], ends.gap[:, 0]
    tiny = torch.finfo(missed.dtype).tiny
    decay = torch.log2(ends.size.clamp_min(tiny) / missed.clamp_min(tiny)).clamp_min(1e-2) / DEPTH
    octaves = (torch.log2((missed / aim).clamp_min(1.0)) / decay).amax(1).nan_to_num(0.0).ceil()
    octaves = torch.minimum(octaves, ends.room)
    excess = torch.cat([_excess(ends, error, asked) for error in (ends.gap, ends.error)], dim=1)
    parted = (excess.amin(1) > AIM) & (octaves > 0.0) & late[ends.owner]
    return plan.close_in(plan.extrapolated[parted], octaves[parted])
