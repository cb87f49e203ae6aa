"""What ranks of a group do in the tests: each returns plain numbers and tensors that are compared between ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import quadgrad as qg
from helpers import leaf, t64

WORLD = object()


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
    result = qg.qmc(f, t64([-1.0, 0.0, 0.0]), upper, (width,), rtol=1e-5, n=2**18, group=group_of(world),
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


SAME = (sample_arguments, sample_twice, sample_network)
"""Scenarios whose results do not depend on the number of ranks."""


def all_the_same(rank: int, world: int) -> dict[str, list[Tensor]]:
    """Run each of them."""
    return {scenario.__name__: scenario(rank, world) for scenario in SAME}
