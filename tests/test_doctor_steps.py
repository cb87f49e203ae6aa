"""Integrands that jump or bend at a place that a parameter moves, at tolerances fine and coarse."""

from __future__ import annotations

import pytest
import torch

import quadgrad as qg
from quadgrad.doctor import Verdict

TOLERANCES = {
    "double": (torch.float64, {}),
    "double-1e-5": (torch.float64, {"rtol": 1e-5}),
    "double-1e-3": (torch.float64, {"rtol": 1e-3}),
    "single": (torch.float32, {}),
    "single-1e-2": (torch.float32, {"rtol": 1e-2}),
}
STEPS = {
    "comparison": lambda u: (u > 0.0).to(u.dtype),
    "floor": lambda u: torch.floor(1.0 + u),
    "round": lambda u: torch.round(0.5 + u),
}
BENDS = {
    "where": lambda u: torch.where(u > 0.0, u, 0.0 * u),
    "mask": lambda u: (u > 0.0).to(u.dtype) * u,
    "sawtooth": lambda u: torch.abs(u - torch.round(u)),
    "smooth": lambda u: torch.sigmoid(5.0 * u),
}


def examine(shape, size, tolerance, marked=""):
    dtype, options = TOLERANCES[tolerance]

    def program(k):
        place = 0.3 + 0.2 * k
        points = {"": None, "followed": [place], "left behind": [place.detach()]}[marked]
        f = lambda x, k: torch.exp(-k * x) + size * shape(x - (0.3 + 0.2 * k))
        return qg.quad(f, 0.0, 1.0, (k,), points=points, **options).value

    return qg.doctor.check(program, torch.tensor(1.3, dtype=dtype, requires_grad=True))


@pytest.mark.parametrize("size", [1.0, 1e-4])
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_moves_is_told_unless_it_is_marked(step, tolerance, size):
    unmarked = examine(STEPS[step], size, tolerance)
    assert unmarked.verdict == Verdict.STEP, str(unmarked)
    marked = examine(STEPS[step], size, tolerance, "followed")
    assert marked.verdict == Verdict.OK, str(marked)
    severed = examine(STEPS[step], size, tolerance, "left behind")
    assert severed.verdict in (Verdict.SEVERED, Verdict.STEP), str(severed)


@pytest.mark.parametrize("size", [1.0, 0.03])
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("bend", BENDS)
def test_a_kink_that_moves_is_none(bend, tolerance, size):
    report = examine(BENDS[bend], size, tolerance)
    assert report.verdict == Verdict.OK, str(report)


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_a_step_that_stands_still_is_none(tolerance):
    dtype, options = TOLERANCES[tolerance]
    f = lambda x, k: torch.exp(-k * x) + (x > 0.4)
    program = lambda k: qg.quad(f, 0.0, 1.0, (k,), **options).value
    report = qg.doctor.check(program, torch.tensor(1.3, dtype=dtype, requires_grad=True))
    assert report.verdict == Verdict.OK, str(report)


def test_a_step_beside_kinks_on_the_same_line_is_told():
    lift = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)

    def program(k):
        place = lambda k: 0.2 + 0.3 * k
        f = lambda x, k, lift: torch.exp(-k * x) + 0.3 * torch.where(x > place(k), x - place(k) + lift, 0.0 * x)
        return qg.quad(f, 0.0, 1.0, (k, lift), rtol=1e-5).value.sum()

    found = [
        qg.doctor.check(program, torch.tensor(k, dtype=torch.float64, requires_grad=True)).verdict
        for k in (0.4, 0.6, 0.8, 1.0, 1.17, 1.3)
    ]
    assert found == [Verdict.STEP] * 6
