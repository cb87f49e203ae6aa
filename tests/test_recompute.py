"""With ``chunk_size`` the backward pass evaluates the integrand again: all is as without it, but for memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.overrides import TorchFunctionMode

import quadgrad as qg
from helpers import integral, leaf, relative_error, t64
from quadgrad._core._torch import hooks_saved_tensors

Case = Callable[[dict[str, Tensor], int | None], Tensor]
SMALL = 42
"""Two cells at a time."""

P = {
    "p": t64([0.5, 1.3, 2.0, 3.1, 0.9]),
    "b": t64([1.0, 1.5, 0.7, 2.0, 1.2]),
    "w": t64(0.7),
    "v": t64([0.3, -0.4, 1.1]),
}
CASES: dict[str, Case] = {}
inf = float("inf")


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


class Twice(torch.autograd.Function):
    """x w^2, hidden from whatever watches torch functions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w**2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (g,), (x, w) = gradients, ctx.saved_tensors
        return (g * w**2).expand(x.shape), (2 * g * x * w).sum_to_size(w.shape)


# --------------------------------------------------------------------------------------- what may be closed over


@case
def a_leaf(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    return integral(lambda x, p: torch.exp(-p * t["w"] * x), 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def a_computed_tensor(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    rate = t["w"].exp()
    return integral(lambda x, p: torch.exp(-p * rate * x), 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def tensors_that_depend_on_each_other(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    rate = t["w"].exp()
    sum_of_rates = rate + t["p"].sum() * t["w"]
    f = lambda x, p: torch.cos(sum_of_rates * x + rate * p) * t["w"] + t["v"][1] * x
    return integral(f, 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def several_outputs_of_one_operation(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    first, second, third = t["v"].exp().unbind()
    return integral(lambda x, p: first * torch.sin(second * p * x) + third, 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def an_argument_and_a_limit(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    upper = t["b"][0]
    return integral(lambda x, p: upper * torch.sin(p * t["p"][0] * x), 0.0, upper, t["p"], chunk_size=chunk)


@case
def tensors_in_a_list(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: torch.stack([t["w"].expand(x.shape), p * x, x]).sum(0) + torch.cat([t["v"], t["v"]]).sum()
    return integral(f, 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def only_a_closure(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    return integral(lambda x: torch.exp(-t["w"] * x), 0.0, t["b"].detach(), chunk_size=chunk)


@case
def another_tensor_in_some_blocks(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    def f(x: Tensor, p: Tensor) -> Tensor:
        high, low = lambda: torch.sin(t["v"][2] * x * p), lambda: torch.cos(t["w"] * x * p)
        if chunk == 1 and p.unique().numel() == 1:
            return high() if bool((p > 1.0).all()) else low()
        return torch.where(p > 1.0, high(), low())

    return integral(f, 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def a_conversion_that_returns_its_argument(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: t["w"].to(x.dtype).contiguous() * torch.exp(-p * x)
    return integral(f, 0.0, t["b"], t["p"], chunk_size=chunk)


# ------------------------------------------------------------------------------------------- what f may consist of


@case
def a_custom_function_of_what_is_given(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    return integral(lambda x, p: torch.sin(Twice.apply(x, p)), 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def a_custom_function_of_a_closure(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: torch.sin(Twice.apply(x, t["w"]) + p)
    return integral(f, 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def a_derivative_of_its_own(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    def f(x: Tensor, p: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = torch.sin(t["w"] * p * x) * x
            return torch.autograd.grad(y.sum(), x, create_graph=True)[0]

    return integral(f, 0.0, t["b"].detach(), t["p"], chunk_size=chunk)


@case
def a_derivative_by_what_it_closes_over(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    rate = t["w"].exp()

    def f(x: Tensor, p: Tensor) -> Tensor:
        with torch.enable_grad():
            slope = torch.autograd.grad(rate * t["w"], t["w"], create_graph=True)[0]
        return torch.sin(p * x * slope)

    return integral(f, 0.0, t["b"].detach(), t["p"], chunk_size=chunk)


@case
def a_transform(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    one = lambda x: torch.sin(t["w"] * x) * x
    f = lambda x, p: p * torch.func.vmap(torch.func.grad(one))(x.flatten()).reshape(x.shape)
    return integral(f, 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def a_nested_integral(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    inner = lambda x, p: (
        qg.quad(lambda y, x, p: torch.exp(-t["w"] * x * y * p), 0.0, x, (x, p), rtol=1e-12, chunk_size=chunk).value
    )
    return integral(inner, 0.0, t["b"], t["p"], rtol=1e-10, chunk_size=chunk)


@case
def a_nested_integral_without_chunk(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    rate = t["w"].exp()
    inner = lambda x, p: qg.quad(lambda y, x: torch.exp(-rate * x * y), 0.0, x * p, (x,), rtol=1e-12).value
    return integral(inner, 0.0, t["b"], t["p"], rtol=1e-10, chunk_size=chunk)


@case
def a_wrapped_function(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    cube = qg.bridge.wrap(lambda x, w: w * x**3, derivative=lambda x, w: (3 * w * x**2, x**3))
    f = lambda x, p: p * cube(x, t["w"].expand(x.shape))
    return integral(f, 0.0, t["b"].detach(), t["p"], chunk_size=chunk)


# ---------------------------------------------------------------------------------------------- kinds of integrals


@case
def events(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: torch.exp(-(p * x)[..., None] * t["v"]) * t["w"]
    return integral(f, 0.0, t["b"], t["p"], chunk_size=chunk)


@case
def complex_values(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    wave = torch.complex(t["w"], t["v"][0])
    return torch.view_as_real(integral(lambda x, p: torch.exp(wave * p * x), 0.0, t["b"], t["p"], chunk_size=chunk))


@case
def singular_ends(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: x ** (-0.3 * t["w"]) * torch.exp(-p * x)
    return integral(f, 0.0, t["b"], t["p"], rtol=1e-9, chunk_size=chunk)


@case
def breakpoints(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    points = 0.4 * t["b"][:, None] * t64([1.0, 0.5])
    f = lambda x, p, s: torch.where(x > s, torch.sin(t["w"] * x), torch.cos(p * x))
    return integral(f, 0.0, t["b"], t["p"], points[:, 0], points=points, chunk_size=chunk)


@case
def infinite_limits(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: torch.exp(-p * x**2 - t["w"] * x)
    return integral(f, t["b"], inf, t["p"], rtol=1e-9, chunk_size=chunk)


@case
def more_cells_than_the_chunk(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: 0.01 * t["w"] / ((x - 0.2 * p) ** 2 + 1e-4 * t["w"] ** 2)
    return integral(f, 0.0, t["b"], t["p"], rtol=1e-8, chunk_size=chunk)


@case
def descending_limits(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    return integral(lambda x, p: torch.exp(-p * t["w"] * x), 1.1, t["b"], t["p"], chunk_size=chunk)


@case
def elements(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    rows = t["p"][:, None] * t["v"]
    f = lambda x, row: torch.sin(row * x[..., None]).sum(-1) * t["w"]
    return qg.quad(f, 0.0, t["b"], (qg.element(rows, ndim=1),), rtol=1e-11, chunk_size=chunk).value


@case
def logarithms(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: 50.0 * torch.sin(p * x) - t["w"] * x**2
    return integral(f, 0.0, t["b"], t["p"], rtol=1e-9, log=True, chunk_size=chunk)


@case
def one_number_at_a_time(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: p * x * t["w"] ** 2
    return qg.quad(f, 0.0, t["b"].detach(), (t["p"],), vectorized=False, rule="gk15", chunk_size=chunk).value


@case
def a_limit_that_nodes_follow(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    return integral(lambda x, p, b: (b - x) ** -0.4 * t["w"] * p, 0.0, t["b"], t["p"], t["b"], chunk_size=chunk)


@case
def a_searched_gradient(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: torch.exp(-p * t["w"] * x)
    mode = qg.Resolve(rtol=1e-10, params=[t["w"]])
    return integral(f, 0.0, t["b"], t["p"], gradient=mode, chunk_size=chunk)


@case
def a_kept_plan(t: dict[str, Tensor], chunk: int | None) -> Tensor:
    f = lambda x, p: torch.exp(-p * t["w"] * x)
    with torch.no_grad():
        plan = qg.quad(f, t64(0.0), t["b"], (t["p"],), rtol=1e-9).plan
    return integral(f, 0.0, t["b"], t["p"], plan=plan, rtol=1e-9, chunk_size=chunk)


def derivatives(one: Case, chunk: int | None) -> list[Tensor]:
    """Return value and first and second derivatives, mixed ones too, with respect to everything."""
    t = {name: leaf(value) for name, value in P.items()}
    t = {name: value.clone() for name, value in t.items()}
    leaves = list(t.values())
    value = one(t, chunk)
    weights = torch.linspace(-1.0, 2.0, value.numel(), dtype=torch.float64).reshape(value.shape)
    options = {"allow_unused": True, "retain_graph": True}
    first = torch.autograd.grad((value * weights).sum(), leaves, create_graph=True, **options)
    plain = torch.autograd.grad((value * weights).sum(), leaves, **options)
    reached = [g for g in first if g is not None]
    # What is piecewise linear has no second derivative at all.
    turned = sum((torch.sin(g.detach() + torch.arange(g.numel()).reshape(g.shape)) * g).sum() for g in reached)
    second = (None,) * len(leaves)
    if turned.requires_grad:
        second = torch.autograd.grad(turned, leaves, allow_unused=True)
    zero = lambda g, at: torch.zeros_like(at) if g is None else g.detach()
    assert [g is None for g in first] == [g is None for g in plain]
    found = [zero(g, at) for part in (first, plain, second) for g, at in zip(part, leaves * 3, strict=False)]
    return [value.detach(), *found]


@pytest.mark.parametrize("one", CASES.values(), ids=CASES)
@pytest.mark.parametrize("chunk", (1, SMALL, 10**6))
def test_value_and_derivatives_do_not_depend_on_the_chunk(one: Case, chunk: int) -> None:
    for chunked, whole in zip(derivatives(one, chunk), derivatives(one, None), strict=True):
        assert (chunked - whole).abs().max() <= 1e-12 * (1.0 + whole.abs().max())


@pytest.mark.parametrize("name", ("tensors_that_depend_on_each_other", "a_nested_integral_without_chunk", "events"))
def test_derivatives_against_differences(name: str) -> None:
    inputs = tuple(leaf(value[:2]) if value.ndim else leaf(value) for value in P.values())
    value = lambda *given: CASES[name](dict(zip(P, given, strict=True)), SMALL)
    assert gradcheck(value, inputs)
    assert gradgradcheck(value, inputs)


# --------------------------------------------------------------------------------------------- torch's surroundings


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    for i, parameter in enumerate(net.parameters()):
        parameter.data = torch.cos(torch.arange(parameter.numel()) + 1.0 + i).reshape(parameter.shape).double()
    return net


def of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: net(x[..., None])[..., 0]


def gradients(
    chunk: int | None, upper: Tensor, around: Callable[[Callable[[], Any]], Any] = lambda f: f()
) -> Tensor:
    """Return the gradient of a network's integrals with respect to its parameters."""
    net = network()
    value = qg.quad(of(net), 0.0, upper, rtol=1e-9, chunk_size=chunk).value
    around(lambda: value.sum().backward())
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters()])


UPPER = torch.linspace(0.2, 3.0, 9, dtype=torch.float64)


def test_backward_adds_to_the_gradients_of_a_module_and_may_be_repeated() -> None:
    net = network()
    value = qg.quad(of(net), 0.0, UPPER, rtol=1e-9, chunk_size=SMALL).value.sum()
    value.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in net.parameters()]
    value.backward()
    for parameter, first in zip(net.parameters(), once, strict=True):
        assert torch.equal(parameter.grad, 2.0 * first)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_hooks_see_the_full_gradient_once() -> None:
    seen: dict[str, list[Tensor]] = {"w": [], "rate": []}
    w = leaf(0.7)
    rate = w.exp()
    w.register_hook(lambda g: seen["w"].append(g.clone()))
    rate.register_hook(lambda g: seen["rate"].append(g.clone()))
    f = lambda x: torch.exp(-rate * x) * w
    (integral(f, 0.0, UPPER, chunk_size=SMALL).sum() + rate * w).backward()
    value = lambda w, rate: integral(lambda x: torch.exp(-rate * x) * w, 0.0, UPPER).sum() + rate * w
    by_w, by_rate = torch.autograd.functional.jacobian(value, (w.detach(), rate.detach()))
    assert [len(found) for found in seen.values()] == [1, 1]
    assert relative_error(seen["rate"][0], by_rate) <= 1e-12
    assert relative_error(seen["w"][0], by_w + by_rate * rate) <= 1e-12
    assert torch.equal(w.grad, seen["w"][0])


def test_batched_gradients() -> None:
    t = {name: leaf(value) for name, value in P.items()}
    rows = torch.eye(5, dtype=torch.float64)
    one = CASES["tensors_that_depend_on_each_other"]
    options = {"is_grads_batched": True, "allow_unused": True}
    for chunked, whole in zip(
        *(torch.autograd.grad(one(t, chunk), list(t.values()), rows, **options) for chunk in (SMALL, None)),
        strict=True,
    ):
        assert (chunked - whole).abs().max() <= 1e-12


@pytest.mark.parametrize("vectorize", (False, True))
def test_jacobians_and_hessians(vectorize: bool) -> None:
    def value(chunk: int | None) -> Callable[[Tensor, Tensor], Tensor]:
        f = lambda w: lambda x, p: torch.exp(-p * x * w[0]) * w[1]
        return lambda w, p: integral(f(w.exp()), 0.0, p, p, chunk_size=chunk)

    given = t64([0.3, 0.4]), P["p"]
    for chunked, whole in zip(
        *(torch.autograd.functional.jacobian(value(c), given, vectorize=vectorize) for c in (SMALL, None)),
        strict=True,
    ):
        assert (chunked - whole).abs().max() <= 1e-12
    summed = lambda chunk: lambda *given: value(chunk)(*given).sum()
    for chunked, whole in zip(
        *(torch.autograd.functional.hessian(summed(c), given, vectorize=vectorize) for c in (SMALL, None)),
        strict=True,
    ):
        assert max(float((a - b).abs().max()) for a, b in zip(chunked, whole, strict=True)) <= 1e-12


@pytest.mark.parametrize("forward", (False, True))
@pytest.mark.parametrize("backward", (False, True))
def test_autocast_is_that_of_the_call(forward: bool, backward: bool) -> None:
    def one(chunk: int | None, seen: list[torch.dtype], backward: bool) -> Tensor:
        w = torch.linspace(-1.0, 1.0, 16).reshape(4, 4).requires_grad_()

        def f(x: Tensor) -> Tensor:
            y = torch.linspace(1.0, 2.0, 4) @ w @ torch.ones(4)
            seen.append(y.dtype)
            return torch.sin(x) * y.float()

        with torch.autocast("cpu", enabled=forward):
            value = qg.quad(f, 0.0, torch.linspace(0.5, 2.0, 5), rule="gk15", rtol=1e-3, chunk_size=chunk).value
        with torch.autocast("cpu", enabled=backward):
            value.sum().backward()
        return w.grad

    chunked: list[torch.dtype] = []
    whole = one(None, [], False)
    gap = (one(SMALL, chunked, backward) - whole).abs() / whole.abs()
    assert gap.max() <= (2.0**-7 if forward else 2.0**-20)  # that of sums in bfloat16, and in float32
    assert set(chunked) == {torch.bfloat16 if forward else torch.float32}


def test_a_tensor_changed_in_place_before_the_backward_pass_is_refused() -> None:
    w = leaf(0.7)
    rate = w.exp()
    value = integral(lambda x: torch.exp(-rate * x), 0.0, UPPER, chunk_size=SMALL).sum()
    with torch.no_grad():
        rate.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_dependence_that_appears_in_the_backward_pass_is_refused() -> None:
    w, v = leaf(0.7), leaf(0.7)
    current = [w]
    value = integral(lambda x: torch.exp(-current[0] * x), 0.0, UPPER, chunk_size=SMALL).sum()
    current[0] = v
    with pytest.raises(qg.IntegrandError, match="not depended before"):
        value.backward()


def test_what_f_uses_without_gradient_gets_none() -> None:
    w, p = leaf(0.7), leaf(P["p"])
    value = integral(lambda x, p: torch.exp(-p * w.detach() * x), 0.0, 1.0, p, chunk_size=SMALL)
    assert torch.autograd.grad(value.sum(), w, allow_unused=True) == (None,)


def test_an_error_of_f_is_its_own() -> None:
    def f(x: Tensor) -> Tensor:
        if x.numel() == 42 and torch.is_grad_enabled():
            raise RuntimeError("no such table")
        return torch.exp(-w * x)

    w = leaf(0.7)
    with pytest.raises(RuntimeError, match="no such table") as caught:
        qg.quad(f, 0.0, UPPER, rtol=1e-9, chunk_size=SMALL)
    assert any("quadgrad" in note for note in caught.value.__notes__)
    assert not hooks_saved_tensors()  # of a checkpoint that did not come to its end


class Counting(TorchFunctionMode):
    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_inside_other_modes() -> None:
    with Counting() as mode, torch.device("cpu"):
        found = gradients(SMALL, UPPER)
    assert mode.count > 0
    assert relative_error(found, gradients(None, UPPER)) <= 1e-11


def test_backward_under_checkpoint_and_saved_tensor_hooks() -> None:
    whole = gradients(None, UPPER)
    with torch.autograd.graph.save_on_cpu():
        assert relative_error(gradients(SMALL, UPPER), whole) <= 1e-11
    net = network()
    value = torch.utils.checkpoint.checkpoint(
        lambda u: qg.quad(of(net), 0.0, u, rtol=1e-9, chunk_size=SMALL).value, UPPER, use_reentrant=False
    )
    value.sum().backward()
    found = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
    assert relative_error(found, whole) <= 1e-11


def test_backward_in_another_thread() -> None:
    def elsewhere(f: Callable[[], Any]) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(f).result()

    assert relative_error(gradients(SMALL, UPPER, elsewhere), gradients(None, UPPER)) <= 1e-11


def test_a_compiled_integrand_is_left_to_run_as_written() -> None:
    torch.compiler.reset()
    net = network()
    f = torch.compile(of(net), backend="eager", fullgraph=True)
    value = qg.quad(f, 0.0, UPPER, rtol=1e-9, chunk_size=SMALL).value
    found = torch.autograd.grad(value.sum(), list(net.parameters()))
    compiled: list[Any] = []
    torch.compile(lambda x: x + 1, backend=lambda graph, _: compiled.append(graph) or graph.forward)(UPPER)
    torch.compiler.reset()
    assert len(compiled) == 1  # the compiler works again
    assert relative_error(torch.cat([g.flatten() for g in found]), gradients(None, UPPER)) <= 1e-11


def test_half_precision_is_added_up_in_single_precision() -> None:
    w = torch.tensor(0.7, dtype=torch.bfloat16, requires_grad=True)
    upper = torch.linspace(0.5, 1.5, 400)
    f = lambda x: torch.exp(-w.float() * x)
    qg.quad(f, 0.0, upper, rule="gk15", chunk_size=15).value.sum().backward()
    reference = w.detach().float().requires_grad_()
    qg.quad(lambda x: torch.exp(-reference * x), 0.0, upper).value.sum().backward()
    assert w.grad.dtype == torch.bfloat16
    assert relative_error(w.grad.float(), reference.grad) <= 2.0**-8


def test_an_empty_batch() -> None:
    w = leaf(0.7)
    value = qg.quad(lambda x: torch.exp(-w * x), t64(0.0), UPPER[:0], chunk_size=SMALL).value
    assert value.shape == (0,)
    assert value.requires_grad == integral(lambda x: torch.exp(-w * x), t64(0.0), UPPER[:0]).requires_grad


def test_values_shown_twice_count_once() -> None:
    """The check of a kept plan sees the values again where f does not bear the stand-ins."""
    w, p = leaf(0.7), leaf(P["p"])
    f = lambda x, p: torch.exp(-p * x) + (Twice.apply(x, w) if bool((p > 3.0).any()) else x * w**2)
    options = {"rtol": 1e-9, "chunk_size": 21}
    first = qg.quad(f, t64(0.0), P["b"], (p,), **options)
    again = qg.quad(f, t64(0.0), P["b"], (p,), plan=first.plan, **options)
    assert torch.equal(again.plan.row, first.plan.row)
    gap = [(torch.autograd.grad(r.value.sum(), (w, p))) for r in (first, again)]
    assert all(torch.equal(a, b) for a, b in zip(*gap, strict=True))
