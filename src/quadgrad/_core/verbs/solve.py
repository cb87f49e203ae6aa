"""From a checked call to what search found: afresh, from a plan, or by one pass over a plan that still serves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from quadgrad._core.breakpoints.marks import Search, Switches
from quadgrad._core.gradient.boundary import Treatment
from quadgrad._core.gradient.pathwise import choose_treatment
from quadgrad._core.gradient.reuse import replay_with_limits
from quadgrad._core.integrand import Integrand
from quadgrad._core.lanes import export
from quadgrad._core.mesh.cells import BESIDE
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.rules import Rule
from quadgrad._core.search.kernel.native import Opening
from quadgrad._core.search.recheck import Watch, recheck
from quadgrad._core.search.record import make_plan
from quadgrad._core.search.start import First, first_cells
from quadgrad._core.search.task import Found, Task
from quadgrad._core.search.tiles import search_tiles
from quadgrad._core.tolerance import Tolerance
from quadgrad._core.verbs.inputs import Call
from quadgrad._core.verbs.noise import refuse_disagreement, refuse_noise

__all__ = ["Outcome", "Setting", "oriented_value", "replay_kept", "search_all"]

MAX_NFEV = 30_000

LimitsMode = Literal["auto", "boundary", "pathwise"]


@dataclass(slots=True)
class Setting:
    """What stays the same however often a call searches.

    ``block`` is the number of nodes evaluated at a time; ``flowing`` tells whether derivatives flow to f's values,
    which search has to keep out; ``opening`` what is known already where there is but one search.
    """

    call: Call
    integrand: Integrand
    rule: Rule
    tolerance: Tolerance
    max_nfev: int | None
    block: int
    chunk_size: int | None
    flowing: bool = True
    opening: Opening | None = None

    def task(self, pieces: Pieces) -> Task:
        """Return the task of searching the given pieces."""
        batch = self.call.batch
        tile = max(1, batch) if self.chunk_size is None else self.chunk_size
        budget = self.budget(pieces.count)
        return Task(
            self.integrand, pieces, self.rule, self.tolerance, budget, self.block, tile, batch, self.opening
        )  # fmt: skip

    def budget(self, pieces: int) -> int:
        """Return the most nodes to spend on one integral of so many pieces."""
        least = (self.rule.nodes.size + BESIDE) * pieces
        if self.max_nfev is None:
            return max(MAX_NFEV, 4 * least)
        if self.max_nfev < least:
            raise ValueError(
                f"max_nfev={self.max_nfev} is less than the first round of {self.rule.name} needs: {least} nodes"
            )
        return self.max_nfev

    def start(self, pieces: Pieces, plan: IntervalPlan | None) -> First:
        """Return the cells to start from, those of a plan if one was passed."""
        return first_cells(pieces, self.call.batch_shape, self.call.batch, self.rule, plan)

    def search(self, marks: Limits, plan: IntervalPlan | None) -> tuple[Found, IntervalPlan]:
        """Search between the given limits and breakpoints."""
        task = self.task(marks.pieces())
        found = self.run(task, None if plan is None else self.start(task.pieces, plan))
        return found, self.record(found, task.pieces)

    def run(self, task: Task, first: First | None) -> Found:
        """Search from the given cells, or from whole pieces."""
        if not self.flowing:
            return search_tiles(task, first)
        with torch.no_grad():
            return search_tiles(task, first)

    def record(self, found: Found, pieces: Pieces) -> IntervalPlan:
        """Return the plan of what was found."""
        return make_plan(found, pieces, self.call.batch_shape, self.rule)


@dataclass(slots=True)
class Outcome:
    """What a call has found: with which limits, whose sources are the caller's tensors, and on which plan.

    ``unseen`` is the part of the plan that was not yet looked at for jumps; ``replayed`` the differentiable value
    if there is one already, and ``treatment`` how its limits were differentiated.
    """

    limits: Limits
    sources: tuple[Tensor | None, ...]
    found: Found
    plan: IntervalPlan
    unseen: IntervalPlan | None
    treatment: Treatment | None = None
    replayed: Tensor | None = None


def search_all(call: Call, search: Search, switches: Switches | None, plan: IntervalPlan | None) -> Outcome:
    """Search every integral, from the cells of a plan if one was passed."""
    limits, sources = call.limits, call.sources
    if switches is None:
        found, made = search(limits.detach(), plan)
    else:
        switches, found, made = switches.search(search, plan)
        limits, sources = switches.limits()
    found.kind = None  # the plan has it
    return Outcome(limits, sources, found, made, made)


def replay_kept(
    setting: Setting, switches: Switches | None, plan: IntervalPlan, mode: LimitsMode
) -> Outcome | None:
    """Replay the plan that was passed, and check it by the values seen; None if all of it must be searched.

    For the integrals that are done it saves the search and the checks of what search found: where f is not
    deterministic, the values themselves show a large error. The others are searched from their cells.
    """
    call, chunk_size, integrand = setting.call, setting.chunk_size, setting.integrand
    limits, sources = call.limits, call.sources
    if switches is not None:
        switches, fitted = switches.fit(plan)
        plan = plan if fitted is None else fitted
        limits, sources = switches.limits()
    if len(plan) == 0:
        return None
    task = setting.task(limits.detach().pieces())
    watch = Watch(task, setting.start(task.pieces, plan))
    used = _with_cells(plan, watch.first, setting)
    treatment = choose_treatment(integrand, used, limits, sources, mode)
    value = replay_with_limits(integrand, used, limits, treatment, chunk_size, watch)
    checked = recheck(watch)
    found, done = checked.found, checked.done
    if bool(done.all()):
        made = replace(setting.record(found, task.pieces), inspected=plan.inspected)
        return Outcome(limits, sources, found, made, None if plan.inspected else made, treatment, value)
    # What is infinite would give NaN where it is replaced; zeros of jumps have to be looked for on the new cells.
    easy = switches is None and treatment is None and bool(done.any())
    if not easy or bool(found.cell_error.isinf().any()):
        return None
    mended = setting.run(task, checked.unfinished())
    refined = setting.record(mended, task.pieces)
    known = oriented_value(mended, limits.detach(), bool(export(mended.status).any()))
    refuse_noise(integrand, refined, limits.detach())
    again = replay_with_limits(integrand, refined, limits, None, chunk_size)
    refuse_disagreement(again, known, mended.error, setting.block)
    value = torch.where(done.reshape(-1, *(1,) * (value.ndim - 1)), value, again)
    found = checked.join(mended)
    made = setting.record(found, task.pieces)
    return Outcome(limits, sources, found, made, refined if plan.inspected else made, None, value)


def _with_cells(plan: IntervalPlan, first: First, setting: Setting) -> IntervalPlan:
    """Return the plan with other cells."""
    kind = torch.zeros_like(first.row, dtype=torch.int8) if first.kind is None else first.kind
    row, start, stop, kind = (export(t) for t in (first.row, first.start, first.stop, kind))
    shape, error = setting.call.batch_shape, torch.zeros_like(start)
    return replace(plan, batch_shape=shape, row=row, start=start, stop=stop, kind=kind, error=error)


def oriented_value(found: Found, limits: Limits, failed: bool) -> Tensor:
    """Return the value with the sign of the limits' order, NaN where f was not finite."""
    value = limits.orient(found.value)
    if failed:
        unknown = found.error.isinf().reshape(-1, *(1,) * (value.ndim - 1))
        value = value.masked_fill(unknown, torch.nan)
    return value
