"""The interface of gradient modes: one class in one file, one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from quadgrad._core.gradient.boundary import Treatment
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.recompute import Rows
from quadgrad._core.result import Derivative

__all__ = ["Differentiated", "GradientMode", "Primal", "Scaled"]


@dataclass(frozen=True)
class Scaled:
    """How wrong integrals are that are scaled to 1 (or are 0), before their logarithms are taken; ``(batch,)``.

    ``error`` is the error of each, ``rounding`` the part of it that is the relative noise of one value of f.
    """

    error: Tensor
    rounding: Tensor


@dataclass(frozen=True)
class Primal:
    """A call after its search: all that a gradient mode may need.

    Attributes
    ----------
    integrand : Integrand
        The user's function with its arguments, which may require grad.
    plan : IntervalPlan
        What search found.
    limits : Limits
        May require grad.
    value : Tensor, shape ``(batch, *event)``
        What search found, with the sign of the limits' order, without gradient.
    treatment : Treatment, optional
        How each limit and breakpoint is differentiated; None if all boundaries move alone.
    eps : float
        Relative noise of one value of f: the coarsest of the dtypes on its way.
    max_nfev : int
        Most nodes to spend on one integral.
    chunk_size : int or None
        Nodes to hold at a time; None leaves it to the mode.
    given : tuple of Tensor or None
        The caller's own tensors behind ``integrand.arguments``.
    sources : tuple of Tensor or None
        The caller's own tensors behind ``limits.marks``; breakpoints share one, and stand along its last dimension.
    scaled : Scaled, optional
        Given where the logarithms of the integrals will be taken, which are scaled to 1.
    rows : Rows, optional
        For the sums of a replay on this plan: they replace ``value`` in place, part by part, which saves the
        memory for another one. A mode that needs ``value`` afterwards leaves them alone.
    """

    integrand: Integrand
    plan: IntervalPlan
    limits: Limits
    value: Tensor
    treatment: Treatment | None
    eps: float
    max_nfev: int
    chunk_size: int | None
    given: tuple[Tensor | None, ...]
    sources: tuple[Tensor | None, ...]
    scaled: Scaled | None = None
    rows: Rows | None = None


@dataclass(frozen=True)
class Differentiated:
    """The integrals, ``(batch, *event)``, as a differentiable tensor, and what a mode says of the derivative."""

    value: Tensor
    derivative: Derivative | None = None


class GradientMode(ABC):
    """How the value becomes differentiable; pass an instance as ``gradient=`` to :func:`quadgrad.quad`."""

    @abstractmethod
    def apply(self, primal: Primal) -> Differentiated:
        """Return the integrals of a searched call as a differentiable tensor."""
