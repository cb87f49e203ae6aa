"""Jumps: marked by points or by the zeros of `jumps`, differentiated; and those nobody marked, warned about.

The closed forms are themselves ordinary torch, so that their derivatives of any order are autograd's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from math import inf, pi

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import quadgrad as qg
from helpers import Recorder, integral, leaf, relative_error, t64
from problems import PROBLEMS, Problem
from quadgrad._core.breakpoints import unmarked
from test_honesty import BROKEN, SMOOTH

# A jump is read 2^-40 = 9e-13 of a piece away from its place: that times the derivatives of f beside it is left.
READ = 3e-11


def told(call: Callable[[], object]) -> list[str]:
    """Return what a call says about jumps."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in seen if issubclass(w.category, qg.UnmarkedJumpWarning)]


def step(x: Tensor, s: Tensor) -> Tensor:
    return (x > s).to(x.dtype)


def distance(x: Tensor, s: Tensor) -> Tensor:
    return x - s


# ------------------------------------------------------------------------------------- zeros of `jumps`


def moving(theta: Tensor, **options: object) -> Tensor:
    """Switch from sin(p x) to exp(p x) where q x^2 passes t; theta is (p, q, t)."""
    p, q, t = theta.unbind(-1)
    f = lambda x, p, q, t: torch.where(q * x**2 > t, torch.exp(p * x), torch.sin(p * x))
    return integral(f, 0.0, 1.0, p, q, t, jumps=lambda x, p, q, t: q * x**2 - t, **options)


def moving_closed(theta: Tensor) -> Tensor:
    p, q, t = theta.unbind(-1)
    root = torch.minimum((t / q).sqrt(), torch.ones_like(t))
    return (torch.exp(p) - torch.exp(p * root)) / p + (1 - torch.cos(p * root)) / p


def tail(theta: Tensor) -> Tensor:
    """Cut a Gaussian off where exp(-p x) falls below t, on the whole line; theta is (p, t)."""
    p, t = theta.unbind(-1)
    f = lambda x, p, t: torch.exp(-(x**2)) * (torch.exp(-p * x) < t)
    return integral(f, -inf, inf, p, t, jumps=lambda x, p, t: torch.exp(-p * x) - t)


def tail_closed(theta: Tensor) -> Tensor:
    p, t = theta.unbind(-1)
    return pi**0.5 / 2 * torch.erfc(-torch.log(t) / p)


def two(theta: Tensor) -> Tensor:
    """Jump where either of two functions vanishes, by different heights; theta is (s, t)."""
    s, t = theta.unbind(-1)
    f = lambda x, s, t: 2.0 * (x > s) + x * (x**3 < t)
    return integral(f, 0.0, 1.5, s, t, jumps=lambda x, s, t: torch.stack((x - s, x**3 - t), dim=-1))


def two_closed(theta: Tensor) -> Tensor:
    s, t = theta.unbind(-1)
    return 2.0 * (1.5 - s) + t ** (2 / 3) / 2


SETTINGS = (
    pytest.param(moving, moving_closed, t64([0.7, 1.3, 0.4]), id="finite"),
    pytest.param(tail, tail_closed, t64([0.7, 3.0]), id="whole line"),
    pytest.param(two, two_closed, t64([0.4, 0.6]), id="two functions"),
)
WAYS = {
    "grad": grad,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "backward twice": lambda f: lambda x: torch.autograd.functional.hessian(f, x),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "third": lambda f: jacfwd(jacfwd(jacrev(f))),
    "vmap of hessian": lambda f: lambda x: vmap(hessian(f))(torch.stack((x, 0.9 * x)))[1],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("function", "closed_form", "theta"), SETTINGS)
def test_derivatives_of_zeros_against_closed_forms(way: str, function, closed_form, theta: Tensor) -> None:
    ours, exact = WAYS[way](function)(theta), WAYS[way](closed_form)(theta)
    assert (ours - exact).abs().max() <= READ * exact.abs().max()


@pytest.mark.parametrize(("function", "closed_form", "theta"), SETTINGS)
def test_gradcheck_of_zeros(function, closed_form, theta: Tensor) -> None:
    theta = torch.stack((theta, 1.1 * theta)).requires_grad_()
    assert relative_error(function(theta), closed_form(theta)) <= 1e-12
    assert gradcheck(function, (theta,), atol=1e-7, rtol=1e-6, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, (theta,), atol=1e-6, rtol=1e-5, check_fwd_over_rev=True, check_batched_grad=True)


LANES = t64([[0.7, 1.3, 0.4], [0.9, 1.0, 0.1], [1.0, 1.0, 2.0], [0.2, 3.0, 0.01]])  # in the third there is no zero


def test_lanes_with_different_zeros_and_none() -> None:
    together = vmap(moving)(LANES)
    assert relative_error(together, moving_closed(LANES)) <= 1e-12
    assert relative_error(moving(LANES), moving_closed(LANES)) <= 1e-12
    exact = vmap(hessian(moving_closed))(LANES)
    ours = vmap(hessian(moving))(LANES)
    assert (ours - exact).abs().max() <= READ * exact.abs().max()


def test_wave_above_a_level() -> None:
    # asin(t) =: u. Above t for 10 x in (u, pi - u) and (2 pi + u, 3 pi - u); cut off at 10.
    t = leaf(0.3)
    f, g = lambda x, t: (torch.sin(10 * x) > t).double(), lambda x, t: torch.sin(10 * x) - t
    value = qg.quad(f, 0.0, 1.0, (t,), jumps=g).value
    first = torch.autograd.grad(value, t, create_graph=True)[0]
    (second,) = torch.autograd.grad(first, t)
    assert abs(float(value.detach()) - 0.506441469111799645) <= 1e-15
    assert abs(float(first.detach()) + 0.419313934688767318) <= 1e-15
    assert abs(float(second) + 0.138235363084209006) <= 1e-14


@pytest.mark.parametrize("frequency", (100, 1000))
def test_zeros_that_the_scan_misses_are_seen_on_the_plan(frequency: int) -> None:
    t = leaf(0.3)
    f = lambda x, t: (torch.sin(frequency * x) > t).double()
    result = qg.quad(f, 0.0, 1.0, (t,), jumps=lambda x, t: torch.sin(frequency * x) - t)
    result.value.backward()
    k, u = 2 * pi * torch.arange(frequency, dtype=torch.float64), torch.asin(t64(0.3))
    up, down = (k + u).clamp(max=frequency), (k + pi - u).clamp(max=frequency)
    crossings = int((up < frequency).sum() + (down < frequency).sum())
    assert result.plan.pieces == crossings + 1
    assert relative_error(result.value, (down - up).sum() / frequency) <= 1e-13
    assert relative_error(t.grad, -crossings / frequency / torch.cos(u)) <= 1e-11


def test_close_pair_of_zeros_between_two_points_of_the_scan() -> None:
    c, h = leaf(0.43), leaf(1e-7)
    f = lambda x, c, h: ((x - c) ** 2 < h**2).double()
    value = qg.quad(f, 0.0, 1.0, (c, h), jumps=lambda x, c, h: (x - c) ** 2 - h**2).value
    value.backward()
    assert relative_error(value, 2e-7) <= 1e-8
    assert relative_error(h.grad, 2.0) <= 1e-8
    assert abs(float(c.grad)) <= 1e-8


def test_batch_whose_elements_have_different_numbers_of_zeros() -> None:
    t = leaf([[-2.0, 0.3], [0.9, 1.5]])
    f, g = lambda x, t: (torch.sin(10 * x) > t).double(), lambda x, t: torch.sin(10 * x) - t
    result = qg.quad(f, 0.0, 1.0, (t,), jumps=g)
    result.value.sum().backward()
    u = torch.asin(t64([0.3, 0.9]))
    values = t64([[1.0, float((2 * pi - 4 * u[0]) / 10)], [float((2 * pi - 4 * u[1]) / 10), 0.0]])
    slopes = t64([[0.0, float(-0.4 / torch.cos(u[0]))], [float(-0.4 / torch.cos(u[1])), 0.0]])
    assert relative_error(result.value, values) <= 1e-14
    assert relative_error(t.grad, slopes) <= 1e-13
    assert result.plan.pieces == 5


def test_zero_that_leaves_and_enters_during_an_optimisation() -> None:
    s, plan, seen = leaf(0.9), None, []
    for target in (1.2, 0.5, -0.3, 0.7):
        with torch.no_grad():
            s.fill_(target)
        result = qg.quad(step, 0.0, 1.0, (s,), jumps=distance, plan=plan)
        seen.append((float(result.value.detach()), float(torch.autograd.grad(result.value, s)[0])))
        plan = result.plan
    expected = [(0.0, 0.0), (0.5, -1.0), (1.0, 0.0), (0.3, -1.0)]
    assert (t64(seen) - t64(expected)).abs().max() <= 1e-12


def test_breakpoints_and_zeros_together() -> None:
    s, t = leaf([0.2, 0.6]), leaf(0.4)
    f = lambda x, s, t: step(x, s) + 3.0 * step(x, t)
    result = qg.quad(f, 0.0, 1.0, (s, t), points=s[:, None], jumps=lambda x, s, t: x - t)
    result.value.sum().backward()
    assert relative_error(s.grad, t64([-1.0, -1.0])) <= 1e-12
    assert relative_error(t.grad, -6.0) <= 1e-12


def test_zeros_of_a_network_and_closures() -> None:
    w = leaf([1.5, -0.6])
    g = lambda x: torch.tanh(w[0] * x) + w[1]
    value = qg.quad(lambda x: (g(x) > 0).double() * w[0], t64(0.0), 1.0, jumps=g, rtol=1e-12).value
    ours = torch.autograd.grad(value, w)[0]
    closed = lambda w: w[0] * (1 - torch.atanh(-w[1]) / w[0])
    assert relative_error(ours, grad(closed)(w.detach())) <= 1e-12


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_precision(dtype: torch.dtype) -> None:
    s = torch.tensor([0.3, 0.6], dtype=dtype, requires_grad=True)
    value = qg.quad(step, 0.0, 1.0, (s,), jumps=distance).value
    value.sum().backward()
    assert value.dtype is dtype
    assert relative_error(value, 1 - s) <= 4 * torch.finfo(dtype).eps
    assert relative_error(s.grad, [-1.0, -1.0]) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("place", (1e-9, 1e-3, 2.0, 10.0))
def test_zero_anywhere_on_a_half_line(place: float) -> None:
    s = leaf(place)
    qg.quad(lambda x, s: torch.exp(-x) * step(x, s), 0.0, inf, (s,), jumps=distance).value.backward()
    assert relative_error(s.grad, -torch.exp(t64(-place))) <= 1e-11


def test_empty_batch_and_empty_interval() -> None:
    nothing, s, b = leaf([]), leaf(0.3), leaf(0.2)
    assert qg.quad(step, 0.0, 1.0, (nothing,), jumps=distance).value.shape == (0,)
    value = qg.quad(lambda x, s: torch.exp(x) + step(x, s), 0.2, b, (s,), jumps=distance).value
    value.backward()
    assert (
        float(value.detach()) == 0.0
        and relative_error(b.grad, torch.exp(t64(0.2))) <= 1e-12
        and float(s.grad) == 0.0
    )


def test_half_precision() -> None:
    s = torch.tensor([0.3, 0.7], dtype=torch.bfloat16, requires_grad=True)
    value = qg.quad(step, 0.0, 1.0, (s,), jumps=distance).value
    value.sum().backward()
    assert relative_error(value, 1 - s.float()) <= 0.01 and s.grad.tolist() == [-1.0, -1.0]


def test_zero_that_is_a_limit_or_a_breakpoint_as_well() -> None:
    s = leaf(0.3)
    for points in (s, s.detach(), s.detach() + 1e-14):
        value = qg.quad(step, 0.0, 1.0, (s,), points=points, jumps=distance).value
        assert relative_error(torch.autograd.grad(value, s)[0], -1.0) <= 1e-12
    for sign, (a, b) in ((0.0, (0.0, s)), (-1.0, (s, 1.0))):
        value = qg.quad(step, a, b, (s.detach(),), jumps=distance).value
        assert relative_error(torch.autograd.grad(value, s)[0], sign) <= 1e-12


def test_reversed_limits_and_one_at_a_time() -> None:
    s = leaf(0.3)
    f = lambda x, s: 1.0 if x > float(s.detach()) else 0.0
    value = qg.quad(f, 1.0, 0.0, (s,), jumps=distance, vectorized=False).value
    value.backward()
    assert relative_error(value, -0.7) <= 1e-14 and relative_error(s.grad, 1.0) <= 1e-14


def test_without_gradient_zeros_are_plain_breakpoints() -> None:
    risen = lambda x, s: step(x, s) + 1
    result = qg.quad(risen, 0.0, 1.0, (t64([0.3, 0.55]),), jumps=distance)
    assert not result.value.requires_grad
    assert result.nfev.tolist() == [52, 52]


def test_zeros_cost_f_nothing_and_chunk_bounds_calls() -> None:
    risen = lambda x, s: step(x, s) + 1  # of what is 0 on one side more is looked at
    f, g, s = Recorder(risen), Recorder(distance), leaf(torch.linspace(0.1, 0.9, 500))
    result = qg.quad(f, 0.0, 1.0, (s,), jumps=g, chunk_size=105)
    result.value.sum().backward()
    assert relative_error(s.grad, -torch.ones(500)) <= 1e-12
    assert (result.nfev == 52).all()
    assert f.largest_call <= 3 * 2 * 500  # the two boundary terms of all breakpoints
    assert g.largest_call <= 500  # the Newton steps that carry the derivatives


def test_singularity_that_moves_with_a_zero() -> None:
    c = leaf([[0.1, 0.2], [0.3, 0.4]])
    f = lambda x, c: (x - c).abs() ** -0.25
    value = qg.quad(f, 0.0, 1.0, (c,), jumps=distance, rtol=1e-6, limit_gradient="pathwise").value
    value.sum().backward()
    exact = c.detach() ** -0.25 - (1 - c.detach()) ** -0.25
    assert relative_error(c.grad, exact) <= 1e-5


# -- zeros that have no derivative are reported ---------------------------------------------------------


@pytest.mark.parametrize(
    ("g", "sentence"),
    [
        (lambda x, c: (x - c) ** 2, "touches 0 without a change of sign at x = 0.3"),
        (lambda x, c: (x - c).abs(), "touches 0 without a change of sign at x = 0.3"),
        (lambda x, c: torch.relu(x - c), "touches 0 without a change of sign"),
        (lambda x, c: (x - c) ** 3, "changes sign without passing through 0 at a finite slope at x = 0.3"),
        (lambda x, c: 1 / (x - c), "changes sign without passing through 0 at a finite slope at x = 0.3"),
        (lambda x, c: torch.sign(x - c) + 0 * x, "changes sign without passing through 0 at a finite slope"),
    ],
    ids=["square", "absolute value", "relu", "cube", "pole", "sign"],
)
def test_zero_without_derivative(g, sentence: str) -> None:
    c = leaf(0.3)
    with pytest.warns(qg.UnmarkedJumpWarning, match=sentence.replace(".", r"\.")):
        value = qg.quad(lambda x, c: c * torch.exp(x), 0.0, 1.0, (c,), jumps=g).value
    value.backward()
    assert relative_error(c.grad, torch.e - 1) <= 1e-12


def test_jump_that_jumps_does_not_know_of() -> None:
    s = leaf([0.3, 0.7])
    f = lambda x: step(x, s[0]) + 2.0 * step(x, s[1])
    with pytest.warns(qg.UnmarkedJumpWarning, match=r"jumps at x = 0\.7, where nothing is marked"):
        qg.quad(f, t64(0.0), 1.0, jumps=lambda x: x - s[0])


@pytest.mark.parametrize("far", (1.0, inf))
def test_zeros_between_values_without_bound(far: float) -> None:
    side = lambda x: torch.where(x > 1 / 3, far, -far)
    result = qg.quad(lambda x: (x > 1 / 3).to(x.dtype), t64(0.0), 1.0, jumps=side)
    assert relative_error(result.value, 2 / 3) <= 1e-15 and len(result.plan) == 2


@pytest.mark.parametrize(
    ("jumps", "error", "sentence"),
    [
        (0.3, TypeError, "must be a function"),
        (lambda x, s: x > s, qg.IntegrandError, "must be real and pass through 0"),
        (lambda x, s: s, qg.IntegrandError, "the function given as jumps returned shape"),
        (lambda x, s: x.detach() - s, qg.IntegrandError, "does not depend on x through torch"),
        (lambda x, s: 1.0, qg.IntegrandError, "the function given as jumps returned float"),
    ],
)
def test_unusable_jumps(jumps, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        qg.quad(step, 0.0, 1.0, (leaf([0.3, 0.4]),), jumps=jumps)


# --------------------------------------------------------------------------------- marked, and not marked


MARKED = {"points": lambda s: {"points": s}, "jumps": lambda s: {"jumps": distance}}


@pytest.mark.parametrize("mark", MARKED)
def test_derivative_of_a_step(mark: str) -> None:
    s = leaf(0.3)
    value = qg.quad(step, -1.0, 1.0, (s,), **MARKED[mark](s)).value
    value.backward()
    assert relative_error(value, 0.7) <= 1e-14 and relative_error(s.grad, -1.0) <= 1e-14


def test_unmarked_step_warns() -> None:
    s = leaf(0.3)
    told_of = told(lambda: qg.quad(step, -1.0, 1.0, (s,)))
    assert len(told_of) == 1
    assert "x = 0.3" in told_of[0] and "points=" in told_of[0] and "jumps=" in told_of[0]


def weighted(x: Tensor, theta: Tensor) -> Tensor:
    """Add a step of movable height and place to a smooth function: theta is (slope, height, place)."""
    return torch.exp(theta[0] * x) + theta[1] * (x > theta[2])


@pytest.mark.parametrize(
    "mark", [lambda p: {"points": p[2]}, lambda p: {"jumps": lambda x: x - p[2]}], ids=["points", "jumps"]
)
def test_weighted_step_inside_a_sum(mark) -> None:
    theta = leaf([0.5, 2.0, 0.3])
    value = qg.quad(partial(weighted, theta=theta), t64(0.0), 1.0, rtol=1e-12, **mark(theta)).value
    closed = lambda p: torch.expm1(p[0]) / p[0] + p[1] * (1 - p[2])
    assert relative_error(torch.autograd.grad(value, theta)[0], grad(closed)(theta.detach())) <= READ


def test_weighted_step_inside_a_sum_unmarked() -> None:
    theta = leaf([0.5, 2.0, 0.3])
    assert len(told(lambda: qg.quad(partial(weighted, theta=theta), t64(0.0), 1.0))) == 1


def test_kinks_need_no_mark() -> None:
    t = leaf(0.3)
    value = qg.quad(lambda x, t: torch.relu(torch.sin(10 * x) - t), 0.0, 1.0, (t,), rtol=1e-10).value
    value.backward()  # warnings are errors
    assert relative_error(t.grad, -0.506441469111799645) <= 1e-6


@pytest.mark.parametrize("shift", (0.0, 0.25))
def test_marked_by_what_carries_no_gradient(shift: float) -> None:
    s = leaf(0.3)
    f = lambda x, s: torch.exp(x) * step(x, s + shift)
    sentence = r"moves with an argument that does"
    with pytest.warns(qg.UnmarkedJumpWarning, match=sentence):
        qg.quad(f, 0.0, 1.0, (s,), points=float(s.detach()) + shift)
    assert not told(lambda: qg.quad(f, 0.0, 1.0, (s,), points=s + shift))
    fixed = lambda x, s: torch.exp(s * x) * step(x, t64(0.3 + shift))
    assert not told(lambda: qg.quad(fixed, 0.0, 1.0, (s,), points=0.3 + shift))


@pytest.mark.parametrize("rtol", (1e-2, 1e-4, 1e-6, 1e-8, 1e-10))
@pytest.mark.parametrize("rule", ("gk15", "gk21", "gk61", "cc31"))
def test_only_unmarked_jumps_of_the_table_are_warned_about(rule: str, rtol: float) -> None:
    def solve(problem: Problem) -> list[str]:
        scale = leaf(1.3)
        options = {"rtol": rtol, "rule": rule, "points": list(problem.points) or None}
        f = lambda x, c: c * problem.f(x)
        return told(lambda: qg.quad(f, t64(problem.a), t64(problem.b), (scale,), **options))

    warned = {problem.name for problem in PROBLEMS if solve(problem)}
    assert warned == {p.name for p in PROBLEMS if "jump" in p.tags and "marked" not in p.tags}


@pytest.mark.parametrize("rtol", (1e-2, 1e-5, 1e-8))
@pytest.mark.parametrize("name", (*SMOOTH, *BROKEN))
def test_only_jumps_of_random_families_are_warned_about(name: str, rtol: float) -> None:
    f, parameters, _ = (SMOOTH | BROKEN)[name]
    scale = leaf(1.3)
    solve = lambda *args: qg.quad(lambda x, *args: scale * f(x, *args), t64(0.0), t64(1.0), args, rtol=rtol)
    if name == "step":  # each has its own place, and none is missed
        for i in range(100):
            place = float(parameters[0][i])
            assert f"x = {place:.6g}," in told(lambda i=i: solve(parameters[0][i]))[0]
    else:
        assert not told(lambda: solve(*parameters))


@pytest.mark.parametrize("place", (0.5, 0.25, 0.001, 0.999, 0.4995, 1e-5))
def test_jump_that_no_node_tells_from_a_smooth_function(place: float) -> None:
    # At a cell's very end, or between it and the outermost node: the rule sees a smooth function.
    s = leaf(place)
    f = lambda x: torch.exp(s * x) + (x > s)
    assert len(told(lambda: qg.quad(f, t64(0.0), 1.0, rtol=1e-3))) == 1


def test_jump_on_a_half_line_and_in_one_component() -> None:
    s = leaf(2.0)
    assert len(told(lambda: qg.quad(lambda x: s * torch.exp(-x) * (x > s), t64(0.0), inf))) == 1
    pair = lambda x: torch.stack((torch.exp(s * x), torch.cos(x) * (x > 0.3)), dim=-1)
    assert len(told(lambda: qg.quad(pair, t64(0.0), 1.0))) == 1
    wave = lambda x: torch.exp(1j * s * x) * (x > 0.3)
    assert len(told(lambda: qg.quad(wave, t64(0.0), 1.0))) == 1


def test_nobody_is_warned_who_asks_for_no_gradient() -> None:
    s = t64(0.3)
    assert not told(lambda: qg.quad(step, -1.0, 1.0, (s,)))
    assert not told(lambda: vmap(lambda s: qg.quad(step, -1.0, 1.0, (s,)).value)(t64([0.3, 0.4])))
    with torch.no_grad():
        assert not told(lambda: qg.quad(step, -1.0, 1.0, (leaf(0.3),)))


@pytest.mark.parametrize("way", ("grad", "jacfwd", "vmap of hessian"))
def test_transforms_that_differentiate_are_warned(way: str) -> None:
    said = told(lambda: WAYS[way](lambda s: qg.quad(step, -1.0, 1.0, (s,)).value)(t64(0.3)))
    assert len(said) == 1 and ("x = 0.3" in said[0] or way == "vmap of hessian")


def test_integral_inside_an_integral_is_warned_about_once() -> None:
    s = leaf(0.5)
    inside = lambda x: qg.quad(lambda y, x: s * step(y, s * x), 0.0, 1.0, (x,)).value
    said = told(lambda: qg.quad(inside, t64(0.1), 1.0, rtol=1e-3))
    assert len(said) == 1 and "where nothing is marked" in said[0]


@pytest.mark.parametrize(("a", "b"), [(0.0, inf), (-inf, 0.0), (2.0, inf), (-inf, inf), (0.0, 1.0)])
def test_looking_for_jumps_stays_inside_the_interval(a: float, b: float) -> None:
    p, f = leaf(2.0), Recorder(lambda x, p: torch.exp(-p * x.abs()) * torch.cos(x))
    qg.quad(f, a, b, (p,))
    assert a < f.nodes.min() and f.nodes.max() < b


SMOOTH_SIDES = (
    lambda x, p: torch.exp(0.3 * p * x),
    lambda x, p: torch.cos(p * x),
    lambda x, p: 1 / (1 + p * x * x),
)


def told_of_random_jump(seed: int) -> bool:
    """Integrate a smooth function with a jump at a random place; return whether a warning came."""
    draw = torch.Generator().manual_seed(seed)
    u = torch.rand(4, generator=draw, dtype=torch.float64).tolist()
    height, near = 10 ** (10 * u[0] - 9), 10 ** (7 * u[2] - 9)
    place = (near, 1 - near, 0.5 + near, 0.5 - near, u[3])[seed % 5]
    smooth, p = SMOOTH_SIDES[seed % 3], leaf(0.1 + 30 * u[3])
    f = lambda x: smooth(x, p) + height * (x > place)
    return bool(told(lambda: qg.quad(f, t64(0.0), 1.0, rtol=10 ** (8 * u[1] - 10), on_failure="ignore")))


def test_no_jump_is_lost_among_the_cells_that_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [told_of_random_jump(seed) for seed in range(150)]
    monkeypatch.setattr(unmarked, "_worth_a_look", lambda plan, *_: plan)
    assert chosen == [told_of_random_jump(seed) for seed in range(150)]
    assert 30 < sum(chosen) < 150
