"""Functions as they are found in models, with parts that are not smooth: true errors beside reported ones."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator

from helpers import leaf
from quadgrad import bridge

METHODS = ("central", "forward", "richardson", "auto", "spsa")
GRID, KNOTS = np.linspace(0.0, 2.0, 21), np.linspace(0.0, 1.0, 7)
DATA = np.random.default_rng(3).normal(size=101)
MONOTONE = PchipInterpolator(KNOTS, np.array([0.0, 0.2, 0.2, 0.9, 1.0, 0.8, 0.3]))
WRAP = 2.0 * math.pi


@dataclass(frozen=True)
class Model:
    """A function from ``(n,)`` to ``(m,)``, where, its derivatives, and options."""

    fn: Callable[[np.ndarray], np.ndarray]
    x: list[float]
    slope: Any
    options: dict[str, Any] = field(default_factory=dict)


def remembering() -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that looks results up by its argument, rounded to six digits."""
    known: dict[tuple[float, ...], np.ndarray] = {}

    def fn(v: np.ndarray) -> np.ndarray:
        key = tuple(np.round(v, 6))
        return known.setdefault(key, np.array([math.sin(key[0]) * key[1]]))

    return fn


def half_single(v: np.ndarray) -> np.ndarray:
    """Return one output of float32 arithmetic beside one of float64."""
    return np.array([np.tanh(np.sum(v.astype(np.float32))), np.sum(v**2)], np.float64)


def interest(v: np.ndarray) -> np.ndarray:
    """Return money, in cents."""
    return np.array([round(1000.0 * (1.0 + v[0]) ** v[1], 2)])


TABLE, ROOT = float(np.interp(0.537, GRID, np.sin(GRID))), math.sqrt((1.0 + 1e-7) - 1.0)
GROWN = 1000.0 * 1.031**7.4
MODELS = {
    "a table": Model(
        lambda v: np.array([np.interp(v[0], GRID, np.sin(GRID)) * v[1]]),
        [0.537, 1.3],
        [[13.0 * (math.sin(0.6) - math.sin(0.5)), TABLE]],
    ),
    "rounded keys": Model(
        remembering(), [0.6123456, 1.234567], [[1.234567 * math.cos(0.6123456), math.sin(0.6123456)]]
    ),
    "float32 beside float64": Model(
        half_single, [0.3, -0.2, 0.5], [[1.0 / math.cosh(0.6) ** 2] * 3, [0.6, -0.4, 1.0]]
    ),
    "an angle": Model(lambda v: (3.0 * v[:1] + v[1:]) % WRAP, [2.0, 1.5], [[3.0, 1.0]]),
    "an angle close to its wrap": Model(
        lambda v: (3.0 * v[:1] + v[1:]) % WRAP, [(WRAP - 1e-7 - 1.5) / 3.0, 1.5], [[3.0, 1.0]]
    ),
    "sorted outputs": Model(
        lambda v: np.sort([v[0] ** 2, v[1], v[0] + v[1]]), [0.9, 0.3], [[0.0, 1.0], [1.8, 0.0], [1.0, 1.0]]
    ),
    "sorted outputs, nearly equal": Model(
        lambda v: np.sort([v[0] ** 2, v[1]]), [0.9, 0.81 + 3e-7], [[1.8, 0.0], [0.0, 1.0]]
    ),
    "an end of the domain close to x": Model(
        lambda v: np.sqrt(v[:1] - 1.0) * v[1], [1.0 + 1e-7, 2.0], [[1.0 / ROOT, ROOT]], {"bounds": (1.0, np.inf)}
    ),
    "a quantile": Model(
        lambda v: np.array([np.quantile(DATA * v[0] + v[1], 0.3)]), [1.3, 0.2], [[np.quantile(DATA, 0.3), 1.0]]
    ),
    "a spline by its values": Model(
        lambda v: np.array([CubicSpline(KNOTS, v)(0.43)]),
        list(np.sin(3.0 * KNOTS)),
        [[float(CubicSpline(KNOTS, row)(0.43)) for row in np.eye(7)]],
    ),
    "a monotone spline at a knot": Model(
        lambda v: np.array([MONOTONE(v[0])]), [KNOTS[3]], [[float(MONOTONE.derivative()(KNOTS[3]))]]
    ),
    "a count": Model(lambda v: np.array([np.sum(v[0] > DATA) + v[1]]), [0.1, 0.3], [[0.0, 1.0]]),
    "cents": Model(interest, [0.031, 7.4], [[GROWN * 7.4 / 1.031, GROWN * math.log(1.031)]]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_reported_errors_of_models(name: str, method: str) -> None:
    model = MODELS[name]
    x, slope = np.array(model.x), np.array(model.slope)
    jacobian = bridge.wrap(model.fn, method, **model.options).linearization([torch.from_numpy(x)]).jacobian
    unit = np.eye(len(slope))
    error = jacobian.pull_error(unit)
    # The exact derivatives are rounded too.
    assert np.all(np.abs(jacobian.pull(unit) - slope) <= error + 1e-13 * np.abs(slope))
    assert np.all(np.isfinite(error))


@pytest.mark.parametrize("name", MODELS)
def test_check_calls_no_derivative_of_a_model_what_it_is_not(name: str) -> None:
    model = MODELS[name]
    x, slope = np.array(model.x), np.array(model.slope)
    wrong = slope * np.where(np.arange(x.size) == np.argmax(np.abs(slope).max(axis=0)), 1.05, 1.0)
    verdicts = [
        bridge.check(model.fn, x, jacobian=lambda v, j=j: j, **model.options).verdict for j in (slope, wrong)
    ]
    assert verdicts[0] != "wrong" and verdicts[1] != "right"


def test_what_is_known_of_the_last_pass_is_gone_before_the_next_one_needs_as_much() -> None:
    """What :attr:`Wrapped.info` would tell of it holds the errors, the noise and the points of all elements."""
    alive: list[bool] = []
    last: list[weakref.ref[Any]] = []

    def fn(x: np.ndarray) -> np.ndarray:
        alive.extend(ref() is not None for ref in last)
        return np.sin(x)

    wrapped = bridge.wrap(fn, sparsity="elementwise", memory=0.0)
    for turn in range(2):
        x = leaf([0.3 + turn, 0.7])
        y = wrapped(x).sum()
        alive.clear()
        y.backward()
        last = [weakref.ref(wrapped.linearization([x.detach()]))]
    assert alive and not any(alive)
    assert wrapped.info is not None
