"""The decisions of the search, in any geometry: is an integral done, which of its cells are split, how does it end.

Pure functions of tensors. The same stands in the kernel's ``decisions.c``, for one integral at a time; the tests
compare the two. The check of a kept plan (:mod:`quadgrad._core.search.recheck`) asks them, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.status import Status
from quadgrad._core.tolerance import Tolerance

__all__ = [
    "FAINT", "PATIENCE", "RUN", "SHARE", "WAIT", "Totals", "Verdict", "allowed_error", "finish", "judge",
    "mark", "stuck",
]  # fmt: skip

RUN, WAIT = -1, -2
"""What becomes of an integral in a round, beside the ways to end (:class:`quadgrad.Status`): it goes on, or it has
no cell left to split and waits until all others have ended, to be taken back with its settled cells."""

SHARE = 0.5
"""A cell settles when its error is below this share of the tolerance over the number of cells at hand.

With 1/4, 1/2 and 1 a peak of the benchmark takes 345, 343 and 341 nodes, and the table of problems at three
tolerances 390,903, 386,729 and 388,416.
"""

PATIENCE = 6
"""Rounds of splitting after which values that are still not finite count as a region, not as points.

Anything from 3 to 12 makes no difference to the table of problems.
"""

FAINT = 0.1
"""An integral, or a cell, is faint if its error is more than this part of its value, see ADR 9."""


@dataclass(slots=True)
class Totals:
    """An integral's, or a cell's, value by its largest component and by the sum of all, its error and floor."""

    largest: Tensor
    size: Tensor
    error: Tensor
    floor: Tensor

    @staticmethod
    def of(sums: Tensor, is_complex: bool) -> Totals:
        """Read sums as in :class:`quadgrad._core.mesh.protocol.Cells`."""
        *components, error, floor = sums.unbind()
        if len(components) == 1:
            size = components[0].abs()
            return Totals(size, size, error, floor)
        parts = sums[:-2]
        parts = torch.hypot(parts[0::2], parts[1::2]) if is_complex else parts.abs()
        none = not components
        return Totals(torch.zeros_like(error) if none else parts.amax(0), parts.sum(0), error, floor)


@dataclass(slots=True)
class Verdict:
    """Which integrals have met their tolerance, and which are done: as near to it as rounding allows.

    ``bad`` counts the rounds with values that are not finite, ``lost`` tells where these are too many, ``limit`` is
    the error that a cell may have, ``faint`` whether what is done may be anything for what was seen.
    """

    met: Tensor
    done: Tensor
    bad: Tensor
    lost: Tensor
    limit: Tensor
    faint: Tensor


def allowed_error(tolerance: Tolerance, totals: Totals) -> Tensor:
    """Return the largest error each integral may have.

    The floor is 10 eps times the integral of abs(f); a value below 50 eps times it is zero to rounding.
    """
    allowed, zero = tolerance.rtol * totals.largest, 5.0 * totals.floor
    allowed = torch.where(totals.largest <= zero, torch.maximum(allowed, zero), allowed)
    return allowed.clamp_min(max(tolerance.atol, tolerance.nothing))


def judge(tolerance: Tolerance, totals: Totals, count: Tensor, bad: Tensor, reopened: bool = False) -> Verdict:
    """Compare integrals of ``count`` cells with their tolerances."""
    error, allowed = totals.error, allowed_error(tolerance, totals)
    met = error / allowed <= 1.0
    # Where rounding alone exceeds the tolerance, stop near what rounding allows.
    target = torch.maximum(allowed, 2.0 * totals.floor)
    done = error / target <= 1.0
    bad = (bad + 1) * error.isinf()
    lost = bad > PATIENCE
    limit = target * ((1.0 if reopened else SHARE) / count)
    limit = limit.masked_fill(done | lost, torch.inf)
    return Verdict(met, done, bad, lost, limit, done & (error >= FAINT * totals.size))


def mark(verdict: Verdict, totals: Totals, cells: Cells, is_complex: bool, follow: bool) -> Tensor:
    """Tell which cells are to be split: those with too large an error.

    If that is to be followed, of faint integrals also the one that has most of the error: what was seen there,
    however little, may be the foot of more.
    """
    owner, splittable, *_ = cells.whole.unbind()
    splittable = splittable > 0
    large = (cells.sums[-2] > verdict.limit.index_select(0, owner)) & splittable
    if not follow:
        return large
    each = Totals.of(cells.sums, is_complex)
    most = (0.5 * totals.error).masked_fill(~verdict.faint, torch.nan).index_select(0, owner)
    rough = (each.error > each.floor) & splittable
    return large | (rough & (each.error > most) & (each.error >= FAINT * each.size) & (most >= 0.0))


def finish(verdict: Verdict, children: Tensor, over: Tensor, stuck: Tensor | int) -> Tensor:
    """Return :data:`RUN` where there are to be children, ``stuck`` where none are, or how the integral ends."""
    runs = children > 0
    code = stuck.masked_fill(runs, RUN) if isinstance(stuck, Tensor) else (RUN - stuck) * runs + stuck
    code = code.masked_fill(over, int(Status.MAX_NFEV)).masked_fill(verdict.lost, int(Status.NONFINITE))
    ends = verdict.done > runs
    return code.masked_fill(ends, int(Status.ROUNDOFF)).masked_fill(ends & verdict.met, int(Status.CONVERGED))


def stuck(tolerance: Tolerance, totals: Totals, narrow: Tensor) -> Tensor:
    """Say why an integral that has not converged has no cell left to split.

    Rounding, unless the error is large and most of it that of cells as ``narrow`` as nodes can resolve.
    """
    large = (totals.error > tolerance.eps**0.5 * totals.largest) & (narrow >= 0.5 * totals.error)
    return torch.where(large, int(Status.DIVERGENT), int(Status.ROUNDOFF))
