"""The default gradient: differentiate the sum on the value's own plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.gradient.boundary import Treatment, carries_gradient, sliver_sum
from quadgrad._core.gradient.mode import Differentiated, GradientMode, Primal
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.recompute import Rows
from quadgrad._core.replay import BLOCK, Observer, replay_plan

__all__ = ["Reuse", "replay_with_limits"]


def replay_with_limits(
    integrand: Integrand,
    plan: IntervalPlan,
    limits: Limits,
    treatment: Treatment | None,
    chunk_size: int | None,
    observer: Observer | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Replay the plan and add the slivers of the limits; without a treatment the boundaries move alone.

    ``observer`` and ``rows`` are those of :func:`quadgrad._core.replay.replay_plan`.
    """
    moving = fixed = limits.detach()
    if treatment is not None:
        marks = zip(treatment.pathwise, limits.marks, fixed.marks, strict=True)
        moving = limits.with_marks(tuple(torch.where(p, mark, still) for p, mark, still in marks))
    total = replay_plan(
        integrand, plan, moving.pieces(), chunk_size or BLOCK, chunk_size is not None, observer, rows
    )
    value = fixed.orient(total)
    if any(carries_gradient(mark) for mark in limits.marks):
        value = value + sliver_sum(integrand, limits, plan.batch, treatment)
    return value


@dataclass(frozen=True)
class Reuse(GradientMode):
    """Differentiate the replayed sum on the value's own plan.

    It always works, for closures and networks too, and costs one pass more. The derivative is as
    accurate as the plan is for it: when the derivative is much harder than the value, tighten ``rtol``.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> value, error = qg.quad(lambda x, a: torch.exp(-a * x), 0.0, float("inf"), args=(a,), gradient=qg.Reuse())
    >>> value.backward()
    >>> a.grad
    tensor(-0.2500, dtype=torch.float64)
    """

    def apply(self, primal: Primal) -> Differentiated:
        """Return the replayed integrals; see :class:`GradientMode`."""
        parts = (primal.integrand, primal.plan, primal.limits, primal.treatment, primal.chunk_size)
        return Differentiated(replay_with_limits(*parts, rows=primal.rows))
