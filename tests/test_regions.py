"""Regions that are images of the unit cube: Ball, Sphere, Simplex, Nested; exact values and exact derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.special import iv
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64

TIGHT = 1e-10


def one(x: Tensor, *args: Any) -> Tensor:
    return torch.ones_like(x[..., 0])


def over(region: Any, f: Callable[..., Tensor] = one, args: Any = (), **options: Any) -> Tensor:
    """Return the integral over a region, which has to converge."""
    options.setdefault("rtol", TIGHT)
    return qg.cubature(f, args=args, region=region, on_failure="raise", **options).value


def derivatives(value: Tensor, *inputs: Tensor) -> list[list[float]]:
    """Return first derivatives, and second ones by the same input."""
    first = torch.autograd.grad(value, inputs, create_graph=True)
    second = [torch.autograd.grad(one.sum(), p, retain_graph=True)[0] for one, p in zip(first, inputs, strict=True)]
    return [[t.item() for t in each] for each in (first, second)]


# ---------------------------------------------------------------------------------------------------- exact values


def test_exponential_over_a_disc() -> None:
    r = leaf(0.6)
    value = over(qg.Ball([0.0, 0.0], r), lambda x: torch.exp(x[..., 0]))
    assert value.item() == pytest.approx(1.182636314690361313, rel=1e-10)
    (slope,), (bend,) = derivatives(value, r)
    assert slope == pytest.approx(4.116914032711371885, abs=1e-8)
    assert bend == pytest.approx(2 * math.pi * (iv(0, 0.6) + 0.6 * iv(1, 0.6)), abs=1e-6)


def test_an_ellipse_and_its_axes() -> None:
    a, b = leaf(1.3), leaf(0.7)
    value = over(qg.Ball([0.0, 0.0], 1.0, torch.diag(torch.stack([a, b]))), lambda x: torch.exp(x[..., 0]))
    assert value.item() == pytest.approx(2 * math.pi * 0.7 * iv(1, 1.3), rel=1e-10)
    slope = 2 * math.pi * 0.7 * (iv(0, 1.3) - iv(1, 1.3) / 1.3)
    first, second = derivatives(value, a, b)
    assert first == pytest.approx([slope, 2 * math.pi * iv(1, 1.3)], abs=1e-8)
    assert second[1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("turned", (False, True))
def test_an_ellipsoid_and_its_axes(turned: bool) -> None:
    lengths = [leaf(x) for x in (1.3, 0.7, 0.9)]
    axes = torch.diag(torch.stack(lengths))
    if turned:  # f turns with the axes
        angle = t64(0.4)
        c, s, o = angle.cos(), angle.sin(), t64(0.0)
        turn = torch.stack([torch.stack([c, -s, o]), torch.stack([s, c, o]), torch.stack([o, o, o + 1.0])])
        axes = turn @ axes
        f = lambda x: (x @ turn[:, 0]) ** 2
    else:
        f = lambda x: x[..., 0] ** 2
    value = over(qg.Ball([0.0] * 3, 1.0, axes), f)
    exact = 4 / 15 * math.pi * 1.3**3 * 0.7 * 0.9
    assert value.item() == pytest.approx(exact, rel=1e-9)
    first, second = derivatives(value, *lengths)
    assert first == pytest.approx([3 * exact / 1.3, exact / 0.7, exact / 0.9], abs=1e-8)
    assert second == pytest.approx([6 * exact / 1.69, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("d", (1, 2, 3, 4))
def test_volumes_of_balls(d: int) -> None:
    r = leaf(1.5)
    value = over(qg.Ball([0.3] * d, r), rtol=1e-7)
    unit = math.pi ** (d / 2) / math.gamma(d / 2 + 1)
    assert value.item() == pytest.approx(unit * 1.5**d, rel=1e-7)
    assert torch.autograd.grad(value, r)[0].item() == pytest.approx(d * unit * 1.5 ** (d - 1), rel=1e-6)


@pytest.mark.parametrize("d", (2, 3, 4))
def test_areas_of_spheres(d: int) -> None:
    r = leaf(1.5)
    value = over(qg.Sphere([0.3] * d, r))
    unit = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    assert value.item() == pytest.approx(unit * 1.5 ** (d - 1), rel=1e-9)
    (slope,), (bend,) = derivatives(value, r)
    assert slope == pytest.approx((d - 1) * unit * 1.5 ** (d - 2), abs=1e-8)
    assert bend == pytest.approx((d - 1) * (d - 2) * unit * 1.5 ** (d - 3), abs=1e-6)


@pytest.mark.parametrize("axis", (0, 2))
def test_the_area_of_a_spheroid(axis: int) -> None:
    long, lengths = leaf(2.0), [t64(1.0)] * 3
    lengths[axis] = long
    value = over(qg.Sphere([0.0] * 3, 1.0, torch.diag(torch.stack(lengths))))
    exact = lambda c: 2 * torch.pi * (1 + c / (1 - c**-2).sqrt() * torch.asin((1 - c**-2).sqrt()))
    known = exact(long)
    assert value.item() == pytest.approx(known.item(), rel=1e-9)
    assert derivatives(value, long) == [
        [pytest.approx(x, abs=tolerance) for x in each]
        for each, tolerance in zip(derivatives(known, long), (1e-8, 1e-6), strict=True)
    ]


def test_a_simplex_whose_corner_moves() -> None:
    corner = leaf([1.0, 0.2])
    corners = torch.stack([t64([0.0, 0.0]), corner, t64([0.1, 1.0])])
    value = over(qg.Simplex(corners), lambda x: x[..., 0] * x[..., 1])
    # The mean of a product over a triangle is a polynomial in its corners.
    mean = (corners.sum(0).prod() + (corners.prod(1)).sum()) / 12
    exact = 0.5 * torch.linalg.det(corners[1:]).abs() * mean
    assert value.item() == pytest.approx(exact.item(), rel=1e-12)
    for one, other in zip(derivatives_of(value, corner), derivatives_of(exact, corner), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def derivatives_of(value: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient by p, and a row of the Hessian's sum."""
    (first,) = torch.autograd.grad(value, p, create_graph=True)
    return first.detach(), torch.autograd.grad(first.sum(), p, retain_graph=True)[0]


def test_a_triangle_in_space() -> None:
    corners = leaf([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    value = over(qg.Simplex(corners), lambda x: 1.0 + x[..., 2])
    assert value.item() == pytest.approx(0.5 * math.sqrt(2.0) * 4 / 3, rel=1e-12)
    assert torch.autograd.gradcheck(lambda c: over(qg.Simplex(c), lambda x: 1.0 + x[..., 2]), (corners,))


def test_nested_limits_are_those_of_nquad() -> None:
    c = leaf(0.5)
    region = qg.Nested([(0.0, 1.0), (lambda x, c: c * x[..., 0], lambda x, c: 1.0 + x[..., 0])])
    value = over(region, lambda x, c: x[..., 1] * torch.exp(x[..., 0]), (c,))
    # That is the integral of e^x ((1 + x)^2 - c^2 x^2) / 2; those of e^x times 1, x and x^2 are e - 1, 1 and e - 2.
    square = math.e - 2
    assert value.item() == pytest.approx(0.5 * (math.e - 1 + 2 + 0.75 * square), rel=1e-10)
    (slope,), (bend,) = derivatives(value, c)
    assert slope == pytest.approx(-0.5 * square, abs=1e-8) and bend == pytest.approx(-square, abs=1e-6)


def test_limits_that_cross_count_with_their_sign() -> None:
    c = leaf(0.25)
    region = qg.Nested([(0.0, 1.0), (lambda x, c: c, lambda x, c: x[..., 0])])
    value = over(region, one, (c,))  # the integral of x - c, negative below c
    assert value.item() == pytest.approx(0.25, abs=1e-12)
    assert torch.autograd.grad(value, c)[0].item() == pytest.approx(-1.0)
    cut_off = qg.Nested([(0.0, 1.0), (lambda x, c: c, lambda x, c: torch.maximum(x[..., 0], c))])
    assert over(cut_off, one, (c,), rtol=1e-6).item() == pytest.approx(0.75**2 / 2, rel=1e-6)


def test_nested_infinite_limits() -> None:
    s = leaf(1.5)
    region = qg.Nested([(-math.inf, math.inf), (0.0, math.inf)])
    f = lambda x, s: torch.exp(-s * (x**2).sum(-1))
    value = over(region, f, (s,), rtol=1e-8)
    assert value.item() == pytest.approx(math.pi / 3.0, rel=1e-8)
    assert torch.autograd.grad(value, s)[0].item() == pytest.approx(-math.pi / 2 / 2.25, rel=1e-6)


# ----------------------------------------------------------------------------- batches, gradients, transforms

ROWS = {
    "ellipse": lambda p: [[p + 1.0, p], [p * p, 1.0 - p]],
    "simplex": lambda p: [[p, p - 1.0], [1.0 + p, p], [-p, p + 1.0]],
}
stacked = lambda rows: torch.stack([torch.stack(row) for row in rows])

REGIONS: dict[str, Callable[[Tensor], Any]] = {
    "ball": lambda p: qg.Ball(torch.stack([p, 0.1 * p]), 1.0 + p),
    "ellipse": lambda p: qg.Ball([0.0, 0.0], 1.0, stacked(ROWS["ellipse"](p))),
    "sphere": lambda p: qg.Sphere(torch.stack([p, p, 1.0 - p]), 1.0 + p),
    "simplex": lambda p: qg.Simplex(stacked(ROWS["simplex"](p))),
    "nested": lambda p: qg.Nested([(-p, 1.0), (lambda x, *_: p * x[..., 0] - 1.0, 1.0 + p)]),
}


def smooth(x: Tensor) -> Tensor:
    return torch.exp(0.3 * x[..., 0] - 0.2 * x[..., 1])


@pytest.mark.parametrize("name", REGIONS)
def test_gradients_of_every_kind(name: str) -> None:
    value = lambda p: over(REGIONS[name](p), smooth, rtol=1e-9)
    p = leaf(0.3)
    assert torch.autograd.gradcheck(value, (p,)) and torch.autograd.gradgradcheck(value, (p,))
    (slope,) = torch.autograd.grad(value(p), p)
    assert torch.func.jvp(value, (p.detach(),), (t64(1.0),))[1].item() == pytest.approx(slope.item(), rel=1e-10)
    many = torch.func.vmap(torch.func.grad(value))(t64([0.3, 0.1]))
    assert many[0].item() == pytest.approx(slope.item(), rel=1e-9)
    bend = torch.func.hessian(value)(p.detach()).item()
    assert bend == pytest.approx(torch.func.vmap(torch.func.hessian(value))(t64([0.3]))[0].item(), rel=1e-9)


def test_a_batch_of_regions() -> None:
    radius, s = leaf([0.5, 1.0, 2.0]), t64([1.0, 0.5, -1.0])
    centers = t64([[0.0, 0.0], [1.0, -1.0], [0.2, 0.3]])
    f = lambda x, s: torch.exp(s * x[..., 0])
    value = over(qg.Ball(centers, radius), f, (s,))
    alone = [over(qg.Ball(c, r), f, (k,)) for c, r, k in zip(centers, radius, s, strict=True)]
    torch.testing.assert_close(value, torch.stack(alone), rtol=1e-12, atol=0.0)
    exact = (
        2
        * math.pi
        * radius.detach()
        * t64([iv(0, abs(x)) for x in (s * radius).tolist()])
        * torch.exp(s * centers[:, 0])
    )
    torch.testing.assert_close(torch.autograd.grad(value.sum(), radius)[0], exact, rtol=1e-9, atol=0.0)


def test_sampling_and_functions_of_one_point() -> None:
    r = leaf(0.6)
    ball = qg.Ball([0.0, 0.0], r)
    result = qg.qmc(lambda x: torch.exp(x[..., 0]), region=ball, rtol=1e-5)
    assert result.converged and abs(result.value.item() - 1.182636314690361313) <= result.error.item()
    assert torch.autograd.grad(result.value, r)[0].item() == pytest.approx(4.1169140327, rel=1e-4)
    plain = over(qg.Ball([0.0, 0.0], 0.6), lambda x: math.exp(x[0]), vectorized=False, rtol=1e-4)
    assert plain.item() == pytest.approx(1.182636314690361313, rel=1e-4)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: qg.Ball([0.0, math.nan], 1.0), ValueError, "center is NaN or infinite at index (1,)"),
        (lambda: qg.Ball([0.0, 0.0], t64([1.0, -1.0])), ValueError, "radius is negative at index (1,)"),
        (lambda: qg.Ball(0.0, 1.0), ValueError, "center of shape () needs 1 dimensions"),
        (lambda: qg.Ball([0.0, 0.0], 1.0, torch.eye(3)), ValueError, r"torch.diag_embed(lengths)"),
        (lambda: qg.Ball([0.0, 1j], 1.0), TypeError, "is no real number"),
        (lambda: qg.Ball(["a"], 1.0), TypeError, "is no real number"),
        (lambda: qg.Sphere([0.0], 1.0), ValueError, "2 coordinates at least"),
        (lambda: qg.Simplex(torch.zeros(4, 2)), ValueError, "a triangle in the plane has shape (3, 2)"),
        (lambda: qg.Simplex([[0.0, math.inf], [1.0, 0.0]]), ValueError, "NaN or infinite at index (0, 1)"),
        (lambda: qg.Nested([0.0, 1.0]), ValueError, "pairs (lower, upper)"),
        (lambda: qg.Nested([(0.0, math.nan)]), ValueError, "the upper limit of coordinate 0 is NaN"),
        (lambda: qg.cubature(one, [0.0], [1.0], region=qg.Ball([0.0])), TypeError, "where region is a Ball"),
        (lambda: qg.cubature(one), TypeError, "needs the corners a and b of a box, or region="),
        (lambda: qg.qmc(one, region="ball"), TypeError, "region='ball' is no region"),
        (lambda: qg.cubature(3.0, region=qg.Ball([0.0, 0.0])), TypeError, "f must be a function"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(make: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert said in str(caught.value)


def test_a_limit_of_the_wrong_shape_is_named() -> None:
    region = qg.Nested([(0.0, 1.0), (0.0, lambda x: x)])
    with pytest.raises(qg.IntegrandError, match="limit upper of coordinate 1 returned shape"):
        qg.cubature(one, region=region)


def test_what_f_returns_is_checked_where_x_is_the_regions() -> None:
    with pytest.raises(qg.IntegrandError, match=r"expected x.shape\[:-1\]"):
        qg.cubature(lambda x: x.sum(), region=qg.Ball([0.0, 0.0]))


def test_limits_that_are_nan_inside_are_not_finite() -> None:
    region = qg.Nested([(-1.0, 1.0), (0.0, lambda x: x[..., 0].sqrt())])
    result = qg.cubature(one, region=region, on_failure="ignore")
    assert result.status == qg.Status.NONFINITE
