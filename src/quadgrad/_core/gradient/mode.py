"""The interface of gradient modes: one class in one file, one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.gradient.boundary import Treatment, replay_with_limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.recompute import Rows
from quadgrad._core.result import Derivative
from quadgrad._core.search.task import Found

__all__ = ["Differentiated", "Finished", "GradientMode", "Primal", "Scaled"]


@dataclass(frozen=True)
class Scaled:
    """How wrong integrals are that are scaled to 1 (or are 0), before their logarithms are taken; ``(batch,)``.

    ``error`` is the error of each, ``rounding`` the part of it that is the relative noise of one value of f.
    """

    error: Tensor
    rounding: Tensor


@dataclass(slots=True)
class Primal:
    """A problem after its search: all that a gradient mode may need.

    Attributes
    ----------
    problem : Problem
        With the breakpoints that were found among its limits; these and the arguments may require grad.
    found : Found
        What search found, of integrals from lower to upper limits, and the plan on which it did.
    value : Tensor, shape ``(batch, *event)``
        The integrals with the sign of the limits' order, without gradient.
    uninspected : IntervalPlan, optional
        The part of the plan on which the integrand was not yet looked at for jumps.
    treatment : Treatment, optional
        How each limit and breakpoint is differentiated; None if all boundaries move alone.
    replayed : Tensor, optional
        The differentiable value, where a check of an earlier plan has given it already.
    scaled : Scaled, optional
        Given where the logarithms of the integrals will be taken, which are scaled to 1.
    rows : Rows, optional
        For the sums of a replay on this plan: they replace ``value`` in place, part by part, which saves the
        memory for another one. A mode that needs ``value`` afterwards leaves them alone.
    unfollowed : bool
        Whether f jumps or is singular at a place that search has found and that may depend on a parameter.
    """

    problem: Problem
    found: Found
    value: Tensor
    uninspected: IntervalPlan | None = None
    treatment: Treatment | None = None
    replayed: Tensor | None = None
    scaled: Scaled | None = None
    rows: Rows | None = None
    unfollowed: bool = False

    @property
    def plan(self) -> IntervalPlan:
        """The cells on which search found the integrals."""
        return self.found.plan

    @property
    def slope(self) -> Tensor:
        """The derivative of what is returned by the integrals: 1, or that of the logarithm, 0 where they are 0."""
        value = self.value.detach()
        if self.scaled is None:
            return torch.ones_like(value)
        return torch.where(value == 0.0, 0.0, 1.0 / value.masked_fill(value == 0.0, 1.0))

    def replay(self, plan: IntervalPlan | None = None) -> Tensor:
        """Return the integrals as a differentiable sum over a plan's cells, by default the value's own."""
        problem, rows = self.problem, self.rows if plan is None or plan is self.plan else None
        parts = (problem.integrand, self.plan if plan is None else plan, problem.limits, self.treatment)
        return replay_with_limits(*parts, problem.chunk_size, rows=rows)


@dataclass(frozen=True)
class Finished:
    """A primal whose integrals ``(batch, components)`` are not yet what is reported: a function of them is.

    ``function`` returns ``(batch, *event)``; it is differentiable, and made of torch operations.
    """

    primal: Any
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Differentiated:
    """The integrals, ``(batch, *event)``, as a differentiable tensor, and what a mode says of the derivative."""

    value: Tensor
    derivative: Derivative | None = None


class GradientMode(ABC):
    """How the value becomes differentiable; pass an instance as ``gradient=`` to :func:`quadgrad.quad`.

    ``replays_value`` tells that the derivative is that of the sum on the value's own plan: then the values that it
    needs serve as the check of a plan that was passed. ``takes_series`` tells that the mode can do with plans of
    which some cells are terms of series.
    """

    replays_value = False
    takes_series = False

    def with_tensors(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> GradientMode:
        """Return the mode that is meant where f sees others in the place of tensors that it closes over."""
        return self

    @abstractmethod
    def apply(self, primal: Primal) -> Differentiated:
        """Return the integrals of a searched call as a differentiable tensor."""
