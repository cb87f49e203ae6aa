"""Integrals over boxes: values, errors and what they must not miss; gradients are in test_cubature_gradients.py."""

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import quadgrad as qg
from benchmarks.problems.genz import FAMILIES, draw
from helpers import t64
from quadgrad._core.mesh.boxes import unit_corners
from quadgrad._core.rules import get_box_rule
from quadgrad._core.search.boxes.neighbours import locate_points

INF = math.inf
SMOOTH = ("oscillatory", "product peak", "corner peak", "Gaussian")


def cube(d: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)


def bell(x: Tensor, k: Tensor | float) -> Tensor:
    return torch.exp(-k * ((x - 0.5) ** 2).sum(-1))


def exact_bell(k: Tensor | float, d: int) -> Tensor:
    k = torch.as_tensor(k, dtype=torch.float64)
    return ((math.pi / k).sqrt() * torch.erf(0.5 * k.sqrt())) ** d


# ------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("name", ("gm7", "gm9", "gm11"))
@pytest.mark.parametrize("d", (2, 3, 4, 5, 8, 12))
def test_rules_are_exact_for_their_degree(name: str, d: int) -> None:
    rule, x = get_box_rule(name, d), 2.0 * get_box_rule(name, d).nodes - 1.0
    size = np.abs(rule.weights).sum()
    generator = np.random.default_rng(0)
    for _ in range(40):
        powers = generator.multinomial(rule.degree // 2 * 2 - 2 * generator.integers(0, 3), np.ones(d) / d)
        powers = powers // 2 * 2
        values = (x**powers).prod(1)
        assert abs(rule.weights @ values - (1.0 / (powers + 1.0)).prod()) < 1e-14 * size
        for fewer, level in enumerate(rule.nulls, 1):
            if powers.sum() <= rule.degree - 2 * fewer:
                assert np.abs(level @ values).max() < 1e-13 * np.abs(level).sum(1).max()
    high = (x[:, 0] ** (rule.degree + 1)) @ rule.weights - 1.0 / (rule.degree + 2)
    assert abs(high) > 1e-6  # and no further


def test_products_of_gauss_kronrod() -> None:
    rule = get_box_rule("gk21", 3)
    assert rule.nodes.shape == (9261, 3) and abs(rule.weights.sum() - 1.0) < 1e-14
    assert abs(rule.weights @ (rule.nodes**6).prod(1) - 7.0**-3) < 1e-15
    with pytest.raises(ValueError, match="choose 'auto', 'gm7'"):
        get_box_rule("gk21", 4)


# ------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("d", "rtol"), ((2, 1e-3), (2, 1e-6), (3, 1e-6), (5, 1e-3), (8, 1e-3)))
def test_families_never_miss_their_tolerance(family: str, d: int, rtol: float) -> None:
    count = 20 if d < 5 else 5
    problem = draw(family, d, count, 17 * d)
    result = qg.cubature(
        problem.f, *cube(d), (qg.element(problem.c, 1), qg.element(problem.u, 1)), rtol=rtol, max_nfev=100_000,
        on_failure="ignore",
    )  # fmt: skip
    off = (result.value - problem.exact).abs()
    assert (off <= rtol * problem.exact.abs())[result.converged].all()
    if family in SMOOTH:
        assert result.converged.all() and (off <= 1.5 * result.error).all()


@pytest.mark.parametrize("rule", ("gm7", "gm9", "gm11", "gk15"))
def test_every_rule(rule: str) -> None:
    k = t64([0.0, 3.0, 25.0, 625.0])
    result = qg.cubature(bell, *cube(2), (k,), rtol=1e-8, rule=rule)
    exact = torch.where(k == 0, 1.0, exact_bell(k.clamp_min(1e-9), 2))
    assert result.converged.all() and ((result.value - exact).abs() <= 1e-8 * exact).all()
    assert result.plan.rule == rule


@pytest.mark.parametrize(("rule", "degree"), (("gm7", 7), ("gm9", 9), ("gm11", 11), ("gk15", 14)))
@pytest.mark.parametrize("d", (2, 3))
def test_polynomials_of_any_degree(rule: str, degree: int, d: int) -> None:
    """Where only the lowest null rules see more than rounding, the others do not tell how fast they fall."""
    for p in range(degree + 4):
        one, other = p // 2, p - p // 2
        cases = (
            (lambda x: 1 + x[..., 0] ** p, 1 + 1 / (p + 1)),  # noqa: B023
            (lambda x: 1 + (x**p).sum(-1), 1 + d / (p + 1)),  # noqa: B023
            (lambda x: x[..., 0] ** one * (1 + x[..., 1] ** other), (1 + 1 / (other + 1)) / (one + 1)),  # noqa: B023
        )
        for f, exact in cases:
            result = qg.cubature(f, *cube(d), rtol=1e-9, rule=rule, max_nfev=30_000, on_failure="ignore")
            off = abs(float(result.value) - exact)
            assert off <= float(result.error)
            # From degree - 3 on the second highest null rules, too, see more than rounding.
            if p < degree - 3:
                assert result.converged and result.nfev <= (30_000 if rule == "gk15" else 2_000)


@pytest.mark.parametrize(("rule", "d"), (("gk15", 3), ("gk21", 3), ("gk61", 2), ("gk61", 3)))
def test_sums_over_thousands_of_nodes_are_as_exact_as_they_say(rule: str, d: int) -> None:
    for grows in (False, True):
        p = t64(2.0).requires_grad_(grows)
        result = qg.cubature(lambda x, p: p + 0.0 * x[..., 0], *cube(d), (p,), rtol=1e-9, rule=rule)
        assert result.converged and abs(result.value.item() - 2.0) <= result.error


def test_a_triangle_of_low_degree() -> None:
    triangle = qg.Nested([(0.0, t64(1.0)), (0.0, lambda x: x[..., 0])])
    for rule in ("gm7", "gm9", "gm11", "gk15"):
        result = qg.cubature(lambda x: x.sum(-1), region=triangle, rtol=1e-9, rule=rule)
        assert result.converged and abs(float(result.value) - 0.5) <= result.error and result.nfev < 700


def test_a_needle_in_the_middle_of_the_box() -> None:
    for d, exact in ((5, 1.791326036748785955e-06), (3, float(exact_bell(625.0, 3)))):
        result = qg.cubature(bell, *cube(d), (625.0,), rtol=1e-3, rule="gm9")
        assert result.converged and abs(float(result.value) / exact - 1.0) < 1e-3


def test_a_wide_box_of_which_little_is_seen() -> None:
    density = lambda v: (v**2).sum(-1) * math.pi**-1.5 * torch.exp(-(v**2).sum(-1))
    for side in (100.0, INF):
        result = qg.cubature(density, t64([-side] * 3), t64([side] * 3), rtol=1e-6)
        assert result.converged and abs(float(result.value) - 1.5) < 1.5e-6


@pytest.mark.parametrize("d", (3, 5))
def test_narrow_peaks_anywhere(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    count = 40 if d == 3 else 4
    p = torch.rand(count, d, generator=generator, dtype=torch.float64)
    s = 0.02 + 0.03 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    peak = lambda x, p, s: torch.exp(-((x - p) ** 2).sum(-1) / (2 * s**2))
    result = qg.cubature(peak, *cube(d), (qg.element(p, 1), s[:, 0]), rtol=1e-3, on_failure="ignore", rule="gm9")
    exact = (s * math.sqrt(math.pi / 2) * (torch.erf((1 - p) / s / 2**0.5) + torch.erf(p / s / 2**0.5))).prod(1)
    wrong = result.converged & ((result.value - exact).abs() > 1e-3 * exact)
    assert not wrong.any() and result.converged.float().mean() > 0.9


@pytest.mark.parametrize(("d", "missed"), ((3, 0), (4, 2)))
def test_small_peaks_beside_large_ones(d: int, missed: int) -> None:
    """A second peak that few cells see is not taken for nothing, since a first is resolved: 1 and 6 were before."""
    random = torch.Generator().manual_seed(77 + d)
    c = torch.rand(2, 300, d, generator=random, dtype=torch.float64)
    w = 0.03 + 0.05 * torch.rand(2, 300, generator=random, dtype=torch.float64)
    k = 0.5 / w**2

    def peaks(x: Tensor, *args: Tensor) -> Tensor:
        c, d, k, m = args
        return torch.exp(-k * ((x - c) ** 2).sum(-1)) + 0.3 * torch.exp(-m * ((x - d) ** 2).sum(-1))

    args = (qg.element(c[0], 1), qg.element(c[1], 1), k[0], k[1])
    result = qg.cubature(peaks, *cube(d), args, rtol=1e-3, max_nfev=300_000, on_failure="ignore")
    root = k.sqrt()[..., None]
    each = (0.5 * math.sqrt(math.pi) / root * (torch.erf(root * (1.0 - c)) + torch.erf(root * c))).prod(-1)
    wrong = (result.value - each[0] - 0.3 * each[1]).abs() > result.error
    assert (wrong & result.converged).sum() <= missed
    assert result.converged.sum() > 290


def test_on_a_tie_the_widest_axis_is_halved() -> None:
    f = lambda x: 1 + (x[..., 0] * x[..., 2] * torch.sin(x[..., 1])) ** 2
    result = qg.cubature(f, t64([0.0, 0.0, -0.2]), t64([0.2, 2 * math.pi, 0.2]), rtol=1e-6)
    assert result.nfev <= 2000 and abs(float(result.value) - 0.502699505003217973) < 5e-7


def test_a_corner_peak_to_many_digits() -> None:
    f = lambda x: (1 + x @ t64([1.0, 2.0, 3.0])) ** -4
    terms = ((-1) ** sum(v) / (1 + v[0] + 2 * v[1] + 3 * v[2]) for v in itertools.product((0, 1), repeat=3))
    exact = sum(terms) / 36
    result = qg.cubature(f, *cube(3), rtol=1e-8)
    assert result.nfev < 15_000 and abs(float(result.value) / exact - 1) < 1e-8


def test_infinite_reversed_and_empty_sides() -> None:
    f = lambda x: torch.exp(-(x**2).sum(-1))
    a = t64([[-INF, 0.0], [1.0, 0.0], [0.3, 0.0], [INF, -INF]])
    b = t64([[INF, INF], [0.0, 1.0], [0.3, 1.0], [-INF, INF]])
    half = 0.5 * math.sqrt(math.pi) * math.erf(1.0)
    exact = t64([0.5 * math.pi, -(half**2), 0.0, -math.pi])
    result = qg.cubature(f, a, b, rtol=1e-8)
    torch.testing.assert_close(result.value, exact, rtol=1e-8, atol=1e-14)
    assert result.nfev[2] == 0 and qg.cubature(f, torch.zeros(0, 2), torch.ones(0, 2)).value.shape == (0,)


def test_singular_corner_and_edge() -> None:
    corner = qg.cubature(lambda x: x.sum(-1) ** -1.5, *cube(2), rtol=1e-7)
    assert corner.converged and abs(float(corner.value) - 4 * (2 - 2**0.5)) < 1e-6
    edge = qg.cubature(lambda x: x[..., 0] ** -0.5, *cube(2), rtol=1e-5)
    assert edge.converged and abs(float(edge.value) - 2) < 2e-5


def test_events_complex_and_single_precision() -> None:
    many = qg.cubature(lambda x: torch.stack((x[..., 0], torch.exp(x[..., 1])), -1), *cube(2))
    torch.testing.assert_close(many.value, t64([0.5, math.e - 1]), rtol=1e-9, atol=0.0)
    wave = qg.cubature(lambda x: torch.exp(1j * x.sum(-1)), *cube(2))
    assert abs(complex(wave.value) - ((np.exp(1j) - 1) / 1j) ** 2) < 1e-9
    single = qg.cubature(bell, torch.zeros(3), torch.ones(3), (torch.tensor(3.0),))
    assert single.value.dtype == torch.float32 and single.converged
    assert abs(float(single.value) / float(exact_bell(3.0, 3)) - 1) < 1e-4


def test_zero_cancelling_and_negative_integrals() -> None:
    zero = qg.cubature(lambda x: 0 * x.sum(-1), *cube(3))
    odd = qg.cubature(lambda x: torch.sin(2 * math.pi * x).prod(-1), *cube(2), max_nfev=50_000)
    assert zero.converged and zero.value == 0 and zero.nfev < 10_000
    assert odd.converged and abs(float(odd.value)) <= float(odd.error) + 1e-16
    assert qg.cubature(lambda x: -bell(x, 25.0), *cube(2), rtol=1e-6).value < 0


@pytest.mark.parametrize(
    "point",
    ([0.5, 0.5], [0.25, 0.5], [1.0, 0.5], [0.5, 0.0], [1 / 3, 0.5], [0.75, 0.7], [0.125, 0.875], [0.3, 0.7]),
)
def test_singular_points_wherever_cells_divide(point: list[float]) -> None:
    """In the middle of the box, of a face, of cells and of their faces, where f may be called and be infinite."""
    p = t64(point)
    result = qg.cubature(lambda x: 1.0 / (x - p).abs().sum(-1), *cube(2), rtol=1e-4)
    u, v = (torch.stack((p[axis], 1.0 - p[axis])) for axis in (0, 1))
    s = u[:, None] + v
    exact = (torch.xlogy(s, s) - torch.xlogy(u, u)[:, None] - torch.xlogy(v, v)).sum()
    assert result.converged
    assert (result.value - exact).abs() <= result.error
    assert result.nfev < 20_000


def test_empty_batches_are_zero_by_all_that_they_depend_on() -> None:
    b, k = (torch.ones(shape, dtype=torch.float64, requires_grad=True) for shape in ((2,), (0,)))
    value = qg.cubature(lambda x, k: k * x.sum(-1), torch.zeros(2), b, (k,)).value
    assert value.shape == (0,)
    assert [g.tolist() for g in torch.autograd.grad(value.sum(), (b, k))] == [[0.0, 0.0], []]


def test_singular_points_in_space() -> None:
    """1/|x| from the middle of a cube, of a face and of an edge, and a corner: parts of one another."""
    p = t64([[0.5, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    halves = t64([[1.0, 1, 1], [0.5, 1, 1], [0.5, 0.5, 1], [0.5, 0.5, 0.5]])
    result = qg.cubature(
        lambda x, p: (x - p).norm(dim=-1).reciprocal(), torch.zeros(3), halves, (qg.element(p, 1),), rtol=1e-4
    )
    whole = 6.0 * (0.5 * math.log(2.0 + math.sqrt(3.0)) - math.pi / 12.0)  # of the unit cube, from its middle
    share = t64([1.0, 0.5, 0.25, 0.125])
    assert result.converged.all()
    assert ((result.value - share * whole).abs() <= result.error).all()


def test_what_is_not_finite_says_so() -> None:
    hole = qg.cubature(lambda x: torch.where(x[..., 0] > 0.7, torch.nan, 1.0), *cube(2), on_failure="ignore")
    assert hole.status == qg.Status.NONFINITE
    pole = qg.cubature(lambda x: x.sum(-1) ** -2.5, *cube(2), on_failure="ignore", max_nfev=100_000)
    assert not pole.converged
    short = qg.cubature(bell, *cube(5), (625.0,), rtol=1e-6, max_nfev=20_000, on_failure="ignore")
    assert short.status == qg.Status.MAX_NFEV and short.nfev <= 20_000


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_what_rounding_hides_ends_early(dtype: torch.dtype) -> None:
    a, b = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    fine = qg.cubature(bell, a, b, (3.0,), rtol=1e-16, on_failure="ignore")
    assert fine.status == qg.Status.ROUNDOFF and fine.nfev < 500_000
    assert abs(float(fine.value) - float(exact_bell(3.0, 3))) <= float(fine.error)
    far = qg.cubature(lambda x: torch.sin(x).sum(-1), t64([1e12, 0.0]), t64([1e12 + 1, 1.0]), on_failure="ignore")
    assert far.status == qg.Status.ROUNDOFF


# -------------------------------------------------------------------------------------------- batches and plans


def test_elements_are_what_single_calls_give() -> None:
    k = torch.logspace(0, 2.5, 30, dtype=torch.float64)
    batch = qg.cubature(bell, *cube(3), (k,), rtol=1e-3)
    for i in (0, 11, 29):
        one = qg.cubature(bell, *cube(3), (k[i],), rtol=1e-3)
        torch.testing.assert_close(one.value, batch.value[i], rtol=1e-12, atol=0.0)
        assert one.nfev == batch.nfev[i]
    lanes = torch.func.vmap(lambda k: qg.cubature(bell, *cube(3), (k,), rtol=1e-3).value)(k)
    torch.testing.assert_close(lanes, batch.value, rtol=1e-12, atol=0.0)
    captured = torch.func.vmap(lambda k: qg.cubature(lambda x: bell(x, k), *cube(3), rtol=1e-3).value)(k)
    torch.testing.assert_close(captured, batch.value, rtol=1e-12, atol=0.0)


def test_one_dimension_is_quad() -> None:
    f = lambda x: torch.exp(-(x**2))
    over, on = qg.cubature(lambda x: f(x[..., 0]), [0.0], t64([2.0])), qg.quad(f, 0.0, t64(2.0))
    assert over.value == on.value and over.nfev == on.nfev and over.error == on.error
    plain = qg.cubature(lambda x: math.exp(-(x[0] ** 2)), [0.0], [2.0], vectorized=False)
    assert abs(float(plain.value) - float(on.value)) < 1e-6


def test_plans() -> None:
    k = t64([1.0, 25.0, 100.0])
    result = qg.cubature(bell, *cube(3), (k,), rtol=1e-6)
    file = io.BytesIO()
    torch.save(result.plan, file)
    file.seek(0)
    plan = torch.load(file, weights_only=True)
    assert plan.same(result.plan)
    torch.testing.assert_close(qg.replay(bell, plan, *cube(3), (k,)), result.value, rtol=1e-14, atol=0.0)
    weights = plan.weights(*cube(3))
    assert plan.nodes(*cube(3)).shape == (*weights.shape, 3) and abs(float(weights.sum()) - 3.0) < 1e-12
    corners = plan.cells(*cube(3))
    assert abs(float((corners[:, 1] - corners[:, 0]).prod(1).sum()) - 3.0) < 1e-12
    again = qg.cubature(bell, *cube(3), (k * 1.001,), rtol=1e-6, plan=plan)
    assert again.converged.all() and again.nfev.sum() < 0.7 * result.nfev.sum()
    one = qg.cubature(bell, *cube(3), (t64(25.0),), rtol=1e-6).plan
    assert qg.cubature(bell, *cube(3), (k,), rtol=1e-6, plan=one).converged.all()
    with pytest.raises(ValueError, match="2 dimensions"):
        qg.cubature(bell, *cube(3), (k,), plan=qg.cubature(bell, *cube(2), (k,), rtol=1e-3).plan)


def test_an_integrator_keeps_boxes() -> None:
    integrate, k = qg.Integrator(qg.cubature, rtol=1e-6), t64([5.0, 50.0])
    spent = [int(integrate(bell, *cube(3), (k * (1 + 0.01 * i),)).nfev.sum()) for i in range(3)]
    assert integrate.started == 1 and spent[1] < 0.7 * spent[0] and spent[2] < 0.7 * spent[0]
    keyed = qg.Integrator(qg.cubature, rtol=1e-6)
    for rows in ([0, 1], [1, 2], [2, 0]):
        value = keyed(bell, *cube(2), (t64([5.0, 50.0, 500.0])[rows],), key=torch.tensor(rows)).value
        torch.testing.assert_close(value, exact_bell(t64([5.0, 50.0, 500.0])[rows], 2), rtol=1e-6, atol=0.0)


def test_points_are_found_in_their_cells() -> None:
    plan = qg.cubature(bell, *cube(3), (t64([1.0, 300.0]),), rtol=1e-5).plan
    low, width = unit_corners(plan.level.T, plan.position.T)
    generator = torch.Generator().manual_seed(0)
    point, whose = torch.rand(3, 500, generator=generator, dtype=torch.float64), torch.arange(500) % 2
    cell = locate_points(plan.owner, plan.level.T, plan.position.T, whose, point)
    assert (plan.owner[cell] == whose).all()
    assert ((low[:, cell] <= point) & (point < (low + width)[:, cell])).all()


def test_integrals_inside() -> None:
    inner = lambda x: qg.quad(lambda y, s: torch.exp(-y * s), 0.0, 1.0, (x.sum(-1),)).value
    result = qg.cubature(inner, *cube(2), rtol=1e-6)
    outer = qg.quad(lambda y: ((1 - torch.exp(-y)) / y) ** 2, t64(0.0), 1.0)
    assert result.converged and abs(float(result.value - outer.value)) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"a": [0.0, 0.0], "b": [1.0] * 3}, "differ in their last dimension"),
        ({"a": [0.0] * 13, "b": 1.0}, "quadgrad.qmc"),
        ({"a": [0.0] * 3, "b": 1.0, "rule": "gk9"}, "rule='gk9' is not known for d=3"),
        ({"a": [0.0] * 3, "b": 1.0, "max_nfev": 10}, "one box needs"),
        ({"a": [0.0] * 3, "b": math.nan}, "limit b is NaN"),
        ({"a": 0.0, "b": 1.0}, "both single numbers"),
        ({"a": [0.0] * 2, "b": 1.0, "log": True}, "log=True"),
    ),
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qg.cubature(lambda x: x.sum(-1), **options)


@pytest.mark.parametrize("gradient", [qg.Reuse(), qg.Resolve()], ids=lambda mode: type(mode).__name__)
@pytest.mark.parametrize("d", [1, 2])
def test_conjugates_are_integrated_as_they_are(d: int, gradient: qg.Reuse | qg.Resolve) -> None:
    w, b = t64([1.0, 2.0]).requires_grad_(), torch.ones(2, d, dtype=torch.float64)
    options = {"rtol": 1e-10, "gradient": gradient}
    result = qg.cubature(lambda x, w: torch.exp(1j * w * x.sum(-1)).conj(), 0 * b, b, (w,), **options)
    exact = ((1.0 - torch.exp(-1j * w)) / (1j * w)) ** d
    assert bool(result.converged.all())
    assert_close(result.value, exact, rtol=1e-10, atol=0.0)
    for part, whole in ((result.value.real, exact.real), (result.value.imag, exact.imag)):
        (found,), (true,) = (torch.autograd.grad(y.sum(), w, retain_graph=True) for y in (part, whole))
        assert_close(found, true, rtol=1e-8, atol=0.0)
    result.value.sum().abs().backward()
    assert all(bool(error.isfinite().all()) for error in qg.gradient_error(result, (w,)))


def test_no_budget_is_too_large() -> None:
    result = qg.cubature(lambda x: x.sum(-1).sin(), [0.0] * 2, t64([1.0] * 2), max_nfev=10**30)
    assert_close(result.value, t64(2.0 * math.sin(1.0) - math.sin(2.0)), rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("max_nfev", (700, 1_500, 6_000, 20_000))
@pytest.mark.parametrize("d", (2, 3))
def test_no_look_exceeds_the_budget(d: int, max_nfev: int) -> None:
    """Scouts and climbs cost thousands of nodes; where they cannot be paid for, nothing is called converged."""
    bell = lambda x, width: torch.exp(-(((x - 0.37) / width) ** 2).sum(-1))
    functions = {
        "narrow": lambda x: bell(x, 0.01),
        "ridge": lambda x: bell(x[..., :1] - x[..., 1:2] + 0.37, 0.02),
        "nothing": lambda x: 0.0 * x[..., 0],
        "bump": lambda x: torch.cos(x.sum(-1)) + bell(x, 0.02),
        "box": lambda x: ((x - 0.37).abs() < 0.05).all(-1).double(),
    }
    for name, f in functions.items():
        called = [0]

        def counted(x: Tensor, f: Any = f, called: list[int] = called) -> Tensor:
            called[0] += x[..., 0].numel()
            return f(x)

        result = qg.cubature(counted, *cube(d), rtol=1e-6, max_nfev=max_nfev, on_failure="ignore")
        assert int(result.nfev) <= max_nfev
        assert int(result.nfev) <= called[0] <= int(result.nfev) + 3  # besides, whether f mixes its batch is asked
        if name == "nothing" and max_nfev < 4_096:
            assert int(result.status) == qg.Status.MAX_NFEV
