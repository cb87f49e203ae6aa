"""Every kind of integral under ``vmap``: each lane is what a call of its own is, in value, error, nodes and status.

Each case is written once, for one lane; a lane comes in through limits, arguments, breakpoints and `jumps`, and
through what f captures. Closed forms are ordinary torch, so that their derivatives are autograd's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import factorial, inf, nan, pi
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import quadgrad as qg
from helpers import Recorder, leaf, relative_error, t64

solve = partial(qg.quad, rtol=1e-10)


@dataclass(frozen=True)
class Case:
    """One integral for each lane: how to ask for it, the lanes, and its closed form.

    `slope` is how well its derivatives are known, relative to the largest; None where it has no real, scalar value.
    """

    name: str
    one: Callable[..., qg.Result]
    lanes: tuple[Tensor, ...]
    exact: Callable[..., Tensor]
    slope: float | None = 1e-8
    tolerance: float = 1e-9

    def __str__(self) -> str:
        return self.name

    def alone(self) -> list[qg.Result]:
        """Integrate every lane in a call of its own."""
        return [self.one(*inputs) for inputs in zip(*self.lanes, strict=True)]

    def value(self, *inputs: Tensor) -> Tensor:
        return self.one(*inputs).value

    def every_slope(self, function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        return grad(function, argnums=tuple(range(len(self.lanes))))


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return e / ((x - c) ** 2 + e**2)


def area(c: Tensor, e: Tensor, upper: float = 1.0) -> Tensor:
    return torch.atan((upper - c) / e) + torch.atan(c / e)


def step(x: Tensor, s: Tensor, p: Tensor) -> Tensor:
    return torch.where(x > s, torch.exp(-p * x), 1.0)


def step_area(s: Tensor, p: Tensor) -> Tensor:
    return s + (torch.exp(-p * s) - torch.exp(-p)) / p


def gaussian_area(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
    def primitive(x: Tensor) -> Tensor:  # whose derivatives at an infinite x are 0, not 0 times infinity
        finite = torch.erf(torch.sqrt(p) * x.where(x.isfinite(), 0.0))
        return torch.where(x.isfinite(), finite, torch.sign(x.detach()))

    return torch.sqrt(pi / p) / 2 * (primitive(b) - primitive(a))


def pair(x: Tensor, p: Tensor) -> Tensor:
    return torch.stack((torch.exp(-p * x), p / (p**2 * (x - 0.3) ** 2 + 1)), -1)


def pair_areas(p: Tensor) -> Tensor:
    return torch.stack(((1 - torch.exp(-p)) / p, torch.atan(0.7 * p) + torch.atan(0.3 * p)), -1)


def polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for c in reversed(coefficients.unbind(-1)):
        total = total * x + c
    return total * torch.exp(-x)


def polynomial_area(coefficients: Tensor) -> Tensor:
    moments = [1 - torch.exp(t64(-1.0))]
    for k in range(1, coefficients.shape[-1]):
        moments.append(k * moments[-1] - torch.exp(t64(-1.0)))
    return coefficients @ torch.stack(moments)


CENTRES, WIDTHS, WIDE = t64([0.21, 0.5, 0.83, 0.3]), t64([1.0, 1e-2, 1e-4, 0.03]), t64([1.0, 0.2, 0.1, 0.05])
RATES = t64([0.5, 1.7, 40.0])
STEPS, DECAYS = t64([0.2, 0.5, 0.9]), t64([1.7, 0.3, 4.0])
STARTS, STOPS = t64([-inf, 0.3, -inf, 0.5, 1.2, 0.7]), t64([inf, inf, 0.8, 1.5, -0.4, 0.7])
PRECISIONS = t64([1.0, 0.5, 3.0, 2.0, 0.7, 1.0])
WAVES = t64([0.5, 3.0, 25.0])
COEFFICIENTS = t64([[1.0, -2.0, 0.5], [0.3, 4.0, -1.0], [0.0, 1.0, 2.0], [5.0, 0.1, 0.2]])
POWERS = t64([-0.5, -0.8, 0.3])

wave_area = lambda k: torch.complex(torch.sin(k) / k, (1 - torch.cos(k)) / k)
log_area = lambda p: -3e3 + torch.log(-torch.expm1(-p) / p)

CASES = (
    Case("arguments", lambda c, e: solve(peak, t64(0.0), 1.0, (c, e)), (CENTRES, WIDTHS), area),
    Case("captured", lambda c, e: solve(lambda x: peak(x, c, e), t64(0.0), 1.0), (CENTRES, WIDTHS), area),
    Case("both", lambda c, e: solve(lambda x, c: peak(x, c, e), t64(0.0), 1.0, (c,)), (CENTRES, WIDTHS), area),
    Case(
        "upper limit and captured",
        lambda b, p: solve(lambda x: torch.exp(-p * x), t64(0.0), b),
        (t64([0.3, 2.0, 7.0]), RATES),
        lambda b, p: (1 - torch.exp(-p * b)) / p,
    ),
    Case(
        "limits of every kind",
        lambda a, b, p: solve(lambda x, p: torch.exp(-p * x**2), a, b, (p,)),
        (STARTS, STOPS, PRECISIONS),
        gaussian_area,
    ),
    Case(
        "limits of every kind, captured",
        lambda a, b, p: solve(lambda x: torch.exp(-p * x**2), a, b),
        (STARTS, STOPS, PRECISIONS),
        gaussian_area,
    ),
    Case(
        "a batch in each lane",
        lambda c: solve(peak, t64(0.0), 1.0, (c, t64(0.01))),
        (torch.linspace(0.1, 0.9, 12).double().reshape(4, 3),),
        lambda c: area(c, t64(0.01)),
        None,
    ),
    Case(
        "a batch in each lane, one captured number",
        lambda c, e: solve(lambda x, c: peak(x, c, e), t64(0.0), 1.0, (c,)),
        (torch.linspace(0.1, 0.9, 12).double().reshape(4, 3), WIDTHS),
        area,
        None,
    ),
    Case("components", lambda p: solve(pair, t64(0.0), 1.0, (p,)), (RATES,), pair_areas, None),
    Case("components, captured", lambda p: solve(lambda x: pair(x, p), t64(0.0), 1.0), (RATES,), pair_areas, None),
    Case(
        "complex",
        lambda k: solve(lambda x, k: torch.exp(1j * k * x), t64(0.0), 1.0, (k,)),
        (WAVES,),
        wave_area,
        None,
    ),
    Case(
        "complex, captured",
        lambda k: solve(lambda x: torch.exp(1j * k * x), t64(0.0), 1.0),
        (WAVES,),
        wave_area,
        None,
    ),
    Case(
        "elements",
        lambda c: solve(polynomial, t64(0.0), 1.0, (qg.element(c, ndim=1),)),
        (COEFFICIENTS,),
        polynomial_area,
    ),
    Case(
        "elements and captured",
        lambda c, b: solve(lambda x, c: b * polynomial(x, c), t64(0.0), 1.0, (qg.element(c, ndim=1),)),
        (COEFFICIENTS, CENTRES),
        lambda c, b: b * polynomial_area(c),
    ),
    Case(
        "breakpoints", lambda s, p: solve(step, t64(0.0), 1.0, (s, p), points=s[None]), (STEPS, DECAYS), step_area
    ),
    Case(
        "breakpoints, captured",
        lambda s, p: solve(lambda x: step(x, s, p), t64(0.0), 1.0, points=s[None]),
        (STEPS, DECAYS),
        step_area,
    ),
    Case(
        "more breakpoints in one lane than in another",
        lambda s: solve(
            lambda x, s, t: (x - s).abs() + (x - t).abs(), t64(0.0), 1.0, (s[0], s[1].nan_to_num(0.0)), points=s
        ),
        (t64([[0.2, 0.7], [0.4, nan], [0.9, 0.1]]),),
        lambda s: sum((t**2 + (1 - t) ** 2) / 2 for t in s.nan_to_num(0.0)),
        None,
    ),
    Case(
        "jumps",
        lambda s, p: solve(step, t64(0.0), 1.0, (s, p), jumps=lambda x, s, p: x - s),
        (STEPS, DECAYS),
        step_area,
    ),
    Case(
        "jumps, captured",
        lambda s, p: solve(lambda x: step(x, s, p), t64(0.0), 1.0, jumps=lambda x: x - s),
        (STEPS, DECAYS),
        step_area,
    ),
    Case(
        "logarithm", lambda p: solve(lambda x, p: -3e3 - p * x, t64(0.0), 1.0, (p,), log=True), (RATES,), log_area
    ),
    Case(
        "logarithm, captured", lambda p: solve(lambda x: -3e3 - p * x, t64(0.0), 1.0, log=True), (RATES,), log_area
    ),
    Case(
        "singular end",
        lambda p: solve(lambda x, p: x**p, t64(0.0), 1.0, (p,)),
        (POWERS,),
        lambda p: 1 / (1 + p),
        1e-6,
    ),
    Case(
        "singular end, captured",
        lambda p: solve(lambda x: x**p, t64(0.0), 1.0),
        (POWERS,),
        lambda p: 1 / (1 + p),
        1e-6,
    ),
    Case("chunks", lambda c, e: solve(peak, t64(0.0), 1.0, (c, e), chunk_size=100), (CENTRES, WIDTHS), area),
    Case(
        "chunks, captured",
        lambda c, e: solve(lambda x: peak(x, c, e), t64(0.0), 1.0, chunk_size=100),
        (CENTRES, WIDTHS),
        area,
    ),
    Case(
        "single precision",
        lambda c, e: qg.quad(peak, torch.tensor(0.0), 1.0, (c, e)),
        (CENTRES.float(), WIDE.float()),
        area,
        2e-3,
        1e-3,
    ),
    Case(
        "single precision, captured",
        lambda c, e: qg.quad(lambda x: peak(x, c, e), torch.tensor(0.0), 1.0),
        (CENTRES.float(), WIDE.float()),
        area,
        2e-3,
        1e-3,
    ),
    Case(
        "another rule",
        lambda c, e: solve(lambda x, c: peak(x, c, e), t64(0.0), 1.0, (c,), rule="gk15"),
        (CENTRES, WIDTHS),
        area,
    ),
)
SLOPES = [case for case in CASES if case.slope is not None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_lane_is_a_call_of_its_own(case: Case) -> None:
    together, alone = vmap(case.one)(*case.lanes), case.alone()
    rounding = 1e-12 if together.error.dtype == torch.float64 else 1e-6
    assert relative_error(together.value, torch.stack([one.value for one in alone])) <= rounding
    assert relative_error(together.value, torch.stack([case.exact(*i) for i in zip(*case.lanes, strict=True)])) <= (
        case.tolerance
    )
    for column in ("nfev", "status"):
        assert getattr(together, column).tolist() == [getattr(one, column).tolist() for one in alone], column
    errors = torch.stack([one.error for one in alone])
    assert ((together.error - errors).abs() <= 1e-6 * errors + 1e-14).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cells_of_each_lane_are_those_of_a_call_of_its_own(case: Case) -> None:
    plans: list[Any] = []

    def one(*inputs: Tensor) -> qg.Result:
        result = case.one(*inputs)
        plans.append(result.plan)
        return result

    vmap(one)(*case.lanes)
    alone = [result.plan for result in case.alone()]
    (plan,) = plans
    assert plan.batch_shape == (len(alone), *alone[0].batch_shape)
    cells = plan.owner.bincount(minlength=torch.Size(plan.batch_shape).numel()).reshape(plan.batch_shape)
    for lane, own in zip(cells, alone, strict=True):
        assert (
            lane.reshape(-1).tolist() == own.owner.bincount(minlength=torch.Size(own.batch_shape).numel()).tolist()
        )


@pytest.mark.parametrize("case", SLOPES, ids=str)
def test_gradient_of_each_lane(case: Case) -> None:
    ours, exact = (vmap(case.every_slope(f))(*case.lanes) for f in (case.value, case.exact))
    rounding = 1e-10 if ours[0].dtype == torch.float64 else 1e-4
    for i, (slope, closed_form) in enumerate(zip(ours, exact, strict=True)):
        alone = torch.stack([case.every_slope(case.value)(*inputs)[i] for inputs in zip(*case.lanes, strict=True)])
        assert (slope - alone).abs().max() <= rounding * alone.abs().max()
        assert (slope - closed_form).abs().max() <= case.slope * closed_form.abs().max()


@pytest.mark.parametrize("case", SLOPES, ids=str)
def test_gradient_by_backward_through_vmap(case: Case) -> None:
    leaves = [lane.clone().requires_grad_() for lane in case.lanes]
    vmap(case.value)(*leaves).sum().backward()
    for lane, closed_form in zip(leaves, vmap(case.every_slope(case.exact))(*case.lanes), strict=True):
        assert (lane.grad - closed_form).abs().max() <= case.slope * closed_form.abs().max()


@pytest.mark.parametrize("case", SLOPES, ids=str)
def test_jvp_of_vmap(case: Case) -> None:
    tangents = tuple(torch.linspace(1.0, 2.0, lane.numel()).to(lane).reshape(lane.shape) for lane in case.lanes)
    value, tangent = jvp(vmap(case.value), case.lanes, tangents)
    slopes = vmap(case.every_slope(case.exact))(*case.lanes)
    terms = [(s * t).reshape(len(value), -1).sum(1) for s, t in zip(slopes, tangents, strict=True)]
    scale = max(float(term.abs().max()) for term in terms)
    assert relative_error(value, vmap(case.exact)(*case.lanes)) <= case.tolerance
    assert (tangent - sum(terms)).abs().max() <= case.slope * scale


SMOOTH = [
    replace(case, lanes=(CENTRES, WIDE)) if case.exact is area else case
    for case in SLOPES
    if case.lanes[0].dtype == torch.float64 and case.lanes[0].ndim == 1 and "singular" not in case.name
]


@pytest.mark.parametrize("nesting", ["hessian", "jacfwd of jacrev", "jacrev of jacfwd", "jacrev of grad"])
@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_second_derivatives_of_each_lane(case: Case, nesting: str) -> None:
    way = {
        "hessian": hessian,
        "jacfwd of jacrev": lambda f: jacfwd(jacrev(f)),
        "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
        "jacrev of grad": lambda f: jacrev(grad(f)),
    }[nesting]
    lanes = torch.stack(case.lanes, -1)
    ours, exact = (vmap(way(lambda p, f=f: f(*p.unbind(-1))))(lanes) for f in (case.value, case.exact))
    worst = ((ours - exact).abs().amax((1, 2)) / exact.abs().amax((1, 2))).max()
    assert worst <= 1e-6
    alone = torch.stack([way(lambda p: case.value(*p.unbind(-1)))(row) for row in lanes])
    assert ((ours - alone).abs().amax((1, 2)) <= 1e-9 * alone.abs().amax((1, 2))).all()


# ------------------------------------------------------------------------------------------- where lanes are


def test_lanes_in_different_arguments_at_every_level() -> None:
    ours = vmap(vmap(lambda b, p: solve(lambda x: torch.exp(-p * x), t64(0.0), b), (None, 0)), (0, None))
    crossed = vmap(
        vmap(lambda b, p: solve(lambda x, p: torch.exp(-p * x), t64(0.0), b, (p,)), (0, None)), (None, 0)
    )
    b, p = t64([0.3, 1.0]), RATES
    exact = (1 - torch.exp(-p * b[:, None])) / p
    nfev = [[int(solve(lambda x, q: torch.exp(-q * x), t64(0.0), s, (q,)).nfev) for q in p] for s in b]
    captured = [[int(solve(lambda x, q=q: torch.exp(-q * x), t64(0.0), s).nfev) for q in p] for s in b]
    assert relative_error(ours(b, p).value, exact) <= 1e-10
    assert relative_error(crossed(b, p).value, exact.T) <= 1e-10
    assert ours(b, p).nfev.tolist() == captured
    assert crossed(b, p).nfev.T.tolist() == nfev


def test_three_levels_of_which_the_middle_one_does_not_reach_the_integral() -> None:
    one = lambda c, _, e: solve(lambda x, c: peak(x, c, e), t64(0.0), 1.0, (c,)).value
    value = vmap(vmap(vmap(one, (None, None, 0)), (None, 0, None)), (0, None, None))(
        CENTRES, t64([1.0, 2.0]), WIDTHS
    )
    exact = area(CENTRES[:, None], WIDTHS)
    assert value.shape == (4, 2, 4)
    assert relative_error(value, exact[:, None, :].expand(4, 2, 4)) <= 1e-9


@pytest.mark.parametrize("capture", [False, True])
def test_dimensions_of_lanes_in_and_out(capture: bool) -> None:
    c = torch.linspace(0.1, 0.9, 12).double().reshape(3, 4)
    arguments = lambda c: solve(lambda x, c: peak(x, c, 0.1), 0.0 * c, 1.0, (c,)).value
    captured = lambda c: solve(lambda x: peak(x, c.sum(), 0.1), 0.0 * c, 1.0).value
    f = captured if capture else arguments
    exact = (lambda c: area(c.sum(), t64(0.1)).expand(c.shape)) if capture else (lambda c: area(c, t64(0.1)))
    for in_dims, out_dims in ((0, 0), (1, 0), (-1, 1), (1, -1)):
        ours, closed_form = (vmap(g, in_dims, out_dims)(c) for g in (f, exact))
        assert ours.shape == closed_form.shape
        assert relative_error(ours, closed_form) <= 1e-9


@pytest.mark.parametrize("capture", [False, True])
def test_chunks_of_lanes_have_no_plan_in_common(capture: bool) -> None:
    one = {False: CASES[0].one, True: CASES[1].one}[capture]
    result = vmap(one, chunk_size=3)(CENTRES, WIDTHS)
    assert relative_error(result.value, area(CENTRES, WIDTHS)) <= 1e-9
    assert result.nfev.tolist() == [int(one(c, e).nfev) for c, e in zip(CENTRES, WIDTHS, strict=True)]
    assert result.plan is None


def test_no_lanes() -> None:
    none = torch.empty(0, 3, dtype=torch.float64)  # of numbers torch itself can map none
    result = vmap(CASES[0].one)(none, none)
    assert result.value.shape == result.nfev.shape == (0, 3)


def test_value_alone_is_replayed_by_nobody() -> None:
    f = Recorder(peak)
    nfev = vmap(lambda c, e: solve(f, t64(0.0), 1.0, (c, e)))(CENTRES, WIDTHS).nfev
    assert f.nodes.numel() - int(nfev.sum()) <= 2 * len(CENTRES)  # the probes


@pytest.mark.parametrize("capture", [False, True])
def test_one_hard_lane_costs_the_others_nothing(capture: bool) -> None:
    width = torch.ones(50, dtype=torch.float64)
    width[7] = 1e-7
    one = {False: CASES[0].one, True: CASES[1].one}[capture]
    result = vmap(one, (None, 0))(t64(0.3), width)
    easy, hard = int(one(t64(0.3), width[0]).nfev), int(one(t64(0.3), width[7]).nfev)
    assert hard > 10 * easy
    assert result.nfev.tolist() == [hard if lane == 7 else easy for lane in range(50)]


# --------------------------------------------------------------------------------- options, errors, failures


@pytest.mark.parametrize("capture", [False, True])
def test_derivative_searched_on_its_own_in_every_lane(capture: bool) -> None:
    def value(e: Tensor) -> Tensor:
        f = (lambda x: torch.sqrt(x**2 + e**2)) if capture else (lambda x, e: torch.sqrt(x**2 + e**2))
        mode = qg.Resolve(rtol=1e-9, params=(e,) if capture else None)
        return qg.quad(f, t64(0.0), 1.0, () if capture else (e,), rtol=1e-3, gradient=mode).value

    exact = lambda e: (torch.sqrt(1 + e**2) + e**2 * torch.asinh(1 / e)) / 2
    e = t64([1e-1, 1e-3, 1e-4])
    ours, closed_form = vmap(grad(value))(e), vmap(grad(exact))(e)
    assert relative_error(ours, closed_form) <= 1e-7
    assert relative_error(ours, torch.stack([grad(value)(each) for each in e])) <= 1e-9
    assert relative_error(grad(value)(e[1]), closed_form[1]) <= 1e-7


def test_limit_that_is_no_number_in_one_lane() -> None:
    with pytest.raises(ValueError, match="limit b is NaN"):
        vmap(lambda b: solve(torch.sin, t64(0.0), b).value)(t64([1.0, nan, 2.0]))
    assert (
        relative_error(vmap(lambda b: solve(torch.sin, t64(0.0), b).value)(t64([1.0])), 1 - torch.cos(t64([1.0])))
        <= 1e-10
    )


@pytest.mark.parametrize("capture", [False, True])
def test_failure_is_that_of_its_lane(capture: bool) -> None:
    args = lambda e: {} if capture else {"args": (e,)}
    f = lambda e: (lambda x: peak(x, 0.3, e)) if capture else (lambda x, e: peak(x, 0.3, e))
    one = lambda e: qg.quad(f(e), t64(0.0), 1.0, **args(e), rtol=1e-10, max_nfev=63)
    with pytest.warns(qg.IntegrationWarning, match="1 of 3"):
        result = vmap(one)(t64([1.0, 1e-5, 2.0]))
    assert result.status.tolist() == [qg.Status.CONVERGED, qg.Status.MAX_NFEV, qg.Status.CONVERGED]


@pytest.mark.parametrize("capture", [False, True])
def test_error_of_a_gradient_is_asked_for_outside_of_transforms(capture: bool) -> None:
    def one(p: Tensor) -> qg.Result:
        f = (lambda x: torch.exp(-p * x)) if capture else (lambda x, p: torch.exp(-p * x))
        return solve(f, t64(0.0), 1.0, () if capture else (p,))

    leaves = RATES.clone().requires_grad_()
    inside = lambda p: qg.gradient_error(one(p), p)
    for ask in (
        lambda: vmap(inside)(RATES),
        lambda: vmap(grad(inside))(RATES),
        lambda: grad(inside)(RATES[0]),
        lambda: qg.gradient_error(vmap(one)(leaves), leaves),
    ):
        with pytest.raises(ValueError, match="needs a result with a gradient, computed outside of torch.func"):
            ask()


def test_ensemble_of_networks() -> None:
    draw = torch.Generator().manual_seed(5)
    weights = {
        "first": torch.randn(4, 6, generator=draw, dtype=torch.float64),
        "second": torch.randn(4, 6, generator=draw, dtype=torch.float64),
    }
    net = lambda w, x: (torch.tanh(x[..., None] * w["first"]) * w["second"]).sum(-1)
    exact = lambda w: (torch.log(torch.cosh(w["first"])) / w["first"] * w["second"]).sum()
    value = lambda w: solve(lambda x: net(w, x), t64(0.0), 1.0).value
    ours, closed_form = vmap(grad(value))(weights), vmap(grad(exact))(weights)
    for name in weights:
        assert relative_error(ours[name], closed_form[name]) <= 1e-8
    assert relative_error(vmap(value)(weights), vmap(exact)(weights)) <= 1e-10


def test_gradient_of_what_all_lanes_share() -> None:
    shared = leaf(1.3)
    value = vmap(lambda c: solve(lambda x: torch.exp(-shared * x) * c, t64(0.0), 1.0).value)(t64([1.0, 2.0, 3.0]))
    (slope,) = torch.autograd.grad(value.sum(), shared)
    assert relative_error(slope, 6 * grad(lambda p: (1 - torch.exp(-p)) / p)(shared.detach())) <= 1e-9


@pytest.mark.parametrize("chunk_size", (1, 2, 3, 4, None))
def test_tiles_of_lanes_that_capture_and_are_given_arguments(chunk_size: int | None) -> None:
    """A tile has the arguments of its own integrals alone; lanes without one of these are padded with another's."""
    c, s = torch.linspace(0.5, 1.0, 4, dtype=torch.float64), torch.linspace(0.0, 1.0, 4, dtype=torch.float64)

    def area(c: Tensor, s: Tensor) -> Tensor:
        f = lambda x, s: c * torch.sqrt(x - s)
        return qg.quad(f, s, 1.0 + s, args=(s,), chunk_size=chunk_size).value

    torch.testing.assert_close(vmap(area)(c, s), c * (2.0 / 3.0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(vmap(grad(area))(c, s), torch.full_like(c, 2.0 / 3.0), rtol=1e-12, atol=0.0)


# --------------------------------------------------------- what has no lanes, differentiated inside of vmap

RATE = t64(1.3)
SCALES = t64([0.1, 0.5, 0.7])


def decay(x: Tensor, scale: Tensor, rate: Tensor) -> Tensor:
    return scale * torch.exp(-rate * x)


SHARED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "argument": (
        lambda s, q: solve(decay, t64(0.0), 1.0, (s, q)).value,
        lambda s, q: s * (1 - torch.exp(-q)) / q,
    ),
    "captured": (
        lambda s, q: solve(lambda x, s: decay(x, s, q), t64(0.0), 1.0, (s,)).value,
        lambda s, q: s * (1 - torch.exp(-q)) / q,
    ),
    "captured beside a limit": (
        lambda s, q: solve(lambda x: torch.exp(-q * x), t64(0.0), s).value,
        lambda s, q: (1 - torch.exp(-q * s)) / q,
    ),
    "limit": (
        lambda s, q: solve(lambda x, s: torch.sin(s * x), t64(0.0), q, (s,)).value,
        lambda s, q: (1 - torch.cos(s * q)) / s,
    ),
    "breakpoint": (
        lambda s, q: solve(lambda x, s, q: s * x * (x > q), t64(0.0), 2.0, (s, q), points=q[None]).value,
        lambda s, q: s * (4 - q**2) / 2,
    ),
    "jump": (
        lambda s, q: solve(lambda x, s: s * x * (x > q), t64(0.0), 2.0, (s,), jumps=lambda x, s: x - q).value,
        lambda s, q: s * (4 - q**2) / 2,
    ),
    "resolved": (
        lambda s, q: solve(lambda x, s: decay(x, s, q), t64(0.0), 1.0, (s,), gradient=qg.Resolve(params=q)).value,
        lambda s, q: s * (1 - torch.exp(-q)) / q,
    ),
    "box": (
        lambda s, q: qg.cubature(lambda x, s: decay(x.sum(-1), s, q), t64([0.0, 0.0]), 1.0, (s,), rtol=1e-10).value,
        lambda s, q: s * ((1 - torch.exp(-q)) / q) ** 2,
    ),
    "nested": (
        lambda s, q: solve(
            lambda x: solve(lambda y, x: torch.exp(-q * x * y), 0 * x, 1.0, (x,)).value, t64(0.0), s
        ).value,
        lambda s, q: sum((-q) ** k * s ** (k + 1) / (float(factorial(k + 1)) * (k + 1)) for k in range(20)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", (grad, jacrev, jacfwd, hessian), ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", SHARED)
def test_each_lane_has_its_own_derivative_by_what_all_share(kind: str, way: Any) -> None:
    """As gradients of each sample of a batch are taken: ``vmap(grad(loss), (None, 0))(weights, samples)``."""
    ours, exact = SHARED[kind]
    each, true = (vmap(lambda s, f=f: way(lambda q: f(s, q))(RATE))(SCALES) for f in (ours, exact))
    assert relative_error(each, true) <= 1e-8
    among, true = (way(lambda q, f=f: vmap(lambda s: f(s, q))(SCALES).sum())(RATE) for f in (ours, exact))
    assert relative_error(among, true) <= 1e-8


def test_gradients_of_a_network_for_each_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Linear(1, 3, dtype=torch.float64)
    weights = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in net.named_parameters()}

    def loss(weights: dict[str, Tensor], s: Tensor) -> Tensor:
        f = lambda x: torch.sin(torch.func.functional_call(net, weights, (x[..., None],))).sum(-1)
        return solve(f, t64(0.0), s).value

    together = vmap(grad(loss), (None, 0))(weights, SCALES)
    alone = [grad(loss)(weights, s) for s in SCALES]
    for name, found in together.items():
        assert relative_error(found, torch.stack([one[name] for one in alone])) <= 1e-9
