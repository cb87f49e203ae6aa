"""Random programs whose faults are known: the ledger closes, every line that matters is named, no other one is.

The page ``doctor`` of the benchmarks does the same with a thousand programs, drawn afresh.
"""

from __future__ import annotations

import pytest

from benchmarks.doctor import KINDS, examine_program

pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True to a scalar",  # by programs that sever
    "ignore:None of the inputs have requires_grad=True",  # to a checkpoint, behind a line that severs
)


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_found_and_sized_in_random_programs(kind: str) -> None:
    examined, seed = 0, 1000 * (1 + list(KINDS).index(kind))
    while examined < (2 if "steps" in kind else 4):
        outcome = examine_program(seed, **KINDS[kind][0])
        seed += 1
        if outcome is not None:
            examined += 1
            assert not outcome.defects, (outcome, f"examine_program({outcome.seed}, **{KINDS[kind][0]})")


@pytest.mark.parametrize("seed", [3_448_000, 774_255_131, 774_273_631, 774_312_531, 1_293_055_013])
def test_crossings_of_margins_that_are_not_smooth_are_reached(seed: int) -> None:
    outcome = examine_program(seed, **KINDS["steps alone"][0])
    assert outcome is not None and outcome.jumps
    assert not outcome.defects, outcome


def test_wrong_backward_passes_are_found_and_sized() -> None:
    there = found = seed = 0
    while there < 8:
        outcome = examine_program(90_000 + seed, length=14, severing=0, wrong=2)
        seed += 1
        if outcome is not None:
            assert not outcome.defects, outcome
            there, found = there + outcome.wrong[0], found + outcome.wrong[1]
    assert found == there


@pytest.mark.parametrize("seed", [301_627, 20_285_144])
def test_slopes_that_are_wrong_far_away_are_no_jumps_and_ties_widen_bars(seed: int) -> None:
    """Of the first a backward pass is wrong 1.6 sizes away, which values show; of the second inputs are tied."""
    outcome = examine_program(seed, **KINDS["severing, wrong"][0])
    assert outcome is not None and outcome.verdict in ("OK", "SEVERED") and not outcome.defects, outcome
