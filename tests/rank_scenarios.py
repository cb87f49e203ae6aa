"""What ranks of a group do in the tests: each returns plain numbers and tensors that are compared between ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import quadgrad as qg
from helpers import leaf, t64


def group_of(world: int) -> Any:
    """Return the group of all ranks; None where there is none."""
    return distributed.group.WORLD if world else None


def make_network(d: int) -> nn.Sequential:
    """Return a small network, the same everywhere, batch norm's buffers included."""
    network = nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1)).to(torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network.eval()


def numbers(result: qg.Result) -> list[Tensor]:
    """Return what a result holds."""
    return [result.value.detach(), result.error, result.status, result.nfev]


def sample_arguments(rank: int, world: int) -> list[Tensor]:
    """A batch of five, with arguments and limits, two outputs, several rounds; two backward passes."""
    width = leaf([0.5, 0.7, 0.9, 1.1, 1.3])
    upper = leaf([[1.0, 2.0, 1.5]])
    f = lambda x, s: torch.stack((torch.exp(-((x / s[..., None]) ** 2).sum(-1)), torch.cos(x.sum(-1) * s)), -1)
    result = qg.qmc(f, t64([-1.0, 0.0, 0.0]), upper, (width,), rtol=1e-5, n=2**16, group=group_of(world),
                    on_failure="ignore")  # fmt: skip
    weight = torch.linspace(1.0, 2.0, 10, dtype=torch.float64).reshape(5, 2)
    first = torch.autograd.grad(result.value, (width, upper), weight, retain_graph=True)
    second = torch.autograd.grad(result.value, (width, upper), 2 * weight)
    return [*numbers(result), result.plan.n, *first, *second]


def sample_twice(rank: int, world: int) -> list[Tensor]:
    """Second derivatives, through arguments, limits and what f closes over."""
    s, upper, c = leaf([0.5, 0.8]), leaf([1.0, 2.0]), leaf(0.3)
    f = lambda x, s: torch.exp(-(x**2).sum(-1) * s) * torch.cos(c * x[..., 0])
    value = qg.qmc(f, t64([0.0, 0.0]), upper, (s,), n=2**14, group=group_of(world)).value
    first = torch.autograd.grad((value**2).sum(), (s, upper, c), create_graph=True)
    size = sum((g**2).sum() for g in first)
    second = torch.autograd.grad(size, (s, upper, c), create_graph=True)
    third = torch.autograd.grad(sum(g.sum() for g in second), (s, upper, c))
    return [*(g.detach() for g in (*first, *second)), *third]


def sample_network(rank: int, world: int) -> list[Tensor]:
    """A network that is closed over, alone and inside DDP, whose mean leaves the gradient as it is."""
    plain = make_network(4)
    f = lambda x: plain(x.reshape(-1, 4)).reshape(x.shape[:-1])
    value = qg.qmc(f, t64([0.0] * 4), 1.0, n=2**16, group=group_of(world)).value
    value.backward()
    found = [value.detach(), *(p.grad for p in plain.parameters())]
    if not world:
        return found
    inside = make_network(4)
    ddp = DistributedDataParallel(inside)
    g = lambda x: ddp.module(x.reshape(-1, 4)).reshape(x.shape[:-1])
    own = torch.full((3, 4), 0.1 * rank, dtype=torch.float64)  # data of each rank, as in training
    loss = 0.0 * ddp(own).sum() + qg.qmc(g, t64([0.0] * 4), 1.0, n=2**16, group=group_of(world)).value
    loss.backward()
    for a, b in zip(plain.parameters(), inside.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-15, atol=0.0)
    return found


def quad_everything(rank: int, world: int) -> list[Tensor]:
    """Arguments, both limits, breakpoints, a matrix that is closed over; two backward passes; uneven parts."""
    a, b = leaf(torch.linspace(-1.0, 0.5, 70)), leaf(2.0)
    s, p = leaf(torch.linspace(0.05, 1.0, 70)), leaf([[0.1, 0.7]])
    c = leaf([0.3, 0.6])
    f = lambda x, s: torch.stack((1 / (x**2 + s**2), (x - c[0]).abs() * c[1] * 2), -1)
    result = qg.quad(f, a, b, (s,), points=p, rtol=1e-6, group=group_of(world))
    weight = torch.linspace(1.0, 2.0, 140, dtype=torch.float64).reshape(70, 2)
    first = torch.autograd.grad(result.value, (a, b, s, p, c), weight, retain_graph=True)
    second = torch.autograd.grad(result.value, (a, b, s, p, c), 2 * weight)
    return [*numbers(result), result.plan.row, result.plan.start, *first, *second]


def cubature_everything(rank: int, world: int) -> list[Tensor]:
    """Arguments, sides, a tensor that is closed over, fewer cells at a time; a warm start; one dimension."""
    b, k, c = leaf(torch.linspace(0.5, 1.2, 12).reshape(6, 2)), leaf(torch.linspace(1.0, 30.0, 6)), leaf(0.4)
    f = lambda x, k: torch.exp(-k * ((x - c) ** 2).sum(-1))
    group = group_of(world)
    result = qg.cubature(f, t64([0.0, 0.0]), b, (k,), rtol=1e-5, max_cells=8, group=group)
    weight = torch.linspace(1.0, 2.0, 6, dtype=torch.float64)
    first = torch.autograd.grad(result.value, (b, k, c), weight)
    again = qg.cubature(f, t64([0.0, 0.0]), b.detach(), (k,), rtol=1e-6, plan=result.plan, group=group)
    line = qg.cubature(lambda x: torch.exp(-c * x[..., 0]), t64([0.0]), t64([1.0]), group=group)
    return [*numbers(result), result.plan.level, result.plan.position, *first, *numbers(again), *numbers(line)]


def quad_twice(rank: int, world: int) -> list[Tensor]:
    """Third derivatives of a batch."""
    s, c, b = leaf([0.5, 0.8, 1.2]), leaf(0.3), leaf(1.0)
    h = c * c  # closed over, and not a leaf
    f = lambda x, s: torch.exp(-(x**2) * s) * torch.cos(h * x)
    value = qg.quad(f, t64(0.0), b, (s,), rtol=1e-10, group=group_of(world)).value
    first = torch.autograd.grad((value**2).sum(), (s, c, b), create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), (s, c, b), create_graph=True)
    third = torch.autograd.grad(sum(g.sum() for g in second), (s, c, b))
    return [*(g.detach() for g in (*first, *second)), *third]


def quad_single(rank: int, world: int) -> list[Tensor]:
    """One integral, by the first rank, of a network; chunk_size; a warm start."""
    net = make_network(1)
    f = lambda x: net(x.reshape(-1, 1)).reshape(x.shape)
    group = group_of(world)
    result = qg.quad(f, t64(0.0), 1.0, group=group)
    again = qg.quad(f, t64(0.0), 1.0, group=group, plan=result.plan, chunk_size=50)
    found = []
    for one in (result, again):
        one.value.backward()
        found += [*numbers(one), *(p.grad.clone() for p in net.parameters())]
    return found


def quad_kinds(rank: int, world: int) -> list[Tensor]:
    """Resolve with declared parameters, jumps, logarithms, warm starts of a batch, failures."""
    group, found = group_of(world), []
    e, w = leaf([0.1, 0.02, 0.004]), leaf(1.5)
    f = lambda x, e: w / (x**2 + e**2)
    result = qg.quad(f, t64(-1.0), 1.0, (e,), rtol=1e-3, gradient=qg.Resolve(rtol=1e-9, params=w), group=group)
    assert result.derivative is not None
    found += [*numbers(result), result.derivative.error, result.derivative.status]
    found += torch.autograd.grad(result.value.sum(), (e, w))
    level = leaf([0.3, -0.2, 2.0])
    step = lambda x, t: (torch.sin(10 * x) > t).to(x.dtype)
    result = qg.quad(step, t64(0.0), 1.0, (level,), jumps=lambda x, t: torch.sin(10 * x) - t, group=group)
    found += [*numbers(result), *torch.autograd.grad(result.value.sum(), level)]
    count = leaf([400.0, 3000.0])
    log_f = lambda rate, n: n * torch.log(rate) - 2 * rate - torch.lgamma(n + 1)
    result = qg.quad(log_f, t64(0.0), torch.inf, (count,), log=True, group=group)
    found += [*numbers(result), *torch.autograd.grad(result.value.sum(), count)]
    k = leaf([[1.0, 2.0], [3.0, 4.0]])
    g = lambda x, k: torch.sin(k * x) ** 2
    cold = qg.quad(g, t64(0.0), 1.0, (k,), group=group)
    warm = qg.quad(g, t64(0.0), 1.0, (k * 1.01,), plan=cold.plan, group=group)
    error = qg.gradient_error(cold, k)
    found += [*numbers(cold), *numbers(warm), *torch.autograd.grad((cold.value + warm.value).sum(), k), error]
    with torch.no_grad():
        hard = qg.quad(
            lambda x, k: torch.sin(x * k) / x, t64(1.0), torch.inf, (k,), group=group, on_failure="ignore"
        )
    return [*found, *numbers(hard)]


def checked(rank: int, world: int) -> list[Tensor]:
    """First and second derivatives against finite differences of the values."""
    group, a = group_of(world), t64(0.0)
    f = lambda x, s: torch.exp(-(x**2).sum(-1) * s)
    sampled = lambda b, s: qg.qmc(f, a.expand(2), b.expand(2), (s,), n=2**8, replicates=2, group=group).value
    dealt = lambda b, s: qg.quad(lambda x, s: torch.exp(-x * s), a, b, (s,), rtol=1e-12, group=group).value
    done = [
        check(function, (leaf(1.3), leaf(0.5)))
        for function in (sampled, dealt)
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck)
    ]
    return [torch.tensor(done)]


def sample_resolved(rank: int, world: int) -> list[Tensor]:
    """A derivative that is searched too, how wrong gradients are, and integrals that need different numbers."""
    s, c = leaf([0.3, 0.6, 1.2]), leaf(0.4)
    f = lambda x, s: c * torch.exp(-(x**2).sum(-1) / s**2)
    given = {"rtol": 1e-3, "n": 2**16, "group": group_of(world)}
    result = qg.qmc(f, t64([0.0, 0.0]), 1.0, (s,), gradient=qg.Resolve(rtol=1e-2, params=c), **given)
    plain = qg.qmc(f, t64([0.0, 0.0]), 1.0, (s,), **given)
    assert result.derivative is not None
    error = qg.gradient_error(plain, (s, c))
    gradients = [g for one in (result, plain) for g in torch.autograd.grad(one.value.sum(), (s, c))]
    return [*numbers(result), result.derivative.error, *numbers(plain), *gradients, *error]


def dtypes(rank: int, world: int) -> list[Tensor]:
    """Complex values, single and half precision."""
    group, found = group_of(world), []
    k = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    w = torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)
    wave = lambda x, k: w.to(x.dtype) * torch.exp(1j * k * x.sum(-1))
    for result in (
        qg.qmc(wave, [0.0, 0.0], 1.0, (k,), n=2**12, group=group),
        qg.quad(lambda x, k: w.to(x.dtype) * torch.exp(1j * k * x), 0.0, 1.0, (k,), group=group),
    ):
        found += [*numbers(result), *torch.autograd.grad(result.value.abs().sum(), (k, w))]
    return found


SAME = (
    dtypes,
    checked,
    sample_resolved,
    sample_arguments,
    sample_twice,
    sample_network,
    quad_everything,
    cubature_everything,
    quad_twice,
    quad_single,
    quad_kinds,
)
"""Scenarios whose results do not depend on the number of ranks."""


def all_the_same(rank: int, world: int) -> dict[str, list[Tensor]]:
    """Run each of them."""
    return {scenario.__name__: scenario(rank, world) for scenario in SAME}
