"""A plan kept from call to call: as honest as fresh calls, at a fraction of their evaluations."""

from __future__ import annotations

import math
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, vmap

import quadgrad as qg
from helpers import Recorder, leaf, relative_error, same_plan, t64
from quadgrad._core.reduce import total
from quadgrad._core.search.kernel import merging as native_merging
from quadgrad._core.search.kernel import opening
from quadgrad._core.verbs.merging import merge_worthwhile


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return e / ((x - c) ** 2 + e**2)


def area(c: Tensor, e: Tensor, b: Tensor | float = 1.0) -> Tensor:
    return torch.atan((b - c) / e) + torch.atan(c / e)


# ------------------------------------------------------------------------------------------- fitting a network


def make_network(seed: int) -> nn.Sequential:
    """Return a network from one number to one, wavy on [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.copy_(noise * (3.0 if parameter.shape[-1] == 1 else 0.25 if parameter.ndim == 2 else 1.0))
    return network


def fit_intensity(integrate: Any, upper: Tensor, steps: int = 200) -> tuple[list[float], int]:
    """Fit the intensity of a point process by maximum likelihood; return all losses and the nodes evaluated.

    The likelihood needs the integral of the intensity, a network's exponential.
    """
    network, draw = make_network(1), torch.Generator().manual_seed(2)
    places = torch.cat([0.3 + 0.05 * torch.randn(100, generator=draw), torch.rand(100, generator=draw)])
    events = places.clamp(0, 1).double()[:, None]
    f = Recorder(lambda x: torch.exp(network(x[..., None])[..., 0]))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = 200 * integrate(f, 0.0, upper).value.mean() - network(events).sum()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, f.nodes.numel()


@pytest.mark.parametrize(("upper", "rtol"), [(1.0, 1e-8), ([1.0, 0.5, 0.7], 1e-5)], ids=["one", "batch"])
def test_fit_of_a_network_in_half_the_evaluations(upper: Any, rtol: float) -> None:
    kept = qg.Integrator(qg.quad, rtol=rtol)
    fresh = lambda f, a, b: qg.quad(f, a, b, rtol=rtol)
    ours, spent = fit_intensity(kept, t64(upper))
    theirs, spent_fresh = fit_intensity(fresh, t64(upper))
    assert spent <= 0.5 * spent_fresh
    assert abs(ours[-1] - theirs[-1]) <= 1e-6 * abs(theirs[-1])
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 200 * rtol  # 200 is the loss's factor
    assert kept.calls == 200 and kept.started <= 5 and kept.refined <= 60


# ------------------------------------------------------------------------------------------------- honesty


@pytest.mark.parametrize("rtol", (1e-4, 1e-8))
def test_every_result_is_as_good_as_a_fresh_one(rtol: float) -> None:
    draw, kept = torch.Generator().manual_seed(3), qg.Integrator(qg.quad, rtol=rtol)
    for _ in range(60):  # each call asks for other peaks, many of them where the plan has no narrow cells
        u = torch.rand(2, 20, dtype=torch.float64, generator=draw)
        c, e, b = leaf(u[0]), leaf(10 ** (-4 * u[1])), leaf(0.5 + u[1])
        result = kept(peak, t64(0.0), b, (c, e))
        exact = area(c, e, b)
        assert result.converged.all()
        assert ((result.value - exact).abs() <= result.error).all()
        assert (result.error <= rtol * exact).all()
        ours, theirs = (torch.autograd.grad(v.sum(), (c, e, b)) for v in (result.value, exact))
        for one, other in zip(ours, theirs, strict=True):
            assert ((one - other).abs() <= rtol * 2 / e).all()  # the integral of the derivative's modulus


def test_plan_follows_a_peak_that_moves_and_widens() -> None:
    kept, sizes = qg.Integrator(qg.quad, rtol=1e-8), []
    for step in range(120):
        c, e = leaf(0.2 + 0.005 * step), leaf(10 ** (-3 + step / 40))
        result = kept(peak, t64(0.0), 1.0, (c, e))
        assert abs(float((result.value - area(c, e)).detach())) <= float(result.error)
        sizes.append(len(result.plan))
    final = len(qg.quad(peak, t64(0.0), 1.0, (c, e), rtol=1e-8).plan)
    assert max(sizes) >= 15 and sizes[-1] <= 2 * final + 1
    assert kept.calls == 120 and kept.refined > 0 and kept.coarsened > 0


def test_failure_is_still_reported() -> None:
    kept, p = qg.Integrator(qg.quad, rtol=1e-8, max_nfev=210), leaf(1e-4)
    for _ in range(3):
        with pytest.warns(qg.IntegrationWarning, match="max_nfev"):
            assert kept(peak, t64(0.0), 1.0, (t64(0.3), p)).status == qg.Status.MAX_NFEV
    with pytest.warns(qg.IntegrationWarning):
        assert qg.Integrator()(lambda x: p / x, t64(0.0), 1.0).status != qg.Status.CONVERGED


def test_noise_is_not_taken_for_a_change() -> None:
    draw, w, noise = torch.Generator().manual_seed(1), leaf(1.0), 0.0
    f = lambda x: w * torch.exp(x) * (1 + noise * torch.rand(x.shape, generator=draw, dtype=x.dtype))
    kept = qg.Integrator()
    kept(f, t64(0.0), 1.0)
    noise = 1e-3
    with pytest.raises(qg.IntegrandError, match="not deterministic"):
        kept(f, t64(0.0), 1.0)


# -- what fits, and what does not ------------------------------------------------------------------------


def test_fresh_plan_where_the_kept_one_does_not_fit() -> None:
    kept, p = qg.Integrator(), leaf([0.3, 0.6])
    decay = lambda x, p: torch.exp(-p * x)
    kept(decay, 0.0, 1.0, (p,))
    kept(decay, 0.0, 1.0, (p[0],))
    kept(decay, 0.0, inf, (p[0],))
    kept(decay, 0.0, inf, (p[0],), points=[1.0])
    kept(decay, 0.0, inf, (p[0],), points=[2.0])
    assert kept.calls == 5 and kept.started == 4
    assert relative_error(kept(decay, 0.0, inf, (p[0],)).value, 1 / p[0]) <= 1e-8


def test_limits_zeros_and_breakpoints_may_move() -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-10)
    f = lambda x, s: torch.exp(x) * (1.0 + (x > s))
    for place in (0.9, 0.7, 1.4, 0.4, -0.2, 0.5):  # leaves the interval on both sides
        s, b = leaf(place), leaf(1.0 + place / 10)
        result = kept(f, 0.0, b, (s,), jumps=lambda x, s: x - s)
        closed = lambda s, b: torch.exp(b) + torch.expm1(b) - torch.exp(torch.minimum(s.clamp(min=0.0), b))
        assert relative_error(result.value, closed(s, b)) <= 1e-12
        ours, exact = (torch.autograd.grad(v, (s, b)) for v in (result.value, closed(s, b)))
        assert max(float((x - y).abs()) for x, y in zip(ours, exact, strict=True)) <= 1e-10
    assert kept.started == 1


def test_chunks_and_nothing_to_differentiate() -> None:
    kept, f = qg.Integrator(qg.quad, chunk_size=42), Recorder(peak)
    for e in (0.1, 0.01, 0.012):
        result = kept(f, t64(0.0), 1.0, (t64([0.3, 0.6]), leaf(e)))
        result.value.sum().backward()
    assert f.largest_call <= 42
    assert not kept(peak, t64(0.0), 1.0, (t64([0.3, 0.6]), t64(0.01))).value.requires_grad
    assert kept.started == 1


def test_unmarked_jump_is_warned_about_once() -> None:
    kept, s = qg.Integrator(), leaf(0.3)
    f = lambda x: s * (x > 0.3)
    with pytest.warns(qg.UnmarkedJumpWarning):
        kept(f, t64(0.0), 1.0)
    for _ in range(3):
        kept(f, t64(0.0), 1.0)  # warnings are errors


# Torch hides this warning of its own, which it raises where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_step() -> None:
    torch.compiler.reset()
    kept, p = qg.Integrator(qg.quad, rtol=1e-10), leaf(1.3)
    step = torch.compile(lambda p: 3 * kept(lambda x, p: torch.exp(-p * x), 0.0, inf, (p,)).value, backend="eager")
    for _ in range(3):
        assert relative_error(torch.autograd.grad(step(p), p)[0], -3 / p**2) <= 1e-9
    assert kept.calls == 3 and kept.started == 1


# -- quad(plan=...) in one pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", (None, 63))
def test_kept_cells_are_evaluated_once(chunk_size: int | None) -> None:
    c, e = leaf([0.3, 0.6]), leaf([1e-2, 1e-1])
    first = qg.quad(peak, t64(0.0), 1.0, (c, e), chunk_size=chunk_size)
    f = Recorder(peak)
    again = qg.quad(f, t64(0.0), 1.0, (c, e), plan=first.plan, chunk_size=chunk_size)
    cells = torch.bincount(first.plan.owner)
    named = 2  # of each the centre and the width, which are between the limits
    assert f.nodes.numel() == 23 * len(first.plan) + 2 * named + 1  # with their edges; and the probe
    assert same_plan(first.plan, again.plan) and again.plan.inspected
    assert torch.equal(again.nfev, 23 * cells + named)
    assert relative_error(again.value, first.value) <= 1e-14
    assert relative_error(again.error, first.error) <= 1e-6
    for one, other in zip(*(torch.autograd.grad(r.value.sum(), (c, e)) for r in (first, again)), strict=True):
        assert relative_error(one, other) <= 1e-13


def test_only_integrals_that_need_it_are_searched_again() -> None:
    c, e = leaf([0.3, 0.6, 0.5]), t64([1e-2, 1e-1, 1e-1])
    plan = qg.quad(peak, t64(0.0), 1.0, (c, e), rtol=1e-8).plan
    e = leaf([1e-2, 1e-4, 1e-1])
    f = Recorder(peak)
    result = qg.quad(f, t64(0.0), 1.0, (c, e), plan=plan, rtol=1e-8)
    assert torch.equal(result.nfev[[0, 2]], 23 * torch.bincount(plan.owner)[[0, 2]] + 2)  # and at centre and width
    alone = Recorder(peak)
    qg.quad(alone, t64(0.0), 1.0, (c[1], e[1]), rtol=1e-8)
    twice = int((plan.owner == 1).sum())  # what was kept of the second one's cells is evaluated again to search
    assert f.nodes.numel() <= 23 * (len(plan) + twice) + alone.nodes.numel()
    assert ((result.value - area(c, e)).abs() <= result.error).all()
    for one, other in zip(*(torch.autograd.grad(v.sum(), (c, e)) for v in (result.value, area(c, e))), strict=True):
        assert ((one - other).abs() <= 1e-8 * 2 / e).all()


def test_plan_with_as_many_cells_as_integrals_but_not_one_each() -> None:
    b, e = t64([0.0, 1.0]), t64([0.5, 0.2])
    plan = qg.quad(peak, t64(0.0), b, (t64(0.3), e)).plan
    assert plan.row.tolist() == [1, 1]
    result = qg.quad(peak, t64(0.0), b, (t64(0.3), e), plan=plan)
    assert ((result.value - area(t64(0.3), e, b)).abs() <= result.error).all()


def test_plan_made_without_gradient_is_looked_at_for_jumps() -> None:
    s = leaf(0.3)
    f = lambda x: s * (x > 0.3)
    with torch.no_grad():
        plan = qg.quad(f, t64(0.0), 1.0).plan
    assert not plan.inspected
    with pytest.warns(qg.UnmarkedJumpWarning):
        qg.quad(f, t64(0.0), 1.0, plan=plan)


@pytest.mark.parametrize("transform", (grad, hessian, lambda f: lambda x: vmap(grad(f))(torch.stack((x, x)))[1]))
def test_kept_plans_inside_transforms(transform) -> None:
    theta = t64([0.3, 0.05])
    plan = qg.quad(peak, t64(0.0), 1.0, tuple(theta), rtol=1e-12).plan
    solve = lambda theta: qg.quad(peak, t64(0.0), 1.0, tuple(theta), rtol=1e-12, plan=plan).value
    exact = transform(lambda theta: area(*theta))(theta)
    assert (transform(solve)(theta) - exact).abs().max() <= 1e-10 * exact.abs().max()


def test_kept_plan_inside_a_transform_is_kept_outside_it() -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-10)
    solve = lambda c, e: kept(peak, t64(0.0), 1.0, (c, e)).value
    for _ in range(3):
        gradient = vmap(grad(solve))(t64([0.3, 0.5]), t64([0.1, 0.2]))
    assert kept.started == 1 and kept.refined <= 1
    exact = vmap(grad(area))(t64([0.3, 0.5]), t64([0.1, 0.2]))
    assert relative_error(gradient, exact) <= 1e-8
    assert relative_error(solve(t64(0.3), t64(0.1)), area(t64(0.3), t64(0.1))) <= 1e-9


# -- merging -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", (None, [0.4]))
def test_merging_siblings_undoes_bisection(points: list[float] | None) -> None:
    c, e = t64([0.3, 0.5, 0.9]), t64([1e-3, 1e-1, 1e-5])
    plan = qg.quad(peak, t64(0.0), 1.0, (c, e), points=points).plan
    assert plan.even
    everything = lambda plan: torch.ones(len(plan), dtype=torch.bool)
    sizes = [len(plan)]
    while True:
        total = torch.zeros(3, dtype=torch.float64)
        weights = plan.weights(0.0, 1.0, points).sum(0)
        assert (total.index_add(0, plan.owner, weights) - 1).abs().max() <= 1e-14  # covers [0, 1] without overlap
        plan = plan.merge(everything(plan))
        sizes.append(len(plan))
        if sizes[-1] == sizes[-2]:
            break
    assert sizes[-1] == 3 * plan.pieces and len(sizes) > 10
    assert (plan.start == 0).all() and (plan.stop == 1).all()


def test_merging_only_where_told() -> None:
    plan = qg.quad(peak, t64(0.0), 1.0, (t64(0.3), t64(1e-2))).plan
    assert len(plan.merge(torch.zeros(len(plan), dtype=torch.bool))) == len(plan)
    one = torch.arange(len(plan)) == plan.order[0]
    assert len(plan.merge(one)) == len(plan)


def test_merging_leaves_cells_alone_that_close_in_on_an_end() -> None:
    s = t64([0.3, 1.0, 0.5])
    plan = qg.quad(power, t64(0.0), 1.0, (s,), rtol=1e-10).plan

    def ends_of(plan: qg.Plan) -> set[tuple[float, ...]]:
        ends = plan.take(plan.kind > 0)
        assert torch.equal(plan.kind[plan.extrapolated] - 2, plan.column)
        columns = (ends.row, ends.start, ends.stop, ends.kind)
        return set(zip(*(column.tolist() for column in columns), strict=True))

    for mask in (torch.ones(len(plan), dtype=torch.bool), torch.arange(len(plan)) % 3 > 0):
        merged = plan.merge(mask)
        assert len(merged) < len(plan) and ends_of(merged) == ends_of(plan)
        for one, other in ((plan, merged), (merged, merged.merge(torch.ones(len(merged), dtype=torch.bool)))):
            sums = [p.weights(0.0, 1.0).sum(0) for p in (one, other)]
            each = [total(w, p.owner, 3) for w, p in zip(sums, (one, other), strict=True)]
            assert (each[0] - each[1]).abs().max() <= 1e-15
    exact = power_integral(s)
    assert relative_error(qg.replay(power, plan.merge(mask), t64(0.0), 1.0, (s,)), exact) <= 1e-6
    result = qg.quad(power, t64(0.0), 1.0, (s,), rtol=1e-10, plan=plan.merge(mask))
    assert ((result.value - exact).abs() <= result.error).all() and result.converged.all()


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("points", (None, [0.2]))
@pytest.mark.parametrize("singular", (False, True))
def test_kernel_merges_what_tensor_operations_merge(
    singular: bool, points: list[float] | None, dtype: torch.dtype
) -> None:
    numbers = torch.Generator().manual_seed(5)
    s = 0.3 + torch.rand(40, dtype=dtype, generator=numbers)
    f, args = (power, (s,)) if singular else (peak, (s, 10 ** (-4 * s)))
    plan = qg.quad(f, torch.zeros((), dtype=dtype), 1.0, args, points=points, rtol=1e-4, on_failure="ignore").plan
    assert bool(plan.kind.any()) or not singular
    merged, size = 0, torch.bincount(plan.owner, minlength=40)
    plan = plan.noted(inspected=True)
    for worth in (0.05, 0.1, 0.3):
        for scale in (0.0, 1e-6, 1e-3, 1.0, 1e3, 1e12):
            allowed = scale * torch.rand(40, dtype=dtype, generator=numbers)
            allowed[::7] = -1.0
            native_plan, left = native_merging.merge_native(plan, allowed, worth, size) or pytest.skip("no kernel")
            tensor_plan, count = merge_worthwhile(plan, allowed, worth, size)
            assert torch.equal(left, count) and len(native_plan) == len(tensor_plan) == int(count.sum())
            if len(tensor_plan) < len(plan):
                merged += 1
                assert native_plan.inspected == tensor_plan.inspected
                native_plan, tensor_plan = (p.take(p.order) for p in (native_plan, tensor_plan))
            assert same_plan(native_plan, tensor_plan)
            assert torch.equal(native_plan.kind, tensor_plan.kind)
            assert torch.allclose(native_plan.error, tensor_plan.error, rtol=1e-5, atol=0.0)
    assert merged >= 5


# -- singular ends -----------------------------------------------------------------------------------------


def power(x: Tensor, s: Tensor) -> Tensor:
    return x ** (s - 1) * torch.exp(-3 * x) + peak(x, t64(0.4), t64(1e-2))


def power_integral(s: Tensor) -> Tensor:
    series = [(-3.0) ** k / math.factorial(k) / (s + k) for k in range(40)]
    return torch.stack(series).sum(0) + area(t64(0.4), t64(1e-2))


@pytest.mark.parametrize("chunk_size", (None, 63))
@pytest.mark.parametrize("mirrored", (False, True))
def test_cells_that_close_in_on_an_end_are_kept(chunk_size: int | None, mirrored: bool) -> None:
    s = leaf([0.3, 0.5, 0.8])
    place = (lambda x, s: power(1 - x, s)) if mirrored else power
    options = {"rtol": 1e-9, "chunk_size": chunk_size}
    if mirrored:  # x is rounded where f is singular
        options["rtol"] = 1e-4
    first = qg.quad(place, t64(0.0), 1.0, (s,), **options)
    assert set(first.plan.kind.tolist()) >= {0, 1, 4}
    for change in (0.0, 0.01, 0.1):
        moved = leaf(s.detach() + change)
        f = Recorder(place)
        result = qg.quad(f, t64(0.0), 1.0, (moved,), plan=first.plan, **options)
        assert result.converged.all() and same_plan(first.plan, result.plan)
        assert torch.equal(result.plan.kind, first.plan.kind)
        assert f.nodes.numel() == int(result.nfev.sum()) + 1  # one pass, and the probe
        assert chunk_size is None or f.largest_call <= chunk_size
        exact = power_integral(moved)
        assert ((result.value - exact).abs() <= result.error).all()
        ours, theirs = (torch.autograd.grad(v.sum(), moved)[0] for v in (result.value, exact))
        assert relative_error(ours, theirs) <= (1e-3 if mirrored else 1e-8)


def test_kept_cells_at_an_end_that_no_longer_serve_are_searched() -> None:
    s = t64([0.9, 0.5])
    plan = qg.quad(power, t64(0.0), 1.0, (s,), rtol=1e-9).plan
    assert not plan.even
    s = leaf([0.05, 0.5])
    result = qg.quad(power, t64(0.0), 1.0, (s,), rtol=1e-9, plan=plan)
    exact = power_integral(s)
    assert ((result.value - exact).abs() <= result.error).all() and result.converged.all()
    assert int(result.nfev[1]) < int(result.nfev[0])
    ours, theirs = (torch.autograd.grad(v.sum(), s)[0] for v in (result.value, exact))
    assert relative_error(ours, theirs) <= 1e-6


def test_kept_plan_of_a_singular_integrand() -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-9)
    for step in range(60):
        s = leaf(0.3 + 0.01 * step)
        result = kept(power, t64(0.0), 1.0, (s,))
        exact = power_integral(s)
        assert result.converged and abs(float((result.value - exact).detach())) <= float(result.error)
        ours, theirs = (torch.autograd.grad(v, s)[0] for v in (result.value, exact))
        assert relative_error(ours, theirs) <= 1e-8
    assert kept.started == 1 and kept.refined <= 10


@pytest.mark.parametrize("transform", (grad, hessian, lambda f: lambda x: vmap(grad(f))(torch.stack((x, x)))[1]))
def test_kept_singular_ends_inside_transforms(transform) -> None:
    s = t64(0.4)
    plan = qg.quad(power, t64(0.0), 1.0, (s,), rtol=1e-12).plan
    assert not plan.even
    solve = lambda s: qg.quad(power, t64(0.0), 1.0, (s,), rtol=1e-10, plan=plan).value
    assert relative_error(transform(solve)(s), transform(power_integral)(s)) <= 1e-8


# -- what lies between a cell's edge and its outermost node --------------------------------------------------


@pytest.mark.parametrize("gradient", (True, False))
@pytest.mark.parametrize(
    ("f", "closed"),
    [
        pytest.param(lambda x, s, w: w * (x - s).abs(), lambda s: (s**2 + (1 - s) ** 2) / 2, id="kink"),
        pytest.param(lambda x, s, w: w * (1 + (x > s).double()), lambda s: 2 - s, id="step"),
    ],
)
@pytest.mark.filterwarnings("ignore::quadgrad.UnmarkedJumpWarning")
def test_what_moves_between_the_nodes_of_a_kept_plan_is_seen(f: Any, closed: Any, gradient: bool) -> None:
    # Nodes alone miss 1 % of these.
    draw = torch.Generator().manual_seed(5)
    before = 0.05 + 0.9 * torch.rand(4000, generator=draw, dtype=torch.float64)
    weight = torch.ones((), dtype=torch.float64, requires_grad=gradient)
    plan = qg.quad(f, t64(0.0), 1.0, (before, weight), rtol=1e-4).plan
    for change in (0.0, 1e-3, 1e-2):
        s = (before + change * torch.randn(4000, generator=draw, dtype=torch.float64)).clamp(0.01, 0.99)
        result = qg.quad(f, t64(0.0), 1.0, (s, weight), rtol=1e-4, plan=plan)
        assert result.converged.all()
        assert ((result.value - closed(s)).abs() <= result.error).all()


def test_infinite_derivative_of_a_limit_beside_an_integral_that_is_refined() -> None:
    a, e = leaf([0.0, 0.0]), leaf([0.5, 1e-4])
    f = lambda x, e: x**-0.2 + peak(x, 0.3, e)
    plan = qg.quad(f, t64([0.0, 0.0]), 1.0, (t64([0.5, 0.5]),)).plan
    with pytest.warns(qg.IntegrationWarning, match="limit a is infinite"):
        result = qg.quad(f, a, 1.0, (e,), plan=plan)
    to_limit, to_width = torch.autograd.grad(result.value.sum(), (a, e))
    assert (to_limit == -inf).all()
    (exact,) = torch.autograd.grad(area(t64(0.3), e).sum(), e)
    assert relative_error(to_width, exact) <= 1e-6


def test_empty_batch() -> None:
    integrate = qg.Integrator()
    for count in (0, 3, 0):
        assert integrate(lambda x, c: c * x, 0.0, 1.0, args=(torch.ones(count),)).value.shape == (count,)


@pytest.mark.parametrize("engine", ["kernel", "tensors"])
@pytest.mark.parametrize("chunk_size", [21, 200, 10**6])
def test_tiles_with_nothing_left_to_search_add_nothing_to_a_kept_plan(engine, chunk_size, monkeypatch) -> None:
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)

    def peaks(x, e):
        return e / ((x - 0.3) ** 2 + e**2)

    def integrate(e, plan):
        return qg.quad(peaks, 0.0, 1.0, (e,), plan=plan, rtol=1e-10, chunk_size=chunk_size)

    wide = torch.full((100,), 0.05, dtype=torch.float64)
    plan = integrate(wide, None).plan
    e = wide.clone()
    e[3] = 1e-3
    e.requires_grad_()
    result = integrate(e, plan)
    exact = torch.atan(0.7 / e) + torch.atan(0.3 / e)
    for value in (result.value, qg.replay(peaks, result.plan, 0.0, 1.0, (e,)), integrate(e, result.plan).value):
        assert relative_error(value, exact) < 1e-9
    others = torch.arange(100) != 3
    assert torch.equal(result.plan.owner.bincount()[others], plan.owner.bincount()[others])
