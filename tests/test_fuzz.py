"""The page ``fuzz`` itself: its closed forms are right, and what it calls a lie is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.fuzz import measure
from benchmarks.fuzz.claims import Claims, value_claims
from benchmarks.fuzz.inquiry import contrast, rounding
from benchmarks.fuzz.sample import Sample, join
from benchmarks.fuzz.tasks import FAMILIES, Task, all_tasks, draw, run
from benchmarks.fuzz.ways import WAYS, Call, call
from helpers import t64

COUNT = 2
INF, FAR = float("inf"), 1e280
UNDAMPED = {"waves to infinity", "sin(w/x)", "1/(x |log x|^p)"}
"""No sum reaches the last digits of these: they have tests of their own."""


def sample_of(name: str, count: int = COUNT) -> Sample:
    return draw(name, count, 5)[0]


def tanh_sinh(f: Callable[[Tensor], Tensor], pieces: list[tuple[float, float]]) -> complex:
    """Sum f over pieces with 161 nodes that crowd doubly exponentially at both ends, for any singular end."""
    t = torch.linspace(-4.0, 4.0, 161, dtype=torch.float64)
    u = torch.pi / 2 * torch.sinh(t)
    near, slope = 1 / (1 + torch.exp(2 * u.abs())), torch.pi / 4 * torch.cosh(t) / torch.cosh(u) ** 2
    low, high = (t64(ends)[:, None] for ends in zip(*pieces, strict=True))
    # From the nearer end, so that what is close to 0 keeps its digits.
    x = torch.where(t < 0, low + (high - low) * near, high - (high - low) * near)
    weight = slope * (high - low) * (t[1] - t[0])
    terms = torch.where((x > low) & (x < high), weight * f(x), 0.0)
    return complex(torch.nan_to_num(terms, 0.0, 0.0, 0.0).sum())


def pieces_of(sample: Sample, i: int) -> list[tuple[float, float]]:
    """Part an interval at every parameter, at multiples of every parameter beside these, and evenly."""
    numbers = [float(arg[i]) for arg in sample.args]
    sizes = {abs(n) for n in numbers if n} | {1 / abs(n) for n in numbers if n} | {float(sample.b[i] - sample.a[i])}
    a, b = (float(end[i]) for end in (sample.a, sample.b))
    low, high = max(a, -FAR), min(b, FAR)
    places = {0.0, low, high, *numbers}
    grades = [2.0**k for k in range(-6, 11, 2)]
    ends = {p + way * k * size for p in places for size in sizes for k in grades for way in (-1, 1)}
    ends |= {way * 10.0**k for k in range(-20, 280) for way in (-1, 1)} if INF in (-a, b) else set()
    ends |= set(np.linspace(low, high, 100).tolist()) | places
    inner = sorted(end for end in ends if low < end < high)
    return list(zip([low, *inner], [*inner, high], strict=True))


def error_of(sample: Sample, i: int, place: int | None = None) -> float:
    """Return how far a closed form is from its sum, over what the size of f and the grid of x allow.

    That of the integral, or of its derivative by a parameter under the integral sign.
    """
    pieces, exact = pieces_of(sample, i), sample.exact() if place is None else sample.slope(place + 2)

    def f(x: Tensor) -> Tensor:
        args = [arg[i].expand_as(x).clone().requires_grad_(j == place) for j, arg in enumerate(sample.args)]
        y = sample.f(x, *args)
        if place is None:
            return y
        parts = torch.view_as_real(y).unbind(-1) if y.is_complex() else (y,)
        rows = [torch.autograd.grad(part.sum(), args[place], retain_graph=True)[0] for part in parts]
        return torch.complex(*rows) if y.is_complex() else rows[0]

    value, size = tanh_sinh(f, pieces), tanh_sinh(lambda x: f(x).abs(), pieces)
    length, far = (
        float(t) for t in (sample.b[i] - sample.a[i], torch.maximum(sample.a[i].abs(), sample.b[i].abs()))
    )
    coarse = 1e-6 + (0.0 if length == INF else 200 * np.spacing(far) / length)  # of each of so many pieces
    return abs(value - complex(exact[i])) / (coarse * abs(size) + 1e-300)


TAMED: dict[str, tuple[int, float, float]] = {
    "gamma likelihoods": (0, 0.0, 60.0), "|x-c|^p": (1, -0.5, 0.0), "|x-c|^p, marked": (1, -0.5, 0.0),
    "powers from elsewhere": (2, -0.5, 2.0),
}  # fmt: skip
"""Parameters that are held where a sum in float64 reaches the tolerance: which, from where, to where."""


def tamed(name: str, count: int = COUNT) -> Sample:
    sample = sample_of(name, count)
    if name in TAMED:
        place, low, high = TAMED[name]
        args = [arg.clamp(low, high) if i == place else arg for i, arg in enumerate(sample.args)]
        sample = replace(sample, args=tuple(args))
    if name == "slowly damped waves":
        sample = replace(sample, args=(torch.maximum(sample.args[0], sample.args[1] / 5), *sample.args[1:]))
    return sample


SUMMED = [name for name in FAMILIES if name not in UNDAMPED and not name.startswith("nested")]


@pytest.mark.parametrize("name", SUMMED)
def test_closed_forms_against_tanh_sinh_sums(name: str) -> None:
    sample = tamed(name)
    errors = [error_of(sample, i) for i in range(COUNT)]
    assert max(errors) <= 1, errors


MOVING = {"steps, marked": (0,), "boxes, marked": (0, 1), "|x-c|^p, marked": (0,)}
"""Parameters that move a jump or a pole: their derivatives are not those under the integral sign."""


@pytest.mark.parametrize("name", [name for name in SUMMED if name not in ("zero", "|sin wx|")])
def test_derivatives_of_closed_forms_by_parameters(name: str) -> None:
    sample = tamed(name, 2)
    smooth = [i for i in sample.variables if i not in MOVING.get(name, ())]
    errors = {i: error_of(sample, 0, i) for i in smooth}
    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("name", [name for name in FAMILIES if sample_of(name, 2).ends])
def test_derivatives_of_closed_forms_by_limits_are_f_there(name: str) -> None:
    sample = sample_of(name)
    for place, end, way in ((0, sample.a, -1), (1, sample.b, 1)):
        if end.isfinite().all():
            exact, read = sample.slope(place), way * sample.f(end, *sample.args).detach()
            near = (end * (1 + 4 * torch.finfo(end.dtype).eps), *sample.args)
            slack = 10 * (sample.f(*near).detach() - way * read).abs() + 1e-12 * read.abs() + 1e-200
            if name.startswith("nested"):
                slack = slack + 1e-8 * read.abs()
            assert bool(((exact - read).abs() <= slack).all()), (exact, read)


def test_derivatives_by_moving_jumps() -> None:
    sample = sample_of("steps, marked")
    c, high, k, start = sample.args
    torch.testing.assert_close(sample.slope(2), -high * torch.exp(k * (c - start)), rtol=1e-12, atol=0.0)
    sample = sample_of("boxes, marked")
    torch.testing.assert_close(sample.slope(2), -sample.args[2], rtol=1e-14, atol=0.0)
    torch.testing.assert_close(sample.slope(3), sample.args[2], rtol=1e-14, atol=0.0)


def test_undamped_closed_forms() -> None:
    # By their derivative in an end, and by values from tables: Si(oo) = pi/2, C(oo) = 1/2.
    for name in ("sin(w/x)", "1/(x |log x|^p)"):
        sample = sample_of(name)
        torch.testing.assert_close(sample.slope(1), sample.f(sample.b, *sample.args), rtol=1e-12, atol=0.0)
        assert bool((replace(sample, b=torch.full_like(sample.b, 1e-200)).exact().abs() < 0.1).all())
    kinds = torch.arange(5.0, dtype=torch.float64)
    waves = replace(sample_of("waves to infinity", 5), args=(kinds, torch.ones(5, dtype=torch.float64)))
    known = t64([np.pi / 2, np.sqrt(np.pi / 8), np.pi / 2 / np.e, np.sqrt(np.pi / 2), np.pi / 2])
    torch.testing.assert_close(waves.exact(), known, rtol=1e-15, atol=0.0)


def test_nested_closed_forms() -> None:
    for name in (name for name in FAMILIES if name.startswith("nested")):
        sample = sample_of(name, 2)
        if name == "nested, kink":
            sample = replace(sample, args=(sample.args[0].clamp_min(0.5),))
        torch.testing.assert_close(call(sample, rtol=1e-7).value, sample.exact(), rtol=1e-6, atol=0.0)


def test_samples_of_one_draw_have_the_same_limits() -> None:
    for name, family in FAMILIES.items():
        one, other = draw(name, 4, 3)
        assert (other is not None) == family.paired
        if other is not None:
            assert torch.equal(one.a, other.a) and torch.equal(one.b, other.b)


def test_pairs_are_two_events_or_one_complex_number() -> None:
    one, other = draw("peaks", 3, 1)
    assert other is not None
    torch.testing.assert_close(join(one, other, False).exact(), torch.stack((one.exact(), other.exact()), dim=-1))
    torch.testing.assert_close(join(one, other, True).exact(), torch.complex(one.exact(), other.exact()))
    assert join(one, other, False).slope(4).tolist() == [[0.0, s] for s in other.slope(2).tolist()]


def judged(found: list[float], reported: list[float], converged: bool = True, **more: object) -> list[list[bool]]:
    """Judge claims about 1, to a tolerance of 1e-6."""
    n, ones = len(found), torch.ones(len(found), dtype=torch.float64)
    verdict = Claims("", t64(found), ones, t64(reported), 1e-6 * ones, torch.full((n,), converged), **more).judge()  # type: ignore
    return [mask.tolist() for mask in (verdict.false, verdict.understated, verdict.silent, verdict.overspent)]


def test_a_lie_is_called_one() -> None:
    no = [False, False, False]
    # Beyond tolerance and report; within both or the report alone; within the tolerance alone.
    assert judged([1 + 1e-3, 1 + 1e-9, 1 + 1e-3], [1e-8, 1e-8, 1.1e-3]) == [[True, False, False], no, no, no]
    assert judged([1 + 1e-7, 1.0, 1 + 2e-16], [1e-8, 0.0, 0.0]) == [no, [True, False, False], no, no]
    assert judged([1 + 1e-3, np.nan, 1.0], [1e-8, 1e-8, np.nan], converged=False) == [no, no, no, no]
    assert judged([np.nan, np.nan, 1.0], [1e-8, np.nan, np.nan]) == [no, no, [True, True, True], no]
    assert judged([np.nan, 1.0, 1.0], [1.0, 1.0, 1.0], warned=True)[2] == no
    assert judged([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], nodes=t64([30, 31, 2]), budget=30)[3] == [False, True, False]


def lie(this: Call):
    """Say 1e-12 of a value that is wrong for peaks on the right."""
    result = call(this.sample, rtol=1e-8)
    wrong = result.value * torch.where(this.sample.args[0] > 0, 1.01, 1.0)
    yield value_claims(this.sample, replace(result, value=wrong, error=1e-9 * result.value), 1e-8)


def raise_for_one(this: Call):
    """Fail for negative centres."""
    if bool((this.sample.args[0] < 0).any()):
        raise ZeroDivisionError("planted")
    yield value_claims(this.sample, call(this.sample, rtol=1e-8), 1e-8)


def test_planted_lies_and_crashes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("peaks", "rules", 0, 1)
    right = int((draw("peaks", task.count, task.number)[0].args[0] > 0).sum())
    monkeypatch.setitem(WAYS, "rules", lie)
    outcome = run(task)
    assert (outcome.values.claims, outcome.values.false) == (task.count, right)
    case = outcome.cases[0]
    assert (case.kind, case.excuse) == ("false", "") and "true error" in case.text
    assert draw("peaks", task.count, task.number)[0].args[0][case.index] > 0
    monkeypatch.setitem(WAYS, "rules", raise_for_one)
    outcome = run(task)
    assert (outcome.values.claims, outcome.values.crashes) == (right, task.count - right)


def test_what_no_node_saw_is_told_from_what_was_dropped() -> None:
    wave = sample_of("needles on waves, unnamed", 1)
    c, w, high, start, k = wave.args
    narrow = replace(wave, args=(wave.a - 0.437 * (wave.b - wave.a), 1e-6 * (wave.b - wave.a), high, start, k))
    assert contrast("default", Call(narrow, None, 0), 0) == 0.0
    seen = replace(narrow, args=(narrow.args[0], 0.02 * (wave.b - wave.a), high, start, k))
    assert contrast("default", Call(seen, None, 0), 0) > 1e-3


def test_rounding_of_far_waves_is_known() -> None:
    sample = sample_of("far waves", 1)
    sample = replace(sample, a=t64([1e9]), b=t64([1e9 + 1]))
    claims = value_claims(sample, call(sample, rtol=1e-3), 1e-3)
    noise, size = rounding("rules", Call(sample, None, 0), claims)
    assert 1e-9 < noise < 1e-6 and 0 < size <= 1


def test_the_page_is_the_same_again_with_its_seed() -> None:
    pages = [
        measure(seed=3, claims=300, only=["Student's t:rules", "steps, marked:reversed"], workers=1)
        for _ in range(2)
    ]
    assert pages[0].sheets == pages[1].sheets and pages[0].figures == pages[1].figures
    names = {row[0] for row in pages[0].sheets[0].rows}
    assert names == {"Student's t", "steps, marked", "all"}


def test_every_way_takes_some_family() -> None:
    tasks = all_tasks(0, 0)
    assert {task.way for task in tasks} == set(WAYS) and {task.family for task in tasks} == set(FAMILIES)
