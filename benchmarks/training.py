"""A network inside the integrand, as in training: a plan kept over 200 steps, and a million nodes backward.

Memory is measured as in `benchmarks.memory`: by a fresh process, which ``python -m benchmarks.training`` is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target, compare, show_time
from benchmarks.memory import MALLOC, MEBIBYTE, current_memory, peak_memory
from benchmarks.timing import Seconds

__all__ = ["measure"]

STEPS = 200
RTOL = 1e-8
NODES = 1_000_000
WIDTH = 128
CHUNK = 2**15
EVENTS = 200


class Fit:
    """One fit of the intensity of a point process: the mean log-likelihood needs the intensity's integrals.

    Attributes
    ----------
    seconds : list of float
        Of each step.
    loss, nodes : float, int
        Of the last step; at which the integrand was called in all.
    kept : qg.Integrator or None
        What keeps a plan, if one is kept.
    """

    def __init__(self, uppers: Tensor, keep: bool) -> None:
        self.uppers, self.network = uppers, make_network((32, 32), 1, 3.0)
        draw = torch.Generator().manual_seed(2)
        bump = 0.3 + 0.05 * torch.randn(EVENTS // 2, generator=draw, dtype=torch.float64)
        self.events = torch.cat((bump, torch.rand(EVENTS // 2, generator=draw, dtype=torch.float64)))[:, None]
        self.kept = qg.Integrator(qg.quad, rtol=RTOL) if keep else None
        self.integrate: Callable[..., qg.Result] = self.kept or (lambda f, a, b: qg.quad(f, a, b, rtol=RTOL))
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.seconds: list[float] = []
        self.loss, self.nodes = 0.0, 0

    def intensity(self, x: Tensor) -> Tensor:
        self.nodes += x.numel()
        return torch.exp(self.network(x.unsqueeze(-1)).squeeze(-1))

    def step(self) -> None:
        """Make one step of the optimiser."""
        began = time.perf_counter()
        self.optimiser.zero_grad()
        compensator = self.integrate(self.intensity, 0.0, self.uppers).value.mean()
        loss = compensator - self.network(self.events).mean()
        loss.backward()
        self.optimiser.step()
        self.seconds.append(time.perf_counter() - began)
        self.loss = float(loss.detach())


@dataclass(frozen=True)
class Backward:
    """Value and gradient through the large network: growth of the process in bytes, nodes replayed, seconds."""

    peak: float
    nodes: int
    seconds: float


def make_network(widths: tuple[int, ...], seed: int, gain: float) -> nn.Sequential:
    """Return a float64 network of tanh layers from one number to one, its weights from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((1, *widths), (*widths, 1), strict=True):
        layers += [nn.Linear(before, after, dtype=torch.float64), nn.Tanh()]
    with torch.no_grad():
        for layer in layers[::2]:
            for parameter in layer.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                spread = gain if parameter.shape[-1] == 1 else parameter.shape[-1] ** -0.5
                parameter.copy_(noise * spread)
    return nn.Sequential(*layers[:-1])


def fit_in_turn(uppers: Tensor, steps: int) -> tuple[Fit, Fit]:
    """Make two fits, one with fresh calls and one with a kept plan, a step of the one after a step of the other."""
    fits = Fit(uppers, keep=False), Fit(uppers, keep=True)
    for _ in range(steps):
        for each in fits:
            each.step()
    return fits


def run_backward(nodes: int) -> Backward:
    """Measure value and gradient of integrals with so many nodes; the process must be fresh."""
    network = make_network((WIDTH,) * 3, 3, 1.0)
    f = lambda x: network(x.unsqueeze(-1)).squeeze(-1)
    draw = torch.Generator().manual_seed(4)
    upper = 0.1 + 0.4 * torch.rand(-(-nodes // 21), generator=draw, dtype=torch.float64)

    def differentiate(upper: Tensor) -> qg.Result:
        result = qg.quad(f, 0.0, upper, rtol=1e-4, chunk_size=CHUNK)
        result.value.sum().backward()
        return result

    differentiate(upper[:64])  # what torch sets up once is not counted
    before, began = current_memory(), time.perf_counter()
    result = differentiate(upper)
    return Backward(peak_memory() - before, 21 * len(result.plan), time.perf_counter() - began)


def run_fresh(nodes: int) -> Backward:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", str(nodes)]
    root = Path(__file__).parent.parent
    finished = subprocess.run(
        command, cwd=root, env=os.environ | MALLOC, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(finished.stdout)
    return Backward(**found)


def measure(scale: float = 1.0) -> Findings:
    """Fit with fresh and with kept plans, then send a million nodes through the large network."""
    steps = max(20, round(STEPS * scale))
    batches = {
        "one integral": torch.ones((), dtype=torch.float64),
        "20 integrals": torch.linspace(0.1, 1, 20).double(),
    }
    rows: list[tuple[str, ...]] = []
    figures: list[Figure] = []
    for label, uppers in batches.items():
        fresh, kept = fit_in_turn(uppers, steps)
        fresh_time, kept_time = (Seconds(tuple(each.seconds)) for each in (fresh, kept))
        assert kept.kept is not None
        rows += [
            (f"{label}, {steps} fresh calls", f"{fresh.nodes:,}", show_time(fresh_time.median), "", "", ""),
            (
                f"{label}, kept plan", f"{kept.nodes:,}", show_time(kept_time.median),
                *(str(n) for n in (kept.kept.started, kept.kept.refined, kept.kept.coarsened)),
            ),
        ]  # fmt: skip
        figures += [
            Figure(f"{label}: evaluations kept over fresh", kept.nodes / fresh.nodes, target=Target(0.5)),
            compare(f"{label}: time of a step, kept over fresh", kept_time, fresh_time),
            Figure(f"{label}: last loss off by", abs(kept.loss / fresh.loss - 1), target=Target(1e-6), unit=""),
        ]
    large = run_fresh(max(100_000, round(NODES * scale)))
    figures.append(
        Figure("peak of a million nodes, backward", large.peak / 2.0**30, target=Target(1.5), unit="GiB")
    )
    memory = (f"{large.nodes:,}", f"{large.peak / MEBIBYTE:.0f} MiB", f"{large.seconds:.0f} s")
    return Findings(
        "Training",
        f"Fits of an intensity, the exponential of a 2 x 32 network, by Adam at rtol {RTOL:g}: all calls of the "
        f"integrand are counted, the probes and the gradient's included; a step with a kept plan follows one with "
        "a fresh call, times are medians of a step. Then value and gradient through a 3 x "
        f"{WIDTH} network in float64 with chunk_size={CHUNK}: by how much a fresh process grew.",
        [
            Sheet(("", "nodes", "time of\na step", "from\nscratch", "refined", "coarsened"), rows),
            Sheet(("", "nodes replayed", "peak", "time"), [(f"3 x {WIDTH} network", *memory)]),
        ],
        figures,
    )


def main() -> None:
    """Run the case given on the command line."""
    print(json.dumps(asdict(run_backward(int(sys.argv[1])))))


if __name__ == "__main__":
    main()
