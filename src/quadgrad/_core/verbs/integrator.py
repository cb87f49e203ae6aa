"""A plan kept from call to call, for integrands that change a little between calls, as in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.lanes import export, largest
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import total
from quadgrad._core.result import Result
from quadgrad._core.search.decide import SHARE
from quadgrad._core.tolerance import epsilon
from quadgrad._core.verbs.inputs import prepare
from quadgrad._core.verbs.quad import quad

__all__ = ["KeptPlan"]

FAR = 1e-3
"""Siblings are tried as one cell if the error of each is below this share of what a cell may have."""

WORTH = 0.1
"""Merging is tried if it may save this share of the cells, and kept up if it does."""

PAUSE = 10
"""Calls from one trial to the next; three times as many each time a trial is not worth it."""


@dataclass
class KeptPlan:
    """Integrate again and again on a plan that is kept, checked in every call, and mended where needed.

    Call it as you call :func:`quadgrad.quad`. The plan of the call before is replayed; the values at its nodes give
    integral, gradient and error in one pass. Where an error exceeds its tolerance, search refines the plan; from
    time to time halves of a cell whose errors are far below what they may be are tried as one. So each result is
    checked as that of a fresh call is, at less than half the evaluations. A plan that does not fit (another
    batch shape, other kinds of limits) is given up for a fresh one.

    Parameters
    ----------
    options : dict
        Options for :func:`quadgrad.quad`, the same in every call: ``rtol``, ``rule``, ``chunk_size`` and so on.
    plan : IntervalPlan, optional
        The plan to start from; afterwards, the one kept.

    Attributes
    ----------
    calls, started, refined, coarsened : int
        Calls made; of these, those that searched from scratch, that had to refine, and that merged cells.
    nfev : int
        Nodes at which the integrand was called to search or to check, over all calls and integrals.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> width = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    >>> optimiser = torch.optim.Adam([width], lr=1e-3)
    >>> integrate = qg.KeptPlan({"rtol": 1e-8})
    >>> for step in range(50):
    ...     optimiser.zero_grad()
    ...     value, error = integrate(lambda x, e: e / ((x - 0.3) ** 2 + e**2), 0.0, 1.0, (width,))
    ...     loss = (value - 2.8) ** 2
    ...     loss.backward()
    ...     optimiser.step()
    >>> integrate.calls, integrate.started
    (50, 1)
    """

    options: dict[str, Any] = field(default_factory=dict[str, Any])
    plan: IntervalPlan | None = field(default=None, repr=False)
    calls: int = field(default=0, init=False)
    started: int = field(default=0, init=False)
    refined: int = field(default=0, init=False)
    coarsened: int = field(default=0, init=False)
    nfev: int = field(default=0, init=False)
    _due: int = field(default=PAUSE, init=False, repr=False)
    _pause: int = field(default=PAUSE, init=False, repr=False)
    _allowed: Tensor | None = field(default=None, init=False, repr=False)

    def __call__(
        self, f: Callable[..., Any], a: Any, b: Any, args: Any = (), *, points: Any = None, jumps: Any = None
    ) -> Result:
        """Integrate f from a to b; see :func:`quadgrad.quad` for arguments, result, errors and warnings."""
        call = prepare(f, a, b, args, points, self.options.get("vectorized", True))

        def ask(plan: IntervalPlan | None, **changes: Any) -> Result:
            return quad(f, a, b, args, points=points, jumps=jumps, plan=plan, **(self.options | changes))

        def look(plan: IntervalPlan) -> Result:
            with torch.no_grad():
                return ask(plan, on_failure="ignore")

        self.calls += 1
        if self.plan is None or not _fits(self.plan, call, jumps is not None):
            self.started += 1
            result = ask(None)
            self._enter(result)
        else:
            if self.calls >= self._due and not in_transform():
                self._coarsen(look)
            result = ask(self.plan)
            self.refined += int(self._enter(result))
        rtol, atol = self.options.get("rtol"), self.options.get("atol", 0.0)
        rtol = epsilon(call.integrand.call_dtype) ** 0.5 if rtol is None else rtol
        value = result.value.detach()
        # Plans of logarithms are those of integrals scaled to 1.
        value = torch.ones_like(value) if self.options.get("log") else value
        size = export(largest(value.abs())).reshape(call.batch, -1)
        self._allowed = (rtol * size.amax(1)).clamp_min(atol) if size.numel() else size.new_zeros(call.batch)
        return result

    def _enter(self, result: Result) -> bool:
        """Keep the result's plan; return whether its cells are others than before."""
        before, self.plan = self.plan, result.plan
        self.nfev += int(result.nfev.sum())
        return before is None or not torch.equal(before.start, result.plan.start)

    def _coarsen(self, look: Callable[[IntervalPlan], Result]) -> None:
        """Merge siblings with small errors, and search from there: what was too coarse is bisected again."""
        plan, allowed = self.plan, self._allowed
        self._due = self.calls + self._pause
        if plan is None or allowed is None or len(plan) == 0:
            return
        count = total(torch.ones_like(plan.error), plan.owner, plan.batch)
        merged = plan.merge(plan.error <= FAR * SHARE * (allowed / count)[plan.owner])
        if len(merged) > (1.0 - WORTH) * len(plan):
            return
        self._enter(look(merged))
        worth = len(self.plan or ()) <= (1.0 - WORTH) * len(plan)
        self.coarsened += int(worth)
        self._pause = PAUSE if worth else 3 * self._pause
        self._due = self.calls + self._pause


def _fits(plan: IntervalPlan, call: Problem, jumps: bool) -> bool:
    """Return whether a plan can be used; zeros of ``jumps`` may come and go, and pieces with them."""
    given = 0 if call.limits.points is None else call.limits.points.shape[1]
    pieces = plan.pieces > given if jumps else plan.pieces == given + 1
    return pieces and plan.batch_shape == call.batch_shape and plan.infinite == call.limits.infinite
