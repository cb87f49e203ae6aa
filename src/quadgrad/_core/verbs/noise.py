"""Integrands that are not deterministic are refused: their derivative would be that of other numbers."""

from __future__ import annotations

from torch import Tensor

from quadgrad._core.errors import IntegrandError
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.lanes import plain
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.recompute import Rows
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status

__all__ = ["ReplacedRows", "refuse_disagreement", "refuse_noise", "refuse_unequal"]

APART = 4.0
"""Search and replay differ by at most so many times the error: of 20,000 random singular ends each, in columns that
amplify rounding, by 2.2 times at most, else by 0.8 times."""

_NOISY = (
    "the integrand is not deterministic: called again at the same nodes it gave other values than before. Switch "
    "dropout off (module.eval()), draw random numbers before the call and pass them in args"
)

_NO_NUMBER = (
    "the integral is a number, and what its gradient is taken of is none: f is infinite at a limit or breakpoint "
    "whose gradient is asked for (detach it if that is not wanted), or it is not deterministic"
)


def refuse_noise(problem: Problem, plan: IntervalPlan) -> None:
    """Call f of a problem that is outside of all transforms twice at the same nodes."""
    if len(plan) == 0:
        return
    cell = plan.take(slice(0, 1))
    x, _ = problem.pieces.lay_out(cell).nodes(plan.tau)
    refuse_unequal(problem, x, cell.owner)


def refuse_unequal(problem: Problem, x: Tensor, owner: Tensor | slice) -> None:
    """Call f twice at the same nodes ``(m, n, *point)``."""
    once, again = (problem.integrand(x, owner).detach() for _ in range(2))
    differs = (once - again).abs() > problem.tolerance.eps**0.5 * once.abs()
    if bool(differs.any()):
        raise IntegrandError(_NOISY)


def refuse_disagreement(replayed: Tensor, searched: Tensor, known: Found, block: int) -> None:
    """Compare what replay and search have found, ``known`` of the latter, ``block`` integrals at a time."""
    found = plain(replayed)
    parts = (slice(first, first + block) for first in range(0, known.error.shape[0], block))
    if any(_disagrees(found[part], searched[part], known, part) for part in parts):
        raise IntegrandError(_NO_NUMBER if bool(found.isnan().any()) else _NOISY)


class ReplacedRows(Rows):
    """What search has found, replaced in place by what replay finds, which is compared with it first.

    Parts come in ascending order; several that begin with the same row add to that one alone.
    """

    def __init__(self, searched: Tensor, known: Found) -> None:
        super().__init__(searched.shape[0])
        self._searched, self._known = searched, known
        self._low = 0
        self._sums: Tensor | None = None

    def add(self, low: int, part: Tensor) -> None:
        """Add to the rows from ``low`` on; those before are complete."""
        part = plain(part)
        if self._sums is not None and low == self._low:
            self._sums = self._sums + part
            return
        self._replace()
        self._low, self._sums = low, part

    def join(self) -> Tensor:
        """Return all rows."""
        self._replace()
        self._sums = None
        return self._searched.detach()

    def _replace(self) -> None:
        """Put the sums that are complete in place of what search has found."""
        if self._sums is None:
            return
        rows = slice(self._low, self._low + self._sums.shape[0])
        if _disagrees(self._sums, self._searched[rows], self._known, rows):
            raise IntegrandError(_NOISY)
        self._searched[rows].copy_(self._sums)


def _disagrees(replayed: Tensor, searched: Tensor, known: Found, rows: slice) -> bool:
    gap = largest_component((replayed - searched).abs())
    # Where search has failed nothing bounds the two; a NaN agrees with nothing.
    agrees = (gap <= APART * known.error[rows]) | (known.status[rows] != int(Status.CONVERGED))
    return not bool(agrees.all())
