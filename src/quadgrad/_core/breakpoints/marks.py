"""Places that search is told or finds out: zeros of ``jumps``, and what is said about jumps the gradient lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import forward_mode_open, in_transform
from quadgrad._core.breakpoints.crossings import Zeros, scan_pieces, scan_plan
from quadgrad._core.breakpoints.implicit import attach_derivatives
from quadgrad._core.breakpoints.unmarked import Least, find_stale_breakpoint, find_unmarked_jump
from quadgrad._core.errors import IntegrandError
from quadgrad._core.gradient.boundary import carries_gradient
from quadgrad._core.integrand import Integrand
from quadgrad._core.lanes import export, largest, somewhere
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.nesting import current_record
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.search.task import Found
from quadgrad._core.verbs.inputs import Call

__all__ = ["Search", "Switches", "note_unmarked_jumps"]

SCANS = 4
"""Searches at most: one, and another each time the plan shows zeros that the scan before has missed."""

Search = Callable[[Limits, IntervalPlan | None], tuple[Found, IntervalPlan]]


@dataclass(frozen=True)
class Switches:
    """The function given as ``jumps``, and where it changes sign for each integral.

    ``moves`` tells whether its zeros carry derivatives; ``block`` is the number of nodes looked at at a time.
    """

    call: Call
    g: Integrand
    moves: bool
    block: int
    zeros: Zeros

    @staticmethod
    def open(call: Call, jumps: Callable[..., Any], inner: Tensor, block: int) -> Switches:
        """Call the function once at ``inner``, then scan the integrals for its zeros."""
        if not callable(jumps):
            raise TypeError(f"jumps must be a function g(x, *args), not {type(jumps).__name__}")
        g = replace(call.integrand, function=jumps, vectorized=True, name="function given as jumps")
        g, probe = g.probe(inner)
        if probe.is_complex() or not probe.is_floating_point():
            raise IntegrandError(
                f"jumps returned {probe.dtype}: its zeros are looked for, so it must be real and pass through 0, "
                "such as x - s where the integrand asks for x > s"
            )
        moves = in_transform() or forward_mode_open() or (torch.is_grad_enabled() and probe.requires_grad)
        with torch.no_grad():
            zeros = scan_pieces(g, call.limits.detach(), call.batch, block)
        return Switches(call, g, moves, block, zeros)

    def fit(self, plan: IntervalPlan | None) -> tuple[Switches, IntervalPlan | None]:
        """Return zeros and plan for the same number of pieces; search gives those without a cell one.

        One column of zeros at least: an integral that a moving jump has left must stay differentiable.
        """
        given = _given(self.call.limits)
        zeros = self.zeros.pad(max(int(self.moves), 0 if plan is None else plan.pieces - 1 - given))
        pieces = given + zeros.place.shape[1] + 1
        if plan is not None and plan.pieces < pieces:
            plan = replace(plan, pieces=pieces, row=plan.owner * pieces + plan.piece)
        return replace(self, zeros=zeros), plan

    def search(self, search: Search, plan: IntervalPlan | None) -> tuple[Switches, Found, IntervalPlan]:
        """Search between the zeros, and anew as long as the plan shows others.

        Where f jumps, search has refined, and the function is seen to change sign on the plan's nodes.
        """
        switches, spent = self, torch.zeros((), dtype=torch.int64)
        for scans in count(1):
            switches, plan = switches.fit(plan)
            between = _mark(self.call, self.call.limits.detach(), switches.zeros.place)[0]
            found, made = search(between, plan)
            spent = found.nfev + spent
            with torch.no_grad():
                missed = scan_plan(self.g, between, made, self.block)
            if missed.count == 0 or scans == SCANS:
                return switches, replace(found, nfev=spent), made
            switches, plan = replace(switches, zeros=switches.zeros.join(missed)), None
        raise AssertionError  # the loop has no end of its own

    def limits(self) -> tuple[Limits, tuple[Tensor | None, ...]]:
        """Return the limits with the zeros among their breakpoints, differentiable, and the marks' sources."""
        place, blur = self.zeros.place, self.zeros.width
        if self.moves:
            place, blur, sound = attach_derivatives(self.g, self.zeros, self.call.limits.detach())
            _note_doubtful_zeros(self.zeros, sound)
        # Zeros come first: of two marks at one place the first is differentiated.
        limits, source = _mark(self.call, self.call.limits, place)
        blur = torch.cat((blur, blur.new_zeros(self.call.batch, _given(self.call.limits))), dim=1)
        return replace(limits, blur=blur), (*self.call.sources[:2], *(source,) * _given(limits))


def _given(limits: Limits) -> int:
    """Return the number of breakpoints of each integral."""
    return 0 if limits.points is None else limits.points.shape[1]


def _mark(call: Call, limits: Limits, place: Tensor) -> tuple[Limits, Tensor | None]:
    """Add places to the breakpoints; return the limits and the tensor in the caller's shape they derive from."""
    batch, k = call.batch, _given(limits) + place.shape[1]
    if k == 0:
        return limits, None
    given = place.new_zeros((batch, 0)) if limits.points is None else limits.points.expand(batch, -1)
    source = torch.cat((place, given), dim=1).reshape(*call.batch_shape, k)
    a, b = limits.a.expand(batch), limits.b.expand(batch)
    return Limits(a, b, source.reshape(batch, k), limits.infinite, limits.ordered), source


def _note_doubtful_zeros(zeros: Zeros, sound: Tensor) -> None:
    """Say which zeros have no derivative: those only touched, and those where the function is flat or jumps."""
    flat = torch.where(~sound & ~zeros.place.isnan(), zeros.place, torch.nan)
    for places, what in (
        (zeros.touching, "touches 0 without a change of sign"),
        (flat.flatten(), "changes sign without passing through 0 at a finite slope"),
    ):
        hits = somewhere(~places.isnan())
        if bool(hits.any()):
            first = int(hits.nonzero()[0, 0])
            x = float(export(largest(places.nan_to_num(-torch.inf)[first])))
            _note(f"the function given as jumps {what} at x = {x:.6g}: its derivative is not in the gradient there")
            return


def note_unmarked_jumps(
    integrand: Integrand, plan: IntervalPlan | None, limits: Limits, least: Least, block: int
) -> bool:
    """Look on a plan, if there is one, for jumps that the gradient does not know of; return whether it has any."""
    if plan is None:
        return False
    fixed = limits.detach()
    place = find_unmarked_jump(integrand, plan, fixed, least, block)
    if place:
        _note(
            f"the integrand jumps at {place}, where nothing is marked. If the place depends on a parameter, its "
            "movement is missing from the gradient: name it in points=, as a tensor that requires grad, or give "
            "jumps= a function that is 0 there. If it is fixed, name it in points= all the same: that also "
            "saves evaluations"
        )
        return True
    marks = limits.marks[2:]
    if not marks or in_transform() or any(carries_gradient(mark) for mark in marks):
        return False
    place = find_stale_breakpoint(integrand, fixed, plan.batch)
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
