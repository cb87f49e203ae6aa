"""Train a network whose loss holds an integral over its own outputs, on several processes.

    torchrun --standalone --nproc-per-node 2 examples/many_processes.py

The network learns a density on the unit cube from samples: the loss is ``log(integral of exp(network))`` minus the
mean of the network over the samples. Each process has samples of its own, whose gradients
``DistributedDataParallel`` averages as usual. The integral is one and the same on all: they share its points, and
each gets its value and gradient to the last bit, which the average leaves as they are. Inside the integrand it is
``ddp.module`` that is called, not ``ddp``.
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import quadgrad as qg

DIMENSIONS = 3
STEPS = 30


def make_network() -> nn.Sequential:
    """Return a network with weights from a generator of its own: DDP makes those of rank 0 everybody's."""
    network = nn.Sequential(nn.Linear(DIMENSIONS, 32), nn.Tanh(), nn.Linear(32, 1)).to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Return samples of the density that is proportional to the product of the coordinates."""
    return torch.rand((count, DIMENSIONS), generator=generator, dtype=torch.float64).sqrt()


def train() -> None:
    """Train, and look whether all processes hold the same."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    ddp = DistributedDataParallel(make_network())
    optimiser = torch.optim.Adam(ddp.parameters(), lr=3e-2)
    generator = torch.Generator().manual_seed(1 + rank)
    lower = torch.zeros(DIMENSIONS, dtype=torch.float64)
    for step in range(STEPS):
        optimiser.zero_grad()
        samples = draw(2048 // world, generator)
        f = lambda x: torch.exp(ddp.module(x).squeeze(-1))
        mass = qg.qmc(f, lower, 1.0, n=2**14, seed=step, group=distributed.group.WORLD)
        loss = mass.value.log() - ddp(samples).mean()
        loss.backward()
        optimiser.step()
        if rank == 0 and step % 10 == 9:
            error = float(mass.error / mass.value.detach())
            print(f"step {step + 1}: loss {loss.item():.3f}, integral known to {error:.0e}")
    # The negative entropy of the true density is 3 (log 2 - 1/2) = 0.579.
    weights = torch.cat([parameter.detach().flatten() for parameter in ddp.parameters()])
    each = [torch.empty_like(weights) for _ in range(world)]
    distributed.all_gather(each, weights)
    same = all(torch.equal(one, each[0]) for one in each)
    if rank == 0:
        print(f"{world} processes hold {'the same' if same else 'different'} weights, to the last bit")


def main() -> None:
    """Train in a group."""
    distributed.init_process_group("gloo")
    train()
    gc.collect()  # a cycle of DDP's own holds the group, and gloo may abort a process that ends with one
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
