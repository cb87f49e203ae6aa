"""Places that search is told or finds out: zeros of ``jumps``, and what is said about jumps the gradient lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._torch import forward_mode_open, in_differentiation, in_transform
from quadgrad.errors import IntegrandError
from quadgrad.gradient.jumps import attach_derivatives
from quadgrad.gradient.slivers import carries_gradient
from quadgrad.gradient.unmarked import find_stale_breakpoint, find_unmarked_jump
from quadgrad.integrand import Integrand
from quadgrad.lanes import export, largest, somewhere
from quadgrad.limits import Limits
from quadgrad.nesting import current_record
from quadgrad.plan import Plan
from quadgrad.search.crossings import Zeros, scan_pieces, scan_plan
from quadgrad.search.task import Found
from quadgrad.verbs.inputs import Call

__all__ = ["Marked", "note_unmarked_jumps", "search_with_jumps"]

SCANS = 4
"""Searches at most: one, and another each time the plan shows zeros that the scan before has missed."""

Search = Callable[[Limits, Plan | None], tuple[Found, Plan]]


@dataclass(frozen=True)
class Marked:
    """What search found between all marks: the limits with the zeros among their breakpoints, and their sources."""

    limits: Limits
    sources: tuple[Tensor | None, ...]
    found: Found
    plan: Plan


def search_with_jumps(
    call: Call, jumps: Callable[..., Any], inner: Tensor, search: Search, plan: Plan | None, block: int
) -> Marked:
    """Find the zeros of ``jumps``, and search between them.

    Zeros are looked for between the limits first, and then on the nodes of the plan: where f jumps, search has
    refined, and the functions are seen to change sign there.
    """
    g, moves = _open(call, jumps, inner)
    fixed = call.limits.detach()
    with torch.no_grad():
        zeros, found, made = _search_until_marked(call, g, moves, search, plan, block)
    place, blur = zeros.place, zeros.width
    if moves:
        place, blur, sound = attach_derivatives(g, zeros, fixed)
        _note_doubtful_zeros(zeros, sound)
    limits, source = _mark(call, call.limits, place)
    blur = torch.cat((blur.new_zeros(call.batch, _given(fixed)), blur), dim=1)
    return Marked(replace(limits, blur=blur), (*call.sources[:2], *(source,) * _given(limits)), found, made)


def _search_until_marked(
    call: Call, g: Integrand, moves: bool, search: Search, plan: Plan | None, block: int
) -> tuple[Zeros, Found, Plan]:
    """Search anew as long as the plan shows zeros that are no breakpoints of it."""
    fixed, spent, scans = call.limits.detach(), torch.zeros((), dtype=torch.int64), 1
    zeros = scan_pieces(g, fixed, call.batch, block)
    while True:
        # One column at least: an integral whose jump has left the interval is still differentiable.
        zeros = zeros.pad(max(int(moves), 0 if plan is None else plan.pieces - 1 - _given(fixed)))
        between = _mark(call, fixed, zeros.place)[0]
        found, made = search(between, _fit(plan, _given(between) + 1))
        spent = found.nfev + spent
        missed = scan_plan(g, between, made, block)
        if missed.count == 0 or scans == SCANS:
            return zeros, replace(found, nfev=spent), made
        zeros, plan, scans = zeros.join(missed), None, scans + 1


def _open(call: Call, jumps: Callable[..., Any], inner: Tensor) -> tuple[Integrand, bool]:
    """Call the function once; return it with its output known, and whether its zeros carry derivatives."""
    if not callable(jumps):
        raise TypeError(f"jumps must be a function g(x, *args), not {type(jumps).__name__}")
    g = replace(call.integrand, function=jumps, vectorized=True, name="function given as jumps")
    g, probe = g.probe(inner)
    if probe.is_complex() or not probe.is_floating_point():
        raise IntegrandError(
            f"jumps returned {probe.dtype}: its zeros are looked for, so it must be real and pass through 0, such "
            "as x - s where the integrand asks for x > s"
        )
    moves = in_transform() or forward_mode_open() or (torch.is_grad_enabled() and probe.requires_grad)
    return g, moves


def _given(limits: Limits) -> int:
    """Return the number of breakpoints of each integral."""
    return 0 if limits.points is None else limits.points.shape[1]


def _mark(call: Call, limits: Limits, place: Tensor) -> tuple[Limits, Tensor | None]:
    """Add places to the breakpoints; return the limits and the tensor in the caller's shape they derive from."""
    batch, k = call.batch, _given(limits) + place.shape[1]
    if k == 0:
        return limits, None
    given = place.new_zeros((batch, 0)) if limits.points is None else limits.points.expand(batch, -1)
    source = torch.cat((given, place), dim=1).reshape(*call.batch_shape, k)
    a, b = limits.a.expand(batch), limits.b.expand(batch)
    return Limits(a, b, source.reshape(batch, k), limits.infinite), source


def _fit(plan: Plan | None, pieces: int) -> Plan | None:
    """Return the plan for another number of pieces; search gives those it lacks a cell, and checks all."""
    if plan is None or plan.pieces >= pieces:
        return plan
    return replace(plan, pieces=pieces, row=plan.owner * pieces + plan.piece)


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
    integrand: Integrand, plan: Plan, limits: Limits, size: Tensor, block: int, wanted: bool
) -> bool:
    """Look for jumps that the gradient does not know of; return whether there are any.

    ``wanted``: whether something requires grad.
    """
    if not (wanted or in_differentiation() or forward_mode_open()):
        return False  # inside vmap alone, say
    fixed = limits.detach()
    place = find_unmarked_jump(integrand, plan, fixed, size, block)
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
