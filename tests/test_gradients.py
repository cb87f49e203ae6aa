"""Derivatives: against finite differences for every kind of input, and against closed forms.

`CASES` is the table: what is differentiated, and with respect to which inputs. gradcheck and gradgradcheck go
through all of it, forward mode and batched (vmapped) gradients included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import quadgrad as qg
from helpers import Recorder, integral, leaf, naive_sum, relative_error, t64


def damped(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(-p * x**2)


def wave(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return torch.exp(-p * x) * torch.cos(q * x)


def step(x: Tensor, s: Tensor, p: Tensor) -> Tensor:
    return torch.where(x > s, torch.exp(p * x), torch.sin(p * x))


def two_steps(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    return torch.where(x < s, torch.exp(x), torch.where(x < t, x**2, torch.cos(x)))


def trio(x: Tensor, p: Tensor) -> Tensor:
    return torch.stack((torch.exp(-p * x), torch.sin(p * x), x + 0 * p), dim=-1)


def phase(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(torch.complex(-x, p * x))


def score(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """Depend on one row y of data for each element of the batch."""
    return torch.exp(-(s / 2) * ((x[..., None] - y) ** 2).sum(-1))


@dataclass(frozen=True)
class Case:
    """A function of tensors that integrates, and the inputs at which it is differentiated."""

    name: str
    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]

    def leaves(self) -> tuple[Tensor, ...]:
        """Return fresh copies of the inputs that require grad."""
        return tuple(i.clone().requires_grad_() for i in self.inputs)

    def __str__(self) -> str:
        return self.name


def case(name: str, function: Callable[..., Tensor], *inputs: Tensor) -> Case:
    return Case(name, function, inputs)


P, Q = t64([0.5, 1.3, 2.0]), t64([1.0, 0.3, 2.5])
LOW, HIGH = t64([[0.1], [-0.4]]), t64([1.2, 0.9])
MIXED_LOW, MIXED_HIGH = t64([-inf, 0.3, -inf, 0.5]), t64([inf, inf, 0.8, 1.5])
ROWS = t64([[0.1, 0.4, 1.0], [0.0, 0.7, 0.2]])

CASES = (
    case("args", lambda p, q: integral(wave, 0.2, 1.3, p, q), P, Q),
    case("args broadcast", lambda p, q: integral(wave, 0.2, 1.3, p, q), P[:2, None], Q[:2]),
    case("args on the half-line", lambda p, q: integral(wave, 0.2, inf, p, q), P + 0.5, Q),
    case("args on the whole line", lambda p: integral(damped, -inf, inf, p), P),
    case("limits", lambda a, b: integral(damped, a, b, 1.5), LOW, HIGH),
    case("reversed limits", lambda a, b: integral(damped, a, b, 1.5), HIGH, LOW[:, 0]),
    case("limits and args", lambda a, b, p: integral(damped, a, b, p), LOW[0], HIGH, P[:2]),
    case("equal limits", lambda a, b, p: integral(damped, a, b, p), t64(0.4), t64(0.4), t64(1.1)),
    case("lower limit of a half-line", lambda a, p: integral(damped, a, inf, p), LOW[:, 0], P[:2]),
    case("upper limit of a half-line", lambda b, p: integral(damped, -inf, b, p), HIGH, P[:2]),
    case("mixed infinite limits", lambda a, b: integral(damped, a, b, 1.5), MIXED_LOW, MIXED_HIGH),
    case("breakpoint", lambda s: integral(step, -1.0, 1.0, s, P[:2], points=s[:, None]), t64([0.3, -0.2])),
    case("breakpoint and args", lambda s, p: integral(step, -1.0, 1.0, s, p, points=s), t64(0.3), P),
    case("breakpoint and limits", lambda a, b, s: integral(step, a, b, s, 0.7, points=s), -P[0], P[1], t64(0.2)),
    case("breakpoint on the half-line", lambda s: integral(step, 0.0, inf, s, -1.5, points=s), t64(0.6)),
    case("two breakpoints", lambda s, t: integral(two_steps, 0.0, 2.0, s, t, points=[s, t]), P[:2] / 2, P[:2]),
    case("breakpoint outside", lambda s: integral(damped, 0.0, 1.0, 1.5, points=s), t64(1.7)),
    case("event", lambda a, p: integral(trio, a, 1.0, p), t64([0.1, 0.3]), P[:2]),
    case("complex", lambda b, p: integral(phase, 0.0, b, p), t64([0.6, 1.1]), P[:2]),
    case("complex args", lambda w: integral(lambda x, w: torch.exp(w * x), 0.0, 1.0, w), torch.complex(P, Q)),
    case("complex on the half-line", lambda p: integral(phase, 0.0, inf, p), P[:2]),
    case("element", lambda y, s: integral(score, -2.0, 3.0, qg.element(y, ndim=1), s), ROWS, P[:2]),
    case("closure", lambda p: integral(lambda x: torch.exp(-p * x**2), 0.0, 1.0), t64(1.1)),
)
NOT_CONSTANT = [c for c in CASES if c.name != "breakpoint outside"]  # the gradient of that one is identically 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case: Case) -> None:
    assert gradcheck(
        case.function, case.leaves(), atol=1e-7, rtol=1e-6, check_forward_ad=True, check_batched_grad=True
    )


@pytest.mark.parametrize("case", NOT_CONSTANT, ids=str)
def test_gradgradcheck(case: Case) -> None:
    assert gradgradcheck(
        case.function, case.leaves(), atol=1e-6, rtol=1e-5, check_fwd_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("alpha", (1.5, 2.5))
@pytest.mark.parametrize("beta", (0.8, 3.5))
def test_beta_function_against_digamma(alpha: float, beta: float) -> None:
    p = t64([alpha, beta], requires_grad=True)
    value = integral(lambda x, a, b: x ** (a - 1) * (1 - x) ** (b - 1), 0.0, 1.0, p[0], p[1], rtol=1e-9)
    (gradient,) = torch.autograd.grad(value, p)
    exact = torch.exp(torch.lgamma(p.detach()).sum() - torch.lgamma(p.detach().sum()))
    log_gradient = torch.digamma(p.detach()) - torch.digamma(p.detach().sum())
    assert relative_error(value, exact) <= 1e-9
    assert relative_error(gradient, exact * log_gradient) <= 1e-7


def small_network() -> torch.nn.Module:
    """Return a fixed network from one number to one, in float64."""
    generator = torch.Generator().manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return network


@pytest.mark.parametrize("chunk_size", (None, 50))
@pytest.mark.parametrize("upper", (1.0, inf))
def test_network_against_the_naive_unrolled_sum(upper: float, chunk_size: int | None) -> None:
    network, scale = small_network(), t64([0.5, 1.0, 4.0], requires_grad=True)
    f = lambda x, c: network(x[..., None])[..., 0] * torch.exp(-c * x**2)
    a, b = t64(-0.3), t64(upper)
    result = qg.quad(f, a, b, (scale,), rtol=1e-10, chunk_size=chunk_size)
    naive = naive_sum(f, result.plan, a, b, (scale,))
    inputs = (*network.parameters(), scale)
    weight = t64([1.0, -2.0, 0.5])
    ours = torch.autograd.grad(result.value @ weight, inputs)
    theirs = torch.autograd.grad(naive @ weight, inputs)
    assert relative_error(result.value, naive) <= 1e-12
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()


def test_float_limits_and_module_parameters() -> None:
    network = small_network().float()
    qg.quad(lambda x: network(x[..., None])[..., 0], 0.0, 1.0, rtol=1e-5).value.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_singularity_that_moves_with_the_limit() -> None:
    b = leaf([0.5, 2.0])
    value = integral(lambda x, c: (c - x) ** -0.5, 0.0, b, b, rtol=1e-6)
    first = torch.autograd.grad(value.sum(), b, create_graph=True)[0]
    (second,) = torch.autograd.grad(first.sum(), b)
    exact = b.detach()
    assert relative_error(value, 2 * exact**0.5) <= 1e-6
    assert relative_error(first, exact**-0.5) <= 2e-6
    assert relative_error(second, -0.5 * exact**-1.5) <= 4e-6


def test_fixed_singularity_at_the_limit_has_an_infinite_derivative_and_says_so() -> None:
    a = leaf(0.0)
    with pytest.warns(qg.IntegrationWarning, match="infinite"):
        result = qg.quad(lambda x: x**-0.5, a, t64(1.0), rtol=1e-8)
        result.value.backward()
    assert relative_error(result.value, 2.0) <= 1e-8
    assert float(a.grad) == -inf


def test_fixed_singularity_leaves_the_other_gradients_alone() -> None:
    b, p = leaf(1.0), leaf(1.5)
    qg.quad(lambda x, p: p * x**-0.5, t64(0.0), b, (p,), rtol=1e-8).value.backward()
    assert relative_error(b.grad, 1.5) <= 1e-12
    assert relative_error(p.grad, 2.0) <= 1e-8


def test_unmarked_step_is_warned_about() -> None:
    s = leaf(0.3)
    with pytest.warns(qg.SeveredGradientWarning):
        value = qg.quad(lambda t, s: (t > s).double(), t64(-1.0), t64(1.0), (s,)).value
    assert relative_error(value, 0.7) <= 1e-7


@pytest.mark.parametrize("s", (-0.6, 0.0, 0.3, 1 / 3))
def test_step_of_an_indicator(s: float) -> None:
    s = leaf(s)
    result = qg.quad(lambda t, s: (t > s).double(), t64(-1.0), t64(1.0), (s,), points=s)
    result.value.backward()
    assert relative_error(result.value, 1 - s) <= 1e-12
    assert relative_error(s.grad, -1.0) <= 1e-12


def test_breakpoint_outside_or_missing_has_no_gradient() -> None:
    s = leaf([[0.25, 3.0], [-7.0, torch.nan]])
    with pytest.warns(qg.UnmarkedJumpWarning, match=r"x = 0\.25 \(integral 1\)"):
        value = qg.quad(lambda x: (x > 0.25).double(), t64(0.0), t64(1.0), points=s, rtol=1e-12).value
    assert value.shape == (2,)
    value[0].backward()
    assert relative_error(s.grad, t64([[-1.0, 0.0], [0.0, 0.0]])) <= 1e-12
    assert s.grad.count_nonzero() == 1


def test_idle_breakpoint_has_no_gradient() -> None:
    s = leaf(0.4)
    integral(damped, 0.0, 1.0, 1.5, points=s).backward()
    # The two sides are read 2^-40 of a piece away from the breakpoint: f' times that is left over.
    assert abs(float(s.grad)) <= 2**-38


@pytest.mark.parametrize("bent", (False, True))
@pytest.mark.parametrize("upper", (False, True))
def test_a_limit_computed_from_where_the_integrand_jumps_or_bends(bent: bool, upper: bool) -> None:
    """Rounding puts a fifth of the roots one spacing of numbers or more on the wrong side."""
    sign, s = -1.0 if upper else 1.0, leaf(torch.linspace(0.2, 3.0, 200, dtype=torch.float64))
    beyond = lambda x, s: torch.exp(0.37 * (x - 1.1)) - 7.3 * s
    jump = lambda x, s: (sign * beyond(x, s) > 0).to(x.dtype) * torch.exp(x)
    f = (lambda x, s: sign * torch.relu(sign * beyond(x, s))) if bent else jump
    root, far = torch.log(7.3 * s) / 0.37 + 1.1, t64(0.0 if upper else 12.0)
    value = integral(f, *((far, root) if upper else (root, far)), s if bent else s.detach())
    first = torch.autograd.grad(value.sum(), s, create_graph=True)[0]
    (second,) = torch.autograd.grad(first.sum(), s)
    with torch.no_grad():
        rate = 1 / (0.37 * s)  # of the root; that of the rate is -rate / s
        known = -7.3 * (far - root), 7.3 * rate
        known = known if bent else (-torch.exp(root) * rate, -torch.exp(root) * (rate**2 - rate / s))
    for ours, exact in zip((first, second), known, strict=True):
        assert ((ours - sign * exact).abs() <= 1e-10 * exact.abs().max()).all()


def test_infinite_limits_have_no_gradient() -> None:
    a, b = leaf([-inf, 0.3, -inf]), leaf([inf, inf, 0.8])
    integral(damped, a, b, 1.5).sum().backward()
    ends = torch.exp(t64(-1.5 * 0.3**2)), torch.exp(t64(-1.5 * 0.8**2))
    assert relative_error(a.grad, t64([0.0, -ends[0], 0.0])) <= 1e-12
    assert relative_error(b.grad, t64([0.0, 0.0, ends[1]])) <= 1e-12


CHUNKS = (1, 21, 50, 420, 10**9)


def gradients_with_chunk(chunk_size: int | None) -> tuple[Tensor, ...]:
    """Return the value and all kinds of first derivatives of one batch, some elements harder than others."""
    a, b, c, e, s = (
        leaf(0.1),
        leaf([1.0, 1.5, 0.7]),
        leaf([0.3, 0.4, 0.6]),
        leaf([0.2, 0.05, 0.1]),
        leaf(0.5),
    )
    f = lambda x, c, e, s: e / ((x - c) ** 2 + e**2) + (x > s)
    value = qg.quad(f, a, b, (c, e, s), points=s, rtol=1e-9, chunk_size=chunk_size).value
    return value.detach(), *torch.autograd.grad(value @ t64([1.0, -0.3, 2.0]), (a, b, c, e, s))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_gradients_do_not_depend_on_the_chunk(chunk_size: int) -> None:
    for chunked, whole in zip(gradients_with_chunk(chunk_size), gradients_with_chunk(None), strict=True):
        assert (chunked - whole).abs().max() <= 1e-12 * whole.abs().max()


def test_second_derivatives_do_not_depend_on_the_chunk() -> None:
    p = t64([0.5, 1.3])
    total = lambda chunk_size: lambda p: integral(damped, 0.0, p[1], p[0], chunk_size=chunk_size)
    reference = torch.autograd.functional.hessian(total(None), p)
    for chunk_size in CHUNKS:
        assert relative_error(torch.autograd.functional.hessian(total(chunk_size), p), reference) <= 1e-12


def test_chunks_bound_every_call_backward_included() -> None:
    f, p = Recorder(damped), leaf(torch.linspace(0.5, 40.0, 50))
    value = qg.quad(f, t64(0.0), t64(1.0), (p,), chunk_size=105).value
    value.sum().backward()
    assert f.largest_call <= 105


def test_gradient_and_value_share_one_plan() -> None:
    # Reuse costs one pass over the plan's nodes beyond search and the probe, never a second search.
    p = torch.linspace(0.5, 40.0, 100, dtype=torch.float64)
    plain, with_gradient = Recorder(damped), Recorder(damped)
    qg.quad(plain, t64(0.0), t64(1.0), (p,), rtol=1e-10)
    result = qg.quad(with_gradient, t64(0.0), t64(1.0), (p.requires_grad_(),), rtol=1e-10)
    extra = with_gradient.nodes.numel() - plain.nodes.numel()
    # The few nodes above that are those on which f is checked to be deterministic, and four a cell on which it
    # is looked at for unmarked jumps.
    assert 1.0 <= extra / (21 * result.plan.owner.numel()) <= 1.02 + 4 / 21


def test_no_replay_where_nothing_requires_grad() -> None:
    f = Recorder(damped)
    result = qg.quad(f, t64(0.0), t64(1.0), (t64([0.5, 40.0]),), rtol=1e-10)
    assert f.nodes.numel() == int(result.nfev.sum()) + 1 + 3  # and the probe, and the look whether f mixes
    with torch.no_grad():
        assert not qg.quad(damped, t64(0.0), t64(1.0), (leaf(1.0),)).value.requires_grad


def test_error_status_and_count_are_detached() -> None:
    result = qg.quad(damped, leaf(0.0), t64(1.0), (leaf(1.0),))
    assert result.value.requires_grad
    assert not any(t.requires_grad for t in (result.error, result.status, result.nfev))


def test_grad_of_other_leaves_is_untouched_by_a_call() -> None:
    p = leaf(1.0)
    p.grad = t64(7.0)
    qg.quad(damped, t64(0.0), t64(1.0), (p,), chunk_size=21)
    assert float(p.grad) == 7.0


@pytest.mark.parametrize("at", (0.0, 0.3))
@pytest.mark.parametrize("power", (0.3, 0.5, 0.6, 0.8, 0.9, 0.99))
def test_singularity_that_moves_with_the_limit_is_followed(power: float, at: float) -> None:
    a, p = leaf(at), leaf(power)
    value = qg.quad(lambda x, a, p: (x - a) ** -p, a, 1.0, (a, p)).value
    length = t64(1.0 - at)
    value.backward()
    assert relative_error(value, length ** (1.0 - power) / (1.0 - power)) <= 1e-11
    assert relative_error(a.grad, -(length**-power)) <= 1e-8
    assert relative_error(p.grad, value.detach() * (1.0 / (1.0 - power) - length.log())) <= 1e-10


@pytest.mark.parametrize(
    ("f", "closed_form"),
    [
        (lambda x, s: x**-s, lambda s: 1 / (1 - s)),
        (lambda x, s: (1 - x) ** -s, lambda s: 1 / (1 - s)),
        (lambda x, s: x**-s * torch.log(x), lambda s: -((1 - s) ** -2)),
    ],
    ids=["x^-s", "(1-x)^-s", "x^-s log(x)"],
)
@pytest.mark.parametrize("power", (0.3, 0.5, 0.9, 0.99))
def test_first_and_second_derivative_with_respect_to_the_strength_of_a_singular_end(f, closed_form, power) -> None:
    s, t = leaf(power), leaf(power)
    value, exact = qg.quad(f, 0.0, 1.0, (s,), rtol=1e-6).value, closed_form(t)
    for _ in range(3):
        assert relative_error(value, exact) <= 1e-8
        (value,), (exact,) = (torch.autograd.grad(y, x, create_graph=True) for y, x in ((value, s), (exact, t)))


def test_a_singular_limit_that_is_not_differentiated_does_not_matter_in_nested_transforms() -> None:
    s = t64([0.3, 0.5, 0.9])
    area = lambda s: qg.quad(lambda x, s: x**-s, 0.0, 1.0, (s,)).value
    _, together = torch.func.jvp(torch.func.vmap(area), (s,), (torch.ones_like(s),))
    each = torch.func.vmap(torch.func.jacfwd(area))(s)
    for slope in (together, each):
        assert relative_error(slope, (1 - s) ** -2) <= 1e-11


def test_infinite_derivative_in_forward_mode() -> None:
    area = lambda a: qg.quad(lambda x: x**-0.5, a, 1.0).value
    with pytest.warns(qg.IntegrationWarning, match="infinite"):
        assert torch.func.jacfwd(area)(t64(0.0)) == -inf


def test_value_of_a_divergent_integral_is_the_same_with_a_derivative() -> None:
    a = leaf(0.0)
    plain = qg.quad(lambda x: 1 / x, 0.0, t64(1.0), on_failure="ignore").value
    with pytest.warns(qg.IntegrationWarning):
        value = qg.quad(lambda x: 1 / x, a, t64(1.0), on_failure="ignore").value
    assert relative_error(value, plain) <= 1e-14
    value.backward()
    assert a.grad == -inf


def test_two_singular_breakpoints_that_move() -> None:
    p = leaf([0.3, 0.6])
    f = lambda x: (x - p[0]).abs() ** -0.25 + (x - p[1]).abs() ** -0.25
    qg.quad(f, 0.0, 1.0, points=p, rtol=1e-6).value.backward()
    exact = p.detach() ** -0.25 - (1 - p.detach()) ** -0.25
    assert relative_error(p.grad, exact) <= 1e-5


def test_infinite_derivative_of_a_limit_shared_by_part_of_the_batch() -> None:
    a = leaf([[0.0], [0.0], [0.0]])
    with pytest.warns(qg.IntegrationWarning, match="limit a is infinite"):
        value = qg.quad(lambda x, q: x**-q, a, 1.0, (t64([0.1, 0.2, 0.3, 0.4]),)).value
    value.sum().backward()
    assert (a.grad == -inf).all()


def test_singular_breakpoint_that_stays_is_refused_loudly() -> None:
    p = leaf(0.3)
    with pytest.warns(qg.IntegrationWarning, match="a breakpoint is infinite"):
        value = qg.quad(lambda x: (x - 0.3).abs() ** -0.25, 0.0, 1.0, points=p, rtol=1e-6).value
    value.backward()
    assert not torch.isfinite(p.grad)


@pytest.mark.parametrize("mode", [qg.Reuse(), qg.Resolve()])
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("a", [0.0, 1.0, [0.0, 0.0], [[1.0], [2.0]]])
@pytest.mark.parametrize(
    "f",
    [
        lambda x, p: x * p,
        lambda x, p: p / torch.sqrt(x),
        lambda x, p: torch.sqrt(x * p),
        lambda x, p: torch.stack([x * p, x - p], -1),
    ],
)
def test_over_nothing_but_empty_intervals_the_gradient_is_zero(f, a, chunk_size, mode) -> None:
    p = leaf(0.5)
    value = qg.quad(f, t64(a), t64(a), args=(p,), chunk_size=chunk_size, gradient=mode).value
    (first,) = torch.autograd.grad(value.sum(), p, create_graph=True)
    assert not value.any() and first == 0.0

    def total(p: torch.Tensor) -> torch.Tensor:
        return qg.quad(f, t64(a), t64(a), args=(p,), chunk_size=chunk_size, gradient=mode).value.sum()

    assert torch.func.hessian(total)(p.detach()) == 0.0


@pytest.mark.parametrize("options", [{}, {"chunk_size": 10}, {"log": True}])
@pytest.mark.parametrize("a", [[], 1.0, [1.0, 2.0]])
def test_over_nothing_a_captured_network_has_a_gradient_of_zero(a, options) -> None:
    net = torch.nn.Linear(1, 1, dtype=torch.float64)
    qg.quad(lambda x: net(x[..., None])[..., 0] ** 2, t64(a), t64(a), **options).value.sum().backward()
    assert net.weight.grad is not None and net.weight.grad == 0.0


@pytest.mark.parametrize("verb", [qg.qmc, qg.vegas])
def test_no_boxes_at_all_give_a_captured_network_a_gradient_of_zero(verb) -> None:
    net = torch.nn.Linear(2, 1, dtype=torch.float64)
    corners = torch.zeros(0, 2, dtype=torch.float64)
    verb(lambda x: net(x)[..., 0], corners, corners + 1.0, n=1024).value.sum().backward()
    assert net.weight.grad is not None and not net.weight.grad.any()


@pytest.mark.parametrize("place", [0.0, 1.0])
def test_an_infinite_derivative_of_an_empty_interval_is_refused_with_its_reason(place: float) -> None:
    with pytest.raises(qg.IntegrandError, match="f is infinite at a limit or breakpoint"):
        qg.quad(lambda x: 1.0 / torch.sqrt((x - place).abs()), t64(place), leaf(place))
