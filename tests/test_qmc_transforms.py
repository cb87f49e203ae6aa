"""Quasi-Monte Carlo under transforms, inside other integrals and between changes of what it was given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64


def bell(x: Tensor, s: Tensor) -> Tensor:
    return torch.exp(-s * (x**2).sum(-1))


# --------------------------------------------------------------------------------------------------- transforms


def test_lanes_of_captured_tensors_stop_at_different_n() -> None:
    """They were given each other's points, so that derivatives were those of another sample."""
    s = t64([0.01, 3.0, 0.5, 0.02])
    f = lambda v: qg.qmc(lambda x: bell(x, v), t64([-1.0] * 3), 2.0, rtol=1e-3)
    assert len({int(f(v).nfev) for v in s}) > 1
    slopes: list[Tensor] = []
    for v in s:
        one = v.clone().requires_grad_()
        slopes.append(torch.autograd.grad(f(one).value, one)[0])
    value = lambda v: f(v).value
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(value))(s), torch.stack(slopes), rtol=1e-10, atol=0.0
    )
    outer = s.clone().requires_grad_()
    lanes = torch.func.vmap(value)(outer)
    torch.testing.assert_close(lanes, torch.stack([value(v) for v in s]), rtol=1e-12, atol=0.0)
    (slope,) = torch.autograd.grad(lanes.sum(), outer)
    torch.testing.assert_close(slope, torch.stack(slopes), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("chunk_size", (None, 256))
def test_lanes_with_a_batch_in_each(chunk_size: int | None) -> None:
    s, w = t64([[0.1, 0.5, 3.0], [0.2, 0.02, 1.0]]), t64([0.5, 1.0])

    def f(s: Tensor, w: Tensor) -> Tensor:
        return qg.qmc(
            lambda x, s: bell(x, s) * torch.cos(w * x[..., 0]), t64([-1.0] * 2), 2.0, (s,), rtol=1e-3,
            chunk_size=chunk_size,
        ).value  # fmt: skip

    torch.testing.assert_close(torch.func.vmap(f)(s, w), torch.stack([f(*one) for one in zip(s, w, strict=True)]))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        lanes = torch.func.vmap(transform(f, (0, 1)))(s, w)
        for i, one in enumerate(zip(s, w, strict=True)):
            plain: Any = torch.autograd.functional.jacobian(f, one)
            for ours, exact in zip(lanes, plain, strict=True):
                torch.testing.assert_close(ours[i], exact, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("low", "side", "dtype"),
    ((1e6, 1e-9, torch.float64), (1000.0, 1e-3, torch.float32), (1.0, 3e-16, torch.float64)),
)
@pytest.mark.parametrize("other", (1.0, math.inf))
def test_a_narrow_side_keeps_its_volume(low: float, side: float, dtype: torch.dtype, other: float) -> None:
    """Beside an infinite one 44 % of the volume were lost, and the rest converged."""
    a = torch.tensor([low, 0.0], dtype=dtype)
    b = torch.tensor([low + side, other], dtype=dtype)
    seen: list[bool] = []

    def f(x: Tensor) -> Tensor:
        seen.append(bool(((x[..., 0] >= a[0]) & (x[..., 0] <= b[0])).all()))
        return torch.exp(-x[..., 1])

    result = qg.qmc(f, a, b, rtol=1e-3)
    exact = float(b[0] - a[0]) * -math.expm1(-other)
    assert result.converged and abs(float(result.value) / exact - 1) < 1e-3 and all(seen)


def test_an_empty_box_where_f_is_infinite() -> None:
    f = lambda x: x.prod(-1) ** -0.5
    each: tuple[dict[str, Any], ...] = ({"rtol": 1e-2}, {"n": 2**14})
    for options in each:
        result = qg.qmc(f, [0.0, 0.0], t64([[0.0, 1.0], [1.0, 1.0]]), **options)
        assert result.value[0] == 0.0 == result.error[0] and result.status[0] == result.status[1]
        assert abs(float(result.value[1]) - 4.0) < 0.2
    alone = qg.qmc(f, [0.0, 0.0], t64([0.0, 1.0]))
    assert alone.converged and alone.value == 0.0


def test_limits_as_lists_and_arrays() -> None:
    """A list's tensors keep their gradient; an array's precision is that of the call."""
    p, f = leaf(2.0), lambda x: (x**2).sum(-1)
    result = qg.qmc(f, [0.0, 0.0], [p, 1.0], rtol=1e-5)
    exact = p**3 / 3 + p / 3
    (slope,), (known,) = torch.autograd.grad(result.value, p), torch.autograd.grad(exact, p)
    assert result.value.dtype == torch.float64
    torch.testing.assert_close(slope, known, rtol=1e-4, atol=0.0)
    rows = qg.qmc(f, [[p.detach(), 0.0], [0.0, 0.0]], [2.0, 1.0], n=64)
    assert rows.value[0] == 0.0 and rows.value.shape == (2,)
    for dtype in ("float32", "float64"):
        assert qg.qmc(f, np.zeros(2, dtype), 1.0, n=64).value.dtype == getattr(torch, dtype)
    assert qg.qmc(f, [0, 0], 1, n=64).value.dtype == torch.float32


@pytest.mark.parametrize(
    ("a", "error", "text"),
    (
        (None, TypeError, "needs the corners a and b of a box, or region="),
        ("ab", TypeError, "a='ab' is no real number"),
        ([0.0, None], TypeError, r"a=\[0.0, None\] is no real number"),
        ([0.0, 1j], TypeError, "is no real number"),
        ([[0.0, 0.0], [0.0]], TypeError, "is no real number, or list of them"),
        ([t64([0.0, 0.0]), 1.0], ValueError, r"different shapes: \(2,\), \(\)"),
        ([t64(0.0), math.nan], ValueError, r"limit a is NaN at index \(1,\)"),
    ),
)
def test_bad_limits(a: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        qg.qmc(lambda x: x.sum(-1), a, [1.0, 1.0])


@pytest.mark.parametrize(
    "options",
    (
        {"n": math.inf}, {"n": math.nan}, {"n": "8"}, {"n": 2**60}, {"replicates": None}, {"replicates": math.inf},
        {"confidence": None}, {"confidence": math.nan}, {"chunk_size": 1.5}, {"sequence": ["sobol"]},
    ),
)  # fmt: skip
def test_numbers_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)) + "="):
        qg.qmc(lambda x: x.sum(-1), [0.0, 0.0], 1.0, **options)


# ------------------------------------------------------------------------------------------------------ messages


def test_a_fixed_sample_is_no_failure() -> None:
    hole = lambda x, s: torch.where(x[..., 0] < s, torch.nan, 1.0)
    with pytest.warns(qg.IntegrationWarning, match="^1 of 4 integrals did not converge"):
        qg.qmc(hole, [0.0, 0.0], 1.0, (t64([-1.0, 0.5, -1.0, -1.0]),), n=1024)
    inner = lambda x: qg.qmc(lambda u, x: torch.exp(-x * u.sum(-1)), [0.0, 0.0], 1.0, (x,), n=2**12).value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outer = qg.quad(inner, t64(0.5), 1.0, rtol=1e-2)
        assert qg.quad(inner, torch.zeros(0), 1.0).value.shape == (0,)
    exact = qg.quad(lambda x: ((1 - torch.exp(-x)) / x) ** 2, t64(0.5), 1.0).value
    assert outer.converged and (outer.value - exact).abs() <= 1e-2 * exact
    with pytest.warns(qg.IntegrationWarning, match="inside the integrand did not converge. The integrand is"):
        lost = lambda x: qg.qmc(lambda u, x: u.sum(-1) * x + torch.nan, [0.0, 0.0], 1.0, (x[..., 0],), n=16).value
        qg.qmc(lost, [0.0], 1.0, n=16)


# ----------------------------------------------------------------------------------------------------- gradients


def _sample(s: Tensor, c: Tensor, b: Tensor) -> Tensor:
    return qg.qmc(lambda x, s, c: bell(x, s * c), [0.0, 0.0], b, (s, c), n=64).value


def _in_parts(s: Tensor, c: Tensor, b: Tensor) -> Tensor:
    return qg.quad(lambda x, s, c: torch.exp(-s * c * x), 0.0, b[0], (s, c), chunk_size=16).value


@pytest.mark.parametrize("value", (_sample, _in_parts))
@pytest.mark.parametrize("place", (0, 1, 2))
def test_what_changed_before_the_backward_pass_is_refused(value: Callable[..., Tensor], place: int) -> None:
    """The backward pass calls f again: it gave the derivative of another integral."""
    tensors = (leaf(0.5), t64([2.0, 3.0]), t64([1.0, 1.0]))
    result = value(*tensors).sum()
    torch.autograd.grad(result, tensors[0], retain_graph=True)
    with torch.no_grad():
        tensors[place].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(result, tensors[0])


def test_the_second_look_is_taken_in_parts_too() -> None:
    sizes: list[int] = []

    def f(x: Tensor, s: Tensor) -> Tensor:
        y = bell(x, s)
        sizes.append(y.numel())
        return y

    s = torch.linspace(0.1, 1.0, 200, dtype=torch.float64, requires_grad=True)
    torch.autograd.grad(qg.qmc(f, [0.0] * 2, 1.0, (s,), n=32, chunk_size=32).value.sum(), s)
    assert max(sizes) <= 32


def test_points_near_the_limits_are_not_drawn_together() -> None:
    """In single precision far from 0 the mean of (x - a)^2 was off by twice the tolerance, and converged."""
    a = torch.tensor([1000.0, 1000.0])
    result = qg.qmc(lambda x: ((x.double() - 1000.0) ** 2).sum(-1), a, a + 1.0, rtol=1e-4)
    assert result.converged and abs(float(result.value) - 2 / 3) <= 2 / 3 * 1e-4


def test_lanes_of_limits_warn_of_nothing() -> None:
    a = t64([[-1.0, -0.5], [0.0, 0.25]])
    value = lambda a: qg.qmc(bell, a, 2.0, (t64(0.5),), n=64).value
    found = torch.func.vmap(torch.func.grad(value))(a)
    plain = a.clone().requires_grad_()
    (exact,) = torch.autograd.grad(value(plain).sum(), plain)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0.0)
