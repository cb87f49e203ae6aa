"""Every way torch has to differentiate or vectorise, through ``quad``, against closed forms.

The integral of exp(-p x) from a to b has all its derivatives in closed form: `closed_form` is itself ordinary
torch, so its derivatives are autograd's. `theta` is always (a, b, p), or (a, p) where b is infinite.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from math import inf

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import quadgrad as qg
from helpers import Recorder, integral, leaf, relative_error, t64

TIGHT = 1e-11


def decay(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(-p * x)


def finite(theta: Tensor) -> Tensor:
    a, b, p = theta.unbind(-1)
    return integral(decay, a, b, p)


def finite_closed(theta: Tensor) -> Tensor:
    a, b, p = theta.unbind(-1)
    return (torch.exp(-p * a) - torch.exp(-p * b)) / p


def half_line(theta: Tensor) -> Tensor:
    a, p = theta.unbind(-1)
    return integral(decay, a, inf, p)


def half_line_closed(theta: Tensor) -> Tensor:
    a, p = theta.unbind(-1)
    return torch.exp(-p * a) / p


def broken(theta: Tensor) -> Tensor:
    """Jump from 1 to exp(-p x) at a breakpoint s, between 0 and 1; theta is (s, p)."""
    s, p = theta.unbind(-1)
    f = lambda x, s, p: torch.where(x > s, torch.exp(-p * x), torch.ones_like(x))
    return integral(f, 0.0, 1.0, s, p, points=s[..., None])


def broken_closed(theta: Tensor) -> Tensor:
    s, p = theta.unbind(-1)
    return s + (torch.exp(-p * s) - torch.exp(-p)) / p


def captured(theta: Tensor) -> Tensor:
    """Close over the parameter instead of passing it."""
    a, p = theta.unbind(-1)
    return integral(lambda x: torch.exp(-p * x), a, 1.0)


def captured_closed(theta: Tensor) -> Tensor:
    a, p = theta.unbind(-1)
    return (torch.exp(-p * a) - torch.exp(-p)) / p


SETTINGS = (
    pytest.param(finite, finite_closed, t64([0.2, 1.1, 1.7]), id="finite"),
    pytest.param(finite, finite_closed, t64([1.1, 0.2, 1.7]), id="reversed"),
    pytest.param(half_line, half_line_closed, t64([0.3, 1.7]), id="half-line"),
    pytest.param(broken, broken_closed, t64([0.3, 1.7]), id="breakpoint"),
    pytest.param(captured, captured_closed, t64([0.3, 1.7]), id="captured"),
)
in_every_setting = pytest.mark.parametrize(("function", "closed_form", "theta"), SETTINGS)


def by_backward(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    theta = theta.clone().requires_grad_()
    function(theta).backward()
    return theta.grad


def by_jvp(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    return torch.stack([jvp(function, (theta,), (e,))[1] for e in torch.eye(len(theta), dtype=theta.dtype)])


def by_dual_numbers(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    tangents = []
    for direction in torch.eye(len(theta), dtype=theta.dtype):
        with forward_ad.dual_level():
            out = function(forward_ad.make_dual(theta, direction))
            tangents.append(forward_ad.unpack_dual(out).tangent.clone())
    return torch.stack(tangents)


def by_dual_numbers_without_grad(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    with torch.no_grad():
        return by_dual_numbers(function, theta)


def by_vmapped_grad(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    return vmap(grad(function))(torch.stack((theta, theta)))[1]


GRADIENTS = {
    "backward": by_backward,
    "grad": lambda f, theta: grad(f)(theta),
    "jacrev": lambda f, theta: jacrev(f)(theta),
    "jacfwd": lambda f, theta: jacfwd(f)(theta),
    "jvp": by_jvp,
    "dual numbers": by_dual_numbers,
    "dual numbers under no_grad": by_dual_numbers_without_grad,
    "vmap of grad": by_vmapped_grad,
}
HESSIANS = {
    "backward twice": torch.autograd.functional.hessian,
    "hessian": lambda f, theta: hessian(f)(theta),
    "jacfwd of jacfwd": lambda f, theta: jacfwd(jacfwd(f))(theta),
    "jacrev of jacrev": lambda f, theta: jacrev(jacrev(f))(theta),
    "jacfwd of grad": lambda f, theta: jacfwd(grad(f))(theta),
    "jacrev of jacfwd": lambda f, theta: jacrev(jacfwd(f))(theta),
    "vectorised backward": lambda f, theta: torch.autograd.functional.hessian(f, theta, vectorize=True),
    "vmap of hessian": lambda f, theta: vmap(hessian(f))(torch.stack((theta, theta)))[1],
}


@in_every_setting
@pytest.mark.parametrize("way", GRADIENTS)
def test_gradient(way: str, function, closed_form, theta: Tensor) -> None:
    assert relative_error(GRADIENTS[way](function, theta), grad(closed_form)(theta)) <= TIGHT


@in_every_setting
@pytest.mark.parametrize("way", HESSIANS)
def test_hessian_with_mixed_second_derivatives(way: str, function, closed_form, theta: Tensor) -> None:
    exact = hessian(closed_form)(theta)
    assert (HESSIANS[way](function, theta) - exact).abs().max() <= TIGHT * exact.abs().max()


@in_every_setting
def test_triple_backward(function, closed_form, theta: Tensor) -> None:
    theta = theta.clone().requires_grad_()
    weight = torch.linspace(1.0, 2.0, len(theta), dtype=theta.dtype)

    def third(f: Callable[[Tensor], Tensor]) -> Tensor:
        out = f(theta)
        for _ in range(2):
            out = torch.autograd.grad(out, theta, create_graph=True)[0] @ weight
        return torch.autograd.grad(out, theta)[0]

    exact = third(closed_form)
    assert (third(function) - exact).abs().max() <= 1e-10 * exact.abs().max()


def test_third_derivative_in_one_limit() -> None:
    theta = t64([0.2, 1.1, 1.7])
    third = jacfwd(jacfwd(jacrev(finite)))(theta)
    exact = jacfwd(jacfwd(jacrev(finite_closed)))(theta)
    assert (third - exact).abs().max() <= 1e-10 * exact.abs().max()


@in_every_setting
def test_vmap_of_hessian_over_different_lanes(function, closed_form, theta: Tensor) -> None:
    lanes = theta * t64([[0.5], [1.0], [1.5]]) + t64([[0.0], [0.05], [0.02]])
    together, exact = vmap(hessian(function))(lanes), vmap(hessian(closed_form))(lanes)
    assert (together - exact).abs().max() <= TIGHT * exact.abs().max()


LANES = t64([[0.1, 0.9, 0.7], [0.3, 2.0, 1.3], [-1.0, 0.4, 5.0], [0.2, 0.2, 1.0]])


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (0, 0, 0)])
def test_vmap_over_any_of_limits_and_args(in_dims: tuple[int | None, ...]) -> None:
    inputs = [LANES[:, i] if d == 0 else LANES[1, i] for i, d in enumerate(in_dims)]
    value = vmap(lambda a, b, p: integral(decay, a, b, p), in_dims=in_dims)(*inputs)
    a, b, p = torch.broadcast_tensors(*inputs)
    exact = finite_closed(torch.stack((a, b, p), dim=-1))
    assert (value - exact).abs().max() <= TIGHT


def test_vmap_with_a_batch_inside_and_lanes_last() -> None:
    p = torch.linspace(0.5, 4.0, 12, dtype=torch.float64).reshape(3, 4)
    value = vmap(lambda p: integral(decay, 0.0, 1.0, p), in_dims=1, out_dims=1)(p)
    assert relative_error(value, (1 - torch.exp(-p)) / p) <= TIGHT


def test_nested_vmap() -> None:
    b, p = t64([0.5, 1.0, 3.0]), t64([0.7, 1.9])
    value = vmap(lambda b: vmap(lambda p: integral(decay, 0.0, b, p))(p))(b)
    assert relative_error(value, (1 - torch.exp(-p * b[:, None])) / p) <= TIGHT


def test_vmap_over_peaks_at_different_places() -> None:
    """Lanes that blame different halves, or look for the peak at different spots of one half, share a plan."""
    integrate = lambda c: integral(lambda x, c: 1e-3 / ((x - c) ** 2 + 1e-6), 0.0, 1.0, c)
    exact = lambda c: torch.atan((1 - c) / 1e-3) + torch.atan(c / 1e-3)
    for centres in (t64([0.2, 0.8]), t64([0.3, 0.45]), t64([0.31, 0.3101]), t64([[0.2, 0.4], [0.1, 0.7]])):
        assert relative_error(vmap(integrate)(centres), exact(centres)) <= TIGHT
        assert relative_error(vmap(grad(lambda c: integrate(c).sum()))(centres), exact_slope(centres)) <= 1e-6


def exact_slope(c: Tensor) -> Tensor:
    return 1e-3 / (c**2 + 1e-6) - 1e-3 / ((1 - c) ** 2 + 1e-6)


def test_vmap_of_captured_tensors() -> None:
    # The lane is hidden in the closure: f's x never has it, its output does.
    p = t64([0.5, 1.0, 30.0])
    value = vmap(lambda p: integral(lambda x: torch.exp(-p * x), 0.0, 1.0))(p)
    assert relative_error(value, (1 - torch.exp(-p)) / p) <= TIGHT


def test_vmap_of_a_captured_network_ensemble() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    ensemble = lambda w: integral(lambda x: torch.tanh(x[..., None] * w).sum(-1), 0.0, 1.0)
    exact = lambda w: (torch.log(torch.cosh(w)) / w).sum()
    assert relative_error(vmap(ensemble)(weights), vmap(exact)(weights)) <= TIGHT
    assert relative_error(vmap(grad(ensemble))(weights), vmap(grad(exact))(weights)) <= TIGHT


def test_vmap_over_breakpoints() -> None:
    s = t64([0.2, 0.5, 0.9])
    value = vmap(lambda s: broken(torch.stack((s, t64(1.7)))))(s)
    slope = vmap(grad(lambda s: broken(torch.stack((s, t64(1.7))))))(s)
    assert relative_error(value, broken_closed(torch.stack((s, t64(1.7).expand(3)), -1))) <= TIGHT
    assert relative_error(slope, 1 - torch.exp(-1.7 * s)) <= TIGHT


def test_vmap_over_mixed_infinite_limits() -> None:
    a, b = t64([-inf, 0.3, -inf, 0.5]), t64([inf, inf, 0.8, 1.5])
    gaussian = lambda a, b: integral(lambda x: torch.exp(-(x**2)), a, b)
    exact = torch.pi**0.5 / 2 * (torch.erf(b) - torch.erf(a))
    assert relative_error(vmap(gaussian)(a, b), exact) <= TIGHT
    slope = vmap(grad(gaussian, argnums=(0, 1)))(a, b)
    assert relative_error(slope[0], -torch.exp(-(a**2))) <= TIGHT
    assert relative_error(slope[1], torch.exp(-(b**2))) <= TIGHT


def test_each_lane_has_its_own_cells_in_one_plan_and_its_own_error() -> None:
    width = t64([1.0, 1e-2, 1e-4])
    peak = lambda x, e: e / ((x - 0.3) ** 2 + e**2)
    plans = []

    def one(e: Tensor) -> qg.Result:
        result = qg.quad(peak, t64(0.0), t64(1.0), (e,), rtol=1e-10)
        plans.append(result.plan)
        return result

    result = vmap(one)(width)
    exact = torch.atan(0.7 / width) + torch.atan(0.3 / width)
    assert result.value.shape == result.error.shape == result.status.shape == (3,)
    assert ((result.value - exact).abs() <= result.error).all()
    assert (result.error <= 1e-10 * exact).all()
    alone = [qg.quad(peak, t64(0.0), t64(1.0), (w,), rtol=1e-10) for w in width]
    assert result.nfev.tolist() == [int(one.nfev) for one in alone]
    assert len(plans) == 1
    assert plans[0].batch_shape == (3,)
    assert plans[0].owner.bincount().tolist() == [len(one.plan) for one in alone]
    torch.save(plans[0], io.BytesIO())  # it holds plain tensors, no wrappers of the transform


def test_failure_in_one_lane_is_the_status_of_that_lane_alone() -> None:
    width = t64([1.0, 1e-4])
    peak = lambda x, e: e / ((x - 0.3) ** 2 + e**2)
    solve = lambda e: qg.quad(peak, t64(0.0), t64(1.0), (e,), rtol=1e-10, max_nfev=63)
    with pytest.warns(qg.IntegrationWarning, match="MAX_NFEV|max_nfev"):
        result = vmap(solve)(width)
    assert result.status.tolist() == [qg.Status.CONVERGED, qg.Status.MAX_NFEV]
    assert (result.error <= 1e-10 * result.value).tolist() == [True, False]


def test_captured_dual_tensor() -> None:
    p = t64(1.7)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(p, t64(1.0))
        out = forward_ad.unpack_dual(integral(lambda x: torch.exp(-dual * x), 0.0, 1.0))
    assert relative_error(out.tangent, grad(lambda p: (1 - torch.exp(-p)) / p)(p)) <= TIGHT


@pytest.mark.parametrize("chunk_size", (21, 50))
def test_chunks_inside_transforms(chunk_size: int) -> None:
    f = Recorder(decay)
    function = lambda theta: integral(f, theta[0], theta[1], theta[2], chunk_size=chunk_size)
    theta = t64([0.2, 1.1, 1.7])
    assert relative_error(hessian(function)(theta), hessian(finite)(theta)) <= 1e-12


# -- qg.replay under torch.compile -------------------------------------------------------------------


def replayed(theta: Tensor, plan: qg.Plan) -> Tensor:
    return qg.replay(decay, plan, theta[0], theta[1], (theta[2],))


def check_compiled_replay(backend: str) -> None:
    """Compare the compiled replay's value and gradient with the eager ones, at limits of their own."""
    plan = qg.quad(decay, t64(0.0), t64(1.0), (t64(1.7),), rtol=1e-12).plan
    torch.compiler.reset()
    compiled = torch.compile(replayed, fullgraph=True, backend=backend)
    theta = leaf([0.1, 0.9, 1.5])
    value = compiled(theta, plan)
    (gradient,) = torch.autograd.grad(value, theta)
    assert relative_error(value, finite_closed(theta)) <= 1e-12
    assert relative_error(gradient, grad(finite_closed)(theta.detach())) <= TIGHT


def test_replay_compiles_without_graph_break() -> None:
    check_compiled_replay("eager")


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch's inductor needs a C++ compiler on the CPU")
def test_replay_compiles_to_machine_code() -> None:
    check_compiled_replay("inductor")


def test_replay_inside_transforms() -> None:
    plan = qg.quad(decay, t64(0.0), t64(1.0), (t64(1.7),), rtol=1e-12).plan
    theta = t64([0.1, 0.9, 1.5])
    exact = hessian(finite_closed)(theta)
    assert (hessian(replayed)(theta, plan) - exact).abs().max() <= TIGHT * exact.abs().max()
    lanes = vmap(replayed, in_dims=(0, None))(LANES, plan)
    assert (lanes - finite_closed(LANES)).abs().max() <= TIGHT


def test_plan_made_in_inference_mode_can_be_replayed_with_gradient() -> None:
    with torch.inference_mode():
        plan = qg.quad(decay, t64(0.0), t64(1.0), (t64(1.7),), rtol=1e-12).plan
    theta = leaf([0.1, 0.9, 1.5])
    (gradient,) = torch.autograd.grad(replayed(theta, plan), theta)
    assert relative_error(gradient, grad(finite_closed)(theta.detach())) <= TIGHT
