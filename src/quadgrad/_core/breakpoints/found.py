"""Places that search has found by itself, when derivatives are asked for: whether they move with a parameter.

Their equation is not known, so that nothing differentiates them. Where f is continuous that is right: the pieces on
both sides lose and gain the same. Where it jumps or is singular, a place that moves takes part of the derivative
with it, which the sum over fixed cells does not have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform, pull_back
from quadgrad._core.breakpoints.crossings import look
from quadgrad._core.breakpoints.unmarked import BESIDE_JUMP, nudge
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.gradient.boundary import FARTHER, found_places, reading_distance
from quadgrad._core.gradient.kinks import bends_at
from quadgrad._core.integrand import Argument, Integrand
from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem

__all__ = ["find_lost_kink", "find_moving_place", "find_steep_place"]

BESIDE = 16.0
"""How many times farther out f is read to tell a jump, beside which it is level."""

GROWN = 1.5
"""By how much: |x|^-0.1 grows to 8, log |x| to 2.5 times what it was."""

CONTINUOUS = 1e-6
"""A smaller difference across a place, relative to f there, is none."""

DIRECTIONS = 4
"""In which derivatives are taken: one may be across that which moves a place."""

SEEN = 1e-3
"""Of derivatives may be lost in rounding, single precision's too, when they are added up."""

AWAY = 64.0
"""Spacings of x at which f is read beside the end of a cell."""

UNUSUAL = 8.0
"""A derivative that jumps between two nodes changes so many times faster there than it usually does in a cell."""

MOST, PARTS = 64, 16
"""Stretches that are looked at more closely, and parts into which they are divided at a time."""

JUMPS = 1e-6
"""By so much of itself a derivative jumps between neighbouring numbers; between nodes by the root of that."""

MOVED = 0.1
"""What f beside a place changes by, relative to itself, when arguments are changed a little and it moves."""


def find_moving_place(problem: Problem) -> tuple[str, str]:
    """Return what f does, and where, at a place that may move with what derivatives are asked for, as phrases.

    A jump counts wherever it is. Of a singularity it is seen whether it moves: arguments are changed a little, and
    of what f closes over it is asked how the derivative grows towards the place.
    """
    first = len(problem.limits.marks) - problem.limits.found
    with problem.outside() as fixed, torch.no_grad():
        for i in range(first - 2, len(fixed.limits.marks) - 2):
            x = _sides(fixed, i)
            before = look(fixed.integrand, x, slice(0, fixed.batch))
            there = ~fixed.limits.marks[2 + i].expand(fixed.batch).isnan()
            jump, singular = (mask & there for mask in _is_rough(before))
            if bool(singular.any()):
                singular = singular & (_moves(problem, x, before) | _grows(problem, x, before))
            for what, mask in (("jumps", jump), ("is singular", singular)):
                for index in mask.nonzero()[:1, 0].tolist():
                    which = f" (integral {index})" if fixed.batch > 1 else ""
                    return what, f"x = {float(fixed.limits.marks[2 + i].expand(fixed.batch)[index]):.6g}{which}"
    return "", ""


def _sides(problem: Problem, i: int) -> Tensor:
    """Return places right beside a mark and farther from it, ``(6, batch)``; harmless ones if there is no mark."""
    limits, batch = problem.limits, problem.batch
    place, away = limits.marks[2 + i].expand(batch), reading_distance(limits, i)
    lower, upper = torch.minimum(limits.a, limits.b), torch.maximum(limits.a, limits.b)
    room = 0.25 * torch.minimum(place - lower, upper - place)
    far = torch.minimum(FARTHER * away, room)
    near = torch.minimum(BESIDE * away, room)
    x = torch.stack((place - far, place - away, place + away, place + far, place - near, place + near))
    inside = ((x > lower) & (x < upper)).all(0)
    return torch.where(inside, x, limits.inner_points(batch))


def find_steep_place(problem: Problem) -> str:
    """Return where f is continuous, as steep as one likes, and may move: no second derivative is right there."""
    with problem.outside() as fixed, torch.no_grad():
        first = len(fixed.limits.marks) - fixed.limits.found
        *_, steep = bends_at(fixed.integrand, *found_places(fixed.limits.detach(), fixed.batch))
        for i, mask in enumerate(steep.any(2)):
            mark = fixed.limits.marks[first + i].expand(fixed.batch)
            mask = mask & ~mark.isnan()
            if bool(mask.any()):
                x = _sides(fixed, first - 2 + i)
                before = look(fixed.integrand, x, slice(0, fixed.batch))
                mask = mask & (_moves(problem, x, before) | _grows(problem, x, before, steep=True))
            for index in mask.nonzero()[:1, 0].tolist():
                return f"x = {float(mark[index]):.6g}" + (f" (integral {index})" if fixed.batch > 1 else "")
    return ""


def find_lost_kink(problem: Problem, plan: IntervalPlan) -> str:
    """Return where f bends at a place that moves, and that search has not found, as it did not have to.

    The derivative of f by what moves the place jumps there. A sum over fixed nodes has the integral of that, but no
    derivative of where it jumps. It is read at all nodes, right beside the upper ends of cells, and as far beyond
    them as the first node.
    """
    hidden = in_transform()  # so that any argument may be what derivatives are asked by
    if hidden and not problem.integrand.arguments:  # what f closes over is not to be seen
        return ""
    with problem.outside() as fixed:
        integrand = _with_leaves(fixed.integrand, problem.integrand, hidden)
        for first in range(0, len(plan), problem.block):
            place = _lost_among(integrand, plan.take(slice(first, first + problem.block)), fixed.limits)
            if place:
                return place
    return ""


def _lost_among(integrand: Integrand, cells: IntervalPlan, limits: Limits) -> str:
    pieces, owner = limits.pieces(), cells.owner
    lower, upper = pieces.ends(cells.row)
    ends, _ = lay_out(pieces, cells.row, cells.start, cells.stop, None).nodes(cells.start.new_tensor([0.0, 1.0]))
    place, width = ends.amax(0), (ends[1] - ends[0]).abs()
    width = torch.minimum(width, torch.minimum(place - lower, upper - place))
    spacing = limits.next_to(place, torch.full_like(place, torch.inf)) - place
    away = torch.maximum(AWAY * spacing, AWAY * limits.rounding.eps * width)
    outer = float(cells.tau[0]) * width
    x = pieces.lay_out(cells).nodes(cells.tau)[0].sort(dim=0).values
    around = place + torch.stack((-away, away, outer))
    x = torch.cat((x, torch.where((away < outer) & outer.isfinite(), around, x[-1:])))
    read = _read(integrand, x, owner)
    if read is None:
        return ""
    rise, level = _norm(read[1].diff(dim=1)), _norm(read[1]).amax(0).nan_to_num(0.0, 0.0)
    whole = level.new_zeros(cells.batch).scatter_reduce_(0, owner, level, "amax")[owner]
    rate = (rise / x.diff(dim=0)).nan_to_num(0.0, 0.0, 0.0)
    least = rate.new_full((len(rate), 1), JUMPS**0.5)
    least[-2] = JUMPS  # where nothing smooth changes
    usual = rate[:-3].median(dim=0).values
    stands_out = torch.where(
        (rise > torch.maximum(least * level, JUMPS * whole)) & (rate > UNUSUAL * usual), rate / usual, 0.0
    )
    at = stands_out.flatten().topk(min(MOST, stands_out.numel())).indices
    at = at[stands_out.flatten()[at] > 0.0]
    cell = at % len(owner)
    between = x.flatten()[at], x.flatten()[at + len(owner)]
    lost, place = _bends(integrand, between, owner[cell], read[0].abs().amax(0)[cell], limits.rounding.eps)
    for index in lost.nonzero()[:1, 0].tolist():
        which = f" (integral {int(owner[cell][index])})" if cells.batch > 1 else ""
        return f"x = {float(place[index]):.6g}{which}"
    return ""


def _bends(
    integrand: Integrand, ends: tuple[Tensor, Tensor], owner: Tensor, size: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Close in on the largest difference of the derivative; return whether it stays and f is continuous, and where.

    ``size`` is that of f around.
    """
    left, right = ends
    lost, gap, reference = torch.ones_like(left, dtype=torch.bool), torch.zeros_like(left), None
    finest = 4.0 * eps * torch.maximum(right - left, torch.maximum(left.abs(), right.abs()))
    steps = torch.arange(PARTS + 1, device=left.device, dtype=left.dtype)[:, None] / PARTS
    while bool((wide := lost & (right - left > finest)).any()):
        x = left + (right - left) * steps
        read = _read(integrand, x, owner)
        if read is None:
            return torch.zeros_like(lost), left
        y, along = read
        rise, at = _norm(along[:, 1:] - along[:, :-1]).max(0)
        reference = rise if reference is None else reference
        lost &= (rise >= 0.5 * reference) & (rise > 0.0)
        part = torch.stack((at, at + 1))
        gap = torch.where(wide, y.gather(0, part).diff(dim=0)[0].abs(), gap)
        left, right = torch.where(wide & lost, x.gather(0, part), torch.stack((left, right))).unbind()
    return lost & (gap <= CONTINUOUS * size), 0.5 * (left + right)


def _read(integrand: Integrand, x: Tensor, owner: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return f at x ``(m, n)``, its components mixed, and its derivatives along directions, if it has any."""
    with torch.enable_grad():
        try:
            y = integrand(x, owner)
        except RuntimeError:  # f closes over what only is something inside of the transforms
            return None
        if not y.requires_grad:
            return None
        parts = (torch.view_as_real(y) if y.is_complex() else y).reshape(*x.shape, -1)
        mixed = parts @ _directions(1, [parts[0, 0]])[0]
        along = _along(mixed, _outer_leaves(y, integrand, owner, x))
    return None if along is None else (mixed.detach(), along)


def _norm(along: Tensor) -> Tensor:
    """Return the norm over directions, which come first."""
    return along.square().sum(0).sqrt()


def _with_leaves(plain: Integrand, given: Integrand, hidden: bool) -> Integrand:
    """Return an integrand of which those arguments are leaves that derivatives may be asked by."""

    def leaf(argument: Argument, own: Argument) -> Argument:
        value, mine = argument.value, own.value
        if not isinstance(value, Tensor) or not isinstance(mine, Tensor) or not value.is_floating_point():
            return argument
        return replace(argument, value=value.detach().requires_grad_(hidden or mine.requires_grad))

    pairs = zip(plain.arguments, given.arguments, strict=True)
    return replace(plain, arguments=tuple(leaf(a, b) for a, b in pairs), captured=None, stack=None)


def _is_rough(y: Tensor) -> tuple[Tensor, Tensor]:
    """Tell where f jumps, and where it grows towards a place, from values ``(6, batch, components)``."""
    size = y.abs()
    jump = (y[2] - y[1]).abs()
    beside = torch.maximum((y[4] - y[1]).abs(), (y[5] - y[2]).abs())
    jump = (jump > CONTINUOUS * size.amax(0)) & (beside <= BESIDE_JUMP * jump)
    grows = (size[1:3] > GROWN * torch.stack((size[0], size[3]))).any(0) | ~y.isfinite().all(0)
    return (jump & ~grows).any(1), grows.any(1)


def _grows(problem: Problem, x: Tensor, before: Tensor, steep: bool = False) -> Tensor:
    """Tell where the derivative of f by what it closes over grows like f over the distance towards a place.

    Where f is ``steep`` and continuous it is enough that it grows.
    """
    none = torch.zeros_like(x[0], dtype=torch.bool)
    if in_transform():  # which hides what f closes over
        return none if problem.integrand.arguments else ~none
    still = problem.integrand.with_still_arguments()
    with torch.enable_grad():
        y = still(x[:4], slice(0, problem.batch))
        if not y.requires_grad:
            return none
        sizes = _slopes(
            y.reshape(*y.shape[:2], -1).abs().sum(2), _outer_leaves(y, still, slice(0, problem.batch), x)
        )
    far, near = torch.maximum(sizes[0], sizes[3]), torch.maximum(sizes[1], sizes[2])
    if steep:
        return ~(near <= GROWN * far)
    values = before.abs().sum(2)
    f_far, f_near = (torch.maximum(*pair) for pair in ((values[0], values[3]), (values[1], values[2])))
    closer = (x[3] - x[0]) / (x[2] - x[1])
    return ~(near * f_far <= far * f_near * closer**0.5) | ~near.isfinite()


def _slopes(y: Tensor, leaves: list[Tensor]) -> Tensor:
    """Return how large the derivatives of each number by all leaves are: along directions, or one by one."""
    along = _along(y, leaves)
    if along is not None:
        return _norm(along)
    each = [torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True) for v in y.flatten().unbind()]
    return torch.stack([_size(gradients, y) for gradients in each]).reshape(y.shape)


def _along(y: Tensor, leaves: list[Tensor]) -> Tensor | None:
    """Return the derivatives of all numbers along a few random directions, ``(DIRECTIONS, *y.shape)``.

    A backward pass is linear in what it is given: its own derivative by that is the derivative of each number along
    a direction, of all numbers at once. Of a function that refuses second derivatives there are none; that it hides
    them shows in the sum.
    """
    seed = torch.ones_like(y).requires_grad_()
    found: list[Tensor] = []
    try:
        slopes = [slope for slope in pull_back([y], leaves, [seed], create_graph=True) if slope is not None]
        for k in range(DIRECTIONS if slopes else 0):
            direction = _directions(k, slopes)
            (along,) = pull_back(slopes, [seed], direction, retain_graph=True)
            whole = sum((s.detach() * d.conj()).sum().real for s, d in zip(slopes, direction, strict=True))
            if along is None or not bool((along.sum() - whole).abs() <= SEEN * along.abs().sum()):
                return None
            found.append(along)
    except RuntimeError:
        return None
    return torch.stack(found) if found else y.detach().new_zeros((DIRECTIONS, *y.shape))


def _directions(seed: int, like: list[Tensor]) -> list[Tensor]:
    """Return random numbers in the shapes of these tensors, whatever device is the default one."""
    draws = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(t.shape, generator=draws, dtype=t.dtype, device="cpu").to(t.device) for t in like]


def _outer_leaves(y: Tensor, integrand: Integrand, owner: Tensor | slice, x: Tensor) -> list[Tensor]:
    """Return the leaves of the graph of f that are there before f is called: those of another call, too."""
    at = slice(0, 1) if isinstance(owner, slice) else owner[:1]
    others = _leaves(integrand(x[:1, :1], at).grad_fn)
    return [leaf for leaf in _leaves(y.grad_fn) if any(leaf is other for other in others)]


def _size(gradients: tuple[Any, ...], like: Tensor) -> Tensor:
    """Return the sum of the moduli of gradients, of which some may be None."""
    sums = [gradient.abs().sum().to(like) for gradient in gradients if gradient is not None]
    return torch.stack(sums).sum() if sums else like.new_zeros(())


def _leaves(function: Any) -> list[Tensor]:
    """Return the tensors at the leaves of a graph."""
    found, seen, waiting = list[Tensor](), set[Any](), [function]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [parent for parent, _ in node.next_functions]
    return found


def _moves(problem: Problem, x: Tensor, before: Tensor) -> Tensor:
    """Tell where f beside a place changes much when the arguments change little."""
    inside = in_transform()
    values = [a.value for a in problem.integrand.arguments]
    moved = [
        i
        for i, v in enumerate(values)
        if isinstance(v, Tensor) and (v.requires_grad or (inside and v.is_floating_point()))
    ]
    delta = problem.limits.rounding.eps**0.5
    answer = torch.zeros_like(x[0], dtype=torch.bool)
    size = largest_component(before[1:3].abs().amax(0))
    for change in (delta, -delta) if moved else ():
        with problem.outside() as fixed:
            after = look(nudge(fixed.integrand, moved, change), x, slice(0, x.shape[1]))
        apart = (after - before)[1:3].abs().amax(0)
        answer |= ~(largest_component(apart) <= MOVED * size)
    return answer
