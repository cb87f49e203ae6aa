"""Second derivatives by a kink that search has not noticed, as cells end there anyway: told, and nothing else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64

inf = math.inf
AT_ENDS = (0.0, 0.5, -0.5, 0.25, 1e-12, 0.25 + 1e-10, 1e-6)
"""Middles of [-1, 1] and of its parts, or nearer to them than any node."""


def told(work: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        work()
    return [str(w.message) for w in heard if issubclass(w.category, qg.UnmarkedJumpWarning)]


def twice(f: Callable[..., Tensor], a: Any, b: Any, *leaves: Tensor, args: Any = None, **options: Any) -> list[str]:
    """Return what is said while derivatives by all leaves are made to be differentiated."""

    def work() -> None:
        value = qg.quad(f, t64(a), b, leaves if args is None else args, **options).value.sum()
        torch.autograd.grad(value, leaves, create_graph=True)

    return told(work)


def hinge(x: Tensor, k: Tensor) -> Tensor:
    return torch.relu(x - k) * torch.exp(-(x**2))


@pytest.mark.parametrize("k", AT_ENDS)
def test_a_kink_at_the_end_of_a_cell_is_told(k: float) -> None:
    place = leaf(k)
    for heard in (
        twice(hinge, -1.0, 1.0, place),
        twice(lambda x: hinge(x, place), -1.0, 1.0, place, args=()),
        told(lambda: torch.func.hessian(lambda p: qg.quad(hinge, -1.0, 1.0, (p,)).value)(t64(k))),
        told(lambda: torch.func.grad(torch.func.grad(lambda p: qg.quad(hinge, -1.0, 1.0, (p,)).value))(t64(k))),
    ):
        assert len(heard) == 1 and "second derivatives lack" in heard[0] and "jumps=" in heard[0]


@pytest.mark.parametrize("rtol", (1e-2, 1e-4, 1e-6, 1e-8))
def test_a_kink_anywhere_is_in_the_second_derivative_or_told(rtol: float) -> None:
    """Where the value is accurate enough without its place, search does not look for that."""
    draws = torch.Generator().manual_seed(round(-math.log10(rtol)))
    for k in (1.8 * torch.rand(30, dtype=torch.float64, generator=draws) - 0.9).tolist():
        place = leaf(k)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            value = qg.quad(hinge, t64(-1.0), 1.0, (place,), rtol=rtol).value
            (slope,) = torch.autograd.grad(value, place, create_graph=True)
        (bend,) = torch.autograd.grad(slope, place)
        assert bool(heard) != (abs(float(bend) - math.exp(-k * k)) < 0.01)


@pytest.mark.parametrize(
    ("f", "a", "b", "k"),
    [
        (lambda x, k: (x - k).abs() * torch.exp(-(x**2)), -inf, inf, 0.0),
        (lambda x, k: (x - k).abs() * torch.exp(-x), 0.0, inf, 1.0),
        (lambda x, k: torch.maximum(x, k) ** 3, 0.0, 1.0, 0.5),
        (lambda x, k: torch.where(x < k, x, k + 2 * (x - k)), 0.0, 4.0, 3.0),
        (lambda x, k: torch.stack((x * k, torch.relu(k - x)), dim=-1), 0.0, 1.0, 0.25),
        (lambda x, k: torch.relu(x - k) + 1j * x * k, 0.0, 1.0, 0.5),
    ],
)
def test_on_infinite_intervals_in_components_and_complex_values(f: Any, a: float, b: float, k: float) -> None:
    place = leaf(k)

    def work() -> None:
        value = qg.quad(f, t64(a), b, (place,)).value.sum()
        torch.autograd.grad(value.real if value.is_complex() else value, place, create_graph=True)

    assert len(told(work)) == 1


def test_the_integral_is_named_in_a_batch() -> None:
    places = leaf([0.1, 0.3, 0.5, 0.7])
    (heard,) = twice(lambda x, k: torch.relu(x - k), 0.0, 1.0, places)
    assert "x = 0.5 (integral 2)" in heard


def test_nothing_is_said_nor_read_where_one_derivative_is_asked_for() -> None:
    place, calls = leaf(0.5), []

    def f(x: Tensor, k: Tensor) -> Tensor:
        calls.append(x.numel())
        return torch.relu(x - k)

    value = qg.quad(f, t64(0.0), 1.0, (place,)).value
    before = len(calls)
    assert not told(value.backward)
    assert len(calls) == before


@pytest.mark.parametrize("k", (0.5, 0.25))
def test_marked_kinks_and_those_that_search_finds_are_right_and_silent(k: float) -> None:
    place = leaf(k)
    assert not twice(lambda x, k: torch.relu(x - k), 0.0, 1.0, place, points=place)
    assert not twice(lambda x, k: torch.relu(x - k), 0.0, 1.0, place, jumps=lambda x, k: x - k)
    found = leaf(0.1)
    assert not twice(lambda x, k: torch.relu(x - k), 0.0, 1.0, found)
    value = qg.quad(lambda x, k: torch.relu(x - k), t64(0.0), 1.0, (place,), points=place).value
    (slope,) = torch.autograd.grad(value, place, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(slope, place)[0], t64(1.0))


SILENT = {
    "a height beside a kink that stays": (lambda x, p: p * (x - 0.5).abs(), 0.0, 1.0, (0.3, -2.0, 1e6)),
    "peaks": (lambda x, p: p / ((x - 0.3) ** 2 + p**2), 0.0, 1.0, (1e-1, 1e-3, 1e-5)),
    "places of peaks": (lambda x, p: 1e-3 / ((x - p) ** 2 + 1e-6), 0.0, 1.0, (0.5, 0.25, 0.3)),
    "waves": (lambda x, p: torch.sin(p * x), 0.0, 1.0, (1.0, 50.0, 400.0)),
    "sigmoids": (lambda x, p: torch.sigmoid(p * (x - 0.5)), 0.0, 1.0, (10.0, 1e3, 1e5)),
    "powers": (lambda x, p: x**p, 0.0, 1.0, (-0.9, -0.5, 0.5, 3.5)),
    "bells": (lambda x, p: torch.exp(-p * x**2), -inf, inf, (1.0, 1e4, 1e-4)),
    "tails": (lambda x, p: torch.exp(-p * x) * torch.cos(3 * x), 0.0, inf, (0.1, 1.0, 30.0)),
    "hypotenuses": (lambda x, p: torch.sqrt((x - 0.5) ** 2 + p**2), 0.0, 1.0, (1.0, 1e-2, 1e-4)),
    "steps of the second derivative": (lambda x, p: torch.relu(x - p) ** 3, 0.0, 1.0, (0.5, 0.25)),
    "thirds in single precision": (lambda x, p: torch.exp(p * x).float(), 0.0, 1.0, (1.0, 3.0)),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_is_smooth_or_stays_is_silent(name: str) -> None:
    f, a, b, values = SILENT[name]
    for rtol in (1e-3, 1e-8, 1e-11):
        assert not twice(f, a, b, leaf(values), rtol=rtol, on_failure="ignore")


def test_a_jump_that_stays_is_no_kink() -> None:
    for heard in twice(lambda x, p: p * (4 * x).floor(), 0.0, 1.0, leaf([0.3, 5.0])):
        assert "jumps at" in heard


def test_a_leaf_that_f_makes_for_itself_is_nobodys_parameter() -> None:
    """As where f is the derivative of a network by x."""

    def f(x: Tensor, p: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad((torch.sin(p * x) * x).sum(), x, create_graph=True)[0]

    assert not twice(f, 0.0, 1.0, leaf([1.3, 4.0]))


def test_a_network_is_silent() -> None:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
    assert not twice(lambda x: net(x[..., None])[..., 0], -1.0, 1.0, *net.parameters(), args=())
