"""Points over what functions cut out of boxes: closed forms in many dimensions, derivatives, transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

import quadgrad as qg
from helpers import leaf, t64

SIDE = 1.2


def one(x: Tensor, *args: Any) -> Tensor:
    return torch.ones_like(x[..., 0])


def ball(x: Tensor, r: Tensor) -> Tensor:
    return r**2 - (x**2).sum(-1)


def volume(d: int) -> float:
    return math.pi ** (d / 2) / math.gamma(d / 2 + 1)


def over(d: int, g: Callable[..., Tensor], args: Any, f: Callable[..., Tensor] = one, **options: Any) -> qg.Result:
    """Integrate over the part of a cube where g is positive."""
    region = options.pop("region", None) or qg.Where(g)
    corners = options.pop("corners", (t64([-SIDE] * d), SIDE))
    return qg.qmc(f, *corners, args, region=region, **{"n": 2**12} | options)


def within(number: Tensor, exact: Any, error: Tensor) -> bool:
    """Whether numbers are no further off than reported, and reported to be off by less than they are."""
    exact = torch.as_tensor(exact, dtype=torch.float64)
    return bool((((number - exact).abs() <= error) & (error < exact.abs())).all())


@pytest.mark.parametrize("d", (2, 8))
def test_balls_and_their_derivatives(d: int) -> None:
    r = leaf(1.0)
    result = over(d, ball, (r,), seed=1)
    assert result.status == qg.Status.SAMPLED and within(result.value, volume(d), result.error)
    error = qg.gradient_error(result, r)
    (slope,) = torch.autograd.grad(result.value, r, create_graph=True)
    assert within(slope, d * volume(d), error)
    (bend,) = torch.autograd.grad(slope, r)
    assert bend.item() == pytest.approx(d * (d - 1) * volume(d), rel=0.1)


def test_a_ball_that_hardly_any_point_of_its_box_is_in() -> None:
    d, r = 14, leaf(1.0)  # three points in a million
    result = over(d, ball, (r,), n=2**11)
    assert result.value.item() == pytest.approx(volume(d), rel=0.3)
    (slope,) = torch.autograd.grad(result.value, r)
    assert slope.item() == pytest.approx(d * volume(d), rel=0.3)


def test_the_probability_that_a_sum_stays_below_a_level() -> None:
    d, t = 12, leaf([4.0, 6.0])
    result = over(d, lambda x, t: t - x.sum(-1), (t,), corners=(t64([0.0] * d), 1.0))

    def power_sum(t: float, power: int) -> float:
        return sum((-1) ** k * math.comb(d, k) * (t - k) ** power for k in range(int(t) + 1)) / math.factorial(
            power
        )

    assert within(result.value, [power_sum(4.0, d), power_sum(6.0, d)], result.error)
    error = qg.gradient_error(result, t)
    (slope,) = torch.autograd.grad(result.value.sum(), t)
    assert within(slope, [power_sum(4.0, d - 1), power_sum(6.0, d - 1)], error)
    assert (result.error < 0.1 * result.value).all()


def test_an_annulus_of_two_functions() -> None:
    ring = qg.Where(lambda x, r: r - x.norm(dim=-1)) & qg.Where(lambda x, r: (x**2).sum(-1) - 0.09)
    r = leaf([1.0, 0.5])
    result = over(3, one, (r,), lambda x, r: (x**2).sum(-1), region=ring, n=2**11)
    exact = 4 * math.pi / 5 * (r.detach() ** 5 - 0.3**5)
    assert within(result.value, exact, result.error)
    error = qg.gradient_error(result, r)
    (slope,) = torch.autograd.grad(result.value.sum(), r)
    assert within(slope, 4 * math.pi * r.detach() ** 4, error)


def test_a_sphere_in_ten_dimensions() -> None:
    d, r = 10, leaf(1.0)
    result = over(d, ball, (r,), region=qg.Boundary(ball))
    exact = d * volume(d)
    assert within(result.value, exact, result.error)
    error = qg.gradient_error(result, r)
    (slope,) = torch.autograd.grad(result.value, r, create_graph=True)
    assert within(slope, (d - 1) * exact, error)
    (bend,) = torch.autograd.grad(slope, r)
    assert bend.item() == pytest.approx((d - 1) * (d - 2) * exact, rel=0.2)


def test_corners_move_too() -> None:
    b = leaf([0.5, SIDE, SIDE])
    result = over(3, lambda x: ball(x, t64(1.0)), (), corners=(t64([-SIDE] * 3), b), n=2**13)
    (slope,) = torch.autograd.grad(result.value, b)
    assert slope[0].item() == pytest.approx(0.75 * math.pi, rel=2e-2)
    torch.testing.assert_close(slope[1:], t64([0.0, 0.0]), rtol=0.0, atol=2e-2)


@cache
def pieces() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    f = lambda x, r: torch.exp(r * x[..., 0])
    return lambda r: over(2, ball, (r,), f, n=2**8, replicates=2).value, t64([0.5, 1.0])


def test_batches_and_lanes_are_single_calls() -> None:
    call, r = pieces()
    singly = torch.stack([call(one) for one in r])
    torch.testing.assert_close(call(r), singly, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(vmap(call)(r), singly, rtol=1e-12, atol=0.0)
    few = {"n": 2**8, "replicates": 2}
    closed = lambda c: over(2, lambda x: ball(x, c), (), lambda x: torch.exp(c * x[..., 0]), **few).value
    torch.testing.assert_close(vmap(closed)(r), singly, rtol=1e-9, atol=0.0)
    slopes = torch.stack([grad(call)(one) for one in r])
    torch.testing.assert_close(vmap(grad(call))(r), slopes, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(vmap(grad(closed))(r), slopes, rtol=1e-9, atol=0.0)


def test_all_ways_to_differentiate_agree() -> None:
    call, _ = pieces()
    r = leaf(0.9)
    (slope,) = torch.autograd.grad(call(r), r, create_graph=True)
    (bend,) = torch.autograd.grad(slope, r)
    still = r.detach()
    by_jvp = jvp(call, (still,), (torch.ones_like(still),))[1]
    torch.testing.assert_close(by_jvp, slope.detach(), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(grad(call)(still), slope.detach(), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(hessian(call)(still), bend, rtol=1e-7, atol=0.0)
    assert torch.autograd.gradcheck(lambda r: torch.autograd.grad(call(r), r, create_graph=True)[0], (r,), rtol=0.2)


def test_pieces_shorter_than_the_places_at_which_lines_are_looked_at() -> None:
    # 25 discs, in a row that is a tenth of a box: lines along it meet up to five of them.
    g = lambda x: 0.008**2 - (((x * 5 - 0.5) - (x * 5 - 0.5).round()) ** 2).sum(-1) / 25
    result = over(2, g, (), corners=(t64([0.0, 0.0]), 1.0), n=2**14)
    assert within(result.value, 25 * math.pi * 0.008**2, result.error)


def test_f_is_called_in_the_region_alone() -> None:
    r = leaf(0.7)
    result = over(3, ball, (r,), lambda x, r: torch.sqrt(ball(x, r)), n=2**13)
    (slope,) = torch.autograd.grad(result.value, r)
    assert within(result.value, math.pi**2 / 4 * 0.7**4, result.error) and slope.isfinite()


def test_a_derivative_that_is_sampled_to_a_tolerance_of_its_own() -> None:
    r = leaf(1.0)
    result = over(3, ball, (r,), lambda x, r: torch.exp(r * x[..., 0]), n=2**14, gradient=qg.Resolve(rtol=5e-2))
    assert result.derivative is not None and bool(result.derivative.converged)


def test_a_saturated_function_and_single_precision() -> None:
    corners = (torch.tensor([-1.0, -1.0, -1.0]), 1.0)
    g = lambda x: torch.tanh(1000.0 * (0.25 - (x**2).sum(-1)))
    result = over(3, g, (), corners=corners, n=2**13)
    assert result.value.dtype == torch.float32
    assert within(result.value.double(), volume(3) / 8, result.error.double())


@pytest.mark.parametrize(
    "g",
    (lambda x: -1.0 - (x**2).sum(-1), lambda x: -(x**2).sum(-1), lambda x: -(x[..., 0] ** 2) - 0.0 * x.sum(-1)),
    ids=("never", "touches", "touches along a line"),
)
def test_what_no_point_saw_has_not_converged(g: Callable[[Tensor], Tensor]) -> None:
    result = over(3, g, (), n=2**12, rtol=1e-2, on_failure="ignore")
    assert result.value == 0.0 and not result.converged


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: qg.qmc(one, region=qg.Where(ball)), TypeError, "needs the corners a and b of the boxes that"),
        (lambda: over(2, one, (), corners=(t64([0.0, 0.0]), torch.inf)), ValueError, "Where needs finite corners"),
        (lambda: over(2, lambda x: x[..., 0] > 0.5, ()), qg.IntegrandError, "it must be real and pass through 0"),
        (lambda: qg.qmc(one, [0.0], 1.0, region=7), TypeError, "is no region: qmc takes"),
    ],
)
def test_what_cannot_be_meant(call: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert said in str(caught.value)


def test_a_function_that_is_nan_is_told() -> None:
    result = over(2, lambda x: torch.sqrt(x[..., 0]) - 0.5, (), on_failure="ignore", rtol=1e-2)
    assert result.status == qg.Status.NONFINITE
