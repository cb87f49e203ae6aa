"""Between a cell's ends and its outermost nodes no rule sees anything: the derivative integrand beside the ends.

Search asks f at the ends of its first cells, and knows from then on what lies there. A plan does not keep it, nor
is it the derivative that was asked: ``d/dh (h * (x > c))`` may jump where f changes by less than its tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import BEYOND, Sums
from quadgrad._core.mesh.cells import LIMIT, ULPS
from quadgrad._core.mesh.interval import Layout
from quadgrad._core.rules import RuleTensors

__all__ = ["Edges", "look_at_edges"]

WITHIN = 0.25
"""Places beside the ends are so much closer to them than the outermost nodes, or nothing can be told from them."""


@dataclass(frozen=True)
class Edges:
    """Places beside both ends of cells, ``(2, n)``, and which of them are ``usable``."""

    tau: Tensor
    usable: Tensor

    def hidden(self, rule: RuleTensors, sums: Sums, values: Tensor) -> Tensor:
        """Return the error ``(n, columns)``, from f times the factors ``(2, n, columns)`` there, or at the first.

        Were the integrand smooth its interpolating polynomial would meet it, but for :data:`BEYOND` times its
        highest coefficients. If a jump or a kink lies between, they differ by at least as much as it matters.
        """
        count, columns = len(values), values.shape[1:]
        allowed = BEYOND * (sums.nulls[0].abs() + sums.nulls[1].abs()).reshape(columns)
        gaps = (sums.edges[:count].reshape(values.shape) - values).abs().sub_(allowed).clamp_min_(0.0)
        gaps = gaps.nan_to_num(0.0, 0.0, 0.0).masked_fill(~self.usable[:count, :, None], 0.0)
        return gaps.sum(0) * rule.nodes[0]


def look_at_edges(rule: RuleTensors, layout: Layout, eps: float) -> Edges:
    """Return the places beside the ends of cells whose nodes are rounded to ``eps``.

    They are as close to the ends as rounding allows, but not there: bisection meets kinks and jumps exactly, which
    do not matter then, and a limit may be singular. Where the end is infinite ``exp(x)`` overflows so far out.
    """
    ends = rule.nodes.new_tensor([[0.0], [1.0]])
    slope = layout.scale.expand(2, -1)
    if isinstance(layout.logarithmic, Tensor) and layout.outer is not None and layout.rate is not None:
        fraction = (layout.outer * torch.exp(ends * layout.rate)).abs()
        slope = torch.where(layout.logarithmic, slope * fraction, slope)
    near = (ULPS * eps * layout.reach / slope.abs()).clamp_min(max(LIMIT, ULPS * eps))
    usable = (near < WITHIN * rule.nodes[0]) & layout.nodes(ends[:, 0])[0].isfinite()
    near = near.masked_fill(~usable, 0.5)
    return Edges(torch.stack((near[0], 1.0 - near[1])), usable)
