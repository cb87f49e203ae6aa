"""A verb with its options that keeps its plan: for integrands that change a little between calls, in training."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import hooks_saved_tensors, in_backward, in_transform
from quadgrad._core.eager import left_eager
from quadgrad._core.errors import PlanError
from quadgrad._core.lanes import plain
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.cells import CellPlan
from quadgrad._core.plans.interval import MERGED
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.printing import Printed
from quadgrad._core.result import Result
from quadgrad._core.status import Status
from quadgrad._core.tolerance import epsilon, make_tolerance
from quadgrad._core.verbs.keyed import KeyedCells, as_keys
from quadgrad._core.verbs.merging import LONGER, PAUSE, WORTH, Merging
from quadgrad._core.verbs.quad import quad
from quadgrad._core.verbs.repeats import Repeats

__all__ = ["Integrator", "restore_integrator"]

EACH_CALL = {"args", "points", "jumps", "region", "params", "seed", "key"}
"""What is passed in each call."""

VERBS = ("quad", "cubature", "qmc", "vegas", "expectation")
"""Public verbs, which a file may name."""

CELLS = 2**20
"""Cells kept for keys at most, unless the caller says: of 42 bytes each."""

DEAR, CHEAP = 1.25, 0.9
"""Of what a start costs: where a kept plan costs more than the first, the next call starts anew; where it costs
less than the second, keeping is worth it again."""

COUNTS = ("calls", "started", "refined", "coarsened", "nfev")
"""What is counted."""

_MADE_ONCE = "integrate = quadgrad.Integrator(quadgrad.quad), and give f in each call, integrate(f, a, b)"

EXTRA = "_extra_state"
"""Torch's name for what a module saves beside tensors."""

ROUNDED = 0.04
"""Cells whose error is this part of their share of 50 eps times the value are merged at any tolerance: rounding."""


class Integrator(Printed, torch.nn.Module):
    """A verb with its options that keeps its plan across calls: half the evaluations, in training.

    Make it once, before the loop, with the options; call it as you call the verb, ``integrate(f, a, b, args)``:
    each result is a :class:`Result`, checked as that of a fresh call is. Minibatches that are drawn afresh name
    their data, ``key=indices``. It is a :class:`torch.nn.Module` without parameters, for a model's ``state_dict``:
    most of its methods are those of any module. :meth:`reset` forgets all that is kept.

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

    Minibatches of 100 peaks: the second time each is integrated on its own cells.

    >>> widths = torch.logspace(-4, 0, 100, dtype=torch.float64)
    >>> integrate = qg.Integrator(rtol=1e-8)
    >>> for epoch in range(2):
    ...     for batch in torch.randperm(100, generator=torch.Generator().manual_seed(epoch)).split(30):
    ...         result = integrate(lambda x, e: e / ((x - 0.3) ** 2 + e**2), 0.0, 1.0, (widths[batch],), key=batch)
    >>> len(integrate.kept), integrate.started
    (100, 4)

    Parameters
    ----------
    verb : callable
        :func:`quadgrad.quad`, :func:`quadgrad.qmc` or another that takes a function and its domain.
    plan : Plan, optional
        The plan to start from; afterwards, the one kept.
    key : Tensor of integers, shape ``batch``, optional
        Names the integrals, for calls that give no ``key`` of their own.
    max_cells : int
        So many cells are kept for keys at most, of 42 bytes each: those of the data that were not seen for longest
        are forgotten.
    **options
        Options of the verb, the same in every call: ``rtol``, ``rule``, ``chunk_size`` and so on.

    Attributes
    ----------
    calls, started, refined, coarsened : int
        Calls made; of these, those that searched from scratch, that had to refine, and after which merging cells
        had proved worth it.
    nfev : int
        Nodes at which the integrand was called to search or to check, over all calls and integrals.

    Raises
    ------
    TypeError, ValueError
        What the verb itself says of its options, when the integrator is made: it integrates nothing with them.

    Notes
    -----
    Of :func:`quadgrad.quad`, the plan of the call before is replayed; the values at its nodes give integral,
    gradient and error in one pass. Where an error exceeds its tolerance, search goes on from these cells, within
    ``max_nfev`` in all; halves of a cell whose errors are far below what they may be are merged. What did not
    converge is not refined again before its error grows, or some calls have passed; integrals that were NaN keep
    the cells they had. Where keeping costs more than starting anew did, the next calls start anew. Of the verbs
    that sample, the number of points and the map of :func:`quadgrad.vegas` are kept; ``seed=`` in a call gives
    fresh points, the same seed the same ones.

    A batch of another shape starts from the cells that many integrals of the one before have in common. With
    ``key=`` in each call, whole numbers in the batch's shape, each datum gets the cells it had when it was last
    seen.

    As an attribute of a model it is in the model's ``state_dict`` (which ``torch.load(..., weights_only=True)``
    reads) and moves with it; a ``state_dict`` that lacks it loads, too. Inside
    :func:`torch.utils.checkpoint.checkpoint` a call that is made again does what it did before.
    """

    def __init__(
        self, verb: Callable[..., Result] = quad, *domain: Any, plan: Plan | None = None, key: Any = None,
        max_cells: int = CELLS, **options: Any,
    ) -> None:  # fmt: skip
        accepted = _parameters(verb)
        if domain:
            raise TypeError(f"an integrator gets the domain in each call, as it gets f: {_MADE_ONCE}")
        for name in options.keys() & accepted.keys() & (EACH_CALL - {"seed"}):
            raise TypeError(f"{name} is no option of an integrator: pass it in each call")
        super().__init__()
        self.verb, self.options = verb, options
        self.key = None if key is None else as_keys(key)
        self.max_cells = max_cells
        # An empty batch, whose last dimension may be that of space: each verb checks its options as it always does.
        with torch.no_grad():
            verb(lambda x: x, *_empty_domain(verb), **options)
        self.reset()
        self.plan = plan

    def reset(self) -> None:
        """Forget all that is kept, and begin to count anew."""
        self.plan: Plan | None = None
        self.kept = KeyedCells(self.max_cells)
        self.calls = self.started = self.refined = self.coarsened = self.nfev = 0
        self._due = self._pause = PAUSE
        self._before = 0
        self._merging: Merging | None = None
        self._retry, self._patience = 0, PAUSE
        self._fresh: float | None = None
        self._anew = self._dear = 0
        self._repeats = Repeats()

    @left_eager
    def __call__(self, f: Callable[..., Any], *domain: Any, **given: Any) -> Result:
        """Call :meth:`forward`, into which ``torch.compile`` does not look: one graph break, as of the verb."""
        return super().__call__(f, *domain, **given)

    def forward(self, f: Callable[..., Any], *domain: Any, **given: Any) -> Result:
        """Integrate f over a domain: arguments, result, errors and warnings are those of the verb.

        Raises
        ------
        TypeError
            If an option is given that is fixed by the integrator, or a key that is no whole number.
        ValueError
            If there is not one key for each integral.
        """
        for name in given.keys() - EACH_CALL:
            raise TypeError(f"{name} is an option of the integrator: give it when the integrator is made")
        given = {name: value for name, value in given.items() if value is not None}
        keys = as_keys(given.pop("key")) if "key" in given else self.key

        def ask(plan: Plan | None) -> Result:
            return self.verb(f, *domain, plan=plan, **(self.options | given))

        merging, start = self._merging, self.plan
        if keys is not None:
            start, merging = self.kept.take(keys)
        numbers = (domain, given)
        if in_backward():  # a checkpoint that makes a call again must save the same; nothing is learnt from it
            return ask(self._repeats.recall(f, numbers, start))
        self.calls += 1
        result, start = self._ask(ask, start)
        if torch.is_grad_enabled() and hooks_saved_tensors():
            self._repeats.remember(f, numbers, start)
        self.nfev += int(plain(result.nfev).sum())
        if isinstance(result.plan, CellPlan):
            self._keep_cells(result, start, keys, merging)
        elif keys is not None:
            raise TypeError(f"key: {_name(self.verb)} keeps no cells, of which each datum could have its own")
        else:
            self._keep_points(result.plan)
        return result

    def _ask(self, ask: Callable[..., Result], start: Plan | None) -> tuple[Result, Plan | None]:
        """Integrate from a plan, or from what fits of it; return from what that was."""
        if start is not None and _device(start).type != "meta":  # where tensors have no values
            try:
                return ask(start), start
            except PlanError as misfit:
                start = start.common() if isinstance(start, CellPlan) and misfit.batch_shape is not None else None
                if start is not None:
                    return ask(start), start
        self.started += 1
        return ask(None), None

    def _keep_points(self, plan: Plan | None) -> None:
        """Keep a number of points; try half of it from time to time."""
        before, self.plan = self.plan, plan
        self.refined += int(plan is not None and before is not None and not before.same(plan))
        if not isinstance(plan, PointsPlan):
            return
        if self._before:
            worth = plan.size <= (1.0 - WORTH) * self._before
            self.coarsened += int(worth)
            self._pause = PAUSE if worth else LONGER * self._pause
            self._due, self._before = self.calls + self._pause, 0
        elif self.calls >= self._due and not in_transform():
            self._before, self.plan = plan.size, plan.coarser(torch.zeros(0, device="cpu"))

    def _keep_cells(self, result: Result, start: Plan | None, keys: Tensor | None, merging: Merging | None) -> None:
        """Keep the cells of a result for the next call, merged where that may save something."""
        plan = result.plan
        if keys is not None and tuple(keys.shape) != plan.batch_shape:
            raise ValueError(
                f"key has shape {tuple(keys.shape)}, and the batch is {plan.batch_shape}: one for each"
            )
        same = isinstance(start, CellPlan) and start.batch_shape == plan.batch_shape
        stays = same and start is not None and start.same(plan)
        self.refined += int(same and not stays)
        if not plan.batch:
            return
        status = plain(result.status).reshape(-1)
        if bool(status.any()):
            plan = self._after_failure(plan, start if same else None, status, plain(result.error).reshape(-1))
        if not same or merging is None or len(merging.wait) != plan.batch:
            merging = Merging.start(plan.batch, plan.row.device) if keys is None or merging is None else merging
        if len(plan) > plan.batch * plan.pieces and not in_transform() and not merging.rest(stays):
            merging = merging.to(plan.row.device)
            plan, proved = merging.merge(plan, self._allowed(result))
            self.coarsened += int(proved > 0)
        if keys is not None:
            self.kept.put(keys, plan, merging)
        else:
            self._merging = merging
            # A bad step tells nothing of what the next one costs.
            if not bool((status == int(Status.NONFINITE)).any()):
                plan = self._unless_dear(plan, float(plain(result.nfev).sum()) / plan.batch, same)
        self.plan = plan

    def _unless_dear(self, plan: CellPlan, spent: float, kept: bool) -> CellPlan | None:
        """Return the plan, or what to start anew from where it has cost more than a start did."""
        if not kept:
            self._fresh = spent
            self._anew -= 1
        elif self._fresh is not None and spent > DEAR * self._fresh:
            # Where the integrals are others in every call, keeping cells is tried ever more seldom.
            self._dear = self._anew = 2 * self._dear if self._dear else 1
        elif spent < CHEAP * (self._fresh or 0.0):
            self._dear = 0
        if self._anew <= 0:
            return plan
        return plan.common() if plan.batch > 1 else None

    def _after_failure(self, plan: CellPlan, start: Any, status: Tensor, error: Tensor) -> CellPlan:
        """Return a plan that leaves alone what has stalled, and has earlier cells for what was finite before."""
        lost = (status == int(Status.NONFINITE)) | (status > 0) & error.isinf()
        former = start if start is not None and start.pieces == plan.pieces else plan.take(slice(0, 0))
        sound = lost & (torch.bincount(former.owner, minlength=plan.batch) > 0)
        stalled = status.masked_fill(sound & (status != int(Status.NONFINITE)), 0)
        if bool(lost.any()):
            plan = plan.take(~lost[plan.owner]).join(former.take(sound[former.owner]))
            plan = plan.with_notes_of(former, sound)
        if not bool(stalled.any()):
            return plan.noted()
        if self.calls >= self._retry:  # what has changed since may have made it easier
            if self._retry:
                tried = (stalled > 0) & ~sound
                plan, stalled = plan.take(~tried[plan.owner]), stalled.masked_fill(tried, 0)
                self._patience = LONGER * self._patience
            self._retry = self.calls + self._patience
        # Errors are of the precision that they were found in: what stalls in a lower one need not in a higher one.
        return replace(plan, error=plan.error.to(error.dtype)).noted(stalled=stalled)

    def _allowed(self, result: Result) -> Tensor:
        """Return the error that each integral may have, ``(batch,)``."""
        value, batch = plain(result.value), result.plan.batch
        tolerance = make_tolerance(self.options.get("rtol"), self.options.get("atol", 0.0), epsilon(value.dtype))
        # Plans of logarithms are those of integrals scaled to 1.
        size = torch.ones_like(value.abs()) if self.options.get("log") else value.abs()
        size = size.reshape(batch, -1).amax(1) if size.numel() else size.new_zeros(batch)
        allowed = (tolerance.rtol * size).clamp_min(tolerance.atol)
        least = 50.0 * ROUNDED / MERGED * tolerance.eps * size
        return torch.maximum(allowed, least).nan_to_num(0.0, 0.0)

    # ---------------------------------------------------------------------------------------------- as a module

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is kept, for ``state_dict``."""
        merging = None if self._merging is None else self._merging.columns()
        counts = {name: getattr(self, name) for name in COUNTS}
        return {"plan": self.plan, "merging": merging, "kept": self.kept.state(), "counts": counts}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`get_extra_state` returned."""
        self.reset()
        self.plan = state["plan"]
        self._merging = None if state["merging"] is None else Merging(*state["merging"])
        self.kept.restore(state["kept"])
        for name, count in state["counts"].items():
            setattr(self, name, count)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # pyright: ignore
        """Load; that there is nothing for an integrator is no fault: it begins anew."""
        if prefix + EXTRA in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Integrator:
        """Move what is kept along with a module."""
        if self.plan is not None:
            device = fn(torch.zeros(0, device=_device(self.plan))).device
            self.plan = self.plan.to(device)
            self._merging = None if self._merging is None else self._merging.to(device)
        self.kept.move(fn)
        return super()._apply(fn, recurse)

    def __reduce__(self) -> Any:
        """Say how to save it whole: by the verb's name, options, and what is kept."""
        name = _name(self.verb)
        if name not in VERBS or self.verb is not getattr(importlib.import_module("quadgrad"), name):
            return super().__reduce__()
        options = self.options | {"key": self.key, "max_cells": self.max_cells}
        return restore_integrator, (name, options, self.get_extra_state())

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed."""
        verb = _name(self.verb)
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        calls = f"{self.calls:,}: {self.started} from scratch, {self.refined} refined, {self.coarsened} coarsened"
        plan = repr(self.plan).splitlines()[0] + (f"; cells of {len(self.kept):,} keys" if len(self.kept) else "")
        return f"Integrator of {verb}({options})", {"calls": calls, "nfev": f"{self.nfev:,}", "plan": plan}


def _parameters(verb: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a verb; refuse an integrand in its place."""
    try:
        accepted = inspect.signature(verb).parameters
    except (TypeError, ValueError):  # no function, or one of torch's own
        accepted = {}
    keeps = "plan" in accepted and accepted["plan"].kind is inspect.Parameter.KEYWORD_ONLY
    if not (keeps or any(p.kind is p.VAR_KEYWORD for p in accepted.values())):
        raise TypeError(
            f"verb is what integrates and takes a plan, such as quadgrad.quad, not {verb!r:.60}: write {_MADE_ONCE}"
        )
    return accepted


def restore_integrator(verb: str, options: dict[str, Any], state: dict[str, Any]) -> Integrator:
    """Return a saved integrator."""
    if verb not in VERBS:
        raise ValueError(f"{verb!r} is no verb of quadgrad")
    integrator = Integrator(getattr(importlib.import_module("quadgrad"), verb), **options)
    integrator.set_extra_state(state)
    return integrator


# Files name the package alone: what stands below it may move.
restore_integrator.__module__ = "quadgrad"
restore_integrator.__name__ = restore_integrator.__qualname__ = "_restore_integrator"
torch.serialization.add_safe_globals([restore_integrator])


def _name(verb: Any) -> str:
    return getattr(verb, "__name__", type(verb).__name__)


def _device(plan: Any) -> torch.device:
    return next(value.device for value in vars(plan).values() if isinstance(value, Tensor))


def _empty_domain(verb: Callable[..., Any]) -> tuple[Any, ...]:
    """Return a domain of no integrals, of the kind that a verb takes."""
    if "distribution" in inspect.signature(verb).parameters:
        return (torch.distributions.Normal(torch.zeros(0, device="cpu"), torch.ones(0, device="cpu")),)
    d = 2 if _name(verb) == "cubature" else 1  # in one dimension that is quad, whose rules are others
    return torch.zeros(0, d, device="cpu"), torch.ones(0, d, device="cpu")
