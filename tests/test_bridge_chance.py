"""Error bars that hold where values agree by chance, where one input is rounded, and where a change is hidden."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from benchmarks.bridge_functions import functions
from helpers import leaf
from quadgrad import bridge
from quadgrad.bridge import BridgeWarning

METHODS = ("central", "forward", "richardson")


def entries(fn: Any, x: Any, method: str, **options: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return the Jacobian ``(m, n)``, its reported errors, and what else is known at x."""
    point = bridge.wrap(fn, method, **options).linearization([torch.as_tensor(x, dtype=torch.float64)])
    unit = np.eye(point.value.size)
    error = point.jacobian.pull_error(unit)
    assert error is not None
    return point.jacobian.pull(unit), error, point


def test_roundings_that_grow_evenly_from_point_to_point_are_noise() -> None:
    """A product k x of a large x: points in an even row all have the rounding of a straight line."""
    rng = np.random.default_rng(5)
    low = missed = 0
    for _ in range(200):
        x, k, p = 10.0 ** rng.uniform(3.0, 6.0), 10.0 ** rng.uniform(0.0, 1.5), rng.uniform(0.0, 6.3)
        slope, error, point = entries(lambda v, k=k, p=p: np.sin(k * v + p), [x], "central")
        exact = k * math.cos(k * x + p)
        real = 0.29 * np.spacing(k * x) * abs(math.cos(k * x + p))
        low += bool(point.problem.noise[0] < 0.05 * real)
        missed += bool(abs(slope[0, 0] - exact) > error[0, 0])
    assert low <= 2
    assert missed == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_kink_anywhere_between_the_points_of_a_stencil(method: str) -> None:
    """Halfway between x and x + h it leaves no third difference; the slope hides it from the second."""
    missed = 0
    for power in range(-20, -4):
        for share in (0.2, 0.35, 0.5, 0.6, 0.8):
            away = share * 2.0**power
            fn = lambda v, c=3.0 + away: 500.0 * v + np.exp(0.1 * v) + np.abs(v - c)
            slope, error, _ = entries(fn, [3.0], method)
            missed += bool(abs(slope[0, 0] - (499.0 + 0.1 * math.exp(0.3))) > error[0, 0])
    assert missed <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("digits", [4, 5, 6])
def test_long_steps_agree_by_chance(method: str, digits: int) -> None:
    """Three digits after the point allow steps in which third differences vanish here and there."""
    missed = 0
    places = np.linspace(0.1, 3.0, 120)
    for x in places:
        fn = lambda v: np.array([float(f"{math.sin(3.0 * v[0]) + 2.0 * math.cos(1.3 * v[0]):.{digits}e}")])
        slope, error, _ = entries(fn, [x], method)
        exact = 3.0 * math.cos(3.0 * x) - 2.6 * math.sin(1.3 * x)
        missed += bool(abs(slope[0, 0] - exact) > error[0, 0])
    assert missed <= 1


def test_outputs_of_one_input_know_of_each_other_how_a_long_step_truncates() -> None:
    times = np.linspace(0.2, 8.0, 60)
    fn = lambda v: np.exp(-v[0] * times) * np.cos(v[0] * times)
    exact = -times * np.exp(-0.5 * times) * (np.cos(0.5 * times) + np.sin(0.5 * times))
    for noise in (1e-3, 1e-4, 1e-5, 1e-6):
        slope, error, _ = entries(fn, [0.5], "central", noise=(noise, 1e-3 * noise))
        assert np.all(np.abs(slope[:, 0] - exact) <= error[:, 0]), noise


@pytest.mark.parametrize("method", METHODS)
def test_a_staircase_in_one_input_beside_others_that_look_worse_at_first(method: str) -> None:
    """It is contradicted only when the others are known, and has to be looked at again then."""
    for width in (0.25, 0.0625, 0.015625):
        fn = lambda v, w=width: 30.0 * np.floor(v[0] / w + 0.3) + np.sin(40.0 * v[1]) + np.tanh(50.0 * v[2])
        x = [0.0101, 0.8, -0.013]
        slope, error, _ = entries(fn, x, method)
        exact = [0.0, 40.0 * math.cos(32.0), 50.0 / math.cosh(0.65) ** 2]
        assert np.all(np.abs(slope[0] - exact) <= error[0])


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_rounded_beside_others(method: str) -> None:
    """The first points differ by the jumps of a fine input, while a coarse one has not moved yet."""
    rng, missed = np.random.default_rng(11), 0
    fn = lambda v: (
        np.float32(v[0]) + 3.0 * np.float64(np.float32(np.sin(v[1]))) + 90.0 * np.float64(np.float32(v[2]))
    )
    for _ in range(60):
        x = rng.uniform([0.01, 0.01, 1.0], [0.02, 0.1, 9.0]).astype(np.float32).astype(np.float64)
        slope, error, _ = entries(lambda v: np.float64(fn(v)), x, method)
        missed += int(np.sum(np.abs(slope[0] - [1.0, 3.0 * math.cos(x[1]), 90.0]) > error[0]))
    assert missed <= 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", [1e-8, 1e-12])
def test_what_is_hidden_beside_something_louder_is_not_called_zero(method: str, unit: float) -> None:
    fn = lambda v: 1e17 * np.cos(v[0]) + np.sin(v[1] / unit)
    slope, error, _ = entries(fn, [0.7, 1.3 * unit], method)
    assert abs(slope[0, 1] - math.cos(1.3) / unit) <= error[0, 1]
    report = bridge.check(fn, np.array([0.7, 1.3 * unit]), jacobian=lambda v: np.array(
        [-1e17 * np.sin(v[0]), np.cos(v[1] / unit) / unit]))  # fmt: skip
    assert report.verdict != "wrong"


@pytest.mark.parametrize("method", METHODS)
def test_an_input_that_does_nothing_is_known_to_do_nothing(method: str) -> None:
    slope, error, _ = entries(lambda v: np.sin(v[0]) + 0.0 * v[1], [0.7, 1e-9], method)
    assert slope[0, 1] == 0.0
    assert error[0, 1] < 1e-4


def test_the_complex_step_beside_a_narrow_line() -> None:
    """What rounding does to the place in the line is in the error; elsewhere the step stays one evaluation."""
    for width in (1e-2, 1e-4, 1e-6):
        for u in (-3.0, -1.0, 0.1, 2.0, 4.0):
            x = 0.7 + u * width
            fn = lambda v, w=width: np.exp(-0.5 * ((v - 0.7) / w) ** 2)
            slope, error, _ = entries(fn, [x], "complex")
            at = (np.longdouble(x) - np.longdouble(0.7)) / np.longdouble(width)
            assert abs(slope[0, 0] - float(-at * np.exp(-0.5 * at * at) / np.longdouble(width))) <= error[0, 0]
            assert error[0, 0] < 1e-9 / width
    assert entries(np.sin, [0.7], "complex")[2].counter.nfev == entries(np.sin, [0.7], "auto")[2].counter.nfev


def test_forward_differences_of_noisy_outputs_take_a_third_point() -> None:
    quiet, loud = (entries(np.sin, [0.7], "forward", noise=noise)[2].counter.nfev for noise in (0.0, 1e-4))
    assert (quiet, loud) == (1 + 2, 1 + 3)


@pytest.mark.parametrize("kind", ["smooth", "narrow", "oscillating", "stepped", "printed", "noisy", "badly scaled"])
def test_reported_errors_of_spsa(kind: str) -> None:
    missed = count = 0
    for f in functions(400, 17):
        if f.kind == kind:
            with np.errstate(all="ignore"):
                slope, error, _ = entries(f.fn, f.x, "spsa", **f.options)
            true = np.maximum(np.abs(slope - f.low), np.abs(slope - f.high))
            missed, count = missed + int(np.sum(~(true <= error))), count + true.size
    assert missed <= 0.02 * count


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_spsa_at_a_kink_covers_both_sides(size: float) -> None:
    fn = lambda v: size * np.abs(v[0] - 0.5) + np.sin(v[1])
    slope, error, _ = entries(fn, [0.5, 0.2], "spsa")
    assert np.all(np.maximum(np.abs(slope[0, 0] - size), np.abs(slope[0, 0] + size)) <= error[0, 0])


# ------------------------------------------------------------------------------------------ members of other kinds


class Pair(NamedTuple):
    """What many libraries return."""

    first: np.ndarray
    second: np.ndarray


BUFFER = np.zeros(4)


def fill(x: np.ndarray) -> np.ndarray:
    BUFFER[:2], BUFFER[2:] = x**2, np.sin(x)
    return BUFFER


RETURNED = {
    "views in a tuple": lambda b: (b[:2], b[2:]),
    "a named tuple": lambda b: Pair(b[:2], b[2:]),
    "reshaped": lambda b: b.reshape(2, 2),
    "a read-only view": lambda b: np.broadcast_to(b, (4,)),
    "from bytes": lambda b: np.frombuffer(b.data),
}


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("held", RETURNED)
def test_a_buffer_however_it_is_returned(held: str, pool: bool) -> None:
    with ThreadPoolExecutor(1) as executor:
        wrapped = bridge.wrap(lambda x: RETURNED[held](fill(x)), executor=executor if pool else None)
        x = leaf([1.0, 2.0])
        found = wrapped(x)
        parts = found if isinstance(found, tuple) else (found,)
        (slope,) = torch.autograd.grad(torch.cat([part.flatten() for part in parts]).sum(), x)
    torch.testing.assert_close(slope, 2.0 * x.detach() + torch.cos(x.detach()), rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("style", ["{:.3e}", "{:.5g}", "{:+.6E}", "{:.4f}", "{:12.7f}"])
def test_results_printed_in_any_style(method: str, style: str) -> None:
    fn = lambda v: np.array([float(style.format(math.exp(v[0])))])
    for x in (0.37, 1.9):
        slope, error, _ = entries(fn, [x], method)
        assert abs(slope[0, 0] - math.exp(x)) <= error[0, 0]


@pytest.mark.parametrize("fn", [math.log, math.sqrt, lambda v: 1.0 / math.sqrt(v), lambda v: v**-1.5])
def test_a_function_of_numbers_that_raises_outside_its_domain(fn: Any) -> None:
    """As NumPy's, which return NaN there: near the end of the domain steps shrink, and the batch is not lost."""
    x = leaf([1.0, 1e-7])
    (slope,) = torch.autograd.grad(bridge.wrap(fn, scalars=True)(x).sum(), x)
    h = 1e-6 * x.detach().numpy()
    exact = [(fn(v + d) - fn(v - d)) / (2.0 * d) for v, d in zip(x.detach().numpy(), h, strict=True)]
    assert slope.numpy() == pytest.approx(exact, rel=1e-6)
    with pytest.raises((ValueError, TypeError, ZeroDivisionError)):
        bridge.wrap(math.log, scalars=True)(leaf([-1.0]))


def test_a_function_of_numbers_at_the_end_of_its_domain() -> None:
    x = leaf([1.0, 0.0])
    with pytest.warns(BridgeWarning, match=r"derivatives are NaN, the first at index \[1\]"):
        (slope,) = torch.autograd.grad(bridge.wrap(math.sqrt, scalars=True)(x).sum(), x)
    assert slope[0].item() == pytest.approx(0.5)
    assert slope[1].isnan()


@pytest.mark.parametrize(("a", "b"), [(True, np.bool_(True)), (1, np.int64(1)), (0.5, np.float32(0.5)), ("1", 1)])
def test_statics_of_numpy_are_told_from_pythons(a: Any, b: Any) -> None:
    seen: list[type] = []

    def fn(x: np.ndarray, static: Any) -> np.ndarray:
        seen.append(type(static))
        return x**2

    wrapped = bridge.wrap(fn, static=(1,))
    for static in (a, b, a):
        seen.clear()
        wrapped(leaf([1.0, 2.0]), static).sum().backward()
        assert set(seen) == {type(static)}


def test_a_precise_slope_is_not_doubted_for_what_a_long_step_saw_of_stairs() -> None:
    """Its error hid that another input's slope, which eight steps had agreed on by chance, was wrong."""
    f = next(f for i, f in enumerate(functions(525, 62002)) if i == 524)
    assert f.kind == "stepped"
    slope, error, _ = entries(f.fn, f.x, "richardson", jacobian=None)
    assert np.all(np.abs(slope - f.high) <= error)
    assert np.all(error[:, 1:] < 1e-7)
    assert bridge.check(f.fn, f.x, jacobian=lambda x: f.high).verdict != "wrong"
