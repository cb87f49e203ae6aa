"""Gradients in the surroundings that torch offers: batched, compiled, under checkpoints, inference and autocast."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import quadgrad as qg
from helpers import leaf, relative_error, t64

MODES = {"Reuse": qg.Reuse(), "Resolve": qg.Resolve(rtol=1e-10)}
in_every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
P = t64([0.5, 1.3, 2.0])


def decay(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(-p * x)


def area(p: Tensor, mode: qg.GradientMode) -> Tensor:
    return qg.quad(decay, 0.0, 1.0, (p,), rtol=1e-12, gradient=mode).value


def closed(p: Tensor) -> Tensor:
    return (1 - torch.exp(-p)) / p


SLOPE = vmap(grad(closed))(P)


@in_every_mode
def test_batched_gradients(mode: qg.GradientMode) -> None:
    p = leaf(P)
    rows = torch.eye(3, dtype=torch.float64)
    (jacobian,) = torch.autograd.grad(area(p, mode), p, rows, is_grads_batched=True)
    assert (jacobian - torch.diag(SLOPE)).abs().max() <= 1e-11


@in_every_mode
@pytest.mark.parametrize("reentrant", (False, True))
def test_checkpoint_around_a_call(reentrant: bool, mode: qg.GradientMode) -> None:
    p = leaf(P)
    value = checkpoint(lambda p: area(2 * p, mode), p, use_reentrant=reentrant)
    value.sum().backward()
    assert relative_error(p.grad, 2 * vmap(grad(closed))(2 * P)) <= 1e-11


# While it traces, torch asks non-leaf tensors for their gradient, and warns itself of that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@in_every_mode
def test_compiled_function_that_calls_quad(mode: qg.GradientMode) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda p: 3 * area(2 * p, mode).sum(), backend="eager")
    p = leaf(P)
    (gradient,) = torch.autograd.grad(compiled(p), p)
    assert relative_error(gradient, 6 * vmap(grad(closed))(2 * P)) <= 1e-11
    reasons = torch._dynamo.explain(lambda p: 3 * area(2 * p, mode).sum())(p)
    torch.compiler.reset()
    assert reasons.graph_break_count == 1


@in_every_mode
def test_inference_mode_needs_no_gradient_and_leaves_a_usable_plan(mode: qg.GradientMode) -> None:
    with torch.inference_mode():
        result = qg.quad(decay, 0.0, 1.0, (leaf(P),), rtol=1e-12, gradient=mode)
    assert relative_error(result.value, closed(P)) <= 1e-12
    assert result.derivative is None
    p = leaf(P)
    value = qg.quad(decay, 0.0, 1.0, (p,), rtol=1e-12, gradient=mode, plan=result.plan).value
    assert relative_error(torch.autograd.grad(value.sum(), p)[0], SLOPE) <= 1e-11


@in_every_mode
def test_plans_made_inside_a_transform_are_saved_outside(mode: qg.GradientMode) -> None:
    kept: list[qg.Result] = []

    def total(p: Tensor) -> Tensor:
        kept.append(qg.quad(decay, 0.0, 1.0, (p,), rtol=1e-12, gradient=mode))
        return kept[-1].value

    vmap(grad(total))(P)
    plans = [kept[0].plan] + ([kept[0].derivative.plan] if kept[0].derivative else [])
    for plan in plans:
        file = io.BytesIO()
        torch.save(plan, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert relative_error(qg.replay(decay, loaded, 0.0, 1.0, (P[1],)), closed(P[1])) <= 1e-12


def network() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


@in_every_mode
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast_applies_to_the_integrand_alone(dtype: torch.dtype, mode: qg.GradientMode) -> None:
    with torch.autocast("cpu", dtype=dtype):
        result = qg.quad(torch.exp, torch.tensor(0.0), 1.0)
    assert relative_error(result.value, torch.e - 1) <= 1e-6  # in half precision the sum would be off by 1e-3
    net = network()
    f = lambda x: 1 + net(x[..., None])[..., 0] ** 2
    exact = qg.quad(f, 0.0, 1.0, rtol=1e-4).value
    wanted = torch.autograd.grad(exact, list(net.parameters()))
    with torch.autocast("cpu", dtype=dtype):
        assert net(torch.zeros(3, 1)).dtype == dtype
        # A derivative in half precision may not meet any tolerance, and then says so.
        mode = qg.Resolve(params=net) if isinstance(mode, qg.Resolve) else mode
        result = qg.quad(f, 0.0, 1.0, gradient=mode, on_failure="ignore")
        assert torch.is_autocast_enabled("cpu")
    assert bool(result.converged)
    eps = torch.finfo(dtype).eps
    assert relative_error(result.value, exact) <= 10 * eps
    # The gradient reaches the float32 parameters through their half precision copies.
    for one, other in zip(torch.autograd.grad(result.value, list(net.parameters())), wanted, strict=True):
        assert (one - other).abs().max() <= 20 * eps * other.abs().max()


def test_autocast_around_a_replay() -> None:
    plan = qg.quad(torch.exp, torch.tensor(0.0), 1.0).plan
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = qg.replay(torch.exp, plan, torch.tensor(0.0), 1.0)
    assert relative_error(value, torch.e - 1) <= 1e-6
