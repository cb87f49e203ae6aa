"""Integrands that jump or bend at a place that a parameter moves, at tolerances fine and coarse."""

from __future__ import annotations

import pytest
import torch

import quadgrad as qg
from helpers import t64
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


# -- lines of which one element bends and another one jumps ---------------------------------------------

EDGES, VALUES = t64([-1.0, -0.5, 0.0, 0.5, 1.0]), t64([0.0, 1.0, -1.0, 2.0, 0.0])


def looped(x, w):
    total = (x**2).sum()
    for i in range(len(x)):
        if x[i] > 0.1:
            total = total + (x[i] - 0.1) + w[i]
    return total


def asked_as_numbers(x, w):
    total = (x**2).sum()
    for i in range(len(x)):
        total = total + (2 * (x[i] - 0.1) + w[i] if x[i].item() > 0.1 else 0.0 * x[i])
    return total


def rounded(x, w):
    near = torch.round(2 * x)
    return (torch.abs(2 * x - near) + w * near + x**2).sum()


def best_of_rows(x, w):
    rows = torch.outer(x, t64([1.0, -1.0, 0.5])) + t64([0.1, 0.2, 0.3])
    index = rows.argmax(1)
    return (rows.gather(1, index[:, None])[:, 0] + w * index).sum() + (x**2).sum()


def in_buckets(x, w):
    k = torch.bucketize(x, EDGES).clamp(1, 4)
    part = (x - EDGES[k - 1]) / 0.5
    return (VALUES[k - 1] + part * (VALUES[k] - VALUES[k - 1]) + w * VALUES[k]).sum() + (x**2).sum()


LINES = {
    "where": lambda x, w: (torch.where(x > 0.1, x - 0.1 + w, 0 * x) + x**2).sum(),
    "mask": lambda x, w: ((x > 0.1) * (torch.sin(x - 0.1) + w) + x**3).sum(),
    "clamp and mask": lambda x, w: (torch.clamp(x, min=0.1) + (x >= 0.1) * w + torch.relu(x)).sum(),
    "if": looped,
    "numbers": asked_as_numbers,
    "round": rounded,
    "argmax": best_of_rows,
    "sort": lambda x, w: (
        (x.sort().values * VALUES[: len(x)]).sum() + (w[x.sort().indices] * VALUES[: len(x)]).sum()
    ),
    "topk": lambda x, w: x.topk(2).values.sum() + (w * t64([1.0, 2.0, 5.0, 9.0]))[x.topk(2).indices].sum(),
    "buckets": in_buckets,
}


PAIRS = [(line, i) for line in LINES for i in range(4) if line != "topk" or i < 2]  # others leave by two crossings


@pytest.mark.parametrize(("line", "element"), PAIRS)
def test_a_step_of_one_element_beside_kinks_of_others_is_told(line, element):
    x = t64([0.32, -0.63, 0.87, -0.21]).requires_grad_()
    assert qg.doctor.check(lambda x: LINES[line](x, 0 * x.detach().abs().round()), x).ok
    lift = torch.zeros(4, dtype=torch.float64)
    lift[element] = 0.3
    report = qg.doctor.check(lambda x: LINES[line](x, lift), x)
    assert report.verdict == Verdict.STEP, str(report)


@pytest.mark.parametrize("jump", [0.0, 0.2])
def test_of_two_places_on_one_line_one_may_jump(jump):
    def program(k):
        wave = lambda x: torch.sin(8.0 * x + k)
        f = lambda x: torch.exp(-k * x) + torch.where(wave(x) > 0, wave(x) + jump * (x > 0.5), 0 * x)
        return qg.quad(f, t64(0.0), 1.0, points=0.5, rtol=1e-5 if jump else 1e-8).value

    report = qg.doctor.check(program, t64(0.7).requires_grad_())
    assert report.verdict == (Verdict.STEP if jump else Verdict.OK), str(report)


def test_a_step_before_a_line_that_decides_is_not_that_lines():
    def f(x):
        y = torch.floor(3 * x) * x
        return torch.where(y > 0.1, y - 0.1, 0.2 * (y - 0.1)).sum()

    report = qg.doctor.check(f, t64([0.32, -0.63, 0.87]).requires_grad_())
    assert {row.operation for row in report.findings} == {"floor"}, str(report)


@pytest.mark.parametrize("least", (False, True), ids=("largest", "smallest"))
@pytest.mark.parametrize("at", (0.045, 0.0495))
@pytest.mark.parametrize("moves", (False, True), ids=("stays", "moves"))
def test_of_equals_behind_a_clamp_the_first_is_chosen(moves: bool, at: float, least: bool) -> None:
    """The second one wins until both are clamped: then the first does, which changes nothing if it is the same."""
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    sign = -1.0 if least else 1.0

    def program(b: torch.Tensor) -> torch.Tensor:
        places = torch.stack([b + (0.95 if moves else 0.97), b + 0.96, b + 0.5])
        u = sign * torch.clamp(places, max=1.0)
        return weights[u.argmin() if least else u.argmax()] * (1.0 + b)

    report = qg.doctor.check(program, torch.tensor(at, dtype=torch.float64, requires_grad=True))
    assert report.verdict == ("STEP" if moves else "OK")
