"""Integrals that ran out of their budget because of rounding: f's values differ between neighbouring numbers.

Null rules take noise for roughness, and bisection does not end there: half a cell has half of its noise. What tells
the two apart is f at places so close together that nothing but rounding changes it. Differences of high order of a
smooth function vanish there, those of noise do not (J. J. Moré and S. M. Wild, *SIAM Journal on Scientific
Computing* 33, 2011).
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import LINEAR
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import total

__all__ = ["is_noisy"]

CELLS = 8
"""Of so many cells with the largest errors of an integral f is looked at in the middle."""

WIDER, APART = 2.0**8, (1.0, 2.0**8, 2.0**16, 2.0**24)
"""Spacings of numbers between neighbouring places, each so many times wider: beside what rounds its argument f may
be flat for a while."""

EXPLAINED = 2.0
"""Differences farther apart of no more than so many times what the bend nearby lets expect are a fast wave."""

SMOOTH = 0.05
"""Differences of order 4 of what is smooth are less than that part of those of order 2."""

PLACES, ORDER = 8, 4
"""Places in a row, and the order of the differences between them."""

NARROW = 2.0**-10
"""They span no more than that part of a cell."""

ENOUGH = 0.002
"""What noise makes of the errors of these cells, at least, if it is what keeps the integral from converging.

Of rounding that f amplifies it was 0.002 to 0.2, of waves, kinks and steps that no budget resolves 1e-5 at most,
unless there are 1e9 waves in a unit.
"""


def is_noisy(problem: Problem, plan: IntervalPlan, who: Tensor) -> Tensor:
    """Tell of which integrals among ``who`` ``(batch,)`` rounding makes the error, bool of shape ``(batch,)``.

    f is called at some hundred places for each.
    """
    owner, error = plan.owner, plan.error.double()
    # Extrapolation multiplies noise, by no one knows what: cells with logarithmic nodes are looked at last.
    order = torch.where(error.isfinite() & (plan.kind == LINEAR), error, -1.0).argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    count = torch.bincount(owner, minlength=plan.batch)
    place = torch.arange(len(order), device=owner.device) - (count.cumsum(0) - count)[owner[order]]
    chosen = order[(place < CELLS) & who[owner[order]] & error[order].isfinite()]
    if not len(chosen):
        return torch.zeros_like(who)
    cells = plan.take(chosen.sort().values)
    middle, factor = problem.pieces.lay_out(cells).nodes(plan.tau.new_tensor([0.25, 0.5]))
    width, x = 4.0 * (middle[1] - middle[0]).abs(), middle[1]
    ulp = (torch.nextafter(x, torch.full_like(x, torch.inf)) - x).abs()
    noise, bend = (torch.zeros_like(width, dtype=torch.float64) for _ in range(2))
    steps = torch.arange(PLACES, dtype=x.dtype, device=x.device)[:, None]
    for times in APART:
        step = times * ulp
        y = problem.integrand(x + step * steps, cells.owner).detach().reshape(PLACES, len(x), -1)
        level = (
            y.diff(n=ORDER, dim=0).abs().double().square().mean(0).sqrt().amax(1) / comb(2 * ORDER, ORDER) ** 0.5
        )
        usable = (PLACES * step <= NARROW * width) & level.isfinite() & (level > EXPLAINED * bend)
        noise = torch.where(usable, torch.maximum(noise, level), noise)
        # What is bent is so many times more bent over the next distance, unless the bend is noise itself.
        bend = y.diff(n=2, dim=0).abs().double().amax((0, 2)).nan_to_num(torch.inf)
        bend = torch.where(level < SMOOTH * bend, bend * WIDER**2, 0.0)
    made = noise * factor[-1].abs().double()
    made, seen = (total(part, cells.owner, plan.batch) for part in (made, cells.error.double()))
    return who & (made >= ENOUGH * seen)
