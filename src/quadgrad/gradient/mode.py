"""The interface of gradient modes: one class in one file, one method."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from quadgrad.gradient.slivers import Treatment
from quadgrad.integrand import Integrand
from quadgrad.limits import Limits
from quadgrad.plan import Plan

__all__ = ["GradientMode"]


class GradientMode(ABC):
    """How the value becomes differentiable; pass an instance as ``gradient=`` to :func:`quadgrad.quad`."""

    @abstractmethod
    def apply(
        self, integrand: Integrand, plan: Plan, limits: Limits, treatment: Treatment | None, chunk: int | None
    ) -> Tensor:
        """Return the integrals, shape ``(batch, *event)``, as a differentiable tensor.

        Parameters
        ----------
        integrand : Integrand
            The user's function with its arguments, which may require grad.
        plan : Plan
            What search found.
        limits : Limits
            May require grad.
        treatment : Treatment, optional
            How each limit and breakpoint is differentiated; None if all boundaries move alone.
        chunk : int or None
            Nodes to hold at a time; None leaves it to the mode.
        """
