"""Functions of many inputs: what a few points say of all, and what one input hides of another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from quadgrad import bridge

COUNT = 12
X = np.linspace(0.5, 1.5, COUNT)
METHODS = ("central", "forward", "richardson")


def entries(fn: Any, x: Any, method: str, **options: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the Jacobian ``(m, n)``, its reported errors and the evaluations."""
    point = bridge.wrap(fn, method, **options).linearization([torch.as_tensor(x, dtype=torch.float64)])
    unit, jacobian = np.eye(point.value.size), point.jacobian
    error = jacobian.pull_error(unit)
    assert error is not None
    return jacobian.pull(unit), error, point.counter.nfev


def waves(v: np.ndarray) -> np.ndarray:
    return np.array([np.sum(np.sin(v)), np.prod(v), np.sum(v) ** 3])


def slopes_of_waves(v: np.ndarray) -> np.ndarray:
    return np.array([np.cos(v), np.prod(v) / v, np.full(v.size, 3.0 * np.sum(v) ** 2)])


@pytest.mark.parametrize(("inputs", "count"), [(7, 21), (8, 20), (16, 36), (17, 42), (100, 228)])
def test_eight_inputs_and_more_share_what_else_would_be_a_third_point_of_each(inputs: int, count: int) -> None:
    slope, error, nfev = entries(lambda v: np.sum(np.sin(v)), np.linspace(0.5, 1.5, inputs), "central", noise=0.0)
    assert nfev == 1 + count
    assert np.all(np.abs(slope[0] - np.cos(np.linspace(0.5, 1.5, inputs))) <= error[0])
    assert np.all(error < 1e-8 * max(1.0, inputs / 20))  # outputs that are larger are rounded more coarsely


def test_terms_of_several_inputs_are_no_truncation() -> None:
    slope, error, nfev = entries(waves, X, "central", noise=0.0)
    assert nfev == 1 + 2 * COUNT + 4
    assert np.all(np.abs(slope - slopes_of_waves(X)) <= error)
    assert np.all(error < 1e-7 * np.abs(slope))


@pytest.mark.parametrize("power", [-7.0, -6.0, -5.0, -4.0, -3.0])
@pytest.mark.parametrize("kind", ["line", "kink", "kinks that cancel", "jump"])
def test_what_one_or_two_of_many_inputs_do(kind: str, power: float) -> None:
    for place in (0, 5, COUNT - 1):
        width, other = 10.0**power, (place + 3) % COUNT
        centre = X[place] - 0.7 * width
        low, high = slopes_of_waves(X), slopes_of_waves(X)
        if kind == "line":
            extra: Callable[[Any], Any] = lambda v, p=place, c=centre, w=width: np.exp(-0.5 * ((v[p] - c) / w) ** 2)
            low[:, place] -= 0.7 / width * math.exp(-0.245)
            high = low
        elif kind == "kink":
            extra = lambda v, p=place, c=centre: abs(v[p] - c)
            low[:, place] += 1.0
            high = low
        elif kind == "kinks that cancel":
            extra = lambda v, p=place, o=other: abs(v[p] - X[p]) - abs(v[o] - X[o])
            low[:, place], high[:, place] = low[:, place] - 1.0, high[:, place] + 1.0
            low[:, other], high[:, other] = low[:, other] - 1.0, high[:, other] + 1.0
        else:
            extra = lambda v, p=place, c=centre: float(v[p] >= c)
        slope, error, _ = entries(lambda v, extra=extra: waves(v) + extra(v), X, "central")
        assert np.all(np.maximum(np.abs(slope - low), np.abs(slope - high)) <= error)
        assert np.median(error) < 1e-4


# ------------------------------------------------------------------------------------------ what inputs hide


ROUNDED: dict[str, Callable[[float], float]] = {
    "float32": lambda y: float(np.float32(y)),
    **{f"{digits} digits": lambda y, d=digits: round(y, d) for digits in (3, 4, 5, 6, 7, 8, 9)},
    **{f"a sensor of {bits} bits": lambda y, b=bits: round(y * 2.0**b) / 2.0**b for bits in (9, 12, 15, 24)},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ROUNDED)
def test_an_input_that_is_rounded_beside_others_that_are_not(kind: str, method: str) -> None:
    """Between its steps it does nothing: the error covers their trend.

    It may be wide, or infinite, only where a single step lies within the stencil: that is a jump at x.
    """
    for others in (1, 3, COUNT):
        for x in np.linspace(0.63, 0.81, 5):
            point = np.append(x, X[:others])
            fn = lambda v: np.array([ROUNDED[kind](math.sin(v[0])) + np.sum(np.sin(v[1:]))])
            slope, error, _ = entries(fn, point, method)
            assert abs(slope[0, 0] - math.cos(x)) <= error[0, 0]
            near = {ROUNDED[kind](math.sin(x + distance)) for distance in (-1e-5, 0.0, 1e-5)}
            assert error[0, 0] < 20.0 or len(near) == 2
            assert np.all(np.abs(slope[0, 1:] - np.cos(X[:others])) <= error[0, 1:])


@pytest.mark.parametrize(("method", "most"), [("central", 76), ("forward", 64), ("richardson", 232)])
def test_a_clamp_beside_x_is_no_rounding(method: str, most: int) -> None:
    """Outputs that an input leaves as they are, and moves a little farther away, as dead units do."""
    point = np.linspace(-1.0, 1.0, 12) + 1e-3
    fn = lambda v: np.array([np.sum(np.maximum(v - 1e-2 * np.arange(12), 0.0)), np.sum(np.clip(v, -0.5, 0.5))])
    slope, error, count = entries(fn, point, method)
    exact = np.array([point > 1e-2 * np.arange(12), np.abs(point) < 0.5]).astype(float)
    assert np.all(np.abs(slope - exact) <= error) and np.all(error < 1e-5)
    assert count <= most


def test_an_input_without_any_effect_costs_three_evaluations_more() -> None:
    counts = [entries(lambda v, c=c: np.sin(v[0]) + c * v[1], [0.7, 0.4], "central")[2] for c in (1.0, 0.0)]
    assert counts[1] == counts[0] + 3


@pytest.mark.parametrize("height", [0.0, 1.0, -3.0, 0.1, 1e6, math.pi])
def test_an_output_that_is_held_costs_three_evaluations_for_each_input(height: float) -> None:
    """And the tables that look for its steps farther away, if it may be rounded: 0 is not."""
    alone, beside = (
        entries(lambda v, n=n: np.array([np.sum(np.exp(v)), np.fmax(v[0] - 1e9, height)])[:n], X[:3], "central")
        for n in (1, 2)
    )
    assert beside[2] == alone[2] + 3 * 3 + (4 * 6 if height else 0)
    assert np.all(beside[0][1] == 0.0) and np.all(beside[1][1] < 1e-9 * max(abs(height), 1.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [25, 32, 38])
def test_an_iteration_that_is_chaotic(steps: int, method: str) -> None:
    """Narrower than the noise table is wide, and as large as what it is taken for."""
    import mpmath

    def fn(v: np.ndarray) -> np.ndarray:
        for _ in range(steps):
            v = 3.9 * v * (1.0 - v)
        return v

    with mpmath.workdps(40):
        for x in (0.3, 0.41, 0.67925556):
            t, slope = mpmath.mpf(x), mpmath.mpf(1)
            for _ in range(steps):
                slope, t = slope * mpmath.mpf(3.9) * (1 - 2 * t), mpmath.mpf(3.9) * t * (1 - t)
            found, error, _ = entries(fn, [x], method)
            assert abs(found[0, 0] - float(slope)) <= error[0, 0] < 0.1 * abs(float(slope))


@pytest.mark.parametrize("power", [-320, -315, -309])
def test_outputs_smaller_than_normal_numbers(power: int) -> None:
    size = 10.0**power
    for x in np.linspace(0.5, 1.4, 20):
        slope, error, _ = entries(lambda v: size * np.sin(v), [x], "central")
        assert abs(slope[0, 0] - size * math.cos(x)) <= error[0, 0] <= 0.1 * size + 1e-319


def test_check_takes_a_flat_derivative_of_fine_steps_for_possible() -> None:
    fn = lambda x: np.array([1e3 + 2e-3 * np.floor(x[0] / 1e-4)])
    assert bridge.check(fn, np.array([0.81234]), jacobian=lambda x: np.zeros((1, 1))).verdict != "wrong"
    assert bridge.check(waves, X, jacobian=lambda x: np.zeros((3, COUNT))).verdict == "wrong"


@pytest.mark.parametrize("far", [1e-13, 1e-10, 1e-9, 1e-8])
def test_check_knows_a_wrong_zero_where_nothing_close_to_x_can_be_computed(far: float) -> None:
    fn = lambda x: np.array([np.nan if 1e-16 < abs(x[0] - 0.7) < far else 2.0 * x[0]])
    assert bridge.check(fn, np.array([0.7]), jacobian=lambda x: np.zeros((1, 1))).verdict == "wrong"
