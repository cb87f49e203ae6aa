"""What one call taught about the next; elements that are in doubt; values at the ends of the range of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helpers import leaf
from quadgrad import bridge

METHODS = ("central", "forward", "richardson", "auto")
MANY = 40_000
"""Elements of several blocks."""


def backward(wrapped: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of the sum and its reported error."""
    point = (x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=torch.float64)).requires_grad_()
    wrapped(point).sum().backward()
    assert point.grad is not None
    return point.grad.double().numpy(), wrapped.info.gradient_error[0]


# ---------------------------------------------------------------------------------------------- later calls


def test_a_later_call_takes_two_points_in_place_of_a_table_for_a_while() -> None:
    wrapped = bridge.wrap(lambda x: np.array([np.sum(np.sin(x)), np.prod(x)]))
    counts = list[int]()
    for turn in range(18):
        backward(wrapped, np.linspace(0.1, 1.0, 10) + 1e-3 * turn)
        counts.append(wrapped.info.nfev)
    assert counts == [30, *[26] * 15, 30, 26]
    wrapped.forget()
    backward(wrapped, np.linspace(0.1, 1.0, 10))
    assert wrapped.info.nfev == 30


@pytest.mark.parametrize("method", ["central", "forward", "auto"])
def test_gradients_are_the_same_to_the_last_bit_whatever_was_called_before(method: str) -> None:
    fn = lambda x: np.array([np.sum(np.sin(x)), np.prod(x) - 0.2])
    x = np.array([0.3, 0.9, 1.4])
    later = bridge.wrap(fn, method)
    backward(later, 1.1 * x)
    assert np.array_equal(backward(bridge.wrap(fn, method), x)[0], backward(later, x)[0])


def noisy(level: float) -> Callable[[np.ndarray], np.ndarray]:
    def fn(y: np.ndarray) -> np.ndarray:
        return y * (1.0 + level * np.sin(1e15 * y))

    return fn


ODD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"noise {level}": noisy(level) for level in (1e-14, 1e-12, 1e-9, 1e-6)},
    **{f"{d} digits": lambda y, d=d: np.array([float(f"{v:.{d}g}") for v in y]) for d in (5, 8, 10)},
    "float32": lambda y: y.astype(np.float32).astype(np.float64),
    "stairs": lambda y: np.floor(y * 2.0**16) / 2.0**16,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ODD)
def test_a_function_that_is_quiet_at_first_and_not_elsewhere(kind: str, method: str) -> None:
    missed, errors = 0, list[float]()
    for x in np.linspace(1.1, 1.4, 25):
        wrapped = bridge.wrap(lambda v: np.where(v > 1.0, ODD[kind](np.sin(v)), np.sin(v)), method)
        backward(wrapped, [0.8])
        gradient, error = backward(wrapped, [x])
        missed += bool(abs(gradient[0] - math.cos(x)) > error[0])
        errors.append(error[0])
    assert missed == 0
    assert np.median(errors) < 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", np.arange(-10.0, -4.0, 0.5))
def test_a_narrow_line_met_at_a_later_call(power: float, method: str) -> None:
    width = 10.0**power
    wrapped = bridge.wrap(lambda x: np.sin(x) + np.exp(-0.5 * ((x - 1.3) / width) ** 2), method)
    backward(wrapped, [0.8])
    x = 1.3 + 1.1 * width
    u = (x - 1.3) / width
    gradient, error = backward(wrapped, [x])
    exact = math.cos(x) - u * math.exp(-0.5 * u * u) / width
    assert abs(gradient[0] - exact) <= error[0] < 0.1 * abs(exact)


def test_what_is_known_of_a_backward_pass_is_known_after_its_point_is_forgotten() -> None:
    calls = list[int]()
    wrapped = bridge.wrap(lambda x: (calls.append(1), np.sin(x))[1])
    wrapped(leaf([0.3, 0.4])).sum().backward()
    count = len(calls)
    wrapped.forget()
    assert wrapped.info.noise < 1e-15
    assert wrapped.info.gradient_error[0].max() < 1e-9
    assert len(calls) == count


# ------------------------------------------------------------------------------------------------ elements


def rough(x: np.ndarray) -> np.ndarray:
    """Return a smooth function with a line, a kink and a step, each met by one element of a grid."""
    line = np.exp(-0.5 * ((x - 0.5) / 2e-8) ** 2)
    return np.sin(3.0 * x) + line + np.abs(x - 0.25) + np.floor(x - 0.75)


def rough_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points of which a few are odd, and the derivatives on both sides."""
    x = np.linspace(0.1, 0.9, MANY + 1) + 3e-7
    x[[7, MANY // 2, MANY]] = 0.5 + 3e-8, 0.25, 0.75 + 1e-9
    u = (x - 0.5) / 2e-8
    smooth = 3.0 * np.cos(3.0 * x) - u * np.exp(-0.5 * u * u) / 2e-8
    return x, smooth + np.where(x > 0.25, 1.0, -1.0), smooth + np.where(x >= 0.25, 1.0, -1.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_few_odd_elements_among_many(method: str) -> None:
    x, low, high = rough_grid()
    gradient, error = backward(bridge.wrap(rough, method, sparsity="elementwise"), x)
    true = np.maximum(np.abs(gradient - low), np.abs(gradient - high))
    assert np.mean(true > error) <= 1e-3
    assert np.all((true <= error)[[7, MANY // 2, MANY]])
    assert np.median(error) < 1e-6


def test_a_float32_input_in_blocks_is_moved_by_what_it_can_hold() -> None:
    x = torch.linspace(0.1, 4.0, MANY)
    gradient, error = backward(bridge.wrap(lambda x: np.sin(x), sparsity="elementwise"), x)
    assert np.mean(np.abs(gradient - np.cos(x.detach().double().numpy())) > error) <= 1e-3
    assert np.median(error) < 1e-3


@pytest.mark.parametrize("method", ["central", "forward", "richardson"])
def test_elements_in_doubt_are_evaluated_alone_where_the_function_takes_numbers(method: str) -> None:
    x, scale = np.linspace(-1.0, 1.0, 401), torch.linspace(1.0, 2.0, 401, dtype=torch.float64)
    calls = list[float]()

    def number(v: float, s: float, kink: float) -> float:
        calls.append(v)
        return 3.0 + s * math.sin(v + 2.0) + kink * abs(v)

    counts = list[int]()
    for kink in (0.0, 1.0):
        wrapped = bridge.wrap(number, method, scalars=True, static=["kink"])
        point = torch.from_numpy(x.copy()).requires_grad_()
        calls.clear()
        wrapped(point, scale, kink).sum().backward()
        counts.append(len(calls))
        assert point.grad is not None
        true = np.abs(point.grad.numpy() - scale.numpy() * np.cos(x + 2.0) - kink * np.sign(x))
        assert np.all((true <= wrapped.info.gradient_error[0])[x != 0.0])
    assert wrapped.info.gradient_error[0][200] > 0.9
    assert counts[0] <= counts[1] <= counts[0] + 401


@pytest.mark.parametrize("method", ["central", "forward", "richardson"])
def test_elements_in_doubt_of_a_ufunc(method: str) -> None:
    wrapped, x = bridge.wrap(np.hypot, method), np.linspace(-1.0, 1.0, 401)
    point = torch.from_numpy(x.copy()).requires_grad_()
    wrapped(point, torch.zeros(1, dtype=torch.float64)).sum().backward()
    assert point.grad is not None
    error = wrapped.info.gradient_error[0]
    assert np.all((np.abs(point.grad.numpy() - np.sign(x)) <= error)[x != 0.0])
    assert error[200] > 0.9


def test_elements_of_two_inputs_are_moved_apart() -> None:
    a, b = np.linspace(0.2, 1.0, MANY), np.linspace(2.0, 3.0, MANY)
    inputs = [torch.from_numpy(v).requires_grad_() for v in (a, b)]
    wrapped = bridge.wrap(lambda p, q: p * np.sin(q) + np.abs(p - a[77]), sparsity="elementwise")
    by_a, by_b = torch.autograd.grad(wrapped(*inputs).sum(), inputs)
    assert np.mean(np.abs(by_b.numpy() - a * np.cos(b)) > wrapped.info.gradient_error[1]) <= 1e-3
    slope = np.sin(b) + np.where(a > a[77], 1.0, -1.0)
    away = np.arange(MANY) != 77
    assert np.mean((np.abs(by_a.numpy() - slope) > wrapped.info.gradient_error[0])[away]) <= 1e-3
    assert wrapped.info.gradient_error[0][77] > 0.9


# --------------------------------------------------------------------------------------- the range of numbers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fn", "slope", "x"),
    [
        (lambda x: x**2, lambda x: 2.0 * x, 1e150),
        (lambda x: x**2, lambda x: 2.0 * x, 1e-150),
        (np.exp, np.exp, 709.7),
        (lambda x: 1e300 * np.sin(x), lambda x: 1e300 * np.cos(x), 0.8),
        (lambda x: 1e-300 * np.sin(x), lambda x: 1e-300 * np.cos(x), 0.8),
        (lambda x: np.sin(1e200 * x), lambda x: 1e200 * np.cos(1e200 * x), 1e-200),
    ],
)
def test_values_near_the_ends_of_the_range_of_numbers(fn: Any, slope: Any, x: float, method: str) -> None:
    gradient, error = backward(bridge.wrap(lambda v: fn(v), method), [x])
    assert abs(gradient[0] - slope(x)) <= error[0]
    assert error[0] < 1e-3 * abs(slope(x))


def test_phases_are_no_printed_numbers() -> None:
    """The modulus of exp(i x) is 1, a number of one digit."""
    wrapped = bridge.wrap(lambda x: np.exp(1j * x))
    x = leaf([0.3, 0.4])
    wrapped(x).imag.sum().backward()
    assert x.grad is not None
    assert wrapped.info.noise < 1e-15
    assert np.all(np.abs(x.grad.numpy() - np.cos([0.3, 0.4])) <= wrapped.info.gradient_error[0])


@pytest.mark.parametrize("size", [1e-4, 1e-12, 1e-20])
def test_the_complex_step_is_small_beside_small_inputs(size: float) -> None:
    units = np.array([300.0, size])
    x, width = units * (1.0 + 2e-6), 3e-6 * size
    fn = lambda v: np.sum(v / units) + np.exp(-0.5 * ((v[..., 1] - size) / width) ** 2)
    wrapped = bridge.wrap(fn, "complex")
    u = (x[1] - size) / width
    exact = np.array([1.0 / 300.0, 1.0 / size - u * math.exp(-0.5 * u * u) / width])
    gradient, error = backward(wrapped, x)
    assert np.all(np.abs(gradient - exact) <= error)
    assert np.all(error < 1e-8 * np.abs(exact))
    direction = torch.tensor([0.0, size], dtype=torch.float64)
    forward = torch.func.jvp(wrapped, (torch.from_numpy(x),), (direction,))[1]
    assert abs(forward.item() / size - exact[1]) <= error[1]


def test_spsa_where_the_kinks_of_two_inputs_cancel() -> None:
    rng = np.random.default_rng(3)
    for inputs in (2, 3, 4):
        for _ in range(20):
            x, sizes = rng.normal(size=inputs), np.zeros(inputs)
            pair = rng.choice(inputs, 2, replace=False)
            sizes[pair] = rng.normal() * np.array([1.0, -1.0 + 0.01 * rng.normal()])
            wrapped = bridge.wrap(lambda v, x=x, k=sizes: np.sum(np.sin(v) + k * np.abs(v - x)), "spsa")
            gradient, error = backward(wrapped, x)
            assert np.all(np.abs(gradient - np.cos(x)) + np.abs(sizes) <= error)
            assert np.all(error < 100.0 * np.abs(sizes).max())
