"""100,000 luminosity distances and their gradient, beside the integrand alone on 21 nodes for each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Findings, Measured, Target, compare, show_seconds
from benchmarks.timing import interleave

__all__ = ["measure"]

BATCH = 100_000
SEED = 100_000
NODES = 21
BLOCK = 65_536
"""Nodes at a time for the bare integrand in blocks."""
SCALE = 299792.458 / 70.0
"""c / H0 in Mpc."""
UNIVERSE = (0.3, -0.9, 0.2)
"""Om, w0, wa."""

Rule = tuple[Tensor, Tensor]
"""Nodes and weights on [0, 1]."""


def inverse_expansion(z: Tensor, om: Tensor, w0: Tensor, wa: Tensor) -> Tensor:
    """Return H0 / H(z) of a flat universe whose dark energy has w(z) = w0 + wa z / (1 + z)."""
    a = 1 / (1 + z)
    dark_energy = (1 - om) * a ** (-3 * (1 + w0 + wa)) * torch.exp(-3 * wa * z * a)
    return (om * a**-3 + dark_energy).rsqrt()


def make_redshifts(n: int) -> Tensor:
    """Draw redshifts log-uniformly from [0.01, 3]."""
    generator = torch.Generator().manual_seed(SEED)
    return 0.01 * 300.0 ** torch.rand(n, generator=generator, dtype=torch.float64)


def make_universe(like: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return Om, w0, wa that require grad; ``like`` a batch, each element gets its own copy."""
    one = torch.ones((), dtype=torch.float64) if like is None else torch.ones_like(like)
    om, w0, wa = ((one * value).requires_grad_() for value in UNIVERSE)
    return om, w0, wa


def distance(redshift: Tensor, universe: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return luminosity distances in Mpc, every redshift in one call."""
    return (1 + redshift) * SCALE * qg.quad(inverse_expansion, 0.0, redshift, args=universe).value


def fixed_distance(redshift: Tensor, universe: tuple[Tensor, Tensor, Tensor], rule: Rule) -> Tensor:
    """Return luminosity distances by a fixed rule."""
    nodes, weights = rule
    columns = tuple(parameter.expand_as(redshift)[:, None] for parameter in universe)
    total = inverse_expansion(redshift[:, None] * nodes, *columns) @ weights
    return (1 + redshift) * SCALE * redshift * total


def gauss(n: int) -> Rule:
    """Return the n-point Gauss rule on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(0.5 + 0.5 * nodes), torch.from_numpy(0.5 * weights)


def bare_blocks(x: Tensor, universe: tuple[Tensor, Tensor, Tensor], size: int) -> Callable[[], None]:
    """Return a task: the integrand on all nodes, ``size`` integrals at a time."""
    blocks = [block.contiguous() for block in x.split(size, dim=1)]

    def task() -> None:
        with torch.no_grad():
            for block in blocks:
                inverse_expansion(block, *universe)

    return task


def judge(redshift: Tensor) -> tuple[str, str]:
    """Return the worst relative error of a distance and of a derivative of a distance."""
    rule = gauss(61)
    values: list[float] = []
    slopes: list[float] = []
    for part in redshift.split(10_000):
        ours, exact = make_universe(part), make_universe(part)
        mine, theirs = distance(part, ours), fixed_distance(part, exact, rule)
        values.append((mine / theirs - 1).abs().max().item())
        pairs = zip(torch.autograd.grad(mine.sum(), ours), torch.autograd.grad(theirs.sum(), exact), strict=True)
        slopes += [(g / h - 1).abs().max().item() for g, h in pairs]
    return f"{max(values):.1e}", f"{max(slopes):.1e}"


def measure(scale: float = 1.0) -> Findings:
    """Time value, and value with gradient, beside bare evaluations."""
    n = max(100, round(BATCH * scale))
    redshift = make_redshifts(n)
    universe = make_universe()

    def value() -> Tensor:
        with torch.no_grad():
            return distance(redshift, universe)

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(distance(redshift, universe).sum(), universe)

    x = redshift * gauss(NODES)[0][:, None]
    seconds = interleave(
        {
            "value": value,
            "array": bare_blocks(x, universe, n),
            "blocks": bare_blocks(x, universe, BLOCK // NODES),
            "gradient": gradient,
        },
        repeats=21,
    )
    quicker = min(("array", "blocks"), key=lambda name: seconds[name].median)
    bare = seconds[quicker]
    with torch.no_grad():
        nodes = int(qg.quad(inverse_expansion, 0.0, redshift, args=universe).nfev.sum())
    worst_value, worst_slope = judge(redshift)
    return Findings(
        f"{n:,} luminosity distances",
        "Flat w0wa universe, z log-uniform in [0.01, 3], quadgrad's default tolerance, float64; gradient of "
        "the sum with respect to Om, w0, wa by backward. "
        f"Bare: the integrand alone, without gradient, on {NODES} nodes for each distance; figures are "
        "against the quicker of one array and blocks. Errors are relative, against 61 Gauss nodes; of derivatives: "
        "those of every single distance.",
        [
            show_seconds(
                [
                    Measured("value", seconds["value"], n, nodes, (worst_value, "")),
                    Measured("value and gradient", seconds["gradient"], n, nodes, (worst_value, worst_slope)),
                    Measured("bare, one array", seconds["array"], n, NODES * n),
                    Measured(f"bare, blocks of {BLOCK:,}", seconds["blocks"], n, NODES * n),
                ],
                ("worst\ndistance", "worst\nderivative"),
            )
        ],
        [
            compare("value over bare", seconds["value"], bare, Target(1.5)),
            compare("value and gradient over bare", seconds["gradient"], bare, Target(5)),
        ],
    )
