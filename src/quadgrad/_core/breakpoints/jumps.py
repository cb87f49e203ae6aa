"""Places that search is told or finds out: zeros of ``jumps``, and what is said about jumps the gradient lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from quadgrad._core._torch import differentiations, in_transform
from quadgrad._core.breakpoints.crossings import Zeros, scan_pieces, scan_plan
from quadgrad._core.breakpoints.found import find_lost_kink, find_moving_place, find_steep_place
from quadgrad._core.breakpoints.implicit import attach_derivatives
from quadgrad._core.breakpoints.unmarked import Least, find_stale_breakpoint, find_unmarked_jump
from quadgrad._core.errors import UnmarkedJumpWarning, warn
from quadgrad._core.gradient.boundary import carries_gradient
from quadgrad._core.integrand import Integrand
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.nesting import current_record
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.task import Found

__all__ = ["Search", "Switches", "note_found_places", "note_second_derivatives", "note_unmarked_jumps"]

SCANS = 4
"""Searches at most: one, and another each time the plan shows zeros that the scan before has missed."""

Search = Callable[[Problem, IntervalPlan | None], Found]


@dataclass(frozen=True)
class Switches:
    """A problem outside of all transforms, and where its function ``jumps`` changes sign for each integral."""

    problem: Problem
    g: Integrand
    zeros: Zeros

    @staticmethod
    def open(problem: Problem) -> Switches:
        """Scan the integrals for the zeros of ``jumps``."""
        g = problem.jumps
        assert g is not None
        return Switches(problem, g, scan_pieces(g, problem.limits, problem.batch, problem.block))

    def fit(self, plan: IntervalPlan | None) -> tuple[Switches, IntervalPlan | None]:
        """Return zeros and plan for the same number of pieces; search gives those without a cell one.

        One column of zeros at least where derivatives flow: an integral that a moving jump has left must stay
        differentiable.
        """
        points = _points(self.problem.limits)
        least = max(int(self.problem.flowing), 0 if plan is None else plan.pieces - 1 - points)
        zeros = self.zeros.pad(least)
        pieces = points + zeros.place.shape[1] + 1
        if plan is not None and plan.pieces < pieces:
            plan = replace(plan, pieces=pieces, row=plan.owner * pieces + plan.piece)
        return replace(self, zeros=zeros), plan

    def search(self, search: Search, plan: IntervalPlan | None) -> tuple[Switches, Found]:
        """Search between the zeros, and anew as long as the plan shows others.

        Where f jumps, search has refined, and the function is seen to change sign on the plan's nodes.
        """
        switches, spent = self, 0
        for scans in count(1):
            switches, plan = switches.fit(plan)
            between = _mark(self.problem, switches.zeros.place)
            found = search(between, plan)
            spent = found.nfev + spent
            missed = scan_plan(self.g, between.limits, found.plan, self.problem.block)
            if missed.count == 0 or scans == SCANS:
                return switches, replace(found, nfev=spent)
            switches, plan = replace(switches, zeros=switches.zeros.join(missed)), None
        raise AssertionError  # the loop has no end of its own

    def attach(self, problem: Problem) -> Problem:
        """Return the problem as it is inside the transforms, with zeros among its breakpoints, differentiable."""
        place, blur = self.zeros.place, self.zeros.width
        sound = ~place.isnan()
        if problem.flowing:
            assert problem.jumps is not None
            place, blur, sound = attach_derivatives(problem.jumps, self.zeros, self.problem.limits)
            _note_doubtful_zeros(self.zeros, plain(sound))
        # Zeros come first: of two marks at one place the first is differentiated.
        marked = _mark(problem, place)
        blur = torch.cat((blur, blur.new_zeros(problem.batch, _points(problem.limits))), dim=1)
        marked = marked.between(replace(marked.limits, blur=blur), marked.sources)
        return replace(marked, zeros=(self.zeros.component, plain(sound)))


def _points(limits: Limits) -> int:
    """Return the number of breakpoints of each integral."""
    return 0 if limits.points is None else limits.points.shape[1]


def _mark(problem: Problem, place: Tensor) -> Problem:
    """Return the problem with places among its breakpoints; all of these share a source in the caller's shape."""
    limits, batch = problem.limits, problem.batch
    k = _points(limits) + place.shape[1]
    if k == 0:
        return problem
    points = place.new_zeros((batch, 0)) if limits.points is None else limits.points.expand(batch, -1)
    source = torch.cat((place, points), dim=1).reshape(*problem.batch_shape, k)
    a, b = limits.a.expand(batch), limits.b.expand(batch)
    marked = Limits(a, b, source.reshape(batch, k), limits.infinite, limits.ordered)
    return problem.between(marked, (*problem.sources[:2], *(source,) * k))


def _note_doubtful_zeros(zeros: Zeros, sound: Tensor) -> None:
    """Say which zeros have no derivative: those only touched, and those where the function is flat or jumps."""
    flat = torch.where(~sound & ~zeros.place.isnan(), zeros.place, torch.nan)
    for places, what in (
        (zeros.touching, "touches 0 without a change of sign"),
        (flat.flatten(), "changes sign without passing through 0 at a finite slope"),
    ):
        hits = places[~places.isnan()]
        if hits.numel():
            x = float(hits[0])
            _note(f"the function given as jumps {what} at x = {x:.6g}: its derivative is not in the gradient there")
            return


def note_found_places(problem: Problem, silent: bool) -> bool:
    """Tell whether a place that search has found may be missing from the gradient, and say so unless ``silent``."""
    what, place = find_moving_place(problem) if problem.limits.found else ("", "")
    if place and not silent:
        _note(
            f"the integrand {what} at {place}, where nothing is marked. If the place depends on a parameter, its "
            "movement is missing from the gradient: name it in points=, as a tensor that requires grad, or give "
            "jumps= a function that is 0 there. If it is fixed, name it in points= all the same: that also "
            "saves evaluations"
        )
    return bool(place)


def note_second_derivatives(problem: Problem, plan: IntervalPlan, value: Tensor) -> None:
    """Have it said, if the derivative of a value is differentiated, that this is wrong: f is too steep, or bent."""
    if not problem.batch:
        return
    if not in_transform():
        if value.requires_grad:
            value.register_hook(_Look(problem, plan))
    elif differentiations() >= 2 and (text := _what_is_wrong(problem, plan)):
        _note(text)


class _Look:
    """A hook that looks when a gradient is made to be differentiated: once."""

    def __init__(self, problem: Problem, plan: IntervalPlan) -> None:
        self.about: tuple[Problem, IntervalPlan] | None = (problem, plan)

    def __call__(self, _: Tensor) -> None:
        if self.about is not None and torch.is_grad_enabled():
            about, self.about = self.about, None
            if text := _what_is_wrong(*about):
                warn(text, UnmarkedJumpWarning)


def _what_is_wrong(problem: Problem, plan: IntervalPlan) -> str:
    """Say what second derivatives lack, if anything."""
    name_it = "Name the place in points=, as a tensor that requires grad,"
    if problem.limits.found and (place := find_steep_place(problem)):
        return (
            f"second derivatives are wrong where the place {place} depends on a parameter: the integrand is "
            f'continuous there, but its slope is infinite. {name_it} with limit_gradient="pathwise"'
        )
    if place := find_lost_kink(problem, plan):
        return (
            f"second derivatives lack what the kink at {place} adds by moving: nothing marks it, and the value is "
            f"accurate enough without it. {name_it} or give jumps= a function that is 0 there"
        )
    return ""


def note_unmarked_jumps(problem: Problem, plan: IntervalPlan | None, least: Least) -> bool:
    """Look on a plan, if there is one, for jumps that the gradient does not know of; return whether it has any."""
    if plan is None:
        return False
    with problem.outside() as fixed:
        place = find_unmarked_jump(fixed.integrand, plan, fixed.limits, least, fixed.block)
    if place:
        _note(
            f"the integrand jumps at {place}, where nothing is marked. If the place depends on a parameter, its "
            "movement is missing from the gradient: name it in points=, as a tensor that requires grad, or give "
            "jumps= a function that is 0 there. If it is fixed, name it in points= all the same: that also "
            "saves evaluations"
        )
        return True
    marks = problem.limits.marks[2:]
    marks = marks[: len(marks) - problem.limits.found]
    if not marks or in_transform() or any(carries_gradient(mark) for mark in marks):
        return False
    place = find_stale_breakpoint(problem.integrand, problem.limits.detach(), plan.batch)
    if place:
        _note(
            f"the integrand jumps at {place}, which is marked by a breakpoint that carries no gradient but moves "
            "with an argument that does: its movement is missing from the gradient. Compute points from the "
            "argument, without detach() or float(), or give jumps= a function that is 0 there"
        )
    return bool(place)


def _note(text: str) -> None:
    record = current_record()
    if record is not None:
        record.jump = record.jump or text
