"""Laws that integrals obey, on random smooth integrands and intervals.

No tolerance is chosen here: two computations of one number may differ by the sum of their reported errors.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import quadgrad as qg
from helpers import cells_of, same_plan, t64


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


# rate, frequency, offset of an integrand; a limit; a factor that keeps digits
parameters = st.tuples(numbers(-2, 2), numbers(0, 30), numbers(-1, 1))
limit = numbers(-3, 3)
factor = numbers(-10, 10)
few = settings(max_examples=settings.default.max_examples // 4)  # for what takes many calls
peaks = st.lists(st.tuples(numbers(0, 1), numbers(-4, -1)), min_size=2, max_size=6)


def wave(p: tuple[float, float, float]):
    rate, frequency, offset = p
    return lambda x: torch.exp(rate * x) * torch.cos(frequency * x) + offset


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return e / ((x - c) ** 2 + e**2)


def solve(f, a: float, b: float, **options) -> qg.Result:
    options.setdefault("rtol", 1e-9)
    # An integral that nearly cancels may end with ROUNDOFF: its error is then larger, and no less honest.
    return qg.quad(f, t64(a), t64(b), on_failure="ignore", **options)


def agree(one: Tensor, other: Tensor, *errors: Tensor) -> bool:
    return bool((one - other).abs() <= sum(errors))


@given(parameters, parameters, factor, factor, limit, limit)
def test_linearity(p, q, alpha: float, beta: float, a: float, b: float) -> None:
    f, g = wave(p), wave(q)
    one, other = solve(f, a, b), solve(g, a, b)
    both = solve(lambda x: alpha * f(x) + beta * g(x), a, b)
    bound = both.error + abs(alpha) * one.error + abs(beta) * other.error
    assert agree(both.value, alpha * one.value + beta * other.value, bound)


@given(parameters, limit, limit, limit)
def test_interval_additivity(p, a: float, b: float, c: float) -> None:
    left, right, whole = solve(wave(p), a, b), solve(wave(p), b, c), solve(wave(p), a, c)
    assert agree(left.value + right.value, whole.value, left.error, right.error, whole.error)


@given(parameters, limit, limit)
def test_reversal_changes_the_sign_and_nothing_else(p, a: float, b: float) -> None:
    up, down = solve(wave(p), a, b), solve(wave(p), b, a)
    assert torch.equal(up.value, -down.value)
    assert torch.equal(up.error, down.error)
    assert torch.equal(up.nfev, down.nfev)
    assert same_plan(up.plan, down.plan)


@given(parameters, limit, limit, numbers(-2, 2), st.sampled_from((-4.0, -1.0, 0.25, 0.3, 3.0)))
def test_affine_change_of_variable(p, a: float, b: float, shift: float, scale: float) -> None:
    f = wave(p)
    plain = solve(f, a, b)
    moved = solve(lambda u: scale * f(scale * u + shift), (a - shift) / scale, (b - shift) / scale)
    # The new limits are rounded, so the integral over their rounding is allowed for.
    rounding = 2**-50 * max(abs(float(f(t64(x)))) for x in (a, b)) * 8
    assert agree(plain.value, moved.value, plain.error, moved.error, t64(rounding))


@few
@given(parameters, numbers(0.1, 5), limit)
def test_half_lines_add_to_the_whole_line(p, width: float, middle: float) -> None:
    _, frequency, offset = p
    f = lambda x: torch.exp(-((x / width) ** 2)) * (torch.cos(frequency / 10 * x) + offset)
    left, right = solve(f, -torch.inf, middle), solve(f, middle, torch.inf)
    whole = solve(f, -torch.inf, torch.inf)
    assert agree(left.value + right.value, whole.value, left.error, right.error, whole.error)


@given(parameters, limit, limit, st.lists(limit, min_size=1, max_size=4))
def test_idle_breakpoints_do_not_change_the_value(p, a: float, b: float, points: list[float]) -> None:
    plain, split = solve(wave(p), a, b), solve(wave(p), a, b, points=t64(points))
    assert agree(plain.value, split.value, plain.error, split.error)


@given(parameters, limit, limit, numbers(4, 100))
def test_breakpoint_outside_changes_no_bit(p, a: float, b: float, point: float) -> None:
    plain, outside = solve(wave(p), a, b), solve(wave(p), a, b, points=t64(point))
    assert torch.equal(plain.value, outside.value)
    assert torch.equal(plain.nfev, outside.nfev)


@few
@given(peaks)
def test_element_of_a_batch_is_the_single_call(peaks: list[tuple[float, float]]) -> None:
    centre, width = t64([c for c, _ in peaks]), t64([10**w for _, w in peaks])
    batch = qg.quad(peak, t64(0.0), t64(1.0), (centre, width), rtol=1e-8)
    for i in range(len(peaks)):
        single = qg.quad(peak, t64(0.0), t64(1.0), (centre[i], width[i]), rtol=1e-8)
        assert torch.equal(cells_of(batch.plan, i), cells_of(single.plan, 0))
        assert abs(batch.value[i] - single.value) <= 1e-13 * abs(single.value)
        assert batch.nfev[i] == single.nfev


@few
@given(peaks, st.randoms(use_true_random=False))
def test_order_of_a_batch_does_not_matter(peaks: list[tuple[float, float]], random) -> None:
    order = random.sample(range(len(peaks)), len(peaks))
    centre, width = t64([c for c, _ in peaks]), t64([10**w for _, w in peaks])
    plain = qg.quad(peak, t64(0.0), t64(1.0), (centre, width), rtol=1e-8)
    mixed = qg.quad(peak, t64(0.0), t64(1.0), (centre[order], width[order]), rtol=1e-8)
    assert torch.equal(mixed.nfev, plain.nfev[order])
    assert ((mixed.value - plain.value[order]).abs() <= 1e-13 * plain.value[order]).all()


@given(parameters, limit, limit)
def test_gradient_obeys_the_fundamental_theorem(p, a: float, b: float) -> None:
    f = wave(p)
    low, high = t64(a, requires_grad=True), t64(b, requires_grad=True)
    value = qg.quad(f, low, high, rtol=1e-9, on_failure="ignore").value
    gradient = torch.autograd.grad(value, (low, high))
    scale = abs(f(t64(a))) + abs(f(t64(b))) + 1
    assert abs(gradient[0] + f(t64(a))) <= 1e-12 * scale
    assert abs(gradient[1] - f(t64(b))) <= 1e-12 * scale


@given(st.lists(parameters, min_size=1, max_size=4), limit, limit)
def test_components_of_an_event_agree_with_single_integrals(ps, a: float, b: float) -> None:
    together = solve(lambda x: torch.stack([wave(p)(x) for p in ps], dim=-1), a, b)
    for component, p in zip(together.value, ps, strict=True):
        alone = solve(wave(p), a, b)
        assert agree(component, alone.value, together.error, alone.error)
