"""A gradient that is NaN although the integral is finite: noticed when it is computed, and told with its place."""

from __future__ import annotations

from dataclasses import replace
from operator import is_not

import torch
from torch import Tensor

from quadgrad._core._torch import derivatives_open
from quadgrad._core.errors import IntegrationWarning, warn
from quadgrad._core.gradient.derivative import differentiate, make_variables
from quadgrad._core.gradient.mode import Primal
from quadgrad._core.gradient.parameters import Parameters
from quadgrad._core.integrand import Argument, Integrand
from quadgrad._core.replay import REPLAY_BLOCK

__all__ = ["Watched"]


class Watched:
    """Arguments whose gradients are looked at in the backward pass; :meth:`told` says of which integrals."""

    def __init__(self, integrand: Integrand) -> None:
        """Put what looks at its gradient in the place of each argument that may get one."""
        self.primal: Primal | None = None
        self.integrand = integrand
        if torch.is_grad_enabled() and not derivatives_open():
            arguments = tuple([self._watch(i, argument) for i, argument in enumerate(integrand.arguments)])
            if any(map(is_not, arguments, integrand.arguments)):
                self.integrand = replace(integrand, arguments=arguments)

    def told(self, primal: Primal) -> None:
        """Take what the search has found."""
        self.primal = primal

    def _watch(self, index: int, argument: Argument) -> Argument:
        value = argument.value
        if not isinstance(value, Tensor) or not value.requires_grad:
            return argument
        watched = value.view_as(value)

        def look(gradient: Tensor | None) -> None:
            if gradient is None:  # the argument takes no part in what is differentiated
                return
            try:
                total = gradient.sum()
                lost = bool(total != total)
            except RuntimeError:  # several gradients at once, of which none is a number by itself
                return
            if lost:
                self._report(index)

        watched.register_hook(look)
        return replace(argument, value=watched)

    def _report(self, index: int) -> None:
        """Say at which x the derivative is NaN, and what f is there; nothing where the integral is no number."""
        primal = self.primal
        if primal is None or not bool(primal.found.value.isfinite().all()):
            return
        with torch.no_grad():
            place = _find(primal, index)
        if place is not None:
            x, y = place
            warn(
                f"the gradient with respect to args[{index}] is NaN although the integral is finite: at "
                f"x = {x:.6g}, where f = {y:.3g}, the derivative of f is NaN. Most often that is 0 times infinity: "
                "a factor underflows to 0, and the derivative of another one, such as exp, overflows. Write f so "
                "that nothing overflows where it is 0 (torch.clamp what goes into exp, use torch.sigmoid, or "
                "select by torch.where what goes in, not what comes out), or end the interval before",
                IntegrationWarning,
            )


def _find(primal: Primal, index: int) -> tuple[float, float] | None:
    """Return the first node at which the derivative is NaN where f is not, and f there."""
    problem, plan = primal.problem, primal.plan
    f = problem.integrand.with_still_arguments()
    variables = make_variables(f, (index,), Parameters.of(()))
    derivative = differentiate(f, variables, Parameters.of(()))
    pieces, step = problem.limits.detach().pieces(), max(1, REPLAY_BLOCK // plan.tau.shape[0])
    for low in range(0, len(plan), step):
        cells = plan.take(slice(low, low + step))
        x, _ = pieces.lay_out(cells).nodes(plan.tau)
        y = f(x, cells.owner).detach().reshape(*x.shape, -1).abs().amax(2)
        with torch.enable_grad():
            slope = derivative(x, cells.owner).detach()
        lost = (slope.isnan().any(2) & y.isfinite()).nonzero()
        if len(lost):
            row, column = lost[0].tolist()
            return float(x[row, column]), float(y[row, column])
    return None
