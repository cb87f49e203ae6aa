"""What functions cut out of boxes: exact values and derivatives, what is seen and what is not, all transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.special import iv, jv
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core.regions.pairs import PAIRS, line_rule

TIGHT = 1e-9
SQUARE = (t64([-1.0, -1.0]), 1.0)


def one(x: Tensor, *args: Any) -> Tensor:
    return torch.ones_like(x[..., 0])


def squared(x: Tensor) -> Tensor:
    return (x**2).sum(-1)


def squares(x: Tensor) -> Tensor:
    return x**2


def cut(g: Callable[..., Tensor], f: Callable[..., Tensor] = one, args: Any = (), **options: Any) -> qg.Result:
    """Integrate over the part of the square where g is positive."""
    a, b = options.pop("corners", SQUARE)
    region = qg.Where(g, options.pop("lipschitz", None))
    return qg.cubature(f, a, b, args, region=region, **{"on_failure": "ignore", "rtol": TIGHT} | options)


def derivatives(value: Tensor, *inputs: Tensor) -> tuple[list[float], list[float]]:
    """Return first derivatives, and second ones by the same input."""
    first = torch.autograd.grad(value, inputs, create_graph=True)
    second = [torch.autograd.grad(one, p, retain_graph=True)[0] for one, p in zip(first, inputs, strict=True)]
    return [t.item() for t in first], [t.item() for t in second]


# -------------------------------------------------------------------------------- exact values and derivatives


def test_exponential_over_a_disc() -> None:
    r = leaf(0.6)
    result = cut(lambda x, r: r**2 - squared(x), lambda x, r: torch.exp(x[..., 0]), (r,))
    assert result.converged and result.nfev <= 5_500
    assert abs(result.value.item() - 1.182636314690361313) <= result.error.item() <= TIGHT * 1.2
    (slope,), (bend,) = derivatives(result.value, r)
    assert slope == pytest.approx(4.116914032711371885, abs=1e-8)
    assert bend == pytest.approx(2 * math.pi * (iv(0, 0.6) + 0.6 * iv(1, 0.6)), abs=1e-6)


def test_third_derivatives() -> None:
    r = leaf(0.6)
    value = cut(lambda x, r: r**4 - squared(x) ** 2, lambda x, r: squared(x), (r,)).value
    for exact in (r.detach() ** 4 * math.pi / 2, 2 * math.pi * 0.6**3, 6 * math.pi * 0.36, 12 * math.pi * 0.6):
        assert value.item() == pytest.approx(float(exact), rel=1e-6)
        (value,) = torch.autograd.grad(value, r, create_graph=True)


def test_an_ellipse_and_its_axes() -> None:
    a, b = leaf(1.3), leaf(0.7)
    g = lambda x, a, b: 1.0 - (x[..., 0] / a) ** 2 - (x[..., 1] / b) ** 2
    result = cut(g, lambda x, a, b: torch.exp(x[..., 0]), (a, b), corners=(t64([-2.0, -2.0]), 2.0))
    assert abs(result.value.item() - 2 * math.pi * 0.7 * iv(1, 1.3)) <= result.error.item()
    di = iv(0, 1.3) - iv(1, 1.3) / 1.3
    first, second = derivatives(result.value, a, b)
    assert first == pytest.approx([2 * math.pi * 0.7 * di, 2 * math.pi * iv(1, 1.3)], abs=1e-8)
    bend = 2 * math.pi * 0.7 * (iv(1, 1.3) - di / 1.3 + iv(1, 1.3) / 1.69)
    assert second == pytest.approx([bend, 0.0], abs=1e-6)


def test_an_ellipsoid_and_its_axes() -> None:
    lengths = [leaf(x) for x in (1.3, 0.7, 0.9)]
    g = lambda x, *lengths: 1.0 - sum((x[..., i] / c) ** 2 for i, c in enumerate(lengths))
    result = cut(g, lambda x, *_: x[..., 0] ** 2, lengths, corners=(t64([-2.0] * 3), 2.0), rtol=1e-6)
    exact = 4 / 15 * math.pi * 1.3**3 * 0.7 * 0.9
    assert result.converged and abs(result.value.item() - exact) <= result.error.item()
    first, second = derivatives(result.value, *lengths)
    assert first == pytest.approx([3 * exact / 1.3, exact / 0.7, exact / 0.9], abs=1e-8)
    assert second == pytest.approx([6 * exact / 1.69, 0.0, 0.0], abs=1e-6)


def test_the_probability_of_a_sum() -> None:
    t = leaf(1.35)
    result = cut(lambda x, t: t - x.sum(-1), args=(t,), corners=(t64([0.0] * 3), 1.0))
    assert result.converged and result.value.item() == pytest.approx(0.388625, abs=1e-14)
    (slope,), (bend,) = derivatives(result.value, t)
    assert slope == pytest.approx(0.7275, abs=1e-12) and bend == pytest.approx(1.35 - 3 * 0.35, abs=1e-12)


@pytest.mark.parametrize("d", (2, 3))
@pytest.mark.parametrize("t", (0.5, 0.75, 1.0, 1.5, 2.0, 2.5))
def test_derivatives_where_the_boundary_meets_corners_of_cells(d: int, t: float) -> None:
    if t >= d:
        return
    place = leaf(t)
    result = cut(lambda x, t: t - x.sum(-1), args=(place,), corners=(t64([0.0] * d), 1.0))
    (slope,) = torch.autograd.grad(result.value, place, retain_graph=True)
    exact = sum((-1) ** k * math.comb(d, k) * max(t - k, 0.0) ** (d - 1) for k in range(d + 1))
    assert slope.item() == pytest.approx(exact / math.factorial(d - 1), abs=1e-12)
    assert (slope - exact / math.factorial(d - 1)).abs() <= qg.gradient_error(result, place) + 1e-15


@pytest.mark.parametrize("sign", (1.0, -1.0))
@pytest.mark.parametrize("axis", (0, 1))
@pytest.mark.parametrize("t", (0.25, 0.5, 0.75))
def test_derivatives_where_the_boundary_is_a_face_of_cells(sign: float, axis: int, t: float) -> None:
    place = leaf(t)
    peak = lambda x, t: 0.1 / (squared(x - 0.5) + 0.01)  # cells end in its middle
    result = cut(lambda x, t: sign * (t - x[..., axis]), peak, (place,), corners=(t64([0.0, 0.0]), 1.0))
    (slope,) = torch.autograd.grad(result.value, place, retain_graph=True)
    wide = math.hypot(0.1, t - 0.5)
    off = abs(slope.item() - sign * 0.2 / wide * math.atan(0.5 / wide))
    assert off <= min(1e-3, qg.gradient_error(result, place).item())


@pytest.mark.parametrize("kind", ("product", "both"))
def test_an_annulus(kind: str) -> None:
    p, q = leaf(0.3), leaf(0.8)
    outer, inner = (lambda x, p, q: q**2 - squared(x)), (lambda x, p, q: squared(x) - p**2)
    region = qg.Where(outer) & qg.Where(inner)
    if kind == "product":
        region = qg.Where(lambda x, p, q: outer(x, p, q) * inner(x, p, q))
    result = qg.cubature(lambda x, *_: torch.exp(x[..., 0]), *SQUARE, (p, q), region=region, rtol=TIGHT)
    within = lambda r: 2 * math.pi * r * iv(1, r)
    assert abs(result.value.item() - (within(0.8) - within(0.3))) <= result.error.item()
    first, second = derivatives(result.value, p, q)
    assert first == pytest.approx([-2 * math.pi * 0.3 * iv(0, 0.3), 2 * math.pi * 0.8 * iv(0, 0.8)], abs=1e-8)
    bend = lambda r: 2 * math.pi * (iv(0, r) + r * iv(1, r))
    assert second == pytest.approx([-bend(0.3), bend(0.8)], abs=1e-6)


def test_a_ball_that_leaves_the_box() -> None:
    r = leaf(1.2)
    disc = cut(lambda x, r: r**2 - squared(x), args=(r,))
    angle = math.acos(1 / 1.2)
    assert disc.value.item() == pytest.approx(math.pi * 1.44 - 4 * (1.44 * angle - math.sqrt(0.44)), rel=1e-11)
    (slope,), (bend,) = derivatives(disc.value, r)
    assert slope == pytest.approx(2 * math.pi * 1.2 - 9.6 * angle, abs=1e-8)
    assert bend == pytest.approx(2 * math.pi - 4 * (2 * angle + 2.4 / (1.44 * math.sqrt(1 - 1 / 1.44))), abs=1e-6)
    ball = cut(lambda x, r: r**2 - squared(x), args=(r,), corners=(t64([-1.0] * 3), 1.0), rtol=1e-8, rule="gk11")
    assert abs(ball.value.item() - math.pi * (4 / 3 * 1.728 - 2 * 0.04 * 3.4)) <= ball.error.item()
    (slope,), (bend,) = derivatives(ball.value, r)
    assert slope == pytest.approx(4 * math.pi * 1.44 - 2 * math.pi * (0.4 * 3.4 + 0.08), abs=1e-8)
    assert bend == pytest.approx(8 * math.pi * 1.2 - 2 * math.pi * 8.4, abs=1e-6)


@pytest.mark.parametrize("radius", (0.6, 0.5))  # a circle that touches the faces of cells, too
def test_the_length_of_a_circle(radius: float) -> None:
    r = leaf(radius)
    circle = qg.Boundary(lambda x, r: r**2 - squared(x))
    result = qg.cubature(lambda x, r: torch.exp(x[..., 0]), *SQUARE, (r,), region=circle, rtol=TIGHT)
    assert abs(result.value.item() - 2 * math.pi * radius * iv(0, radius)) <= result.error.item()
    (slope,), (bend,) = derivatives(result.value, r)
    assert slope == pytest.approx(2 * math.pi * (iv(0, radius) + radius * iv(1, radius)), abs=1e-8)
    di = iv(0, radius) - iv(1, radius) / radius
    assert bend == pytest.approx(2 * math.pi * (2 * iv(1, radius) + radius * di), abs=1e-6)


def test_the_area_of_a_sphere() -> None:
    r = leaf(0.8)
    sphere = qg.Boundary(lambda x, r: r**2 - squared(x))
    options = {"region": sphere, "rtol": 1e-7, "rule": "gk11"}
    result = qg.cubature(lambda x, r: x[..., 0] ** 2, [-1.0] * 3, 1.0, (r,), **options)
    assert abs(result.value.item() - 4 / 3 * math.pi * 0.8**4) <= result.error.item()
    (slope,), (bend,) = derivatives(result.value, r)
    assert slope == pytest.approx(16 / 3 * math.pi * 0.8**3, abs=1e-8)
    assert bend == pytest.approx(16 * math.pi * 0.64, abs=1e-6)


def test_a_boundary_on_the_faces_of_cells_counts_once() -> None:
    for g in (lambda x: x[..., 0], lambda x: -x[..., 0]):
        assert qg.cubature(one, *SQUARE, region=qg.Boundary(g)).value.item() == pytest.approx(2.0, abs=1e-9)


def test_corners_of_the_box_move() -> None:
    a = leaf([-0.5, -0.4])
    value = lambda a: cut(lambda x: 0.36 - squared(x), lambda x: torch.exp(x[..., 0]), corners=(a, 1.0)).value
    assert torch.autograd.gradcheck(value, (a,)) and torch.autograd.gradgradcheck(value, (a,))
    turned = cut(
        lambda x: 0.36 - squared(x), lambda x: torch.exp(x[..., 0]), corners=(t64([1.0, -0.4]), [-0.5, 1.0])
    )
    assert turned.value.item() == pytest.approx(-value(a).item(), rel=1e-8)
    flat = cut(lambda x, r: r - squared(x), args=(leaf(0.36),), corners=(t64([1.0, -0.4]), [1.0, 1.0]))
    assert flat.value == 0.0 and flat.converged


# ------------------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize(
    ("g", "exact"),
    [
        (lambda x: -0.1 - squared(x), 0.0),
        (lambda x: 0.1 + squared(x), 4.0),
        (lambda x: -squared(x - 0.3), 0.0),  # only touches 0
        (lambda x: squared(x - 0.3), 4.0),
        (lambda x: 1e-4 - squared(x - 0.111), math.pi * 1e-4),
        (lambda x: -1.0 + 2.0 / (1.0 + squared(x - 0.2345) / 1e-6), math.pi * 1e-6),  # a narrow spike
        (lambda x: 1.0 - 2.0 / (1.0 + squared(x - 0.2345) / 1e-6), 4.0 - math.pi * 1e-6),  # and a hole
        (lambda x: (x[..., 0] - 0.1) * (x[..., 1] - 0.2), 1.1 * 1.2 + 0.9 * 0.8),
        (lambda x: 0.5 - (x - 0.111).abs().sum(-1), 0.5),
        (lambda x: torch.tanh(10.0 * (0.25 - squared(x))), math.pi / 4),
    ],
)
def test_what_is_found(g: Callable[..., Tensor], exact: float) -> None:
    result = cut(g, rtol=1e-8)
    assert result.converged and abs(result.value.item() - exact) <= result.error.item() + 1e-15


@pytest.mark.parametrize("width", (0.1, 0.03, 0.01, 1e-3, 1e-4))
@pytest.mark.parametrize("sign", (1.0, -1.0))
def test_narrow_bells_are_found_or_not_claimed(width: float, sign: float) -> None:
    result = cut(lambda x: sign * (2.0 * torch.exp(-squared(x - 0.2345) / (2 * width**2)) - 1.0), rtol=1e-6)
    inside = 2 * math.pi * width**2 * math.log(2.0)
    exact = inside if sign > 0 else 4.0 - inside
    assert abs(result.value.item() - exact) <= result.error.item()
    assert not result.converged and "is constant, to rounding" in result.message  # far from the bell


def test_a_saturated_function_is_not_believed() -> None:
    g = lambda x: torch.tanh(1000.0 * (0.01 - squared(x)))
    result = cut(g)
    assert not result.converged and "lipschitz" in result.message
    bounded = cut(g, lipschitz=200.0)
    assert bounded.converged and abs(bounded.value.item() - math.pi / 100) <= bounded.error.item()
    for value in (-1.0, 1.0):
        constant = lambda x, value=value: torch.full_like(x[..., 0], value)
        assert not cut(constant).converged
        assert cut(constant, lipschitz=0.0).value.item() == pytest.approx(2.0 + 2.0 * value)


def test_a_bound_is_rigorous_where_samples_see_nothing() -> None:
    g = lambda x: (squared(x - 0.123456).sqrt() - 0.01).clamp(-0.01, 0.01)
    assert not cut(g, rtol=1e-8).converged
    result = cut(g, rtol=1e-8, lipschitz=1.0)
    assert result.converged and abs(4.0 - math.pi * 1e-4 - result.value.item()) <= result.error.item()


def test_what_only_touches_along_a_curve_does_not_converge() -> None:
    result = cut(lambda x: -((squared(x) - 0.25) ** 2), max_nfev=50_000)
    assert result.value == 0.0 and result.status == qg.Status.MAX_NFEV


def test_below_zero_everywhere_has_gradient_zero() -> None:
    r = leaf(-0.5)
    result = cut(lambda x, r: r - squared(x), lambda x, r: torch.exp(r * x[..., 0]), (r,))
    assert result.converged and result.value == 0.0 and result.nfev == 0
    assert torch.autograd.grad(result.value, r)[0] == 0.0


def test_f_is_called_inside_only() -> None:
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return (0.36 - squared(x)).sqrt()

    result = cut(lambda x: 0.36 - squared(x), f, rtol=1e-4)
    assert abs(result.value.item() - 2 / 3 * math.pi * 0.6**3) <= result.error.item()
    # The first call is the probe, which is anywhere in the box.
    assert all((squared(x) <= 0.36 + 1e-14).all() for x in seen[1:])


def test_intersections() -> None:
    circle, line = qg.Where(lambda x: 0.36 - squared(x)), qg.Where(lambda x: x[..., 0] - x[..., 1])
    half = qg.cubature(one, *SQUARE, region=circle & line)
    assert abs(half.value.item() - math.pi * 0.18) <= half.error.item() and half.converged
    other = qg.Where(lambda x: 0.36 - squared(x - 0.3))
    lens = qg.cubature(one, *SQUARE, region=circle & other)
    gap = 0.3 * math.sqrt(2.0)
    exact = 0.72 * math.acos(gap / 1.2) - 0.5 * gap * math.sqrt(1.44 - gap**2)
    assert abs(lens.value.item() - exact) <= lens.error.item() and lens.converged
    sides = lambda x: torch.stack([x[..., 0] + 0.5, x[..., 1] + 0.5, 0.3 - x.sum(-1)], dim=-1)
    triangle = cut(sides, rtol=1e-8)
    assert abs(triangle.value.item() - 0.5 * 1.3**2) <= triangle.error.item() and triangle.converged


def polygon(c: Tensor, f: Callable[..., Tensor] = one, **options: Any) -> Tensor:
    """Integrate over where all of five normals' products are less than c."""
    angle = t64([0.2, 1.5, 2.7, 4.0, 5.2])
    normals = torch.stack((angle.cos(), angle.sin()), -1)
    return cut(lambda x, c: c - x @ normals.T, f, (qg.element(c, 1),), rtol=1e-6, **options).value


def exact_polygon(c: Tensor) -> Tensor:
    """Return the integral of 1 + x_1 over that polygon, by its corners."""
    angle = t64([0.2, 1.5, 2.7, 4.0, 5.2])
    normals = torch.stack((angle.cos(), angle.sin()), -1)
    corner = torch.linalg.solve(torch.stack((normals, normals.roll(-1, 0)), 1), torch.stack((c, c.roll(-1)), -1))
    following = corner.roll(-1, 0)
    cross = corner[:, 0] * following[:, 1] - following[:, 0] * corner[:, 1]
    return (cross * (0.5 + (corner + following)[:, 0] / 6.0)).sum()


def test_a_moving_polygon() -> None:
    c = leaf([0.5, 0.45, 0.55, 0.4, 0.6])
    own = lambda c: polygon(c, lambda x, c: 1.0 + x[..., 0])
    assert own(c).item() == pytest.approx(exact_polygon(c).item(), rel=1e-13)
    for order in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        torch.testing.assert_close(order(own, c), order(exact_polygon, c), rtol=1e-9, atol=1e-9)
    plain, along = c.detach(), t64([1.0, -1.0, 0.5, 0.0, 2.0])
    slopes = torch.func.vmap(torch.func.grad(own))(torch.stack((plain, 1.1 * plain)))
    for number, scale in enumerate((1.0, 1.1)):
        exact = torch.func.grad(exact_polygon)(scale * plain)
        torch.testing.assert_close(slopes[number], exact, rtol=1e-10, atol=0.0)
    forward = torch.func.jvp(own, (plain,), (along,))[1]
    assert forward.item() == pytest.approx((torch.func.grad(exact_polygon)(plain) @ along).item(), rel=1e-10)
    captured = lambda c: cut(lambda x: torch.stack((c - squared(x), x[..., 0] - c * x[..., 1]), -1)).value
    half = torch.func.vmap(torch.func.grad(captured))(t64([0.36, 0.25]))
    assert half.tolist() == pytest.approx([math.pi / 2, math.pi / 2], rel=1e-9)


def test_a_lens_of_two_discs() -> None:
    c, r = leaf(0.35), leaf(0.6)
    discs = [lambda x, c, r, s=s: r**2 - squared(x - s * c * t64([1.0, 0.0])) for s in (1.0, -1.0)]
    result = qg.cubature(one, *SQUARE, (c, r), region=qg.Where(discs[0]) & qg.Where(discs[1]), rtol=1e-7)
    exact = lambda c, r: 2 * (r**2 * torch.acos(c / r) - c * torch.sqrt(r**2 - c**2))
    assert result.converged and abs(result.value - exact(c, r)).item() <= result.error.item() < 1e-7
    assert result.nfev < 6_000
    own, known = (derivatives(v, c, r) for v in (result.value, exact(c, r)))
    assert own[0] == pytest.approx(known[0], abs=1e-9) and own[1] == pytest.approx(known[1], abs=1e-8)
    errors = qg.gradient_error(result, (c, r))
    assert all(error.item() < 1e-8 for error in errors)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_turned_ellipsoids_are_as_right_as_is_said(seed: int) -> None:
    random = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    axes = leaf(0.15 * random + 0.7 * torch.eye(3, dtype=torch.float64))
    g = lambda x, axes: 1.0 - squared(torch.linalg.solve(axes, x[..., None])[..., 0])
    corners = (t64([-1.4] * 3), 1.4)
    result = cut(g, lambda x, _: x[..., 0] ** 2, (qg.element(axes, 2),), corners=corners, rtol=1e-2)
    exact = 4 / 15 * math.pi * torch.linalg.det(axes).abs() * (axes[0] ** 2).sum()
    slopes, known = (torch.autograd.grad(v, axes, retain_graph=True)[0] for v in (result.value, exact))
    assert ((slopes - known).abs() <= qg.gradient_error(result, axes)).all()
    assert (slopes - known).abs().max() < 1e-5


def test_a_wedge_of_a_ball() -> None:
    """Two planes and a sphere, whose edges run through cells."""
    sides = lambda x: torch.stack((x[..., 1], math.sin(1.1) * x[..., 0] - math.cos(1.1) * x[..., 1]), -1)
    region = qg.Where(lambda x: 0.64 - squared(x)) & qg.Where(sides)
    result = qg.cubature(one, t64([-1.0] * 3), 1.0, region=region, rtol=3e-2)
    exact = 2 / 3 * 1.1 * 0.8**3
    assert result.converged and abs(result.value.item() - exact) <= result.error.item() and result.nfev < 60_000


@pytest.mark.parametrize("trial", range(12))
def test_random_regions_are_as_right_as_they_say(trial: int) -> None:
    generator = torch.Generator().manual_seed(trial)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    waves, phase, size = 8.0 * random(4, 2) - 4.0, 6.28 * random(4), 2.0 * random(4) - 1.0
    normal, center = 2.0 * random(2) - 1.0, 2.0 * random(2) - 1.0
    region = qg.Where(lambda x: (size * torch.cos(x @ waves.T + phase)).sum(-1) + 0.3)
    if trial % 3 == 0:
        region = region & qg.Where(lambda x: x @ normal + 0.2)
    f = lambda x: torch.exp(-squared(x - center))
    rough = qg.cubature(f, *SQUARE, region=region, rtol=1e-4)
    exact = qg.cubature(f, *SQUARE, region=region, rtol=1e-6)
    assert rough.converged and exact.converged
    assert (rough.value - exact.value).abs() <= rough.error + exact.error


@pytest.mark.parametrize("trial", range(8))
def test_what_a_level_gains_is_an_integral_over_its_boundary(trial: int) -> None:
    generator = torch.Generator().manual_seed(trial)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    waves, phase, size = 8.0 * random(4, 2) - 4.0, 6.28 * random(4), 2.0 * random(4) - 1.0
    height = lambda x: (size * torch.cos(x @ waves.T + phase)).sum(-1)
    steepness = lambda x: ((size * torch.sin(x @ waves.T + phase)) @ waves).norm(dim=-1)
    t = leaf(0.3)
    inside = cut(lambda x, t: height(x) + t, lambda x, t: torch.exp(-squared(x)), (t,), rtol=1e-7, rule="gk15")
    (slope,) = torch.autograd.grad(inside.value, t)
    boundary = qg.Boundary(lambda x: height(x) + 0.3)
    gained = qg.cubature(lambda x: torch.exp(-squared(x)) / steepness(x), *SQUARE, region=boundary, rtol=1e-7)
    assert inside.converged and gained.converged
    assert abs((gained.value - slope).item()) <= gained.error.item() + 1e-8


# ----------------------------------------------------------------------------- batches, gradients, transforms


def through_arguments(r: Tensor, c: Tensor) -> Tensor:
    g, f = (lambda x, r, c: r**2 - squared(x)), (lambda x, r, c: torch.exp(c * x[..., 0]))
    return cut(g, f, (r, c), on_failure="raise").value


def captured(r: Tensor, c: Tensor) -> Tensor:
    return cut(lambda x: r**2 - squared(x), lambda x: torch.exp(c * x[..., 0]), on_failure="raise").value


def on_the_boundary(r: Tensor, c: Tensor) -> Tensor:
    circle = qg.Boundary(lambda x: r**2 - squared(x) + 0.1 * c * x[..., 0])
    return qg.cubature(lambda x: torch.exp(c * x[..., 0]), *SQUARE, region=circle, rtol=TIGHT).value


KINDS = (through_arguments, captured, on_the_boundary)


@pytest.mark.parametrize("value", KINDS)
def test_gradients_of_every_kind(value: Callable[..., Tensor]) -> None:
    r, c = leaf(0.6), leaf(1.0)
    assert torch.autograd.gradcheck(value, (r, c)) and torch.autograd.gradgradcheck(value, (r, c))
    slopes = torch.autograd.grad(value(r, c), (r, c))
    point, along = (r.detach(), c.detach()), (t64(1.0), t64(-2.0))
    forward = torch.func.jvp(value, point, along)[1]
    assert forward.item() == pytest.approx((slopes[0] - 2.0 * slopes[1]).item(), rel=1e-10)
    bends = torch.func.hessian(value, argnums=(0, 1))(*point)
    assert bends[0][1].item() == pytest.approx(bends[1][0].item(), rel=1e-9)
    many = torch.func.vmap(torch.func.grad(value, argnums=(0, 1)))(t64([0.6, 0.2]), t64([1.0, -1.0]))
    assert [t[0].item() for t in many] == pytest.approx([t.item() for t in slopes], rel=1e-9)
    seconds = torch.func.vmap(torch.func.hessian(value))(t64([0.6, 0.2]), t64([1.0, -1.0]))
    assert seconds[0].item() == pytest.approx(bends[0][0].item(), rel=1e-9)


def test_different_regions_in_one_batch() -> None:
    r = leaf([-1.0, 0.2, 0.5, 0.6, 1.3, 2.0])
    batch = cut(lambda x, r: r.abs() * r - squared(x), lambda x, r: torch.exp(x[..., 0]), (r,))
    assert batch.converged.all() and batch.nfev[0] == 0
    alone = [cut(lambda x, r: r.abs() * r - squared(x), lambda x, r: torch.exp(x[..., 0]), (one,)) for one in r]
    torch.testing.assert_close(batch.value, torch.stack([a.value for a in alone]), rtol=1e-13, atol=0.0)
    assert torch.equal(batch.nfev, torch.stack([a.nfev for a in alone]))
    slope = torch.autograd.grad(batch.value.sum(), r)[0]
    exact = [0.0, *(2 * math.pi * x * iv(0, x) for x in (0.2, 0.5, 0.6))]
    assert slope[:4].tolist() == pytest.approx(exact, abs=1e-8) and slope[5] == 0.0


def test_events_chunks_precision_and_plain_functions() -> None:
    r = leaf(0.6)
    disc = lambda x, r: r**2 - squared(x)
    moments = cut(disc, lambda x, r: torch.stack([one(x), x[..., 0] ** 2], -1), (r,)).value
    assert moments.tolist() == pytest.approx([math.pi * 0.36, math.pi / 4 * 0.6**4], rel=1e-9)
    whole = cut(disc, lambda x, r: torch.exp(x[..., 0]), (r,))
    parts = cut(disc, lambda x, r: torch.exp(x[..., 0]), (r,), chunk_size=500)
    assert parts.value.item() == pytest.approx(whole.value.item(), rel=1e-13)
    slopes = [torch.autograd.grad(result.value, r)[0].item() for result in (whole, parts)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-12)
    single = cut(
        disc, lambda x, r: torch.exp(x[..., 0]), (torch.tensor(0.6),), rtol=1e-4, corners=([-1.0, -1.0], 1.0)
    )
    assert single.value.dtype == torch.float32 and single.value.item() == pytest.approx(1.1826363, rel=1e-4)
    plain = cut(lambda x: 0.36 - squared(x), lambda x: math.exp(x[0]), vectorized=False, rtol=1e-4)
    assert plain.value.item() == pytest.approx(1.182636314690361313, rel=1e-4)
    waves = cut(lambda x: 0.36 - squared(x), lambda x: torch.exp(1j * x[..., 0])).value
    assert waves.real.item() == pytest.approx(2 * math.pi * 0.6 * jv(1, 0.6)) and abs(waves.imag.item()) < 1e-12
    assert cut(disc, args=(torch.zeros(0),)).value.shape == (0,)


def test_integrals_inside() -> None:
    inner = lambda x: qg.quad(lambda t, z: torch.exp(z * t), 0.0, 1.0, (x[..., 0],)).value
    nested = cut(lambda x: 0.36 - squared(x), inner, rtol=1e-6)
    plain = cut(lambda x: 0.36 - squared(x), lambda x: torch.expm1(x[..., 0]) / x[..., 0])
    assert nested.converged and abs((nested.value - plain.value).item()) <= nested.error.item()


def test_plans_are_kept_but_not_trusted(tmp_path: Any) -> None:
    disc, f = (lambda x, r: r**2 - squared(x)), (lambda x, r: torch.exp(x[..., 0]))
    first = cut(disc, f, (t64(0.6),))
    torch.save(first.plan, tmp_path / "plan.pt")
    plan = torch.load(tmp_path / "plan.pt", weights_only=True)
    assert plan.same(first.plan) and "cut" in repr(plan)
    again = cut(disc, f, (t64(0.6),), plan=plan)
    assert again.value.item() == pytest.approx(first.value.item(), rel=1e-14) and again.plan.same(plan)
    for r in (0.05, 0.9):  # the region has moved through cells that were inside or outside
        moved, fresh = cut(disc, f, (t64(r),), plan=plan), cut(disc, f, (t64(r),))
        assert moved.converged and abs(moved.value.item() - 2 * math.pi * r * iv(1, r)) <= moved.error.item()
        assert fresh.converged
    batch = cut(disc, f, (t64([0.6, 0.3]),), plan=plan)
    assert batch.converged.all()
    other = cut(disc, f, (t64([0.6, 0.3]),)).plan
    with pytest.raises(ValueError, match="batch shape"):
        cut(disc, f, (t64(0.6),), plan=other)
    with pytest.raises(ValueError, match="rule"):
        cut(disc, f, (t64(0.6),), plan=plan, rule="gk7")
    with pytest.raises(ValueError, match="plan of the same region"):
        cut(disc, f, (t64(0.6),), plan=qg.quad(lambda x: x, 0.0, 1.0).plan)


# ------------------------------------------------------------------------------------------------- honesty


def test_a_flat_boundary_is_warned_of() -> None:
    r = leaf(0.6)
    with pytest.warns(qg.UnmarkedJumpWarning, match="vanishes on the boundary"):
        result = cut(lambda x, r: (r - x[..., 0]) ** 3, args=(r,), max_nfev=20_000)
    assert abs(result.value.item() - 3.2) <= result.error.item()


def test_what_is_nan_is_said() -> None:
    outside = cut(lambda x: x[..., 0].sqrt() - 0.1)
    assert outside.status == qg.Status.NONFINITE and "says where to integrate is NaN" in outside.message
    assert cut(lambda x: 0.36 - squared(x), lambda x: x[..., 0].sqrt()).status == qg.Status.NONFINITE


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: qg.Where(1.0), TypeError, "Where takes a function g(x, *args), not float"),
        (lambda: qg.Boundary(None), TypeError, "Boundary takes a function"),
        (lambda: qg.Where(one, -1.0), ValueError, "must be a number that is not negative"),
        (lambda: qg.Where(one, "a"), TypeError, "lipschitz='a' is no number"),
        (lambda: qg.Where(one) & one, TypeError, "unsupported operand"),
        (lambda: cut(one, corners=([-math.inf, 0.0], 1.0)), ValueError, "Where needs finite corners a and b"),
        (lambda: cut(one, corners=([0.0] * 9, 1.0)), ValueError, "d=9: Where goes up to 5 dimensions"),
        (lambda: cut(one, rule="gm7"), ValueError, "rule='gm7' is not known for Where"),
        (lambda: cut(lambda x: x[..., 0] > 0.0), qg.IntegrandError, "it must be real and pass through 0"),
        (lambda: cut(lambda x: x.sum()), qg.IntegrandError, "returned shape ()"),
        (lambda: cut(lambda x: 1.0), qg.IntegrandError, "returned float, not a torch.Tensor"),
        (lambda: cut(one, log=True), ValueError, "log"),
        (lambda: qg.cubature(one, region=qg.Where(one)), TypeError, "needs the corners a and b"),
        (lambda: qg.cubature(one, *SQUARE, region=qg.Boundary(squares)), qg.IntegrandError, "returned 2 values"),
        (
            lambda: qg.cubature(one, *SQUARE, region=qg.Where(one, 1.0) & qg.Where(one)),
            ValueError, "give it for all of them, or for none",
        ),
        (
            lambda: torch.func.grad(
                lambda r: cut(lambda x, r: r - squared(x), args=(r,), gradient=qg.Resolve()).value
            )(t64(0.3)),
            ValueError, "use gradient=quadgrad.Reuse() there",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(call: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert said in str(caught.value)


@pytest.mark.parametrize("rtol", (1e-2, 1e-4, 1e-8))
def test_gradient_error_covers_what_the_gradient_is_off(rtol: float) -> None:
    r, c = leaf([0.6, 0.3]), leaf(3.0)
    f = lambda x, r, c: torch.exp(c * x[..., 0])
    result = cut(lambda x, r, c: r**2 - squared(x), f, (r, c), rtol=rtol, rule="gk7")
    errors = qg.gradient_error(result, (r, c))
    slopes = torch.autograd.grad(result.value.sum(), (r, c))
    by_r = [2 * math.pi * x * iv(0, 3.0 * x) for x in (0.6, 0.3)]
    by_c = sum(2 * math.pi * x**2 / 3.0 * iv(2, 3.0 * x) for x in (0.6, 0.3))
    off = (slopes[0] - t64(by_r)).abs()
    assert (off <= errors[0]).all() and (errors[0] <= 30 * off + 1e-10).all()
    assert abs(slopes[1].item() - by_c) <= errors[1].item() + 1e-12
    t = leaf(0.01)
    failed = cut(lambda x, t: torch.tanh(1000.0 * (t - squared(x))), args=(t,))
    assert qg.gradient_error(failed, t).isinf()


@pytest.mark.parametrize("rtol", (1e-4, 1e-9))
def test_a_derivative_is_searched_to_its_own_tolerance(rtol: float) -> None:
    r = leaf([0.6, 0.3])
    f = lambda x, r: torch.exp(3.0 * x[..., 0])
    result = cut(lambda x, r: r**2 - squared(x), f, (r,), rtol=1e-2, gradient=qg.Resolve(rtol=rtol))
    exact = t64([2 * math.pi * x * iv(0, 3.0 * x) for x in (0.6, 0.3)])
    derivative = result.derivative
    assert derivative is not None and derivative.converged.all() and derivative.names == ("args[0]",)
    (slope,) = torch.autograd.grad(result.value.sum(), r)
    assert ((slope - exact).abs() <= derivative.error[:, 0]).all()
    assert (derivative.error[:, 0] <= rtol * exact).all()


def test_a_derivative_by_what_the_region_closes_over() -> None:
    w = leaf([0.6, 1.0])
    result = cut(
        lambda x: w[0] ** 2 - squared(x), lambda x: torch.exp(w[1] * x[..., 0]), rtol=1e-2,
        gradient=qg.Resolve(rtol=1e-8, params=w),
    )  # fmt: skip
    (slope,) = torch.autograd.grad(result.value, w)
    exact = [2 * math.pi * 0.6 * iv(0, 0.6), 2 * math.pi * 0.36 * iv(2, 0.6)]
    torch.testing.assert_close(slope, t64(exact), rtol=1e-8, atol=0.0)
    with pytest.raises(qg.IntegrandError):
        cut(lambda x: w[0] - squared(x), gradient=qg.Resolve())


@pytest.mark.parametrize("kind", (qg.Where, qg.Boundary))
def test_replay_moves_with_the_region(kind: Any) -> None:
    region = kind(lambda x, r: r**2 - squared(x))
    f = lambda x, r: torch.exp(x[..., 0])
    plan = qg.cubature(f, *SQUARE, (t64(0.6),), region=region, rtol=TIGHT).plan
    call = lambda r: qg.replay(f, plan, *SQUARE, (r,), region=region)
    r = leaf(0.62)
    (slope,), (bend,) = derivatives(call(r), r)
    area = [lambda r: 2 * math.pi * r * iv(1, r), lambda r: 2 * math.pi * r * iv(0, r)]
    value, first = (area[0], area[1]) if kind is qg.Where else (area[1], None)
    assert call(r).item() == pytest.approx(value(0.62), rel=1e-9)
    assert slope == pytest.approx(
        first(0.62) if first else 2 * math.pi * (iv(0, 0.62) + 0.62 * iv(1, 0.62)), rel=1e-8
    )
    assert torch.func.grad(call)(r.detach()).item() == pytest.approx(slope, rel=1e-12)
    assert torch.func.hessian(call)(r.detach()).item() == pytest.approx(bend, rel=1e-9)
    assert torch.autograd.gradcheck(call, (r,))


def test_what_replay_cannot_mean() -> None:
    disc = qg.Where(lambda x, r: r**2 - squared(x))
    plan = cut(disc.g, args=(t64(0.6),), rtol=1e-3).plan
    with pytest.raises(TypeError, match="pass region="):
        qg.replay(one, plan, *SQUARE, (t64(0.6),))
    with pytest.raises(ValueError, match="one of a Where in 2"):
        qg.replay(one, plan, *SQUARE, (t64(0.6),), region=qg.Boundary(disc.g))
    with pytest.raises(ValueError, match="has 2 functions"):
        qg.replay(one, plan, *SQUARE, (t64(0.6),), region=disc & disc)
    with pytest.raises(ValueError, match="the plan"):
        qg.replay(one, plan, *SQUARE, (t64([0.6, 0.5]),), region=disc)
    with pytest.raises(ValueError, match="not for torch.func.vmap"):
        torch.func.vmap(lambda r: qg.replay(one, plan, *SQUARE, (r,), region=disc))(t64([0.6, 0.5]))


def test_replay_over_a_region_that_is_a_map() -> None:
    r = leaf(0.6)
    plan = qg.cubature(one, args=(r,), region=qg.Ball([0.0, 0.0], r), rtol=TIGHT).plan
    value = qg.replay(one, plan, args=(r,), region=qg.Ball([0.0, 0.0], 2.0 * r))
    assert value.item() == pytest.approx(4 * math.pi * 0.36, rel=1e-9)


def star(g: Callable[[Tensor], Tensor], center: Tensor) -> float:
    """Return the area around a center up to where g first vanishes on rays, by bisection on each."""
    angle = 2 * math.pi * torch.arange(64, dtype=torch.float64) / 64
    ray = torch.stack((angle.cos(), angle.sin()), -1)
    steps = torch.logspace(-5, 0, 301, dtype=torch.float64)[:, None]
    first = (g(center + steps[..., None] * ray) <= 0.0).int().argmax(0)
    low, high = (steps[first - k, 0] for k in (1, 0))
    for _ in range(60):
        middle = 0.5 * (low + high)
        inside = g(center + middle[:, None] * ray) > 0.0
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return float((0.5 * low**2).mean() * 2 * math.pi)


BELLS = {"gauss": lambda r: torch.exp(-0.5 * r), "lorentz": lambda r: 1.0 / (1.0 + r)}


@pytest.mark.parametrize("turn", (0.4, 2.3))
@pytest.mark.parametrize("width", (0.03, 0.01, 3e-3, 1e-3))
@pytest.mark.parametrize("bell", BELLS.values(), ids=BELLS)
def test_a_narrow_spike_beside_a_larger_region_is_seen(
    bell: Callable[..., Tensor], width: float, turn: float
) -> None:
    place = 0.9 * t64([math.cos(turn), math.sin(turn)])
    g = lambda x: 0.36 - squared(x) + 0.9 * bell(squared(x - place) / width**2)
    result = cut(g, rtol=1e-7)
    spike = star(g, place)
    exact = star(g, t64([0.0, 0.0])) + spike
    assert result.converged and abs(result.value.item() - exact) <= result.error.item() + 1e-9 < 0.05 * spike


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("width", (0.1, 0.01, 1e-3))
@pytest.mark.parametrize("bell", BELLS.values(), ids=BELLS)
def test_a_narrow_hole_of_a_slope_is_seen(bell: Callable[..., Tensor], width: float, seed: int) -> None:
    place = 0.8 * (2.0 * torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1.0)
    g = lambda x: (2.0 + x[..., 0]) * (1.0 - 2.0 * bell(squared(x - place) / width**2))
    result = cut(g, rtol=1e-7)
    hole = star(lambda x: -g(x), place)
    assert result.converged and abs(result.value.item() - (4.0 - hole)) <= result.error.item() + 1e-12
    assert result.error.item() < 0.2 * hole


@pytest.mark.parametrize("seed", range(6))
def test_a_narrow_hole_anywhere_is_known_well(seed: int) -> None:
    place = 0.95 * (2.0 * torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1.0)
    width = 0.01
    g = lambda x: (2.0 + x[..., 0]) * (1.0 - 2.0 * torch.exp(-squared(x - place) / width**2))
    result = cut(g, rtol=1e-6)
    hole = math.pi * width**2 * math.log(2.0)
    assert result.converged and abs(result.value.item() - (4.0 - hole)) <= result.error.item() < 0.05 * hole


@pytest.mark.parametrize("place", ([0.87, -0.78], [-0.75, 0.8], [0.7, 0.71]))
def test_a_small_part_of_a_union_is_seen(place: list[float]) -> None:
    small = lambda x: 2e-3 - squared(x - t64(place)).sqrt()
    result = cut(lambda x: torch.maximum(0.6 - squared(x).sqrt(), small(x)), rtol=1e-6)
    exact = math.pi * (0.36 + 4e-6)
    assert result.converged and abs(result.value.item() - exact) <= result.error.item() < 2e-6


@pytest.mark.parametrize("place", ([0.87, -0.78], [-0.75, 0.8], [0.7, 0.71]))
def test_what_has_no_foot_is_seen_where_it_matters(place: list[float]) -> None:
    cone = lambda x: (0.06 - squared(x - t64(place)).sqrt()).clamp_min(0.0)
    g = lambda x: 0.36 - squared(x) + 60.0 * cone(x)
    result, part = cut(g, rtol=1e-3), star(g, t64(place))
    assert result.converged and abs(result.value.item() - 0.36 * math.pi - part) <= result.error.item() < 0.2 * part


def test_a_narrow_spike_in_space_is_seen() -> None:
    place, width = t64([0.7, -0.6, 0.55]), 0.05
    g = lambda x: x.sum(-1) - 1.5 + 2.0 * torch.exp(-0.5 * squared(x - place) / width**2)
    result = cut(g, rtol=1e-4, corners=(t64([-1.0] * 3), 1.0))
    # Across the slope, at a height over the place, the spike is a disc.
    height = torch.linspace(-0.15, 0.15, 20_001, dtype=torch.float64)
    squares = -2.0 * width**2 * ((0.85 - 3.0**0.5 * height) / 2.0).log() - height**2
    spike = math.pi * 0.3 * squares.clamp_min(0.0).mean().item()
    assert result.converged and abs(result.value.item() - 0.5625 - spike) <= result.error.item() < 0.1 * spike


def test_an_integrator_keeps_cells_while_the_region_moves() -> None:
    integrate, r = qg.Integrator(verb=qg.cubature, rtol=1e-8), 0.5
    for _ in range(3):
        disc = qg.Where(lambda x, r: r**2 - squared(x))
        result = integrate(lambda x, r: torch.exp(x[..., 0]), *SQUARE, args=(leaf(r),), region=disc)
        assert result.converged and abs(result.value.item() - 2 * math.pi * r * iv(1, r)) <= result.error.item()
        r += 0.1


def test_an_argument_that_nothing_depends_on_is_named() -> None:
    r = leaf(0.6)
    with pytest.warns(qg.SeveredGradientWarning):
        cut(lambda x, r: r.detach() ** 2 - squared(x), one, (r,))


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_rules_are_exact_to_their_degrees(name: str) -> None:
    rule = line_rule(name, torch.device("cpu"))
    n = (len(rule.nodes) - 1) // 2
    degrees = (3 * n + 2, 2 * n - 1, {3: 3, 5: 5, 7: 7}[n])
    for weights, degree in zip((rule.weights, *rule.lower), degrees, strict=True):
        errors = [abs((weights * rule.nodes**k).sum().item() - 1 / (k + 1)) for k in range(degree + 2)]
        assert max(errors[:-1]) < 1e-14 and (errors[-1] > 1e-12 or n == 7)
