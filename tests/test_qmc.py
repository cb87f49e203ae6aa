"""Quasi-Monte Carlo: value, error and gradient against exact integrals, and what is said where that fails."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.problems.genz import FAMILIES, draw
from helpers import leaf, t64

SIDE = 2.0


def bell(x: Tensor, s: Tensor) -> Tensor:
    return torch.exp(-s * (x**2).sum(-1))


def bell_integral(s: Tensor, d: int) -> Tensor:
    """Over [-SIDE / 2, SIDE]^d."""
    root = s.sqrt()
    return (math.sqrt(math.pi) / (2 * root) * (torch.erf(root * SIDE) + torch.erf(root * SIDE / 2))) ** d


def gauss(s: Tensor | float, d: int, **options: Any) -> qg.Result:
    return qg.qmc(bell, [-SIDE / 2] * d, SIDE, (torch.as_tensor(s, dtype=torch.float64),), **options)


# ------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("sequence", ("sobol", "lattice", "random"))
@pytest.mark.parametrize("d", (1, 2, 5))
def test_converged_values_are_right(sequence: str, d: int) -> None:
    s = t64([0.1, 0.3, 1.0])
    rtol = 1e-2 if sequence == "random" else 1e-3
    result = gauss(s, d, sequence=sequence, rtol=rtol, n=2**20)
    exact = bell_integral(s, d)
    assert result.converged.all()
    assert (result.error <= rtol * result.value).all()
    # The error is an interval at 99 %; the tolerance itself is met.
    assert ((result.value - exact).abs() <= rtol * exact).all()
    assert ((result.value - exact).abs() <= 2 * result.error.clamp_min(1e-13)).all()


def test_elements_stop_on_their_own_and_equal_single_calls() -> None:
    s = t64([0.01, 0.5, 3.0])
    result = gauss(s, 3, rtol=1e-4)
    assert result.nfev.unique().numel() > 1 and torch.equal(result.plan.n * 16, result.nfev)
    for i in range(3):
        alone = gauss(s[i], 3, rtol=1e-4)
        assert alone.nfev == result.nfev[i]
        torch.testing.assert_close(alone.value, result.value[i], rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("d", (2, 4, 8))
def test_intervals_hold_the_truth(family: str, d: int) -> None:
    problem = draw(family, d, 5, seed=d)
    args = (qg.element(problem.c, 1), qg.element(problem.u, 1))
    seeds = 60
    results = [qg.qmc(problem.f, [0.0] * d, 1.0, args, n=2**12, seed=seed) for seed in range(seeds)]
    error = torch.stack([r.value - problem.exact for r in results]).abs()
    width = torch.stack([r.error for r in results])
    # 300 intervals at 99 %: fewer than 96 % would have a chance below 1e-4 if they were independent.
    assert (error <= width).double().mean() >= 0.96
    assert (width.median(0).values <= 3.8 * error.square().mean(0).sqrt()).all()


def test_a_hard_corner_does_not_converge_to_something_wrong() -> None:
    """With one round, or without counting effective samples, 20 of 48 were wrong."""
    for seed in range(12):
        problem = draw("corner peak", 8, 4, seed=seed, difficulty=37.5)
        args = (qg.element(problem.c, 1), qg.element(problem.u, 1))
        result = qg.qmc(problem.f, [0.0] * 8, 1.0, args, n=2**15, rtol=1e-2, seed=seed, on_failure="ignore")
        assert not (result.converged & ((result.value / problem.exact - 1).abs() > 1e-2)).any()


def test_a_sample_converges_where_two_rounds_in_a_row_meet_the_tolerance() -> None:
    """One round that looks good is luck too often: 12 of 8,384 integrals were wrong."""
    s, rtol = t64([0.1, 0.3, 0.5, 1.0]), 1e-3
    for seed in range(8):
        result = gauss(s, 3, rtol=rtol, seed=seed)
        assert result.converged.all()
        rounds = torch.stack([gauss(s, 3, n=n, seed=seed).error for n in (2**k for k in range(11, 19))])
        met = rounds <= rtol * bell_integral(s, 3) * (1.0 + 1e-2)
        for i in range(len(s)):
            last = int(result.nfev[i]).bit_length() - 12
            assert last > 0 and met[last - 1, i] and met[last, i]


@pytest.mark.parametrize("scale", (1e-300, 1e-200, 1.0, 1e200))
def test_size_of_values_does_not_matter(scale: float) -> None:
    result = qg.qmc(lambda x: scale * torch.exp(-x.sum(-1)), t64([0.0] * 2), 1.0, rtol=1e-4)
    exact = scale * (1 - math.exp(-1)) ** 2
    assert result.converged and abs(float(result.value) - exact) <= float(result.error)


def test_what_no_sample_saw_does_not_converge() -> None:
    needle = lambda x: torch.where(((x - 0.123456) ** 2).sum(-1) < 1e-12, 1e9, 0.0)
    zero = lambda x: torch.zeros_like(x[..., 0])
    parts = lambda x: torch.stack((torch.exp(x.sum(-1)), needle(x)), dim=-1)
    for f in (needle, zero, parts):
        result = qg.qmc(f, [0.0] * 3, 1.0, rtol=1e-2, atol=1e-2, n=2**14, on_failure="ignore")
        assert result.status == qg.Status.MAX_NFEV


def test_events_complex_values_and_constant_integrands() -> None:
    wave = lambda x, k: torch.exp(1j * k * x.sum(-1))
    k = t64([1.0, 2.0])
    result = qg.qmc(wave, [0.0, 0.0], 1.0, (k,), rtol=1e-4)
    exact = (torch.expm1(1j * k) / (1j * k)) ** 2
    assert result.converged.all() and ((result.value - exact).abs() <= result.error).all()
    moments = qg.qmc(lambda x: torch.stack((x[..., 0], x[..., 0] * x[..., 1] ** 2), -1), [0.0, 0.0], 1.0, rtol=1e-4)
    assert ((moments.value - t64([0.5, 1 / 6])).abs() <= moments.error).all() and moments.error.shape == ()
    one = qg.qmc(lambda x: torch.ones_like(x[..., 0]), t64([0.0, 0.0]), 2.0, rtol=1e-10)
    assert one.converged and abs(float(one.value) - 4.0) <= float(one.error) < 1e-12
    rounded = qg.qmc(lambda x: torch.ones_like(x[..., 0]), t64([0.0, 0.0]), 2.0, rtol=1e-18, on_failure="ignore")
    assert rounded.status == qg.Status.ROUNDOFF


@pytest.mark.parametrize(
    ("a", "b", "exact"),
    (
        ([0.0, 0.0], [torch.inf, 1.0], math.sqrt(math.pi) / 2 * 0.7468241328124271),
        ([-torch.inf, -torch.inf], torch.inf, math.pi),
        ([-torch.inf, 1.0], [0.0, torch.inf], math.sqrt(math.pi) / 2 * 0.13940279264033098),
        ([torch.inf, 0.0], [0.0, 1.0], -math.sqrt(math.pi) / 2 * 0.7468241328124271),
        ([1.0, 1.0], [0.0, 0.0], 0.7468241328124271**2),
        ([1.0, 0.0], [0.0, 1.0], -(0.7468241328124271**2)),
        ([0.5, 0.0], [0.5, 1.0], 0.0),
    ),
)
def test_sides(a: Any, b: Any, exact: float) -> None:
    f = lambda x: torch.exp(-(x**2).sum(-1))
    result = qg.qmc(f, a, torch.as_tensor(b, dtype=torch.float64), rtol=1e-4)
    assert result.converged and abs(float(result.value) - exact) <= float(result.error) + 1e-15


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize(("lower", "upper"), ((0.0, 1.0), (100.0, 101.0), (-1.0, 0.0)))
def test_f_is_never_called_at_the_limits(dtype: torch.dtype, lower: float, upper: float) -> None:
    a, b = torch.full((2,), lower, dtype=dtype), torch.full((2,), upper, dtype=dtype)
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.amin().minimum(x.amax()))
        assert x.dtype == dtype and bool(((x > lower) & (x < upper)).all())
        return ((x - lower) * (upper - x)).rsqrt().prod(-1)

    result = qg.qmc(f, a, b, n=2**20)
    assert seen and result.value.dtype == dtype and result.value.isfinite()


# ------------------------------------------------------------------------------------------ fixed samples, options


def test_a_fixed_sample_has_a_status_and_no_warning() -> None:
    result = gauss(0.5, 3, n=1000)
    assert result.status == qg.Status.SAMPLED and not result.converged
    assert result.nfev == 1024 and "n=1,000 was rounded up to 1,024: 16 replicates of 64 points" in result.message
    assert "rounded" not in gauss(0.5, 3, n=1024).message
    assert gauss(0.5, 3, n=1000, sequence="random").nfev == 1008


def test_same_seed_same_bits_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (gauss(0.5, 3, n=2**12, seed=seed).value for seed in (7, 7, 8))
    assert torch.equal(first, again) and first != other
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("chunk_size", (1, 100, 4096, None))
def test_chunks_bound_what_f_sees(chunk_size: int | None) -> None:
    sizes: list[int] = []

    def f(x: Tensor, s: Tensor) -> Tensor:
        y = bell(x, s)
        sizes.append(y.numel())
        return y

    s = leaf([0.5, 1.0])
    result = qg.qmc(f, [0.0] * 2, 1.0, (s,), n=512, chunk_size=chunk_size)
    torch.autograd.grad(result.value.sum(), s)
    # At least one point of each replicate at a time.
    assert max(sizes) <= max(16, chunk_size or 2**14)
    plain = qg.qmc(bell, [0.0] * 2, 1.0, (s,), n=512)
    torch.testing.assert_close(result.value, plain.value, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    (
        ({"sequence": "halton"}, ValueError, "'sobol', 'lattice', 'random'"),
        ({"replicates": 1}, ValueError, "replicates=1"),
        ({"n": 0}, ValueError, "n=0"),
        ({"n": 1.5}, ValueError, "n=1.5"),
        ({"confidence": 1.0}, ValueError, "confidence=1.0"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"rtol": -1.0}, ValueError, "rtol=-1.0"),
        ({"chunk_size": 0}, ValueError, "chunk_size=0"),
        ({"on_failure": "shout"}, ValueError, "on_failure='shout'"),
        ({"gradient": "reuse"}, TypeError, "gradient"),
        ({"plan": qg.quad(torch.sin, 0.0, 1.0).plan}, TypeError, "plan of points"),
    ),
)
def test_bad_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        gauss(0.5, 2, **options)


@pytest.mark.parametrize(
    ("a", "b", "error", "text"),
    (
        (0.0, 1.0, ValueError, "single numbers"),
        ([0.0, math.nan], 1.0, ValueError, r"limit a is NaN at index \(1,\)"),
        ([0.0, 0.0], [1.0, 1.0, 1.0], ValueError, "last dimension"),
        (t64([0.0, 0.0]) + 0j, 1.0, TypeError, "complex"),
        ([0.0] * 5000, 1.0, ValueError, "4,096"),
        (torch.zeros(2, 3), torch.ones(4, 3), ValueError, "broadcast"),
    ),
)
def test_bad_limits(a: Any, b: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        qg.qmc(lambda x: x.sum(-1), a, b)


def test_values_that_are_not_finite_are_counted() -> None:
    hole = lambda x: torch.where(x[..., 0] < 0.25, torch.nan, 1.0)
    result = qg.qmc(hole, [0.0, 0.0], 1.0, n=1024, on_failure="ignore")
    assert result.status == qg.Status.NONFINITE and result.value.isnan()
    assert "f was NaN or infinite at 256 of 1,024 points" in result.message
    with pytest.warns(qg.IntegrationWarning, match="256 of 1,024"):
        qg.qmc(hole, [0.0, 0.0], 1.0, n=1024)
    with pytest.raises(qg.IntegrationError, match="NaN or infinite"):
        qg.qmc(hole, [0.0, 0.0], 1.0, n=1024, on_failure="raise")


def test_what_f_returns_is_checked() -> None:
    with pytest.raises(qg.IntegrandError, match=r"expected x.shape\[:-1\] = .*x\[..., i\]"):
        qg.qmc(lambda x: x.sum(), [0.0, 0.0], 1.0)
    with pytest.raises(qg.IntegrandError, match="not deterministic"):
        w = leaf(1.0)
        qg.qmc(lambda x: w * torch.rand(x.shape[:-1], dtype=x.dtype), [0.0, 0.0], 1.0, n=64)
    s = leaf(1.0)
    with pytest.warns(qg.SeveredGradientWarning, match=r"args\[0\]"):
        qg.qmc(lambda x, s: x[..., 0] * s.item(), [0.0, 0.0], 1.0, (s,), n=64)


def test_functions_of_one_point() -> None:
    s = leaf([0.5, 1.0])
    f = lambda x, s: math.exp(-x[0]) * (x[1] + s)
    result = qg.qmc(f, [0.0, 0.0], 1.0, (s.detach(),), n=64, vectorized=False)
    tensors = qg.qmc(lambda x, s: torch.exp(-x[..., 0]) * (x[..., 1] + s), [0.0, 0.0], 1.0, (s,), n=64)
    torch.testing.assert_close(result.value, tensors.value.detach(), rtol=1e-13, atol=0.0)
    slope = qg.qmc(f, [0.0, 0.0], 1.0, (s,), n=64, vectorized=False).value.sum()
    torch.testing.assert_close(*(torch.autograd.grad(v, s)[0] for v in (slope, tensors.value.sum())))


def test_empty_batch() -> None:
    result = gauss(torch.zeros(0), 2, rtol=1e-2)
    assert result.value.shape == result.error.shape == (0,) and result.plan.batch == 0


# -------------------------------------------------------------------------------------------------------- plans


def test_plan_holds_no_points_and_is_continued(tmp_path: Path) -> None:
    small, large = gauss(0.5, 3, n=2**8), gauss(0.5, 3, n=2**16)
    bytes_of = lambda plan: len(_saved(plan, tmp_path).read_bytes())
    assert bytes_of(small.plan) == bytes_of(large.plan) < 3000
    loaded = torch.load(_saved(small.plan, tmp_path), weights_only=True)
    again = gauss(0.5, 3, n=2**16, plan=loaded)
    assert torch.equal(again.value, large.value)
    assert len(repr(loaded).splitlines()) <= 10 and "sobol" in repr(loaded)
    fresh = gauss(0.5, 3, n=2**16, plan=loaded, seed=5)
    assert fresh.value != large.value and fresh.plan.seed == 5


def _saved(plan: qg.Plan, folder: Path) -> Path:
    torch.save(plan, folder / "plan.pt")
    return folder / "plan.pt"


def test_a_passed_plan_is_checked() -> None:
    plan = gauss(t64([0.3, 2.0]), 3, rtol=1e-2).plan
    with pytest.raises(ValueError, match="3 dimensions, the integral 2"):
        gauss(t64([0.3, 2.0]), 2, plan=plan)
    with pytest.raises(ValueError, match=r"batch is \(2,\)"):
        gauss(0.3, 3, plan=plan)
    harder = gauss(t64([0.3, 2.0]), 3, plan=plan, rtol=1e-4)
    assert harder.converged.all() and (harder.plan.n > plan.n).any()


def test_kept_plans() -> None:
    integrate = qg.Integrator(qg.qmc, rtol=1e-3)
    s = leaf([0.3, 0.6])
    for step in range(25):
        result = integrate(bell, [-SIDE / 2] * 3, SIDE, (s + 0.01 * step,), seed=step)
        assert result.converged.all()
        exact = bell_integral(s + 0.01 * step, 3)
        assert ((result.value - exact).abs() <= 1e-3 * exact).all()
    assert integrate.calls == 25 and integrate.started == 1 and len(repr(integrate).splitlines()) <= 10
    twice = [integrate(bell, [-SIDE / 2] * 3, SIDE, (s,), seed=3).value for _ in range(2)]
    assert torch.equal(*twice)
    with pytest.raises(TypeError, match="rtol is an option"):
        integrate(bell, [-SIDE / 2] * 3, SIDE, (s,), rtol=1e-2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'points'"):
        qg.Integrator(qg.qmc, points=0.5)
    with pytest.raises(TypeError, match="args is no option of an integrator"):
        qg.Integrator(qg.qmc, args=(s,))


@pytest.mark.parametrize("verb", (qg.qmc, qg.vegas))
def test_what_only_cells_have_is_refused_with_a_sentence(verb: Any) -> None:
    f = lambda x: torch.exp(-(x**2).sum(-1))
    with pytest.raises(ValueError, match="log=True is for quad.*divided by exp"):
        verb(f, [0.0, 0.0], 1.0, log=True)
    with pytest.raises(TypeError, match="a plan of points has no cells"):
        verb(f, [0.0, 0.0], 1.0, n=2**10, on_failure="ignore").plan.plot(f)


def test_n_may_be_given_as_a_float_and_is_told_as_a_number() -> None:
    results = [gauss(0.3, 3, n=n) for n in (1e4, 10_000)]
    assert torch.equal(results[0].value, results[1].value)
    assert "n=10,000 was rounded up to 16,384" in results[0].message
    with pytest.raises(ValueError, match="n=10000.5 must be a positive whole number"):
        gauss(0.3, 3, n=10_000.5)


# ----------------------------------------------------------------------------------------------------- gradients


def test_gradients_of_arguments_and_of_what_f_closes_over() -> None:
    s = leaf([0.3, 1.0])
    exact = torch.autograd.grad(bell_integral(s, 3).sum(), s)[0]
    result = gauss(s, 3, rtol=1e-4)
    (slope,) = torch.autograd.grad(result.value.sum(), s, retain_graph=True)
    error = qg.gradient_error(result, s)
    assert ((slope - exact).abs() <= error).all() and (error < 1e-2 * exact.abs()).all()
    w = leaf(1.0)
    closed = qg.qmc(lambda x: bell(x, w), t64([-SIDE / 2] * 3), SIDE, rtol=1e-4)
    (slope,) = torch.autograd.grad(closed.value, w, retain_graph=True)
    assert (slope - exact[1]).abs() <= qg.gradient_error(closed, w)


def test_the_backward_pass_is_that_of_the_plain_sum() -> None:
    """Against the unrolled mean over the plan's points, which autograd sees."""
    s, a = leaf([0.3, 1.0]), leaf([-1.0, -0.5])
    net = torch.nn.Linear(2, 1, dtype=torch.float64)
    f = lambda x, s: bell(x, s) * torch.tanh(net(x)[..., 0])
    result = qg.qmc(f, a, 2.0, (s,), rtol=1e-2, n=2**15, on_failure="ignore")
    inputs = (s, a, *net.parameters())
    ours = torch.autograd.grad(result.value.sum(), inputs)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(2):
        one = result.plan.take(torch.tensor([i]))
        u = one.unit_points(0, int(one.n))[0]
        x = a + u * (2.0 - a)
        total = total + (f(x, s[i]) * (2.0 - a).prod()).mean()
    for own, known in zip(ours, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(own, known, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.value.sum(), total, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("chunk_size", (None, 64))
def test_gradcheck(chunk_size: int | None) -> None:
    w = leaf(0.7)
    value = lambda s, a, b, w: (
        qg.qmc(lambda x, s: bell(x, s) * torch.cos(w * x[..., 0]), a, b, (s,), n=256, chunk_size=chunk_size).value
    )
    inputs = (leaf([0.5, 1.0]), leaf([-1.0, 0.0]), leaf([1.0, 2.0]), w)
    assert torch.autograd.gradcheck(value, inputs) and torch.autograd.gradgradcheck(value, inputs)


def test_limits_and_infinite_sides_have_gradients() -> None:
    a, rate = leaf([0.5, 0.0]), leaf(1.5)
    f = lambda x, rate: torch.exp(-rate * x.sum(-1))
    result = qg.qmc(f, a, torch.inf, (rate,), rtol=1e-4, n=2**20)
    exact = torch.exp(-rate * a.sum()) / rate**2
    for own, known, error in zip(
        torch.autograd.grad(result.value, (a, rate), retain_graph=True),
        torch.autograd.grad(exact, (a, rate)),
        qg.gradient_error(result, (a, rate)),
        strict=True,
    ):
        assert ((own - known).abs() <= error).all() and (error < 2e-2 * known.abs()).all()


def test_errors_of_gradients_cover() -> None:
    held = count = 0
    for seed in range(60):
        s, w = leaf([0.3, 1.0]), leaf(0.5)
        f = lambda x, s: bell(x, s) * torch.cos(w * x[..., 0])  # noqa: B023
        result = qg.qmc(f, [0.0, 0.0], 1.0, (s,), n=512, seed=seed)
        inputs = (s, w)
        slopes = torch.autograd.grad(result.value.sum(), inputs, retain_graph=True)
        exact = torch.autograd.grad(_cosine_bell(s, w).sum(), inputs)
        for own, known, error in zip(slopes, exact, qg.gradient_error(result, inputs), strict=True):
            held += int(((own - known).abs() <= error).sum())
            count += error.numel()
    assert held >= 0.96 * count


def _cosine_bell(s: Tensor, w: Tensor) -> Tensor:
    """The integral of exp(-s |x|^2) cos(w x) over the unit square, by Gauss' rule in x."""
    nodes, weights = (t64(t) for t in np.polynomial.legendre.leggauss(40))
    x = 0.5 * nodes + 0.5
    first = (0.5 * weights * torch.exp(-s[:, None] * x**2) * torch.cos(w * x)).sum(-1)
    second = (0.5 * weights * torch.exp(-s[:, None] * x**2)).sum(-1)
    return first * second


def test_resolve_doubles_until_the_derivative_is_right() -> None:
    s = leaf([0.3, 4.0])
    exact = torch.autograd.grad(bell_integral(s, 2).sum(), s)[0]
    result = gauss(s, 2, rtol=1e-1, gradient=qg.Resolve(rtol=1e-4))
    assert result.derivative is not None and result.derivative.names == ("args[0]",)
    assert result.derivative.converged.all() and (result.derivative.nfev > result.nfev).all()
    (slope,) = torch.autograd.grad(result.value.sum(), s, retain_graph=True)
    assert ((slope - exact).abs() <= 1e-4 * exact.abs()).all()
    assert (qg.gradient_error(result, s) <= 2e-4 * exact.abs()).all()
    w = leaf(0.3)
    closed = qg.qmc(
        lambda x: bell(x, w), t64([-SIDE / 2] * 2), SIDE, rtol=1e-1, gradient=qg.Resolve(rtol=1e-3, params=w)
    )
    assert closed.derivative is not None and closed.derivative.converged
    assert abs(torch.autograd.grad(closed.value, w)[0] / exact[0] - 1) < 1e-3
    with pytest.raises(qg.IntegrandError, match="neither in args nor in params"):
        qg.qmc(lambda x: bell(x, w), [0.0] * 2, SIDE, gradient=qg.Resolve())


# ---------------------------------------------------------------------------------------------------- transforms


def test_transforms_of_arguments_and_captured_tensors() -> None:
    s = t64([0.3, 1.0, 2.0])
    own = gauss(s, 3, n=2**12)
    first, second = (t64([float(d(float(v))) for v in s]) for d in (_slope, _curvature))
    for f in (
        lambda v: gauss(v, 3, n=2**12).value,
        lambda v: qg.qmc(lambda x: bell(x, v), t64([-SIDE / 2] * 3), SIDE, n=2**12).value,
    ):
        lanes = torch.func.vmap(f)(s)
        torch.testing.assert_close(lanes, own.value, rtol=1e-12, atol=0.0)
        slopes = torch.func.vmap(torch.func.grad(f))(s)
        torch.testing.assert_close(slopes, first, rtol=1e-2, atol=0.0)
        bends = torch.func.vmap(torch.func.hessian(f))(s)
        torch.testing.assert_close(bends, second, rtol=3e-2, atol=0.0)
        _, tangent = torch.func.jvp(f, (s[0],), (t64(1.0),))
        torch.testing.assert_close(tangent, slopes[0], rtol=1e-10, atol=0.0)
        (plain,) = torch.autograd.grad(f(leaf(0.3)), leaf(0.3), allow_unused=True)
        assert plain is None
    leaf_s = s.clone().requires_grad_()
    (plain,) = torch.autograd.grad(gauss(leaf_s, 3, n=2**12).value.sum(), leaf_s)
    torch.testing.assert_close(plain, slopes, rtol=1e-10, atol=0.0)


def _slope(s: float) -> Tensor:
    v = leaf(s)
    return torch.autograd.grad(bell_integral(v, 3), v)[0]


def _curvature(s: float) -> Tensor:
    v = leaf(s)
    (slope,) = torch.autograd.grad(bell_integral(v, 3), v, create_graph=True)
    return torch.autograd.grad(slope, v)[0]


def test_a_sample_inside_a_search() -> None:
    """An inner sample is the outer integrand's noise, and says so when it fails."""
    inner = lambda x: qg.qmc(lambda u, x: torch.exp(-x * u.sum(-1)), [0.0, 0.0], 1.0, (x,), rtol=1e-4).value
    outer = qg.quad(inner, t64(0.5), 1.0, rtol=1e-3)
    exact = qg.quad(lambda x: ((1 - torch.exp(-x)) / x) ** 2, t64(0.5), 1.0).value
    assert outer.converged and (outer.value - exact).abs() <= 1e-3 * exact


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device() -> None:
    s = torch.tensor([0.3, 1.0], dtype=torch.float64, device="cuda", requires_grad=True)
    result = gauss(s, 3, rtol=1e-3)
    host = gauss(s.detach().cpu(), 3, rtol=1e-3)
    assert result.value.is_cuda and torch.equal(result.nfev.cpu(), host.nfev)
    torch.testing.assert_close(result.value.detach().cpu(), host.value, rtol=1e-13, atol=0.0)
    (slope,) = torch.autograd.grad(result.value.sum(), s)
    exact = torch.autograd.grad(bell_integral(s, 3).sum(), s)[0]
    torch.testing.assert_close(slope, exact, rtol=1e-2, atol=0.0)
