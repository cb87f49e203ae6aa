"""A verb with its options that keeps its plan: for integrands that change a little between calls, in training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.errors import PlanError
from quadgrad._core.lanes import plain
from quadgrad._core.plans.base import Plan
from quadgrad._core.printing import Printed
from quadgrad._core.result import Result
from quadgrad._core.tolerance import epsilon, make_tolerance
from quadgrad._core.verbs.quad import quad

__all__ = ["Integrator"]

EACH_CALL = {"args", "points", "jumps", "params", "seed"}
"""What is passed in each call."""

WORTH = 0.1
"""Merging is tried if it may save this share of the cells, and kept up if it does."""

PAUSE = 10
"""Calls from one trial to the next; three times as many each time a trial is not worth it."""


class Integrator(Printed):
    """Integrate again and again with the same options, on a plan that is kept, checked and mended.

    Call it as you call the verb. Of :func:`quadgrad.quad`, the plan of the call before is replayed; the values at
    its nodes give integral, gradient and error in one pass. Where an error exceeds its tolerance, search refines
    the plan; from time to time halves of a cell whose errors are far below what they may be are tried as one. So
    each result is checked as that of a fresh call is, at less than half the evaluations. A plan that does not fit
    (another batch shape, other kinds of limits) is given up for a fresh one. Of the verbs that sample, the number
    of points and the map of :func:`quadgrad.vegas` are kept; ``seed=`` in a call gives fresh points, the same seed
    the same ones.

    Parameters
    ----------
    verb : callable
        :func:`quadgrad.quad`, :func:`quadgrad.qmc` or another that takes a function and its domain.
    plan : Plan, optional
        The plan to start from; afterwards, the one kept.
    **options
        Options of the verb, the same in every call: ``rtol``, ``rule``, ``chunk_size`` and so on.

    Attributes
    ----------
    calls, started, refined, coarsened : int
        Calls made; of these, those that searched from scratch, that had to refine, and that merged cells.
    nfev : int
        Nodes at which the integrand was called to search or to check, over all calls and integrals.

    Raises
    ------
    TypeError, ValueError
        What the verb itself says of its options, when the integrator is made: it integrates nothing with them.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> width = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    >>> optimiser = torch.optim.Adam([width], lr=1e-3)
    >>> integrate = qg.Integrator(qg.quad, rtol=1e-8)
    >>> for step in range(50):
    ...     optimiser.zero_grad()
    ...     value, error = integrate(lambda x, e: e / ((x - 0.3) ** 2 + e**2), 0.0, 1.0, (width,))
    ...     loss = (value - 2.8) ** 2
    ...     loss.backward()
    ...     optimiser.step()
    >>> integrate.calls, integrate.started
    (50, 1)
    """

    def __init__(self, verb: Callable[..., Result] = quad, *, plan: Plan | None = None, **options: Any) -> None:
        accepted = inspect.signature(verb).parameters
        for name in options.keys() & accepted.keys() & (EACH_CALL - {"seed"}):
            raise TypeError(f"{name} is no option of an integrator: pass it in each call")
        self.verb, self.plan, self.options = verb, plan, options
        self.calls = self.started = self.refined = self.coarsened = self.nfev = 0
        self._due = self._pause = PAUSE
        self._allowed: Tensor | None = None
        # An empty batch, whose last dimension may be that of space: each verb checks its options as it always does.
        with torch.no_grad():
            verb(lambda x: x, *_empty_domain(verb), **options)

    def __call__(self, f: Callable[..., Any], *domain: Any, **given: Any) -> Result:
        """Integrate f over a domain: arguments, result, errors and warnings are those of the verb.

        Raises
        ------
        TypeError
            If an option is given that is fixed by the integrator.
        """
        if torch.compiler.is_compiling():  # one graph break, as of the verb alone
            call_eagerly = cast("Callable[..., Result]", torch.compiler.disable(self.__call__))
            return call_eagerly(f, *domain, **given)
        for name in given.keys() - EACH_CALL:
            raise TypeError(f"{name} is an option of the integrator: give it when the integrator is made")
        given = {name: value for name, value in given.items() if value is not None}

        def ask(plan: Plan | None, **changes: Any) -> Result:
            return self.verb(f, *domain, plan=plan, **(self.options | given | changes))

        self.calls += 1
        try:
            result = None if self.plan is None else self._ask_again(ask)
        except PlanError:
            result = None
        if result is None:
            self.started += 1
            result = ask(None)
            self._enter(result)
        value = plain(result.value)
        tolerance = make_tolerance(self.options.get("rtol"), self.options.get("atol", 0.0), epsilon(value.dtype))
        # Plans of logarithms are those of integrals scaled to 1.
        size = torch.ones_like(value.abs()) if self.options.get("log") else value.abs()
        batch = result.plan.batch
        size = size.reshape(batch, -1).amax(1) if size.numel() else size.new_zeros(batch)
        self._allowed = (tolerance.rtol * size).clamp_min(tolerance.atol)
        return result

    def _ask_again(self, ask: Callable[..., Result]) -> Result:
        """Integrate on the plan that is kept."""
        if self.calls >= self._due and not in_transform():
            self._coarsen(ask)
        result = ask(self.plan)
        self.refined += int(self._enter(result))
        return result

    def _enter(self, result: Result) -> bool:
        """Keep the result's plan; return whether its cells are others than before."""
        before, self.plan = self.plan, result.plan
        self.nfev += int(plain(result.nfev).sum())
        return before is None or not before.same(result.plan)

    def _coarsen(self, ask: Callable[..., Result]) -> None:
        """Search from a coarser plan: what was too coarse is refined again."""
        plan, allowed = self.plan, self._allowed
        self._due = self.calls + self._pause
        if plan is None or allowed is None or plan.size == 0:
            return
        coarser = plan.coarser(allowed)
        if coarser.size > (1.0 - WORTH) * plan.size:
            return
        with torch.no_grad():
            self._enter(ask(coarser, on_failure="ignore"))
        worth = self.plan is not None and self.plan.size <= (1.0 - WORTH) * plan.size
        self.coarsened += int(worth)
        self._pause = PAUSE if worth else 3 * self._pause
        self._due = self.calls + self._pause

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed."""
        verb = getattr(self.verb, "__name__", type(self.verb).__name__)
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        calls = f"{self.calls:,}: {self.started} from scratch, {self.refined} refined, {self.coarsened} coarsened"
        plan = repr(self.plan).splitlines()[0]
        return f"Integrator of {verb}({options})", {"calls": calls, "nfev": f"{self.nfev:,}", "plan": plan}


def _empty_domain(verb: Callable[..., Any]) -> tuple[Any, ...]:
    """Return a domain of no integrals, of the kind that a verb takes."""
    if "distribution" in inspect.signature(verb).parameters:
        return (torch.distributions.Normal(torch.zeros(0), torch.ones(0)),)
    return torch.zeros(0, 1), torch.ones(0, 1)
