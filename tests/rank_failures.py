"""What goes wrong on the ranks of a group in the tests, mostly on rank 1 alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

import quadgrad as qg
from helpers import leaf, t64
from rank_scenarios import make_network

ZERO = t64([0.0, 0.0])
End = tuple[str, str, str, float]
"""The type, text and notes of what was raised, and after how many seconds."""


class Unusual(Exception):
    """One that no other process can make again: pickling it fails."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class _Rank:
    """What one rank does; each method is a trial."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.group = rank, world, distributed.group.WORLD
        self.calls, self.armed = 0, True
        self.outsiders = distributed.new_group([0])

    def bad(self, x: Tensor, after: int, error: Exception) -> Tensor:
        """Evaluate an integrand that raises on rank 1."""
        self.calls += 1
        if self.rank == 1 and self.calls > after and self.armed:
            raise error
        return torch.exp(-(x**2).sum(-1))

    def search(self, after: int = 2, error: Exception | None = None) -> None:
        wrong = error or LookupError("a missing table")
        qg.qmc(lambda x: self.bad(x, after, wrong), ZERO, 1.0, n=2**20, group=self.group)

    def first_call(self) -> None:
        self.search(0)

    def unusual(self) -> None:
        self.search(2, Unusual("cannot be sent"))

    def slow(self) -> None:
        ends = time.monotonic() + 1.0

        def f(x: Tensor) -> Tensor:
            time.sleep(0.02)
            return self.bad(x, 0 if time.monotonic() > ends else 10**6, BufferError("after a while"))

        qg.qmc(f, ZERO, 1.0, n=2**28, group=self.group)  # would take minutes

    def backward(self) -> None:
        c, self.armed = leaf(1.0), False
        value = qg.qmc(
            lambda x: self.bad(c * x, 0, OSError("no such table")), ZERO, 1.0, n=2**17, group=self.group
        ).value
        self.armed = True
        value.backward()

    def dealt(self) -> None:
        s = leaf(torch.linspace(0.5, 1.0, 20))
        f = lambda x, s: self.bad((x * s)[..., None], 3, ZeroDivisionError("in a part"))
        qg.quad(f, t64(0.0), 1.0, (s,), group=self.group).value.sum().backward()

    def dealt_backward(self) -> None:
        s, self.armed = leaf(torch.linspace(0.5, 1.0, 20)), False
        f = lambda x, s: self.bad((x * s)[..., None], 0, KeyError("a part"))
        value = qg.quad(f, t64(0.0), 1.0, (s,), group=self.group, chunk_size=100).value
        self.armed = True
        value.sum().backward()

    def limit(self) -> None:
        a = ZERO + (torch.nan if self.rank == 1 else 0.0)
        qg.qmc(lambda x: x.sum(-1), a, 1.0, n=16, group=self.group)

    def differ(self, **changes: Any) -> None:
        """Make a call in which rank 1 passes something else."""
        given = {"a": ZERO, "args": (t64([1.0, 2.0]), 3.0), "n": 2**10} | (changes if self.rank == 1 else {})
        f = lambda x, s, *rest: torch.exp(-(x**2).sum(-1) * s)
        qg.qmc(f, given.pop("a"), 1.0, given.pop("args"), group=self.group, **given)

    def draws(self) -> None:
        normal = torch.distributions.Normal(t64(0.0), t64(1.0))
        qg.expectation(torch.exp, normal, n=2**10, seed=self.rank % 2, group=self.group)

    def map(self) -> None:
        """Pass plans that print alike."""
        f = lambda x: torch.exp(-(x**2).sum(-1))
        plan = qg.vegas(f, ZERO, 1.0, n=2**12).plan
        if self.rank == 1:
            grid = plan.grid.clone()
            grid[0, 0, 1] *= 0.5
            plan = replace(plan, grid=grid)
        qg.vegas(f, ZERO, 1.0, n=2**12, plan=plan, group=self.group)

    def network(self) -> None:
        net = make_network(2)
        with torch.no_grad():
            net[0].weight[0, 0] += 1e-3 * self.rank * (2 - self.rank)
        self.sample(net)

    def sample(self, net: Callable[[Tensor], Tensor]) -> None:
        qg.qmc(lambda x: net(x.reshape(-1, 2)).reshape(x.shape[:-1]), ZERO, 1.0, n=2**10, group=self.group)

    def backend(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "get_backend_config", lambda group: "cuda:nccl")
            qg.quad(lambda x: x, t64(0.0), 1.0, group=self.group)

    def outside(self) -> None:
        qg.qmc(lambda x: x.sum(-1), ZERO, 1.0, n=16, group=self.outsiders)

    def type(self) -> None:
        qg.qmc(lambda x: x.sum(-1), ZERO, 1.0, n=16, group="all")

    def inside(self) -> None:
        inner = lambda x: qg.quad(lambda t, x: t * x, t64(0.0), 1.0, (x,), group=self.group).value
        qg.quad(inner, t64(0.0), 1.0)

    def transform(self) -> None:
        value = lambda s: qg.qmc(lambda x: (x * s).sum(-1), ZERO, 1.0, n=16, group=self.group).value
        torch.func.vmap(value)(t64([1.0]))

    def ddp(self) -> None:
        self.sample(DistributedDataParallel(make_network(2)))

    def fsdp(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.sample(fully_shard(make_network(2), mesh=init_device_mesh("cpu", (self.world,))))

    def uncertain(self) -> None:
        dice = torch.Generator().manual_seed(7)
        noise = lambda x: torch.rand(x.shape[:-1], generator=dice)
        qg.qmc(noise, ZERO, 1.0, n=2**10, group=self.group, rtol=1e-9, on_failure="raise")

    def unmatched(self) -> None:
        s = leaf(1.0)
        value = qg.qmc(lambda x: (x * s).sum(-1), ZERO, 1.0, n=2**10, group=self.group).value
        if self.rank == 0:
            value.backward()
        else:
            qg.qmc(lambda x: x.sum(-1), ZERO, 1.0, n=2**10, group=self.group)

    def works_again(self) -> None:
        self.search(10**6)


DIFFERENT: dict[str, dict[str, Any]] = {
    "value": {"args": (t64([1.0, 2.5]), 3.0)},
    "number": {"args": (t64([1.0, 2.0]), 4.0)},
    "shape": {"args": (t64([1.0, 2.0, 3.0]), 3.0)},
    "more": {"args": (t64([1.0, 2.0]), 3.0, 4.0)},
    "dimension": {"a": t64([0.0, 0.0, 0.0])},
    "grad": {"args": (leaf([1.0, 2.0]), 3.0)},
    "option": {"n": 2**11},
    "dtype": {"args": (torch.tensor([1.0, 2.0]), 3.0)},
}
"""What rank 1 passes instead."""

TRIALS = (
    "search", "first_call", "unusual", "slow", "backward", "dealt", "dealt_backward", "limit", *DIFFERENT,
    "draws", "map", "network", "backend", "outside", "type", "inside", "transform", "ddp", "fsdp", "uncertain",
    "unmatched", "works_again",
)  # fmt: skip


def failing(rank: int, world: int) -> dict[str, End]:
    """Do what fails, one thing after the other on the same group; tell how each ended."""
    mine = _Rank(rank, world)
    ends: dict[str, End] = {}
    for name in TRIALS:
        mine.calls, mine.armed, began = 0, True, time.monotonic()
        try:
            mine.differ(**DIFFERENT[name]) if name in DIFFERENT else getattr(mine, name)()
            end = ("", "", "")
        except Exception as error:
            end = (type(error).__name__, str(error), "\n".join(getattr(error, "__notes__", ())))
        ends[name] = (*end, time.monotonic() - began)
    return ends


def killed(rank: int, world: int, when: str) -> None:
    """Lose rank 1 in the middle of a call or of its backward pass."""
    c, calls, armed = leaf(1.0), [0], [when != "backward"]

    def f(x: Tensor) -> Tensor:
        calls[0] += 1
        if rank == 1 and calls[0] > 9 and armed[0]:
            os.kill(os.getpid(), signal.SIGKILL) if when == "killed" else os._exit(3)
        return torch.exp(-c * (x**2).sum(-1))

    value = qg.qmc(f, ZERO, 1.0, n=2**20, group=distributed.group.WORLD).value
    armed[0] = True
    value.backward()
