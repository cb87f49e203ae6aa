"""Calls that two processes share, beside the same calls on one of them: what sharing costs, and what it saves.

``python -m benchmarks.ranks`` is one of the processes; it takes its rank and where to meet from the command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn

import quadgrad as qg
from benchmarks.findings import Findings, Measured, Target, compare, show_seconds
from benchmarks.timing import Seconds

__all__ = ["measure"]

D = 8
WORLD = 2
LABELS = ("cheap values", "values of a network", "network, with its gradient", "500 integrals of a network")
NODES = (2**20, 2**18, 2**17, 500)
REPEATS = 7


def make_network(d: int, width: int = 64) -> nn.Sequential:
    """Return a network of two layers with fixed weights."""
    layers = nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    network = nn.Sequential(*layers).to(torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape))
    return network


def make_calls(scale: float) -> list[Callable[[object], None]]:
    """Return what is timed: calls that take a group."""
    network, along_line = make_network(D), make_network(1, 256)
    zero = torch.zeros(D, dtype=torch.float64)
    upper = torch.linspace(0.1, 3.0, max(16, round(NODES[3] * scale)), dtype=torch.float64)
    cheap = lambda x: torch.exp(-(x**2).sum(-1))
    dear = lambda x: network(x).squeeze(-1)
    along = lambda x: along_line(x.unsqueeze(-1)).squeeze(-1)
    counts = [max(2**14, round(n * scale)) for n in NODES[:3]]
    return [
        lambda group: qg.qmc(cheap, zero, 1.0, n=counts[0], group=group),
        lambda group: without_gradient(lambda: qg.qmc(dear, zero, 1.0, n=counts[1], group=group)),
        lambda group: qg.qmc(dear, zero, 1.0, n=counts[2], group=group).value.backward(),
        lambda group: qg.quad(along, 0.0, upper, rtol=1e-6, group=group).value.sum().backward(),
    ]


def without_gradient(call: Callable[[], object]) -> None:
    """Make a call for its value alone."""
    with torch.no_grad():
        call()


def take_times(rank: int, scale: float, repeats: int) -> dict[str, list[float]]:
    """Time each call on one process, while the other waits, and on both, in turn."""
    found: dict[str, list[float]] = {}
    for label, call in zip(LABELS, make_calls(scale), strict=True):
        for turn in range(repeats + 1):
            for name, group in (("alone", None), ("shared", distributed.group.WORLD)):
                distributed.barrier()
                began = time.perf_counter()
                if group is not None or rank == 0:
                    call(group)
                if turn:
                    found.setdefault(f"{label}, {name}", []).append(time.perf_counter() - began)
    return found


def measure(scale: float = 1.0) -> Findings:
    """Start the processes and show what the first one measured."""
    repeats = max(3, round(REPEATS * scale))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(__file__).parent.parent
        case = json.dumps({"meeting": f"{folder}/meeting", "scale": scale, "repeats": repeats})
        command = [sys.executable, "-m", "benchmarks.ranks", case]
        given = os.environ | {"OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen([*command, str(rank)], cwd=root, env=given, stdout=subprocess.PIPE, text=True)
            for rank in range(WORLD)
        ]
        said = [process.communicate()[0] for process in started]
    seconds = {name: Seconds(tuple(times)) for name, times in json.loads(said[0]).items()}
    counts = [max(2**14, round(n * scale)) for n in NODES[:3]] + [max(16, round(NODES[3] * scale))]
    rows = [
        Measured(f"{label}, {name}", seconds[f"{label}, {name}"], 1, count)
        for label, count in zip(LABELS, counts, strict=True)
        for name in ("alone", "shared")
    ]
    bounds = (None, 0.75, 0.75, 0.75)  # cheap values are not worth a second process; the cores may be busy
    figures = [
        compare(
            f"{label}, two processes over one", seconds[f"{label}, shared"], seconds[f"{label}, alone"],
            None if bound is None else Target(bound),
        )
        for label, bound in zip(LABELS, bounds, strict=True)
    ]  # fmt: skip
    return Findings(
        "Ranks",
        f"qmc in {D} dimensions and quad, on one process and shared by two on this machine, by gloo, one thread "
        "each, in turn. A node is a point; of quad, an integral.",
        [show_seconds(rows, ())],
        figures,
    )


def main() -> None:
    """Be one of the processes."""
    case, rank = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{case['meeting']}", rank=rank, world_size=WORLD, timeout=timedelta(minutes=5)
    )
    found = take_times(rank, case["scale"], case["repeats"])
    if rank == 0:
        print(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
