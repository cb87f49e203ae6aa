"""Jumps that the gradient does not know of: found on the finished plan, with a few values of f for each cell.

A jump shows as a cell whose error is as large as its values differ, or as a difference between a cell's end and its
outermost node that is not small beside the cell's own: there the rule sees nothing. Each suspect is divided until
rounding ends it: across a jump the difference stays, and is large beside the differences right and left of it.
Kinks, peaks and singularities fail one of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.breakpoints.crossings import look
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.gradient.boundary import reading_distance
from quadgrad._core.integrand import Argument, Integrand
from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.precision import half_inside
from quadgrad._core.reduce import concatenate

__all__ = ["Least", "find_stale_breakpoint", "find_unmarked_jump", "nudge"]

Least = Callable[[Tensor], Tensor]
"""The smallest jump that counts in the integrals with these indices ``(n,)``, times the width of its piece."""

DIVISIONS = 16
"""Parts into which a suspect is divided at a time."""

INSIDE = 0.02
"""Error of a cell that holds a jump, relative to its width times the difference across it; 0.1 and more."""

OUTSIDE = 0.05
"""Difference between a cell's end and its outermost node that is suspect, relative to that across the cell."""

WITNESSED = 0.1
"""Least error of a cell with a jump next to its end, relative to that stretch's width times the jump: of 1,387
random jumps, of 1e-9 to 10, that a look at all cells finds, a look at these finds all."""

STANDS_OUT, USUAL, FEW_STEPS = 4.0, 3, 8.0
"""A jump in what is computed in half precision is so many times the largest but two second differences of values
around it, and so many times its eps."""

AROUND, CLOSE = 33, 2.0**-12
"""So many values around a jump, and two beside it, tell whether f is computed in half precision."""

BESIDE_JUMP = 0.25
"""Largest difference beside a jump, relative to the jump."""


@dataclass(frozen=True)
class _Suspects:
    """Stretches of x between whose ends values differ much; ``(k,)``, values ``(k, components)``.

    ``least`` is the smallest jump of f that matters.
    """

    owner: Tensor
    left: Tensor
    right: Tensor
    at_left: Tensor
    at_right: Tensor
    least: Tensor


def find_unmarked_jump(integrand: Integrand, plan: IntervalPlan, limits: Limits, least: Least, block: int) -> str:
    """Return where f jumps away from limits and breakpoints, as a phrase; empty where it does not.

    Parameters
    ----------
    integrand : Integrand
    plan : IntervalPlan
    limits : Limits
        Without gradient.
    least : Least
        Of an infinite piece the width is that of its image.
    block : int
        Nodes evaluated at a time.
    """
    with torch.no_grad():
        plan = _worth_a_look(plan, limits, least, block)
        if len(plan) == 0:
            return ""
        suspects = _suspects(integrand, plan, limits, least, block)
        if suspects.owner.shape[0] == 0:
            return ""
        jumps, place = _divide(integrand, suspects, limits, block)
        noise = 4.0 * torch.finfo(integrand.call_dtype).eps
        jumps = jumps & _unmarked(place, suspects.owner, limits, noise)
        if bool(jumps.any()):
            jumps = jumps & ~_is_precision(integrand, place, suspects.owner, limits, block)
        for first in jumps.nonzero()[:1, 0].tolist():
            which = f" (integral {int(suspects.owner[first])})" if plan.batch > 1 else ""
            return f"x = {float(place[first]):.6g}{which}"
        return ""


def find_stale_breakpoint(integrand: Integrand, limits: Limits, batch: int) -> str:
    """Return where a jump is marked by a breakpoint without gradient but moves with an argument that has one.

    The arguments are changed a little, and f read again on both sides of the breakpoint.
    """
    moved = [i for i, a in enumerate(integrand.arguments) if isinstance(a.value, Tensor) and a.value.requires_grad]
    if limits.points is None or not moved:
        return ""
    marks = limits.marks[2 : len(limits.marks) - limits.found]
    owner, places = slice(0, batch), [mark.expand(batch) for mark in marks]
    lower, upper = torch.minimum(limits.a, limits.b), torch.maximum(limits.a, limits.b)
    delta = limits.rounding.eps**0.5
    with torch.no_grad():
        for i, place in enumerate(places):
            away = reading_distance(limits, i)
            inside = (place - away > lower) & (place + away < upper)
            middle = torch.where(upper.isfinite() & lower.isfinite(), 0.5 * lower + 0.5 * upper, 0.0)
            sides = torch.stack((place - away, place + away))
            x = torch.where(inside, sides, middle)
            before = look(integrand, x, owner)
            jump = largest_component((before[1] - before[0]).abs())
            size = largest_component(before.abs().amax(0))
            for change in (delta, -delta):
                nudged = nudge(integrand, moved, change)
                after = look(nudged, x, owner)
                crossed = largest_component((after - before.flip(0)).abs().flatten(0, 1)).reshape(2, -1).amin(0)
                stale = inside & (jump > delta**0.5 * size) & (crossed <= BESIDE_JUMP * jump)
                if bool(stale.any()):
                    return f"x = {float(place[stale][0]):.6g}"
    return ""


def nudge(integrand: Integrand, which: list[int], change: float) -> Integrand:
    """Return the integrand with some arguments changed a little, each by another amount."""
    arguments: list[Argument] = list(integrand.arguments)
    for place, i in enumerate(which):
        value = arguments[i].value.detach()
        arguments[i] = replace(arguments[i], value=value + change * (1.0 + 0.3 * place) * (1.0 + value.abs()))
    return replace(integrand, arguments=tuple(arguments))


def _worth_a_look(plan: IntervalPlan, limits: Limits, least: Least, block: int) -> IntervalPlan:
    """Return the cells of those integrals in which a jump that counts can be, by their cells' errors.

    Search has compared f at a cell's ends with what its nodes make of it, so that even a jump between an end and
    the outermost node shows, times the width of that stretch; but at singular and infinite ends it has not.
    """
    if limits.infinite:
        return plan
    owner = plan.owner
    integrals = torch.zeros(plan.batch, dtype=torch.bool, device=owner.device)
    for first in range(0, len(plan), block):  # what is worked with does not grow with the batch
        part = slice(first, first + block)
        shown = WITNESSED * plan.tau[0] * least(owner[part]) * (plan.stop[part] - plan.start[part])
        integrals[owner[part][plan.error[part] > shown]] = True
    if not plan.even:
        integrals[owner[~plan.linear]] = True
    return plan.take(integrals[owner])


def _suspects(integrand: Integrand, plan: IntervalPlan, limits: Limits, least: Least, block: int) -> _Suspects:
    """Return the stretches that a jump may lie in: a cell's outermost nodes and ends are what they end at."""
    step = max(1, block // 4)
    parts = (plan.take(slice(first, first + step)) for first in range(0, len(plan), step))
    return concatenate([_suspects_among(integrand, cells, limits, least) for cells in parts])


def _suspects_among(integrand: Integrand, cells: IntervalPlan, limits: Limits, least: Least) -> _Suspects:
    """Return the suspects of some cells.

    A cell's right end is passed by a little, so that a jump right between two lies in the left one's last stretch.
    """
    owner, pieces = cells.owner, limits.pieces()
    margin = max(2.0**-30, 4.0 * limits.rounding.eps)
    first, last = cells.tau[[0, -1]].tolist()
    places = cells.start.new_tensor([margin, first, last, 1.0 + margin])
    edges, width = lay_out(pieces, cells.row, cells.start, cells.stop, None).nodes(places)
    x, factor = pieces.lay_out(cells).nodes(places[1:3])
    x = torch.cat((edges[:1], x.sort(dim=0).values, edges[3:]))
    # f is never called at a limit, nor beyond a breakpoint.
    lower, upper = pieces.ends(cells.row)
    x = torch.maximum(x, limits.next_to(lower, torch.full_like(lower, torch.inf)))
    x = torch.minimum(x, limits.next_to(upper, torch.full_like(upper, -torch.inf)))
    # What passes an infinite end comes back from the other side.
    x = torch.cat((torch.minimum(x[:1], x[1:2]), x[1:3], torch.maximum(x[3:], x[2:3])))
    y = look(integrand, x, owner)
    rise = _largest_rise(y)
    smallest = (least(owner) * (cells.stop - cells.start) / width[:3]).expand(3, -1)
    # A jump shows in the error times dx/dtau where it is, which may be anywhere in the cell.
    shown = torch.stack((rise[0], cells.error / factor.amin(0), rise[2]))
    share = rise.new_tensor([OUTSIDE, INSIDE, OUTSIDE])[:, None]
    part, cell = (shown > torch.maximum(share * rise[1], smallest)).nonzero().unbind(1)
    ends, values = ((t[part, cell], t[part + 1, cell]) for t in (x, y))
    return _Suspects(owner[cell], *ends, *values, smallest[part, cell])


def _largest_rise(y: Tensor) -> Tensor:
    """Return how much neighbouring values differ: ``(m, k, components)`` to ``(m - 1, k)``."""
    rise = (y[1:] - y[:-1]).abs()
    return rise.squeeze(2) if rise.shape[2] == 1 else rise.amax(2)


def _divide(integrand: Integrand, suspects: _Suspects, limits: Limits, block: int) -> tuple[Tensor, Tensor]:
    """Close in on the largest difference of each suspect; return whether it is a jump, and its place."""
    left, right, low, high = suspects.left, suspects.right, suspects.at_left, suspects.at_right
    owner, eps = suspects.owner, limits.rounding.eps
    finest = 2.0**-60 * (right - left)
    steps = torch.arange(1, DIVISIONS, device=left.device, dtype=left.dtype)[:, None] / DIVISIONS
    alive, reference = (right > left), None
    for _ in range(4 * DIVISIONS):
        wide = alive & (right - left > 4.0 * eps * torch.maximum(left.abs(), right.abs()) + finest)
        if not bool(wide.any()):
            break
        x = torch.cat((left[None], left + (right - left) * steps, right[None]))
        y = torch.cat((low[None], look(integrand, x[1:-1], owner, block), high[None]))
        rise = _largest_rise(y)
        at = rise.argmax(0, keepdim=True)
        tallest = rise.gather(0, at)[0]
        reference = tallest if reference is None else reference
        alive = alive & (tallest >= 0.5 * reference) & tallest.isfinite() & (tallest > 0)
        move = wide & alive
        left, right = (torch.where(move, x.gather(0, at + i)[0], end) for i, end in ((0, left), (1, right)))
        chosen = at[:, :, None].expand(1, *low.shape)
        low, high = (torch.where(move[:, None], y.gather(0, chosen + i)[0], v) for i, v in ((0, low), (1, high)))
    beside = 2.0**8 * (right - left)
    a, b = (end if end.shape[0] == 1 else end[owner] for end in (limits.a, limits.b))
    lowest, highest = torch.minimum(a, b), torch.maximum(a, b)
    outer = torch.stack((left - beside, right + beside))
    inside = (outer[0] > lowest) & (outer[1] < highest)
    y = look(integrand, torch.where(inside, outer, torch.stack((left, right))), owner, block)
    jump = largest_component((high - low).abs())
    rough = largest_component(torch.maximum((y[0] - low).abs(), (y[1] - high).abs()))
    noise = torch.finfo(integrand.call_dtype).eps ** 0.5 * largest_component(torch.maximum(low.abs(), high.abs()))
    flat = (rough <= BESIDE_JUMP * jump) & jump.isfinite() & (jump > torch.maximum(suspects.least, noise))
    reference = jump if reference is None else reference
    return alive & inside & flat & (jump >= 0.5 * reference), 0.5 * (left + right)


def _is_precision(integrand: Integrand, place: Tensor, owner: Tensor, limits: Limits, block: int) -> Tensor:
    """Tell where f computes in half precision, though it returns other numbers, and its steps are as large.

    A model computed in half precision is made of steps: what is between two of its numbers is no jump. It is known
    by its values, if they are such numbers, or by what its operations return.
    """
    a, b = (end if end.shape[0] == 1 else end[owner] for end in (limits.a, limits.b))
    lowest, highest = torch.minimum(a, b), torch.maximum(a, b)
    across = torch.linspace(-1.0, 1.0, AROUND, dtype=place.dtype, device=place.device)
    across = 0.25 * torch.cat((across, across.new_tensor([-CLOSE, CLOSE])))[:, None]
    x = place + across * place.abs()
    y = look(integrand, torch.where((x > lowest) & (x < highest), x, place), owner, block)
    rise, size = _largest_rise(y), largest_component(y.abs().amax(0))
    fine = torch.finfo(integrand.call_dtype).eps < torch.finfo(torch.float16).eps
    coarse = torch.zeros_like(place, dtype=torch.bool)
    if not fine:
        return coarse
    for half in (torch.bfloat16, torch.float16):
        same = (y == y.to(half).to(y.dtype)).flatten(2).all(2).all(0)
        coarse = coarse | (same & (rise[-1] <= 2.0 * torch.finfo(half).eps * size))
    several = (rise[: AROUND - 1] > 0.0).sum(0) >= 4
    coarse = coarse & several
    half = half_inside(integrand, place[None], owner)
    if half is None:
        return coarse
    # What is made of a model's values in half precision is made of steps, too, of any size: a jump stands out. Near
    # x = 0 such steps are much longer than x.
    reach = torch.maximum(0.25 * place.abs(), torch.nan_to_num(highest - lowest, posinf=0.0) / DIVISIONS)
    low, high = torch.maximum(place - reach, lowest), torch.minimum(place + reach, highest)
    inner = torch.linspace(0.0, 1.0, AROUND + 2, dtype=place.dtype, device=place.device)[1:-1, None]
    y = look(integrand, low + inner * (high - low), owner, block)
    bend = _largest_rise(y[1:] - y[:-1]).topk(USUAL, dim=0).values[-1]  # a jump bends the values twice
    least = FEW_STEPS * torch.finfo(half).eps * largest_component(y.abs().amax(0))
    return coarse | (rise[-1] <= torch.maximum(STANDS_OUT * bend, least))


def _unmarked(place: Tensor, owner: Tensor, limits: Limits, noise: float) -> Tensor:
    """Return where a place is no breakpoint, ``noise`` being how far f can tell x from its neighbours."""
    free = torch.ones_like(place, dtype=torch.bool)
    for i, mark in enumerate(limits.marks[2:]):
        here, away = (t if t.shape[0] == 1 else t[owner] for t in (mark, reading_distance(limits, i)))
        free = free & ~((place - here).abs() <= 2.0 * away + noise * place.abs())
    return free
