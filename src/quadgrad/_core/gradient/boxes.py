"""The gradient of integrals over boxes: that of the sum over their cells, and of the sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quadgrad._core.integrand import Integrand
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.problem import Problem
from quadgrad._core.replay import REPLAY_BLOCK, replay_plan
from quadgrad._core.search.task import Found

__all__ = ["BoxPrimal", "replay_boxes"]


def replay_boxes(integrand: Integrand, plan: BoxPlan, domain: Any, chunk_size: int | None) -> Tensor:
    """Return the integrals ``(batch, *event)`` as a differentiable sum over the cells of a plan."""
    return replay_plan(integrand, plan, domain, chunk_size or REPLAY_BLOCK, chunk_size is not None)


@dataclass(slots=True)
class BoxPrimal:
    """A problem after its search: all that a gradient mode may need.

    Attributes
    ----------
    problem : Problem
        Domain and arguments may require grad.
    found : Found
        What search found, and its plan.
    """

    problem: Problem
    found: Found

    @property
    def plan(self) -> BoxPlan:
        """The cells on which search found the integrals."""
        return self.found.plan

    @property
    def value(self) -> Tensor:
        """The integrals without gradient."""
        return self.found.value

    def replay(self, plan: BoxPlan | None = None) -> Tensor:
        """Return the integrals as a differentiable sum over a plan's cells, by default the value's own."""
        problem = self.problem
        return replay_boxes(
            problem.integrand, self.plan if plan is None else plan, problem.limits, problem.chunk_size
        )
