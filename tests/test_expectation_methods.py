"""Methods and estimators of expectations: transforms, coverage, what is noticed, what is refused."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as D
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import quadgrad as qg
from quadgrad._core.distributions.quantiles import log_quantile
from quadgrad._core.distributions.tails import widened
from quadgrad._core.distributions.transport import draw
from tests.helpers import leaf, t64

CUBIC = lambda x, c: x**3 * c


def cubic(m: Tensor, s: Tensor) -> Tensor:
    """Return E 2 x^3."""
    return 2 * (m**3 + 3 * m * s**2)


def asked(method: str, estimator: str = "auto", **options: Any) -> Any:
    """Return it as an expectation finds it."""

    def value(m: Tensor, s: Tensor) -> Tensor:
        normal = D.Normal(m, s, validate_args=False)
        options.setdefault("rtol", 1e-8 if method == "quad" else None)
        return qg.expectation(
            CUBIC, normal, (t64(2.0),), method=method, estimator=estimator, on_failure="ignore", **options
        ).value

    return value


METHODS = [
    ("quad", "auto", {}, (1e-11, 1e-9, 1e-8)), ("gauss", "auto", {}, (1e-13, 1e-13, 1e-13)),
    ("qmc", "pathwise", {"n": 2**15}, (2e-4, 5e-4, 1e-3)), ("qmc", "score", {"n": 2**17}, (1e-3, 0.03, 0.6)),
    ("antithetic", "pathwise", {"n": 2**16}, (0.03, 0.1, 0.1)), ("iid", "auto", {"n": 2**16}, (0.1, 0.2, 0.2)),
]  # fmt: skip
"""How far values, first and second derivatives may be off; the largest second derivative is 12."""


@pytest.mark.parametrize(("method", "estimator", "options", "off"), METHODS)
def test_derivatives_of_all_orders_under_every_transform(
    method: str, estimator: str, options: dict[str, Any], off: tuple[float, float, float]
) -> None:
    f = asked(method, estimator, **options)
    m, s = t64([0.5, 1.0]), t64([0.8, 0.6])
    near = lambda order, a, b: torch.allclose(a, b, rtol=0.0, atol=off[order])
    assert near(0, f(m[0], s[0]), cubic(m[0], s[0]))
    assert near(1, grad(f, 1)(m[0], s[0]), grad(cubic, 1)(m[0], s[0]))
    assert near(1, jacfwd(f, 1)(m[0], s[0]), grad(cubic, 1)(m[0], s[0]))
    assert near(2, hessian(f, 1)(m[0], s[0]), hessian(cubic, 1)(m[0], s[0]))
    ours, exact = (jvp(g, (m[0], s[0]), (t64(1.0), t64(0.5))) for g in (f, cubic))
    assert near(0, ours[0], exact[0]) and near(1, ours[1], exact[1])
    assert near(0, vmap(f)(m, s), cubic(m, s))
    assert near(1, vmap(grad(f, 1))(m, s), vmap(grad(cubic, 1))(m, s))
    assert near(2, vmap(hessian(f))(m, s), vmap(hessian(cubic))(m, s))
    assert near(1, jacrev(f)(m, s), jacrev(cubic)(m, s))
    a, b = leaf(m), leaf(s)
    (first,) = torch.autograd.grad(f(a, b).sum(), b, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), b)
    assert near(1, first, 12 * m * s) and near(2, second, 12 * m)


def test_lanes_are_what_calls_one_by_one_are() -> None:
    m, s = t64([0.5, 1.0, -2.0]), t64([0.8, 0.6, 0.1])
    for method, options in (("quad", {}), ("qmc", {"n": 2**12}), ("exact", {})):
        make = (lambda a, b: D.Poisson(b, validate_args=False)) if method == "exact" else (
            lambda a, b: D.Normal(a, b, validate_args=False)
        )  # fmt: skip
        f = lambda a, b, make=make, method=method, options=options: (
            qg.expectation(lambda x: x * x, make(a, b), method=method, **options).value
        )
        each = torch.stack([f(a, b) for a, b in zip(m, s, strict=True)])
        assert torch.allclose(vmap(f)(m, s), each, rtol=1e-9)


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("gamma", [[0.05, 0.5, 1.0, 3.0, 40.0, 1e3]]),
        ("beta", [[0.05, 0.5, 1.0, 3.0, 40.0, 1e3], [0.5, 0.5, 2.0, 3.0, 10.0, 5.0]]),
        ("student", [[0.5, 1.0, 2.5, 5.0, 40.0, 1e3]]),
    ],
)
def test_derivatives_of_quantiles(family: str, values: list[list[float]]) -> None:
    parameters = [leaf(v) for v in values]
    u = t64([0.03, 0.2, 0.4, 0.6, 0.9, 0.999])
    f = lambda *p: log_quantile(family, u, *p)
    assert torch.autograd.gradcheck(f, parameters, eps=1e-5, rtol=1e-6, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, parameters, eps=1e-5, atol=1e-4, rtol=1e-4, check_fwd_over_rev=True)
    lanes = vmap(lambda u, *p: log_quantile(family, u, *p))(u, *parameters)
    assert torch.equal(lanes, f(*parameters))


def test_derivative_of_a_quantile_is_that_of_the_inverse_function() -> None:
    import mpmath as mp

    u, a = 0.3, 0.7
    inverse = lambda a: mp.findroot(lambda x: mp.gammainc(a, 0, x, regularized=True) - u, 0.15)
    with mp.workdps(30):
        exact = [float(mp.diff(inverse, a, n)) for n in (0, 1, 2)]
    a = leaf(a)
    x = torch.exp(log_quantile("gamma", t64(u), a))
    (first,) = torch.autograd.grad(x, a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    for found, true, digits in zip((x, first, second), exact, (1e-13, 1e-10, 1e-7), strict=True):
        assert abs(found.item() - true) <= digits * abs(true)


COVERED = {
    "wave": (lambda x: torch.cos(x.sum(-1)), math.cos(0.5) * math.exp(-0.5 * 1.58)),
    "square": (lambda x: x.square().sum(-1), 0.21 + 1.58),
    "exponential": (lambda x: x.sum(-1).exp(), math.exp(0.5 + 0.5 * 1.58)),
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("qmc", "wave"),
        ("qmc", "square"),
        ("qmc", "exponential"),
        ("iid", "exponential"),
        ("iid", "wave"),
        ("antithetic", "wave"),
        ("antithetic", "exponential"),
    ],
)
def test_errors_cover_in_a_thousand_samples(method: Any, name: str) -> None:
    normal = D.Independent(D.Normal(t64([0.2, -0.1, 0.4]), t64([1.0, 0.7, 0.3])), 1)
    f, exact = COVERED[name]
    inside = 0
    for seed in range(1000):
        value, error = qg.expectation(f, normal, method=method, n=1024, seed=seed)
        inside += abs(value.item() - exact) <= error.item()
    assert inside >= 975


@pytest.mark.parametrize("n", (512, 4096))
@pytest.mark.parametrize("d", (1, 3))
def test_errors_cover_where_f_is_unbounded(d: int, n: int) -> None:
    """Of points that are not drawn towards the tails 90 to 97 % of intervals held the truth."""
    normal = D.Independent(D.Normal(torch.zeros(d).double(), torch.ones(d).double()), 1)
    exact, seeds = math.exp(0.5 * d), 400
    results = [qg.expectation(lambda x: x.sum(-1).exp(), normal, method="qmc", n=n, seed=s) for s in range(seeds)]
    inside = sum(abs(r.value.item() - exact) <= r.error.item() for r in results)
    assert inside >= 0.975 * seeds


def test_points_drawn_towards_tails_stay_inside_of_the_open_cube() -> None:
    """Of less than 2^-54 a normal number would be minus infinity: one of 9e8 coordinates."""
    end = 2.0**-53
    u = t64([[end, 1.0 - end], [1e-10, 1.0 - 1e-10], [1e-5, 1.0 - 1e-5]])
    spread, weight = widened(u, t64(1.4))
    x, _ = draw(D.Independent(D.Normal(t64([0.0, 0.0]), 1.0), 1), spread)
    assert bool(x.isfinite().all() and (weight > 0.0).all())
    torch.testing.assert_close(x[:, 0], -x[:, 1], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(x[2], 1.4 * torch.special.ndtri(u[2]), rtol=1e-6, atol=0.0)


def test_points_are_drawn_towards_tails_element_by_element() -> None:
    loc = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    normal = D.Independent(D.Normal(loc, torch.ones(2).double()), 1)
    rate = torch.tensor([2.0, 0.0], dtype=torch.float64)
    f = lambda x, rate: (rate * x[..., 0]).exp() * torch.cos(x[..., 1])
    result = qg.expectation(f, normal, (rate,), method="qmc", n=2**14)
    exact = torch.exp(0.5 * rate**2 - 0.5)
    assert bool(((result.value - exact).abs() <= result.error).all())
    (slope,) = torch.autograd.grad(result.value.sum(), loc, retain_graph=True)
    error = qg.gradient_error(result, loc)
    assert bool(((slope - torch.stack((rate * exact, 0 * exact), -1)).abs() <= error).all())
    assert error.max() < 0.05 * exact.max()


def test_many_batches_that_converged_are_right() -> None:
    """An exponential has rare large values, which points that are not drawn towards the tails leave to chance."""
    generator = torch.Generator().manual_seed(3)
    loc = torch.randn(300, 3, dtype=torch.float64, generator=generator)
    scale = 0.3 + 0.5 * torch.rand(300, 3, dtype=torch.float64, generator=generator)
    normal = D.Independent(D.Normal(loc, scale), 1)
    result = qg.expectation(lambda x: x.sum(-1).exp(), normal, rtol=1e-2)
    exact = torch.exp(loc.sum(-1) + 0.5 * scale.square().sum(-1))
    assert bool(result.converged.all())
    assert bool(((result.value - exact).abs() <= result.error.minimum(1e-2 * exact)).all())


def test_errors_of_quotients_and_of_scores_cover_in_two_hundred_samples() -> None:
    exact, inside, near = 1.5 / 2.0, 0, 0
    loc = leaf(0.0)
    for seed in range(200):
        value, error = qg.expectation(
            lambda x: x, D.Normal(t64(0.0), t64(1.0)), weight=lambda x: torch.exp(-0.5 * (x - 1.5) ** 2),
            method="iid", n=512, seed=seed,
        )  # fmt: skip
        inside += abs(value.item() - exact) <= error.item()
        result = qg.expectation(torch.sin, D.Normal(loc, 1.0), method="iid", estimator="score", n=512, seed=seed)
        error = qg.gradient_error(result, loc)
        (slope,) = torch.autograd.grad(result.value, loc)
        near += abs(slope.item() - math.exp(-0.5)) <= error.item()
    assert inside >= 195 and near >= 195


def test_a_mean_of_scores_keeps_what_f_itself_depends_on() -> None:
    loc = leaf([0.2, -0.3])
    normal = D.Independent(D.Normal(loc, torch.ones(2).double()), 1)
    f = lambda x: (x * loc).sum(-1) ** 2
    exact = (loc.square().sum()) ** 2 + loc.square().sum()
    result = qg.expectation(f, normal, estimator="score", rtol=1e-3)
    (slope,) = torch.autograd.grad(result.value, loc, retain_graph=True)
    assert abs(result.value - exact) <= result.error
    assert bool(((slope - torch.autograd.grad(exact, loc)[0]).abs() <= 1.5 * qg.gradient_error(result, loc)).all())


def test_hard_decisions_of_many_discrete_draws() -> None:
    p = leaf([0.3] * 20)
    result = qg.expectation(lambda x: (x.sum(-1) >= 10.0).double(), D.Independent(D.Bernoulli(p), 1), rtol=1e-2)
    assert "score" in result.message
    q = [math.comb(20, k) * 0.3**k * 0.7 ** (20 - k) for k in range(21)]
    assert abs(result.value.item() - sum(q[10:])) <= result.error.item()
    exact = math.comb(19, 9) * 0.3**9 * 0.7**10  # that the others are nine
    error = qg.gradient_error(result, p)
    (slope,) = torch.autograd.grad(result.value, p)
    assert bool(((slope - exact).abs() <= 1.5 * error).all())


def test_a_jump_that_paths_do_not_see_is_noticed() -> None:
    loc, scale = leaf([0.1, 0.2]), leaf([1.0, 1.5])
    normal = D.Independent(D.Normal(loc, scale), 1)
    f = lambda x: (x.sum(-1) > 1.0) * x.sum(-1)
    mean, width = loc.sum(), scale.square().sum().sqrt()
    z = (mean - 1) / width
    exact = mean * torch.special.ndtr(z) + width * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    result = qg.expectation(f, normal)
    assert "score" in result.message and "jumps" in result.message
    slopes = torch.autograd.grad(result.value, (loc, scale), retain_graph=True)
    for slope, true, error in zip(
        slopes, torch.autograd.grad(exact, (loc, scale)), qg.gradient_error(result, (loc, scale)), strict=True
    ):
        assert bool(((slope - true).abs() <= 1.5 * error).all())
    with pytest.warns(qg.SeveredGradientWarning, match="f jumps"):
        qg.expectation(f, normal, estimator="pathwise")
    smooth = qg.expectation(lambda x: torch.relu(x.sum(-1)), normal)
    assert "is pathwise" in smooth.message


def test_a_kink_of_correlated_draws_is_no_jump() -> None:
    loc, factor = leaf([0.1, 0.2]), leaf([[1.0, 0.0], [0.5, 1.5]])
    result = qg.expectation(lambda x: torch.relu(x.sum(-1)), D.MultivariateNormal(loc, scale_tril=factor))
    assert "is pathwise" in result.message
    (slope,) = torch.autograd.grad(result.value, factor)
    assert slope[0, 1] == 0  # no part of a lower triangle


def test_what_no_estimator_reaches_is_warned_about() -> None:
    normal = D.Independent(D.Normal(leaf([0.1, 0.2]), torch.ones(2).double()), 1)
    net = torch.nn.Linear(2, 1).double()
    with pytest.warns(qg.SeveredGradientWarning, match="network's weights"):
        qg.expectation(lambda x: (net(x)[..., 0] > 0).double(), normal, n=2**12)
    with pytest.warns(qg.SeveredGradientWarning, match=r"args\[0\] requires grad"):
        qg.expectation(lambda x, c: (x > c).double(), D.Normal(0.0, leaf(1.0)), (leaf(0.3),))
    with pytest.warns(qg.UnmarkedJumpWarning, match="f jumps"):
        qg.expectation(lambda x, c: (x > c) * c, D.Normal(0.0, leaf(1.0)), (leaf(0.3),))
    with pytest.warns(qg.SeveredGradientWarning, match="do not depend on the draws"):
        qg.expectation(lambda x: (x.sum(-1) > 0).double(), normal, estimator="pathwise", n=2**12)


def test_the_gradient_of_a_network_that_is_closed_over() -> None:
    torch_state = torch.get_rng_state()
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    torch.set_rng_state(torch_state)
    loc = leaf([0.1, 0.2])
    normal = D.Independent(D.Normal(loc, torch.ones(2).double()), 1)
    f = lambda x: net(x)[..., 0]
    result = qg.expectation(f, normal, n=2**14, atol=0.0)
    tensors = [loc, *net.parameters()]
    slopes = torch.autograd.grad(result.value, tensors)
    z = torch.special.ndtri(torch.rand(2**16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    naive = torch.autograd.grad(f(loc + z).mean(), tensors)
    for ours, theirs in zip(slopes, naive, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-2)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_shapes_and_dtypes_that_f_sees() -> None:
    seen: list[tuple[torch.Size, torch.dtype]] = []

    def f(x: Tensor) -> Tensor:
        seen.append((x.shape, x.dtype))
        return torch.stack((x.sum((-1, -2)), x.square().sum((-1, -2))), -1)

    normal = D.Independent(D.Normal(torch.zeros(3, 4), torch.ones(3, 4)), 2)
    result = qg.expectation(f, normal, n=256)
    assert {shape[1:] for shape, _ in seen} == {(3, 4)} and {dtype for _, dtype in seen} == {torch.float32}
    assert result.value.shape == (2,) and result.value.dtype == torch.float32 and result.error.shape == ()
    whole = qg.expectation(f, D.Independent(D.Normal(torch.zeros(5, 2, 3, 4), torch.ones(3, 4)), 2), n=256)
    assert whole.value.shape == (5, 2, 2) and whole.error.shape == (5, 2)
    assert torch.allclose(whole.value, result.value.expand(5, 2, 2))


def test_plans_continue_and_decide_the_method() -> None:
    normal = D.Normal(leaf([0.3, 1.0]), t64(0.7))
    line = qg.expectation(torch.exp, normal)
    again = qg.expectation(torch.exp, normal, plan=line.plan)
    assert torch.allclose(line.value, again.value, rtol=1e-6) and "density" in again.message
    points = qg.expectation(torch.exp, normal, n=2**12, seed=5)
    kept = qg.expectation(torch.exp, normal, plan=points.plan, n=2**12)
    assert torch.equal(points.value, kept.value) and kept.plan.seed == 5
    other = qg.expectation(torch.exp, normal, n=2**12, seed=6)
    assert not torch.equal(points.value, other.value)


def test_chunks_and_resolved_derivatives() -> None:
    s = leaf(0.7)
    f = lambda x: torch.cos(3 * x)
    exact = torch.exp(-0.5 * 9 * s**2)
    for method in ("quad", "qmc"):
        result = qg.expectation(
            f, D.Normal(t64(0.0), s), method=method, chunk_size=1000, gradient=qg.Resolve(rtol=1e-3), rtol=1e-2
        )
        assert bool(result.derivative.converged.all())
        (slope,) = torch.autograd.grad(result.value, s)
        assert abs(slope - torch.autograd.grad(exact, s, retain_graph=True)[0]) <= 3e-3
    p = leaf([0.3] * 12)
    small = qg.expectation(lambda x: x.prod(-1), D.Independent(D.Bernoulli(p), 1), chunk_size=100)
    (slope,) = torch.autograd.grad(small.value, p)
    assert torch.allclose(slope, torch.full_like(p, 0.3**11))


def test_what_is_missed_is_not_converged() -> None:
    class Half(D.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) - math.log(2.0)

    result = qg.expectation(lambda x: x * x, Half(t64(0.0), t64(1.0)), method="quad", on_failure="ignore")
    assert not bool(result.converged) and "integrates to 0.5" in result.message
    assert abs(result.value - 1.0) <= result.error
    needle = lambda x: torch.exp(-(((x - 5.0) / 1e-4) ** 2))
    result = qg.expectation(needle, D.Normal(t64(0.0), t64(1.0)), on_failure="ignore", n=2**12, rtol=1e-3)
    assert not bool(result.converged)
    large = qg.expectation(lambda x: x, D.Poisson(t64([3.0, 1e6])), rtol=1e-12, on_failure="ignore")
    assert bool(large.converged[0]) and not bool(large.converged[1])  # log_prob has lost nine digits
    assert bool(((large.value - t64([3.0, 1e6])).abs() <= large.error).all())
    heavy = qg.expectation(torch.abs, D.Cauchy(t64(0.0), t64(1.0)), on_failure="ignore", n=2**12, rtol=1e-3)
    assert not bool(heavy.converged)


def test_f_that_is_infinite_somewhere() -> None:
    result = qg.expectation(lambda x: torch.log(x - 1.0), D.Normal(t64(0.0), t64(1.0)), on_failure="ignore")
    assert int(result.status) == int(qg.Status.NONFINITE)
    values = qg.expectation(lambda x: 1.0 / x, D.Bernoulli(t64([0.5, 1.0])), on_failure="ignore")
    assert values.status.tolist() == [int(qg.Status.NONFINITE), int(qg.Status.CONVERGED)]


def test_one_dimension_is_left_for_points_where_f_has_many_kinks() -> None:
    f = lambda x: torch.relu(torch.sin(500 * x))
    result = qg.expectation(f, D.Normal(t64(0.0), t64(1.0)), rtol=1e-3)
    assert bool(result.converged) and "Tried by quad" in result.message
    assert abs(result.value.item() - 1 / math.pi) <= result.error.item()


class Nothing(D.Distribution):
    arg_constraints = {"loc": D.constraints.real}
    support = D.constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, validate_args: Any = None) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)


class OnlyPoints(Nothing):
    def icdf(self, value: Tensor) -> Tensor:
        return self.loc + torch.logit(value)


class Stubborn(D.Normal):
    def __init__(self, pair: tuple[Tensor, Tensor]) -> None:
        super().__init__(*pair)


def test_bad_input() -> None:
    x, normal, p = (lambda x: x), D.Normal(leaf(0.0), t64(1.0)), leaf(0.3)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "estimator='score'", lambda: qg.expectation(x, D.Bernoulli(p), estimator="pathwise")),
        (ValueError, "no log_prob", lambda: qg.expectation(x, OnlyPoints(p), estimator="score")),
        (ValueError, "no log_prob", lambda: qg.expectation(x, OnlyPoints(p), method="quad")),
        (ValueError, "no way is known", lambda: qg.expectation(x, Nothing(p))),
        (ValueError, "move", lambda: qg.expectation(x, D.Uniform(leaf(0.0), 1.0), estimator="score")),
        (ValueError, "4,096", lambda: qg.expectation(
            lambda x: x.sum(-1), D.Independent(D.Normal(torch.zeros(5000), torch.ones(5000)), 1))),
        (ValueError, "cannot be gone through", lambda: qg.expectation(x, normal, method="exact")),
        (ValueError, "not continuous", lambda: qg.expectation(x, D.Bernoulli(p), method="quad")),
        (ValueError, "normal distributions", lambda: qg.expectation(x, D.Gamma(p, 1.0), method="gauss")),
        (ValueError, "nodes along each", lambda: qg.expectation(
            lambda x: x.sum(-1), D.Independent(D.Normal(torch.zeros(9), torch.ones(9)), 1), method="gauss")),
        (ValueError, "pca", lambda: qg.expectation(x, normal, method="qmc", construction="pca")),
        (ValueError, "method='best'", lambda: qg.expectation(x, normal, method="best")),  # type: ignore[arg-type]
        (ValueError, "params", lambda: qg.expectation(x, normal, params=(p,))),
        (ValueError, "broadcast", lambda: qg.expectation(
            lambda x, c: x * c, D.Normal(torch.zeros(3), 1.0), (torch.zeros(2),))),
        (ValueError, "rtol", lambda: qg.expectation(x, normal, rtol=-1.0)),
        (ValueError, "replicates", lambda: qg.expectation(x, normal, n=64, replicates=1)),
        (TypeError, "torch.distributions.Distribution", lambda: qg.expectation(x, 3.0)),  # type: ignore[arg-type]
        (TypeError, "returned float", lambda: qg.expectation(x, lambda: 3.0)),  # type: ignore[arg-type,return-value]
        (TypeError, "cannot be built", lambda: qg.expectation(x, Stubborn((p, p)))),
        (qg.IntegrandError, "one value for each draw", lambda: qg.expectation(lambda x: x.sum(), normal)),
        (qg.IntegrandError, "returned str", lambda: qg.expectation(lambda x: "one", normal)),
        (qg.IntegrandError, "one number for each draw", lambda: qg.expectation(
            x, normal, weight=lambda x: torch.stack((x, x), -1))),
    ]  # fmt: skip
    for kind, text, call in cases:
        with pytest.raises(kind, match=text):
            call()


def test_a_class_that_only_a_function_of_its_parameters_can_build() -> None:
    loc, scale = leaf([0.3, 0.5]), leaf(0.7)
    result = qg.expectation(lambda x: x * x, lambda a, b: Stubborn((a, b)), params=(loc, scale))
    slopes = torch.autograd.grad(result.value.sum(), (loc, scale))
    assert torch.allclose(result.value, loc**2 + scale**2, rtol=1e-3)
    assert torch.allclose(slopes[0], 2 * loc, rtol=1e-3) and torch.allclose(slopes[1], 4 * scale, rtol=1e-3)
    points = qg.expectation(torch.exp, lambda a: OnlyPoints(a), params=(loc - 2.0,), n=2**12)
    assert points.value.shape == (2,)


def test_a_group_of_one_rank_gives_the_same_bits(tmp_path: Any) -> None:
    from torch import distributed

    normal = D.Independent(D.Normal(leaf([0.1, 0.2]), torch.ones(2).double()), 1)
    f = lambda x: torch.exp(x.sum(-1))
    alone = qg.expectation(f, normal, n=2**14)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        together = qg.expectation(f, normal, n=2**14, group=distributed.group.WORLD)
        assert torch.equal(alone.value, together.value) and torch.equal(alone.error, together.error)
    finally:
        distributed.destroy_process_group()


def test_no_warning_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for f in (lambda x: (x > 0.5).double(), torch.relu, lambda x: torch.ones_like(x)):
            qg.expectation(f, D.Normal(leaf(0.3), leaf(0.7)))
            qg.expectation(f, D.Normal(leaf(0.3), leaf(0.7)), n=2**12)


def test_expectations_inside_of_integrals_and_of_nothing() -> None:
    s = leaf(1.3)

    def inner(t: Tensor, s: Tensor) -> Tensor:
        normal = D.Normal(torch.zeros_like(t), s.expand(t.shape))
        return qg.expectation(lambda x, t: torch.exp(-x * x * t), normal, (t,), rtol=1e-9).value

    value = qg.quad(inner, t64(0.0), t64(1.0), (s,), rtol=1e-6).value
    exact = ((1 + 2 * s**2).sqrt() - 1) / s**2
    assert torch.allclose(value, exact, rtol=1e-7)
    assert torch.allclose(*(torch.autograd.grad(v, s, retain_graph=True)[0] for v in (value, exact)), rtol=1e-7)
    for make in (lambda p: D.Normal(p, 1.0), D.Bernoulli):
        assert qg.expectation(lambda x: x, make(torch.zeros(0))).value.shape == (0,)
    assert qg.expectation(lambda x: x, D.Normal(torch.zeros(0), 1.0), n=64).value.shape == (0,)


def test_matrices_for_each_element_and_complex_values() -> None:
    a = torch.randn(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normal = D.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    form = lambda x, a: torch.einsum("...i,...ij,...j->...", x, a, x)
    value, error = qg.expectation(form, normal, (qg.element(a, 2),), atol=1e-3)
    assert bool(((value - a.diagonal(dim1=-1, dim2=-2).sum(-1)).abs() <= error).all())
    scale = leaf(1.0)
    wave = qg.expectation(lambda x: torch.exp(1j * x), D.Normal(t64(0.5), scale)).value
    exact = torch.exp(0.5j - 0.5 * scale**2)
    assert abs(wave - exact) < 1e-3
    slopes = [torch.autograd.grad(v.real, scale, retain_graph=True)[0] for v in (wave, exact)]
    assert abs(slopes[0] - slopes[1]) < 1e-3


def test_the_foot_of_a_peak_that_was_not_seen_is_not_believed() -> None:
    bell = lambda x: torch.exp(-(((x - 3.0) / 0.01) ** 2))
    result = qg.expectation(bell, D.Normal(t64(-4.418973723582019), t64(0.3191230239688659)), method="quad",
                            on_failure="ignore")  # fmt: skip
    exact = 1.1002683356202393e-119
    assert not bool(result.converged) or abs(result.value.item() - exact) <= result.error.item()


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_a_jump_that_one_of_two_searches_misses_does_not_converge(rtol: float) -> None:
    """A cell ends 6e-5 beside the jump."""
    a, b = t64(0.16742694712521586), t64(56.84626163155778)
    exact = 2.576075273144976e-11  # the regularized incomplete beta function, by mpmath
    result = qg.expectation(
        lambda x: (x > 0.3).double(), D.Beta(a, b), method="quad", rtol=rtol, on_failure="ignore"
    )
    assert abs(result.value.item() - exact) <= result.error.item()


def test_derivatives_of_what_jumps_are_warned_about_where_draws_are_taken() -> None:
    eye = torch.eye(2).double()
    still, moving = (D.MultivariateNormal(loc, eye) for loc in (torch.zeros(2).double(), leaf([0.3, 0.3])))
    w = leaf(0.5)
    for f in (
        lambda x: torch.where(x[..., 0] > w, x[..., 1] * w + 1.0, -x[..., 0]),
        lambda x: (x[..., 0] > w) * w,
    ):
        for normal in (still, moving):
            with pytest.warns(qg.UnmarkedJumpWarning, match="f jumps"):
                qg.expectation(f, normal, n=2**12)
    for normal in (still, moving):  # a kink is no jump, and weights that scale the height of one do not move it
        qg.expectation(lambda x: torch.relu(x[..., 0] - w), normal, n=2**12)
        qg.expectation(lambda x: (x[..., 0] > 0.3).double(), normal, n=2**12)


def test_a_rule_whose_nodes_do_not_tell_derivatives_says_so() -> None:
    normal = D.Normal(leaf(0.3), t64(1.0))
    with pytest.warns(qg.SeveredGradientWarning, match="gauss"):
        qg.expectation(lambda x: (x > 0.3).double(), normal, method="gauss", n=32)
    with pytest.warns(qg.SeveredGradientWarning, match="gauss.*jumps"):
        qg.expectation(lambda x: torch.where(x > 0.3, x, -x), normal, method="gauss", n=32)
    qg.expectation(torch.tanh, normal, method="gauss", n=32)


def test_a_batch_truncated_by_a_distribution_function() -> None:
    def truncated(loc: torch.Tensor) -> D.Distribution:
        ends = [torch.special.ndtr(end - loc) for end in (0.0, 1.0)]
        return D.TransformedDistribution(
            D.Uniform(*ends), [D.CumulativeDistributionTransform(D.Normal(loc, t64(1.0))).inv]
        )

    loc = leaf([0.3, -0.6, 2.0])
    density = lambda x: torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    mass = torch.special.ndtr(1.0 - loc) - torch.special.ndtr(-loc)
    exact = loc + (density(-loc) - density(1.0 - loc)) / mass
    wanted = torch.autograd.grad(exact.sum(), loc)[0]
    for method, close in (("quad", 1e-9), ("qmc", 1e-3)):
        value = qg.expectation(lambda x: x, truncated, params=(loc,), method=method).value
        assert torch.allclose(value, exact, rtol=close)
        assert torch.allclose(torch.autograd.grad(value.sum(), loc)[0], wanted, rtol=close)


class InOnePrecision(D.Exponential):
    """As some of torch's: the density cannot be had in double precision."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Compare with a constant of torch's default precision."""
        if self.rate.dtype == torch.float64:
            raise RuntimeError("Double did not match Float")
        return super().log_prob(value)


def test_a_density_that_can_be_had_in_one_precision_only() -> None:
    for dtype in (torch.float32, torch.float64):
        rate = torch.tensor(2.0, dtype=dtype, requires_grad=True)
        result = qg.expectation(lambda x: x, InOnePrecision(rate))
        assert bool(result.converged) and abs(result.value - 0.5) <= result.error
        assert abs(torch.autograd.grad(result.value, rate)[0] + 0.25) < 1e-3


@pytest.mark.parametrize("options", ({"n": 1024}, {"rtol": 1e-2, "n": 2**13}))
def test_a_weight_that_is_zero_at_all_draws_says_so(options: dict[str, Any]) -> None:
    cloud = D.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    weight = lambda x: torch.exp(-1e6 * ((x - 50.0) ** 2).sum(-1))
    with pytest.warns(qg.IntegrationWarning, match="weight was 0 at all draws"):
        result = qg.expectation(lambda x: x[..., 0], cloud, weight=weight, **options)
    assert result.status == qg.Status.NONFINITE and result.value.isnan()


def test_more_dimensions_than_the_tables_have() -> None:
    cloud = D.Independent(D.Normal(torch.zeros(5000), torch.ones(5000)), 1)
    with pytest.raises(ValueError, match="up to 4,096 dimensions: pass method='iid'"):
        qg.expectation(lambda x: x.mean(-1), cloud, n=64)
    result = qg.expectation(lambda x: x.mean(-1), cloud, method="iid", n=64)
    assert result.value.abs() <= 3 * result.error
