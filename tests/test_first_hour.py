"""What a newcomer types wrong in the first hour: each message names the line to write instead."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor, nn

import quadgrad as qg
from helpers import leaf, t64

F32, F64 = torch.float32, torch.float64
BATCH = t64([1.0, 2.0, 3.0])
NORMAL = torch.distributions.Normal(0.0, 1.0)
array_wrap = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of NumPy, about torch


def told(call: Callable[[], Any], kind: type[Exception] = Exception) -> str:
    """Return what the error of a call says, notes included."""
    with pytest.raises(kind) as caught:
        call()
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


def net(dtype: torch.dtype = F32, inputs: int = 1) -> nn.Module:
    layers = nn.Linear(inputs, 4, dtype=dtype), nn.Tanh(), nn.Linear(4, 1, dtype=dtype)
    return nn.Sequential(*layers)


# -- f takes one number --------------------------------------------------------------------------------

ONE_NUMBER: list[tuple[Callable[[Any], Any], str]] = [
    (lambda x: float(x) ** 2, r"leave out float\(x\) and x.item\(\)"),
    (lambda x: x.item() ** 2, r"leave out float\(x\) and x.item\(\)"),
    (lambda x: int(x) + 1.0, r"leave out float\(x\)"),
    (lambda x: math.exp(-(x**2)), r"write torch.exp for math.exp"),
    (lambda x: math.pow(math.sqrt(x), 3), r"torch.pow for math.pow, torch.sqrt for math.sqrt"),
    (lambda x: x if x > 0.5 else 0 * x, r"torch.where\(x > c, u, v\)"),
    (lambda x: max(x, 0.5), r"torch.clamp stands in for max and min"),
    (lambda x: (x > 0.2) and (x < 0.6), r"& and \| join comparisons"),
    (lambda x: 0.2 < x < 0.6, r"a < x < b decide once: torch.where"),
    (lambda x: round(x), r"torch.round\(x\)"),
    (lambda x: sum(x**k for k in range(x)), r"range\(n\) needs one n for all"),
    (lambda x: [1.0, 2.0][x], r"table\[x.long\(\)\]"),
    (lambda x: x.tolist() ** 2, r"leave out x.tolist\(\)"),
]


@pytest.mark.parametrize(("f", "says"), ONE_NUMBER)
@pytest.mark.parametrize("b", (1.0, BATCH), ids=["single", "batch"])
def test_a_function_of_one_number(f: Callable[[Any], Any], says: str, b: Any) -> None:
    text = told(lambda: qg.quad(f, 0.0, b))
    assert re.search(says, text)
    assert "vectorized=False" in text
    again = told(lambda: qg.expectation(f, NORMAL))
    assert re.search(says, again)
    assert "quadgrad.bridge.wrap(f, scalars=True)" in again and "vectorized" not in again


def test_the_remedies_for_one_number_work() -> None:
    value = qg.quad(lambda x: math.exp(-(x**2)), 0.0, t64(1.0), vectorized=False).value
    assert float(value) == pytest.approx(0.7468241328124271, rel=1e-12)
    wrapped = qg.bridge.wrap(lambda x: math.exp(-(x**2)), scalars=True)
    normal = torch.distributions.Normal(t64(0.0), 1.0)
    assert float(qg.expectation(wrapped, normal, rtol=1e-6).value) == pytest.approx(3**-0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x: torch.exp(2.0) * x, r"for a number c write math.exp\(c\)"),
        (lambda x: torch.sqrt(2) * x, r"math.sqrt\(c\), or make a tensor of it, x.new_tensor\(c\)"),
        (lambda x: torch.maximum(x, 0.5), r"torch.clamp\(x, min=c\)"),
        (lambda x: x.astype(float), r"x.to\(dtype\)"),
    ],
)
def test_tensor_functions_of_numbers(f: Callable[[Any], Any], says: str) -> None:
    assert re.search(says, told(lambda: qg.quad(f, 0.0, 1.0)))


def test_tensor_functions_of_the_floats_of_vectorized_false() -> None:
    assert "leave vectorized=False out" in told(lambda: qg.quad(torch.exp, 0.0, 1.0, vectorized=False))


# -- NumPy and SciPy -----------------------------------------------------------------------------------


@array_wrap
@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x, p: np.exp(-p * x), "write torch.exp for np.exp"),
        (lambda x, p: np.arctan(p * x), "write torch.arctan for np.arctan"),
        (lambda x, p: scipy.special.erf(p * x), "write torch.erf for scipy.special.erf"),
        (lambda x, p: scipy.special.jv(0, p * x), r"quadgrad.bridge.wrap\(scipy.special.jv\)"),
        (lambda x, p: torch.from_numpy(np.cos((p * x).numpy())), "write torch.cos for np.cos"),
        (lambda x, p: np.asarray(p * x), r"quadgrad.bridge.wrap\(f\) gives f a gradient"),
    ],
)
@pytest.mark.parametrize("moving", ("argument", "limit", "distribution"))
def test_numpy_in_the_integrand(f: Callable[..., Any], says: str, moving: str) -> None:
    """Torch's own advice, detach(), would lose the gradient; a limit alone that requires grad shows in replay."""
    p, b = (leaf(2.0), t64(1.0)) if moving == "argument" else (2.0, leaf(1.0))
    if moving == "distribution":
        text = told(lambda: qg.expectation(f, NORMAL, (leaf(2.0),)))
    else:
        text = told(lambda: qg.quad(f, 0.0, b, (p,)))
    assert re.search(says, text)
    assert "numpy()" not in text or "detach() would lose it silently" in text


def test_the_wrapped_function_that_is_named_has_its_gradient() -> None:
    p = leaf(2.0)
    value = qg.quad(lambda x, p: qg.bridge.wrap(scipy.special.jv)(0, p * x), 0.0, t64(1.0), (p,)).value
    value.backward()
    exact = scipy.special.j0(2.0) / 2 - float(value.detach()) / 2
    assert float(p.grad) == pytest.approx(exact, rel=1e-6)


# -- what f returns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", (2.0, 2, True, np.float64(2.0), np.float32(2.0), np.int64(2), 1j))
@pytest.mark.parametrize("b", (t64(3.0), BATCH), ids=["single", "batch"])
def test_a_number_is_a_constant_with_the_gradient_of_the_limits(constant: Any, b: Tensor) -> None:
    b = b.clone().requires_grad_()
    result = qg.quad(lambda x: constant, 1.0, b)
    result.value.abs().sum().backward()
    assert result.converged.all()
    torch.testing.assert_close(result.value.detach(), constant * (b.detach() - 1.0))
    torch.testing.assert_close(b.grad, float(abs(constant)) * (b.detach() > 1.0).double())


def test_a_constant_in_every_verb_and_transform() -> None:
    assert float(qg.qmc(lambda x: 2.0, [0.0, 0.0], [1.0, 3.0]).value) == pytest.approx(6.0)
    assert float(qg.vegas(lambda x: 2.0, [0.0, 0.0], [1.0, 3.0]).value) == pytest.approx(6.0, rel=1e-3)
    assert float(qg.expectation(lambda x: 2.0, NORMAL).value) == pytest.approx(2.0)
    assert float(qg.antiderivative(lambda x: 2.0, 0.0, t64(3.0))(t64(1.5))) == pytest.approx(3.0)
    area = lambda b: qg.quad(lambda x: 2.0, 0.0, b).value
    torch.testing.assert_close(torch.func.vmap(area)(BATCH), 2.0 * BATCH)
    assert float(torch.func.grad(area)(t64(3.0))) == pytest.approx(2.0, rel=1e-14)
    assert torch.autograd.gradcheck(area, leaf(3.0))


MADE_OF_MANY: list[Callable[[Any], Any]] = [
    lambda x: (x**2).mean().item(),
    lambda x: float(x.sum()),
    lambda x: x.max().item(),
    lambda x: x.numpy()[0, 0].item(),
]


@pytest.mark.parametrize("f", MADE_OF_MANY)
def test_a_number_made_of_many_x_is_no_constant(f: Callable[[Any], Any]) -> None:
    for b in (1.0, BATCH):
        assert "leave out float(), .item(), .sum() and .mean()" in told(lambda b=b: qg.quad(f, 0.0, b))


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x: None, "is its return missing"),
        (lambda x: (x, x**2), r"torch.stack\(\[...\], dim=-1\)"),
        (lambda x: [x], r"torch.stack\(\[...\], dim=-1\)"),
        (lambda x: x.max(-1), r"x.max\(-1\).values"),
        (lambda x: {"a": x}, r"torch.stack\(list\(values\), dim=-1\)"),
        (lambda x: np.cos(np.ones(3)), "write torch.cos for np.cos"),
        (lambda x: torch.exp, r"it was not called; end it with \(x\)"),
        (lambda x: qg.quad(lambda y, x: x * y, 0.0, 1.0, (x,)), "return its value, Result.value"),
        (lambda x: x.sum(), r"leave out .sum\(\), .mean\(\)"),
        (lambda x: torch.tensor(2.0), r"c.expand\(x.shape\)"),
        (lambda x: x.flatten(), r".reshape\(x.shape\)"),
        (lambda x: torch.ones(3) * torch.sin(x), r"v \* g\(x\[..., None\]\)"),
    ],
)
def test_what_f_must_not_return(f: Callable[[Any], Any], says: str) -> None:
    assert re.search(says, told(lambda: qg.quad(f, 0.0, 1.0), qg.IntegrandError))


# -- dtypes and devices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "limit", "own", "says"),
    [
        (F32, F64, "float64", r"give a limit in float32, torch.tensor\(0.0, dtype=torch.float32\), .*\.double\(\)"),
        (F64, F32, "float32", r"give a limit in float64, torch.tensor\(0.0, dtype=torch.float64\), .*\.float\(\)"),
        (F64, None, "float32", r"float32 where all are plain numbers: give a limit in float64"),
        (torch.bfloat16, F32, "float32", r"x.to\(torch.bfloat16\), and make .float\(\)"),
        (torch.float16, F64, "float64", r"x.to\(torch.float16\), and make .float\(\)"),
    ],
)
def test_a_network_of_another_dtype(network: torch.dtype, limit: Any, own: str, says: str) -> None:
    model = net(network)
    b = 1.0 if limit is None else torch.tensor(1.0, dtype=limit)
    text = told(lambda: qg.quad(lambda x: model(x[..., None])[..., 0], 0.0, b))
    assert f"x is {own}, what f closes over is {str(network).removeprefix('torch.')}" in text
    assert re.search(says, text)


def test_other_operations_that_mix_dtypes() -> None:
    conv, matrix = nn.Conv1d(1, 1, 1).double(), torch.eye(3, dtype=F64)
    for f in (
        lambda x: conv(x.reshape(-1, 1, 1)).reshape(x.shape),
        lambda x: (x[..., None].expand(*x.shape, 3) @ matrix)[..., 0],
        lambda x: torch.lerp(x, x.double(), 0.5),
    ):
        assert "x is float32, what f closes over is float64" in told(lambda f=f: qg.quad(f, 0.0, 1.0))
    vector = qg.element(torch.ones(3), 1)
    text = told(lambda: qg.quad(lambda x, w: x[..., None].expand(*x.shape, 3) @ w, 0.0, t64(1.0), (vector,)))
    assert "args[0] is float32" in text and "pass args[0] as .double()" in text


def test_numbers_of_numpy_have_their_dtype() -> None:
    one, two = np.float64(1.0), np.float64(2.0)
    f = lambda x: torch.exp(-x)
    for result in (
        qg.quad(f, 0.0, one),
        qg.quad(f, np.float64(0.0), 1),
        qg.quad(f, 0.0, np.longdouble(1.0)),
        qg.quad(f, 0.0, 1.0, points=one / 2),
        qg.quad(f, 0.0, 1.0, points=[one / 2]),
        qg.quad(f, 0.0, 1.0, points=np.array([0.5])),
        qg.quad(f, 0.0, [one, two]),
        qg.qmc(lambda x: x.sum(-1), [0.0 * one] * 2, 1.0),
        qg.antiderivative(f, 0.0, one),
    ):
        found = result.value if isinstance(result, qg.Result) else result(0.5)
        assert found.dtype == F64
    for number in (np.pi, math.inf, np.int64(1), np.float32(1.0)):
        assert qg.quad(f, 0.0, number).value.dtype == F32


def test_a_device_that_differs_is_named_by_argument() -> None:
    far, a = torch.ones(2, device="meta"), torch.tensor(0.0)
    for call in (
        lambda: qg.quad(torch.exp, a, far),
        lambda: qg.quad(lambda x, c: c * x, a, 1.0, (far,)),
        lambda: qg.quad(torch.exp, a, 1.0, points=far),
        lambda: qg.qmc(lambda x, c: c * x.sum(-1), torch.zeros(2), 1.0, (far,)),
        lambda: qg.antiderivative(lambda x, c: c * x, a, 1.0, (far,)),
    ):
        assert re.search(
            r"a on cpu.*(b|args\[0\]|points) on meta|args\[0\] on meta, a on cpu", told(call, ValueError)
        )
    model = nn.Linear(1, 1, device="meta")
    text = told(lambda: qg.quad(lambda x: model(x[..., None])[..., 0], a, 1.0))
    assert "x is on cpu, what f closes over on meta" in text and "torch.tensor(0.0, device='meta')" in text


# -- networks and elements -----------------------------------------------------------------------------


def test_a_network_that_is_given_x_itself() -> None:
    for call in (lambda: qg.quad(net(), 0.0, BATCH.float()), lambda: qg.expectation(net(), NORMAL)):
        assert "net(x[..., None])[..., 0]" in told(call)
    assert "net(x)[..., 0], and d is the length of a and b" in told(lambda: qg.qmc(net(inputs=3), [0.0, 0.0], 1.0))
    model = net()
    assert qg.quad(lambda x: model(x[..., None])[..., 0], 0.0, BATCH.float()).value.shape == (3,)


@pytest.mark.parametrize(
    ("f", "p"),
    [
        (lambda x, p: p[0] * torch.sin(p[1] * x), torch.tensor([1.0, 2.0])),
        (lambda x, p: (lambda a, b: a * x + b)(*p), torch.tensor([1.0, 2.0])),
        (lambda x, w: torch.linalg.det(x[..., None, None] * w), torch.eye(3)),
        (lambda x, w: torch.linalg.matrix_exp(x[..., None, None] * w)[..., 0, 1], torch.eye(3)),
    ],
)
def test_an_element_that_was_forgotten(f: Callable[..., Any], p: Tensor) -> None:
    assert "quadgrad.element(t, ndim=k)" in told(lambda: qg.quad(f, 0.0, 1.0, (p,)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: qg.quad(lambda x, a: a * x, 0.0, 1.0), r"with x and 0 in args: .* args=\(a,\)"),
        (lambda: qg.quad(lambda x, a, b: a * x + b, 0.0, 1.0, 2.0), r"with x and 1 in args: .* args=\(..., b,\)"),
        (lambda: qg.quad(lambda x: x, 0.0, 1.0, (1.0, 2.0)), r"lambda x, p, q: ..."),
        (lambda: qg.qmc(lambda x, y: x * y, [0.0, 0.0], 1.0), r"x\[..., 0\], x\[..., 1\]"),
        (lambda: qg.quad(nn.Linear, 0.0, 1.0), r"the class Linear: pass an object of it"),
    ],
)
def test_arguments_that_f_does_not_take(call: Callable[[], Any], says: str) -> None:
    assert re.search(says, told(call, TypeError))


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (torch.ones(5), "quadgrad.simpson"),
        (np.ones(5), "quadgrad.trapezoid"),
        ("x**2", r"lambda x: x\*\*2"),
        (2.0, "a constant is lambda x: 2.0"),
    ],
)
def test_what_is_no_function(f: Any, says: str) -> None:
    for call in (lambda: qg.quad(f, 0.0, 1.0), lambda: qg.qmc(f, [0.0], 1.0)):
        assert re.search(says, told(call, TypeError))


# -- names of arguments and of what is returned ---------------------------------------------------------

RENAMED: list[tuple[Callable[..., Any], str, Any, str]] = [
    (qg.quad, "epsabs", 1e-9, "atol=1e-09"),
    (qg.quad, "epsrel", 1e-9, "rtol=1e-09"),
    (qg.quad, "tol", 1e-9, "rtol=1e-09"),
    (qg.quad, "limit", 100, "max_nfev here, which counts evaluations"),
    (qg.quad, "full_output", 1, r"result.error, result.nfev.*result.plan"),
    (qg.quad, "complex_func", True, "leave it out, f may return complex"),
    (qg.quad, "weight", "cos", "multiply f by it"),
    (qg.quad, "dtype", F64, r"torch.tensor\(0.0, dtype=torch.float64\)"),
    (qg.quad, "breakpoints", [0.5], r"points=\[0.5\]"),
    (qg.quad, "rtoll", 1e-3, "did you mean rtol"),
    (qg.qmc, "epsabs", 1e-9, "atol=1e-09"),
    (qg.qmc, "n_points", 64, "n=64"),
    (qg.qmc, "n_estimates", 8, "replicates=8"),
    (qg.qmc, "dim", 2, "the length of a and b"),
    (qg.vegas, "nitn", 5, "iterations=5"),
    (qg.vegas, "neval", 500, "n=500"),
    (qg.antiderivative, "epsrel", 1e-9, "rtol=1e-09"),
]


@pytest.mark.parametrize(("verb", "name", "value", "says"), RENAMED)
def test_arguments_under_the_names_of_others(verb: Callable[..., Any], name: str, value: Any, says: str) -> None:
    a = [0.0, 0.0] if verb in (qg.qmc, qg.vegas) else 0.0
    text = told(lambda: verb(torch.exp, a, 1.0, **{name: value}), TypeError)
    assert re.search(rf"unexpected keyword argument '{name}': .*{says}", text)


def test_arguments_of_the_other_verbs() -> None:
    assert "n=10" in told(lambda: qg.expectation(torch.exp, NORMAL, num_samples=10))  # type: ignore[call-arg]
    assert "atol=1" in told(lambda: qg.Integrator(qg.quad, epsabs=1))
    for rule in (qg.trapezoid, qg.simpson, qg.romb, qg.cumulative_trapezoid, qg.cumulative_simpson, qg.spline):
        assert "that is dim here, dim=0" in told(lambda rule=rule: rule(torch.ones(5), axis=0), TypeError)
    assert "that is kind here" in told(lambda: qg.spline(torch.ones(5), bc_type="natural"))  # type: ignore[call-arg]
    assert "quad(f, 0.0, 1.0): the limits are two arguments" in told(lambda: qg.quad(torch.exp, (0.0, 1.0)))  # type: ignore[call-arg]
    assert "rtol=1e-08" in told(lambda: qg.quad(torch.exp, 0.0, 1.0, (), 1e-8))  # type: ignore[misc]


USES: list[tuple[Callable[[Any], Any], str]] = [
    (float, "float(result.value)"),
    (lambda r: r * 2, "result.value * ..."),
    (lambda r: 2 * r, "... * result.value"),
    (lambda r: torch.tensor(2.0) * r, "... * result.value"),
    (lambda r: np.float64(2.0) * r, "result.value"),
    (lambda r: -r, "-result.value"),
    (lambda r: r < 1, "result.value < ..."),
    (lambda r: sum([r, r]), "result.value"),
    (lambda r: r[0], "result.value[0]"),
    (lambda r: r[0], "result.value for what other libraries return there"),
    (lambda r: r[1], "result.error for what other libraries return there"),
    (lambda r: r[:2], "result.value[:2]"),
    (torch.exp, "give torch.exp result.value"),
    (lambda r: torch.stack([r, r]), "give torch.stack result.value"),
    (torch.as_tensor, "result.value"),
    (np.asarray, "result.value.numpy(force=True)"),
    (np.exp, "result.value"),
    (math.sqrt, "float(result.value)"),
    (lambda r: f"{r:.3f}", "{result.value:.3f}"),
    (lambda r: r.backward(), "result.value.backward"),
    (lambda r: r.item(), "result.value.item"),
    (lambda r: r.abserr, "that is error here"),
    (lambda r: r.success, "converged"),
    (lambda r: qg.quad(torch.exp, 0.0, r), "result.value"),
]


@pytest.mark.parametrize(("use", "says"), USES)
def test_a_result_that_is_taken_for_its_value(use: Callable[[Any], Any], says: str) -> None:
    for result in (qg.quad(torch.exp, 0.0, 1.0), qg.expectation(torch.exp, NORMAL, n=64)):
        assert says in told(lambda result=result: use(result))
        assert bool(result)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (float, "float({})"),
        (lambda c: c * 2, "{} * ..."),
        (lambda c: 1 - c, "... - {}"),
        (lambda c: torch.tensor(2.0) * c, "... * {}"),
        (lambda c: c[0], "{}[0]"),
        (torch.exp, "give torch.exp {}"),
        (np.asarray, "{}.numpy(force=True)"),
        (lambda c: c.sum(), "{}.sum"),
    ],
)
def test_a_curve_that_is_taken_for_its_value(use: Callable[[Any], Any], says: str) -> None:
    grid = torch.linspace(0.0, 1.0, 5)
    for curve, value in ((qg.antiderivative(torch.exp, 0.0, 1.0), "F(x)"), (qg.spline(grid**2, grid), "S(x)")):
        assert says.format(value) in told(lambda curve=curve: use(curve))
        assert bool(curve) and copy.deepcopy(curve)(0.5) == curve(0.5)


# -- precision and places ------------------------------------------------------------------------------


def test_plain_numbers_say_what_dtype_and_tolerance_they_mean() -> None:
    f = lambda x: torch.exp(-(x**2))
    said = "float32, torch's default for plain numbers: rtol is 3.5e-4, with a limit in float64 1.5e-8"
    assert said in repr(qg.quad(f, 0, 1))
    for other in (qg.quad(f, 0, t64(1.0)), qg.quad(f, 0, torch.tensor(1.0)), qg.quad(f, 0, 1, rtol=1e-3)):
        assert "default" not in repr(other)
    with pytest.warns(qg.IntegrationWarning, match=r"plain numbers.*torch.tensor\(0.0, dtype=torch.float64\)"):
        qg.quad(f, 0, 1, rtol=1e-10)
    assert said in repr(qg.quad(f, 0, 1, points=[0.5]))
    with pytest.warns(qg.IntegrationWarning, match="compute in float64.$"):
        qg.quad(f, 0, torch.tensor(1.0), rtol=1e-10)


@pytest.mark.parametrize("dtype", (F32, F64))
@pytest.mark.parametrize(
    ("f", "a", "b", "place"),
    [
        (lambda x: 1 / x, -1.0, 1.0, 0.0),
        (lambda x: 1 / (x - 0.5) ** 2, 0.0, 1.0, 0.5),
        (lambda x: 1 / (x - 0.3), 0.0, 1.0, 0.3),
        (lambda x: 1 / torch.sin(x).abs() ** 1.2, 1.0, 4.0, math.pi),
    ],
)
def test_the_place_inside_where_f_is_not_integrable_is_named(
    dtype: torch.dtype, f: Any, a: float, b: float, place: float
) -> None:
    """Also where the first integral of the batch converged."""
    limits = torch.tensor([[-2.0, -2.0], [a, b]], dtype=dtype)
    result = qg.quad(f, limits[:, 0], limits[:, 1], on_failure="ignore")
    assert result.status[1] != qg.Status.CONVERGED
    named = re.search(r"at x = (\S+) \(integral 1\), where f was found to be singular", result.message)
    assert named and abs(float(named[1]) - place) <= 2e-5


@pytest.mark.parametrize("dtype", (F32, F64))
def test_the_hard_place_that_search_does_not_find_is_named(dtype: torch.dtype) -> None:
    """Not with log=True, to begin with."""
    log_f = lambda x: -0.5 * torch.log((x - 0.3).abs())
    result = qg.quad(log_f, 0.0, torch.tensor(1.0, dtype=dtype), log=True, on_failure="ignore")
    named = re.search(r"name it, points=\[(\S+)\]", result.message)
    assert named and abs(float(named[1]) - 0.3) <= 2e-5


def test_a_region_or_an_end_is_no_place_to_name() -> None:
    for f in (lambda x: torch.log(x - 0.3), lambda x: 1 / x):
        assert "points=[" not in qg.quad(f, t64(0.0), t64(1.0), on_failure="ignore").message


@pytest.mark.parametrize("half", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize(
    "more",
    [lambda y, x: 1.7 * y, lambda y, x: y**2, lambda y, x: torch.exp(y + x), lambda y, x: y + torch.cos(5 * x)],
)
def test_a_model_in_half_precision_is_a_precision_and_no_jump(half: torch.dtype, more: Callable[..., Any]) -> None:
    """Warnings are errors here. A jump that is larger than the precision is told."""
    weights = [w.to(half).requires_grad_() for w in (torch.linspace(-2, 2, 8), torch.linspace(1, -0.4, 8))]
    model = lambda x: (torch.tanh(x.to(half)[..., None] * weights[0]) * weights[1]).sum(-1).float()
    f = lambda x: more(model(x), x)
    a, b = torch.tensor(0.0), torch.tensor(1.0)
    result = qg.quad(f, a, b, on_failure="ignore")
    assert result.value.requires_grad
    if not result.converged:
        assert f"f computes in {str(half).removeprefix('torch.')}" in result.message
    with pytest.warns(qg.UnmarkedJumpWarning):
        qg.quad(lambda x: f(x) + 0.8 * (x > 0.37), a, b, on_failure="ignore")


# -- names, writes, places in tables -------------------------------------------------------------------


MORE = [
    (lambda x: exp(-x), r"Write torch\.exp$"),  # type: ignore[name-defined]  # noqa: F821
    (lambda x: torch.expp(-x), r"Write torch\.exp$"),  # type: ignore[attr-defined]
    (lambda x: torch.ones(4)[x], r"table\[x\.long\(\)\]"),
    (lambda: 1.0, r"as in lambda x: \.\.\."),
]


@pytest.mark.parametrize(("f", "says"), MORE)
@pytest.mark.parametrize("verb", [qg.quad, qg.antiderivative], ids=["quad", "antiderivative"])
def test_other_slips_in_the_integrand(verb: Callable[..., Any], f: Callable[..., Any], says: str) -> None:
    assert re.search(says, told(lambda: verb(f, 0.0, 1.0)))


def test_x_is_not_written_to() -> None:
    assert "y = x + 1 for x += 1" in told(lambda: qg.expectation(lambda x: x.add_(1.0), NORMAL))


@pytest.mark.parametrize("f", [torch.Tensor.sum, torch.Tensor.mean, torch.Tensor.prod, torch.Tensor.max])
def test_a_number_made_of_many_points_of_a_box_is_no_constant(f: Callable[..., Any]) -> None:
    """Nodes that lie evenly begin and end with one in the middle, whose number is that of all."""
    for g in (
        lambda x: float(f(x[..., 0])),
        lambda x: float(f(x[..., 1])),
        lambda x: float(f(x[..., 0] + x[..., 1])),
    ):
        assert "leave out float()" in told(lambda g=g: qg.cubature(g, [0.0, 0.0], [1.0, 1.0]))


@pytest.mark.parametrize("verb", [qg.quad, qg.cubature, qg.qmc, qg.antiderivative])
def test_a_tensor_on_the_meta_device_is_named(verb: Callable[..., Any]) -> None:
    nowhere = torch.ones((), device="meta")
    ends = (0.0, 1.0) if verb in (qg.quad, qg.antiderivative) else ([0.0, 0.0], [1.0, 1.0])
    assert "args[0] is on the meta device" in told(lambda: verb(lambda x, p: p, *ends, (nowhere,)), ValueError)
    if verb in (qg.quad, qg.antiderivative):
        assert "b is on the meta device" in told(lambda: verb(torch.exp, 0.0, nowhere), ValueError)


# -- names and containers of other libraries ------------------------------------------------------------

ELSEWHERE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: qg.quad(func=torch.exp, a=0.0, b=1.0), TypeError, "'func': that is f here"),
    (lambda: qg.quad(torch.exp, 0.0, "inf"), TypeError, r"not 'inf': write float\('inf'\)"),
    (lambda: qg.quad(lambda x, p: p * x, 0.0, 1.0, ([1.0, 2.0],)), TypeError, r"args\[0\] is a list.*torch.tensor"),
    (lambda: qg.quad(lambda x, p: p * x, 0.0, 1.0, ({"p": 1.0},)), TypeError, r"args\[0\] is a dict.*one by one"),
    (lambda: qg.Integrator(torch.exp), TypeError, r"verb is what integrates.*integrate\(f, a, b\)"),
    (lambda: qg.Integrator(lambda x: x), TypeError, r"verb is what integrates"),
    (lambda: qg.Integrator(lambda x: x, 0.0, 1.0), TypeError, r"verb is what integrates.*integrate\(f, a, b\)"),
    (lambda: qg.Integrator(qg.quad, 0.0, 1.0), TypeError, r"domain in each call.*integrate\(f, a, b\)"),
    (lambda: qg.cubature(torch.exp, [[0, 1], [0, 2]]), TypeError, r"turned round: a=\[0, 0\], b=\[1, 2\]"),
    (lambda: qg.cubature(torch.exp, qg.Ball([0.0, 0.0], 1.0)), TypeError, r"region=Ball\(...\)"),
    (lambda: qg.dblquad, AttributeError, "that is quadgrad.cubature here"),
]


@pytest.mark.parametrize(("call", "kind", "says"), ELSEWHERE)
def test_what_other_libraries_call_it(call: Callable[[], Any], kind: type[Exception], says: str) -> None:
    assert re.search(says, told(call, kind))


def test_what_a_wrapped_function_found_is_printed_in_a_line() -> None:
    bessel = qg.bridge.wrap(scipy.special.kv)
    order = leaf(0.7)
    qg.quad(bessel, 0.5, 3.0, (order,)).value  # noqa: B018
    torch.autograd.grad(bessel(order, torch.linspace(0.5, 3.0, 50, dtype=F64)).sum(), order)
    assert len(repr(bessel.info)) < 250 and "worst gradient_error" in repr(bessel.info)
