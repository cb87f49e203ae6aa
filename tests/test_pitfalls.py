"""What went wrong in other integrators of one dimension and their gradients: a test of each mistake."""

from __future__ import annotations

import re
from math import inf, nan

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import Recorder, integral, leaf, relative_error, same_plan, t64
from problems import PROBLEMS
from quadgrad._core.rules import get_rule
from quadgrad._core.search.kernel import opening

TABLE = {p.name: p for p in PROBLEMS}


def peak(x: Tensor, e: Tensor) -> Tensor:
    return e / ((x - 0.3) ** 2 + e**2)


@pytest.mark.parametrize("rule", ("gk15", "gk21", "gk61"))
@pytest.mark.parametrize("rtol", (1e-4, 1e-6, 1e-8))
def test_tolerance_is_tested_on_the_summed_error(rtol: float, rule: str) -> None:
    wiggle = TABLE["wiggle with a kink"]
    result = qg.quad(wiggle.f, t64(0.0), t64(1.0), rtol=rtol, rule=rule)
    assert abs(float(result.value) - wiggle.exact.real) <= rtol * abs(wiggle.exact)
    assert float(result.error) <= rtol * abs(wiggle.exact)


@pytest.mark.parametrize("name", ("square root", "wiggle with a kink", "fast cosine", "x log x"))
def test_error_is_a_sum_of_absolute_values(name: str) -> None:
    problem = TABLE[name]
    result = qg.quad(problem.f, t64(0.0), t64(1.0), rtol=1e-6)
    assert (result.plan.error >= 0).all()
    assert float(result.error) >= abs(float(result.value) - problem.exact.real)


def test_a_stored_output_of_f_stays_as_it_was() -> None:
    p, stored, copies = leaf(1.3), [], []

    def f(x: Tensor, p: Tensor) -> Tensor:
        y = torch.exp(-p * x)
        stored.append(y)
        copies.append(y.detach().clone())
        return y

    qg.quad(f, leaf(0.0), t64(1.0), (p,)).value.backward()
    assert all(torch.equal(y, copy) for y, copy in zip(stored, copies, strict=True))


@pytest.mark.parametrize("chunk_size", (None, 21, 100))
def test_no_backward_inside_the_integrator(chunk_size: int | None) -> None:
    p, q = leaf(1.3), leaf(0.4)
    p.grad = t64(5.0)
    value = qg.quad(lambda x, p: torch.exp(-p * x) * q, t64(0.0), t64(1.0), (p,), chunk_size=chunk_size).value
    assert float(p.grad) == 5.0 and q.grad is None
    value.backward()
    assert relative_error(q.grad, (1 - torch.exp(t64(-1.3))) / 1.3) <= 1e-12


def test_backward_keeps_the_options_and_reaches_closures_with_float_limits() -> None:
    w = leaf([1.0, 2.0])
    f = Recorder(lambda x: torch.exp(-w[0] * x.double()) * w[1])
    value = qg.quad(f, 0.0, 2.0, rtol=1e-5, rule="gk15", chunk_size=20).value
    before = f.calls
    value.backward()
    assert f.largest_call <= 20
    assert f.calls > before  # the chunks are evaluated again, not kept
    exact = torch.autograd.functional.jacobian(lambda w: w[1] * (1 - torch.exp(-2 * w[0])) / w[0], w.detach())
    assert relative_error(w.grad, exact) <= 1e-6


def test_same_call_same_bits_and_no_random_numbers_used() -> None:
    e, state = torch.logspace(-4, 0, 30, dtype=torch.float64), torch.get_rng_state()
    one, other = (qg.quad(peak, t64(0.0), t64(1.0), (e,), rtol=1e-8) for _ in range(2))
    assert torch.equal(one.value, other.value) and torch.equal(one.error, other.error)
    assert torch.equal(one.nfev, other.nfev) and same_plan(one.plan, other.plan)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_state_is_kept_for_a_function() -> None:
    # Functions that are made and die in turn share their id.
    for k in range(20):
        f = lambda x, k=k: (x > k / 20).double() + k
        value = qg.quad(f, t64(0.0), t64(1.0), rtol=1e-6).value
        assert relative_error(value, 1 - k / 20 + k) <= 1e-6
        del f


@pytest.mark.parametrize("limit", (0.0, 2.0, -3.0))
def test_limit_of_a_half_line_has_a_finite_gradient(limit: float) -> None:
    a, b, p = leaf(limit), leaf(inf), leaf(1.5)
    gradient = torch.autograd.grad(integral(lambda x, p: torch.exp(-p * x), a, b, p), (a, b, p))
    tail = torch.exp(t64(-1.5 * limit))
    assert relative_error(gradient[0], -tail) <= 1e-12
    assert float(gradient[1]) == 0.0
    assert relative_error(gradient[2], -tail * (limit / 1.5 + 1 / 1.5**2)) <= 1e-11


@pytest.mark.parametrize("hole", (nan, inf, -inf))
@pytest.mark.parametrize("region", [(0.0, 0.01), (0.4, 0.45), (0.2, 0.9)])
def test_what_is_not_finite_is_not_zero(region: tuple[float, float], hole: float) -> None:
    f = lambda x: torch.where((x > region[0]) & (x < region[1]), hole, torch.exp(x))
    result = qg.quad(f, t64(0.0), t64(1.0), on_failure="ignore")
    assert result.status == qg.Status.NONFINITE


@pytest.mark.parametrize("end", (0.0, 1.0))
def test_the_place_is_named_beside_a_singular_end(end: float) -> None:
    f = Recorder(lambda x: torch.where((x - end).abs() < 1e-3, nan, (x - end).abs() ** -0.5))
    result = qg.quad(f, t64(0.0), t64(1.0), on_failure="ignore")
    assert not result.plan.even
    place = float(re.search(r"f\(x\) = nan at x = (\S+)", result.message)[1])
    assert abs(place - end) < 1e-3
    assert (f.nodes - place).abs().min() <= 1e-6 * place


def test_empty_and_reversed_intervals_cost_nothing_extra() -> None:
    f = Recorder(peak)
    empty = qg.quad(f, t64([0.3, 1.0]), t64([0.3, 1.0]), (t64(1e-3),))
    assert f.nodes.numel() <= 1 + 3  # the probe, and the look whether f mixes
    assert empty.nfev.tolist() == [0, 0] and empty.value.tolist() == [0.0, 0.0] and empty.converged.all()
    up, down = (qg.quad(peak, t64(a), t64(b), (t64(1e-3),)) for a, b in ((0.0, 1.0), (1.0, 0.0)))
    assert int(up.nfev) == int(down.nfev)
    assert float(up.value) == -float(down.value)


LIMITS = [(0.0, 1.0), (1.0, 0.0), (0.0, inf), (-inf, 1.0), (-1.0, 0.0), (-inf, inf)]


@pytest.mark.parametrize(("a", "b"), LIMITS)
@pytest.mark.parametrize("with_gradient", (False, True))
def test_f_is_never_called_at_the_limits(a: float, b: float, with_gradient: bool) -> None:
    f = Recorder(lambda x, p: torch.exp(-p * x**2) * x.abs() ** 0.5)
    value = qg.quad(f, t64(a), t64(b), (t64(1.0, requires_grad=with_gradient),), rtol=1e-10).value
    if with_gradient:
        value.backward()
    assert float(f.nodes.min()) > min(a, b)
    assert float(f.nodes.max()) < max(a, b)


def test_f_may_raise_at_the_limits() -> None:
    def f(x: Tensor) -> Tensor:
        if ((x <= 0) | (x >= 1)).any():
            raise ZeroDivisionError
        return torch.log(x) * torch.log1p(-x)

    result = qg.quad(f, t64(0.0), t64(1.0), rtol=1e-8)
    assert abs(float(result.value) - (2 - torch.pi**2 / 6)) <= float(result.error)


@pytest.mark.parametrize("default", (torch.float32, torch.float64))
def test_integer_limits_and_the_default_dtype(default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        result = qg.quad(lambda x: x**2, 0, torch.tensor(3))
        assert torch.get_default_dtype() is default
    finally:
        torch.set_default_dtype(before)
    assert result.value.dtype is default
    assert relative_error(result.value, 9.0) <= 1e-6


@pytest.mark.parametrize("default", (torch.float32, torch.float64))
@pytest.mark.parametrize("given", (torch.float32, torch.float64))
def test_the_default_dtype_does_not_enter_at_singular_ends(default: torch.dtype, given: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        p = torch.tensor([0.25, 0.45], dtype=given)
        pair = lambda x, p: torch.stack((x**-p, x**-p * torch.exp(-x)), dim=-1)
        for upper in (1.0, torch.inf):
            f = pair if upper == 1.0 else lambda x, p: pair(x, p) * torch.exp(-x)[..., None]
            result = qg.quad(f, 0.0, upper, (p,), rtol=1e-3)
            assert result.converged.all()
            assert result.value.dtype is result.error.dtype is given
    finally:
        torch.set_default_dtype(before)


def test_totals_are_summed_anew() -> None:
    # The first rounds' errors are 1e12 times the last ones': to subtract them leaves rounding, of any sign.
    result = qg.quad(lambda x: 1 / (x + 1e-12), t64(0.0), t64(1.0), rtol=1e-12)
    exact = torch.log1p(t64(1e12))
    assert result.converged
    assert abs(float(result.value - exact)) <= float(result.error)
    assert float(result.error) >= float(result.plan.error.sum()) * (1 - 1e-12)
    assert (result.plan.error >= 0).all()


@pytest.mark.parametrize("width", (1e-2, 1e-4))
def test_converging_exactly_at_the_budget(width: float) -> None:
    solve = lambda budget: qg.quad(
        peak, t64(0.0), t64(1.0), (t64(width),), rtol=1e-9, max_nfev=budget, on_failure="ignore"
    )
    free = solve(None)
    exact, short = solve(int(free.nfev)), solve(int(free.nfev) - 1)
    assert exact.status == qg.Status.CONVERGED
    assert torch.equal(exact.value, free.value) and same_plan(exact.plan, free.plan)
    assert short.status == qg.Status.MAX_NFEV
    assert int(short.nfev) < int(free.nfev)
    assert abs(float(short.value - free.value)) <= float(short.error)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * nan,
        lambda x: x + inf,
        lambda x: torch.where(x > 0.5, inf, -inf),
        lambda x: torch.where((x * 1e6).long() % 2 == 0, nan, x),
        lambda x: torch.stack((x, x * nan), dim=-1),
    ],
    ids=["nan", "inf", "inf and -inf", "nan at every other node", "nan in one component"],
)
def test_nan_neither_loops_nor_crashes(f) -> None:
    f = Recorder(f)
    result = qg.quad(f, t64(0.0), t64(1.0), on_failure="ignore")
    assert result.status == qg.Status.NONFINITE
    assert f.calls <= 100
    assert int(result.nfev) <= 100_000


@pytest.mark.parametrize(
    "f", [torch.exp, lambda x: 1 / (1 + 25 * x**2), lambda x: torch.sqrt(x + 1)], ids=["exp", "runge", "root"]
)
def test_float32_cannot_meet_1e_12_and_stops_soon(f) -> None:
    f = Recorder(f)
    result = qg.quad(f, torch.tensor(-1.0), torch.tensor(1.0), rtol=1e-12, on_failure="ignore")
    assert result.status == qg.Status.ROUNDOFF
    assert f.calls <= 20
    assert int(result.nfev) <= 2000


@pytest.mark.parametrize("zero", (0, 1))
def test_component_that_is_zero_costs_one_look(zero: int) -> None:
    e, keep = t64([1.0, 1e-3]), t64([1.0, 1.0])
    keep[zero] = 0.0
    result = qg.quad(lambda x, e: peak(x, e)[..., None] * keep, t64(0.0), t64(1.0), (e,), rtol=1e-9)
    alone = qg.quad(peak, t64(0.0), t64(1.0), (e,), rtol=1e-9)
    assert result.converged.all()
    looks = result.nfev - alone.nfev
    assert looks[0] == looks[1] < 350
    assert (result.value[:, zero] == 0).all()


def test_derivative_nobody_asked_for_does_not_set_the_mesh() -> None:
    # d/da is infinite at a = 0, d/dp is not.
    p = leaf(1.5)
    f = lambda x, p: p * x**-0.5
    with_gradient = qg.quad(f, t64(0.0), t64(1.0), (p,), rtol=1e-6)
    without = qg.quad(f, t64(0.0), t64(1.0), (t64(1.5),), rtol=1e-6)
    assert same_plan(with_gradient.plan, without.plan)
    assert torch.equal(with_gradient.nfev, without.nfev)
    (gradient,) = torch.autograd.grad(with_gradient.value, p)
    assert relative_error(gradient, 2.0) <= 1e-6


@pytest.mark.parametrize("rule", ("gk15", "gk21", "gk31", "gk41", "gk51", "gk61", "cc15", "cc31"))
def test_rules_are_computed_in_double_precision(rule: str) -> None:
    assert get_rule(rule).weights.dtype == np.float64
    qg.quad(torch.exp, torch.tensor(0.0), torch.tensor(1.0), rule=rule)  # leaves nothing narrow behind
    for power in (0, 1, 2, 7, 14):
        value = qg.quad(lambda x, k=power: x**k, t64(0.0), t64(1.0), rule=rule, rtol=1e-13).value
        assert abs(float(value) - 1 / (power + 1)) <= 1e-15


@pytest.mark.parametrize("mode", (qg.Reuse(), qg.Resolve(rtol=1e-5)), ids=("Reuse", "Resolve"))
def test_a_moving_singularity_is_right_where_marked_and_never_trusted_where_not(
    mode: qg.GradientMode,
) -> None:
    p, exact = leaf(0.3), 1.3**-0.5 - 0.7**-0.5
    f = lambda x, p: (x - p).abs() ** -0.5
    marked = qg.quad(f, -1.0, 1.0, (p,), points=p, rtol=1e-6, gradient=mode)
    assert relative_error(torch.autograd.grad(marked.value, p)[0], exact) <= 1e-6
    with pytest.warns(qg.UnmarkedJumpWarning, match="singular at x = 0.3"):
        bare = qg.quad(f, -1.0, 1.0, (p,), rtol=1e-6, gradient=mode, on_failure="ignore")
    (wrong,) = torch.autograd.grad(bare.value, p)
    assert abs(float(wrong) - exact) <= float(qg.gradient_error(bare, p))
    assert bare.derivative is None or not bool(bare.derivative.converged)


NARROW = {
    "lorentz": lambda x, c, w: w / ((x - c) ** 2 + w**2),
    "gauss": lambda x, c, w: torch.exp(-(((x - c) / w) ** 2)),
    "cusp": lambda x, c, w: torch.exp(-(x - c).abs() / w),
}


@pytest.mark.filterwarnings("ignore:the integrand (jumps|is singular)")  # between two neighbouring numbers
@pytest.mark.parametrize("compiled", (True, False))
@pytest.mark.parametrize("name", NARROW)
def test_peaks_as_narrow_as_spacings_of_single_precision_do_not_raise(
    name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(opening, "load", lambda: None)
    centres = (
        (61.102925, 5.2e-7, 50.0, 1e3),
        (71.554785, 9.2e-8, 61.554785, 1e3),
        (66.673937, 2.6e-7, 56.673937, 1e3),
    )
    for centre, width, a, b in (*centres, (67.402028, 6.4e-8, 57.402028, 68.402028)):
        for rtol in (None, 1e-4, 1e-6):
            c, w = torch.tensor([centre, 66.0]), torch.tensor([width, 1.0], requires_grad=True)
            ends = torch.tensor([a, b])
            result = qg.quad(NARROW[name], ends[0], ends[1], (c, w), rtol=rtol, on_failure="ignore")
            result.value[1].backward()
            exact = qg.quad(NARROW[name], *ends.double(), (c[1].double(), t64(1.0)), rtol=1e-12).value
            assert relative_error(result.value[1].double(), exact) <= 1e-4
            assert w.grad is not None and w.grad.isfinite().all()
