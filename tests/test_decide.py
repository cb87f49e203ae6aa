"""The verdicts of the search at their borders: what is just allowed, zero, faint, and how integrals end."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import t64
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.search.decide import (
    PATIENCE,
    RUN,
    SHARE,
    Totals,
    allowed_error,
    finish,
    judge,
    mark,
    stuck,
)
from quadgrad._core.tolerance import Tolerance

RTOL, EPS = 2.0**-20, 2.0**-52
TOLERANCE = Tolerance(RTOL, 0.0, EPS)
BELOW = 1.0 - 2.0**-40
"""A little less than 1; a border itself is a power of 2, so that no rounding decides."""


def totals(value: list[float], error: list[float], floor: float | list[float] = 0.0) -> Totals:
    columns = torch.broadcast_tensors(t64(value), t64(error), t64(floor))
    return Totals.of(torch.stack(columns), is_complex=False)


def none(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64)


def test_an_error_may_be_as_large_as_the_tolerance() -> None:
    seen = totals([1.0, -1.0, 1.0, -1.0], [RTOL, RTOL, RTOL / BELOW, RTOL / BELOW])
    verdict = judge(TOLERANCE, seen, torch.ones(4, dtype=torch.int64), none(4))
    assert verdict.met.tolist() == verdict.done.tolist() == [True, True, False, False]


def test_the_absolute_tolerance_is_a_choice_beside_the_relative_one() -> None:
    tolerance = Tolerance(RTOL, 2.0**-25, EPS)
    assert allowed_error(tolerance, totals([1.0, 2.0**-6, 0.0], [0.0] * 3)).tolist() == [RTOL, 2.0**-25, 2.0**-25]


def test_a_value_of_fifty_eps_is_zero_to_rounding() -> None:
    """The floor is ten times eps times the integral of abs(f), and five floors are allowed then."""
    floor = 2.0**-30
    seen = totals([5.0 * floor, 5.0 * floor / BELOW], [0.0, 0.0], floor)
    assert allowed_error(TOLERANCE, seen).tolist() == [5.0 * floor, RTOL * 5.0 * floor / BELOW]


def test_where_rounding_is_larger_than_the_tolerance_two_floors_are_as_good_as_it_gets() -> None:
    floor = RTOL
    seen = totals([1.0, 1.0], [2.0 * floor, 2.0 * floor / BELOW], floor)
    verdict = judge(TOLERANCE, seen, torch.ones(2, dtype=torch.int64), none(2))
    assert verdict.met.tolist() == [False, False]
    assert verdict.done.tolist() == [True, False]
    ends = finish(verdict, none(2), torch.zeros(2, dtype=torch.bool), int(qg.Status.DIVERGENT))
    assert ends.tolist() == [qg.Status.ROUNDOFF, qg.Status.DIVERGENT]


@pytest.mark.parametrize(("reopened", "share"), [(False, SHARE), (True, 1.0)])
def test_a_cell_may_have_its_share_of_the_tolerance(reopened: bool, share: float) -> None:
    seen = totals([1.0, 1.0], [1.0, RTOL])
    verdict = judge(TOLERANCE, seen, torch.tensor([8, 8]), none(2), reopened)
    assert SHARE == 0.5
    assert verdict.limit.tolist() == [share * RTOL / 8, inf]  # what is done asks nothing of its cells


def cells(
    value: list[float], error: list[float], floor: float | list[float] = 0.0, splittable: tuple[bool, ...] = ()
) -> Cells:
    n = len(error)
    whole = torch.stack((none(n), torch.tensor(splittable or [True] * n, dtype=torch.int64)))
    sums = torch.stack(torch.broadcast_tensors(t64(value), t64(error), t64(floor)))
    return Cells(sums, whole, torch.zeros(0, n, dtype=torch.float64))


def test_cells_with_more_than_their_share_are_split_if_they_can_be() -> None:
    verdict = judge(TOLERANCE, totals([1.0], [1.0]), torch.tensor([4]), none(1))
    limit = float(verdict.limit)
    each = cells([1.0] * 3, [limit, limit / BELOW, limit / BELOW], splittable=(True, True, False))
    marked = mark(verdict, totals([1.0], [1.0]), each, False, True)
    assert marked.tolist() == [False, True, False]


def test_of_a_faint_integral_what_has_most_of_its_error_is_followed() -> None:
    """Done, but only because the absolute tolerance is larger than all that was seen."""
    tolerance, whole = Tolerance(RTOL, 1.0, EPS), totals([1.0], [0.1])
    verdict = judge(tolerance, whole, torch.tensor([4]), none(1))
    assert verdict.done.tolist() == verdict.faint.tolist() == [True]
    assert not judge(tolerance, totals([1.0], [0.1 * BELOW]), torch.tensor([4]), none(1)).faint
    half = 0.05
    each = cells([0.0, 0.0, 1.0, 0.0], [half / BELOW, half, half / BELOW, half / BELOW], [0.0, 0.0, 0.0, 1.0])
    marked = mark(verdict, whole, each, False, True)
    # The third has an error that is small beside its own value, the last one no error but rounding.
    assert marked.tolist() == [True, False, False, False]
    assert not mark(verdict, whole, each, False, False).any()


def test_values_that_are_not_finite_are_given_six_rounds() -> None:
    assert PATIENCE == 6
    bad = none(1)
    for rounds in range(1, 9):
        verdict = judge(TOLERANCE, totals([1.0], [inf]), torch.ones(1, dtype=torch.int64), bad)
        bad = verdict.bad
        ends = finish(verdict, torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), 0)
        assert ends.tolist() == [qg.Status.NONFINITE if rounds > 6 else RUN]
        assert verdict.limit.isinf().tolist() == [rounds > 6]
    assert judge(TOLERANCE, totals([1.0], [1.0]), torch.ones(1, dtype=torch.int64), bad).bad.tolist() == [0]


def test_how_integrals_end() -> None:
    seen = totals([1.0] * 4, [RTOL, 1.0, 1.0, RTOL])
    verdict = judge(TOLERANCE, seen, torch.ones(4, dtype=torch.int64), none(4))
    over = torch.tensor([False, True, False, True])
    ends = finish(verdict, torch.tensor([0, 2, 2, 2]), over, int(qg.Status.DIVERGENT))
    assert ends.tolist() == [qg.Status.CONVERGED, qg.Status.MAX_NFEV, RUN, qg.Status.MAX_NFEV]


def test_an_error_above_the_root_of_eps_is_no_rounding() -> None:
    root = 2.0**-26
    ends = stuck(TOLERANCE, totals([1.0, 1.0], [root, root / BELOW]), t64([root, root]))
    assert ends.tolist() == [qg.Status.ROUNDOFF, qg.Status.DIVERGENT]


def test_an_error_that_cells_have_which_could_be_halved_no_further_for_rounding_is_rounding() -> None:
    ends = stuck(TOLERANCE, totals([1.0, 1.0], [1.0, 1.0]), t64([0.5, 0.5 * BELOW]))
    assert ends.tolist() == [qg.Status.DIVERGENT, qg.Status.ROUNDOFF]
