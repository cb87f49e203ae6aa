"""Derivatives with respect to limits and breakpoints, in ordinary torch.

A limit b that requires grad adds ``d * sum_i w_i f(c + d t_i)`` with ``d = b - b.detach()``, which is 0, and
c close to b, inside the interval: the *boundary term*, the m-point Gauss rule on the stretch between
the old limit and the moved one. Its value is 0 and its derivatives are those of the integral up to order 2 m,
mixed ones included. An ``autograd.Function`` that returns 0 and backpropagates ``g * f(b)`` is right to first
order only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core._torch import carries_derivative, derivatives_open, forward_mode_open, in_transform
from quadgrad._core.gradient.kinks import NODES, WEIGHTS, kink_sum
from quadgrad._core.integrand import Integrand
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.limits import Limits, just_inside
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.recompute import Rows
from quadgrad._core.reduce import align
from quadgrad._core.rehearsal import thinking
from quadgrad._core.replay import REPLAY_BLOCK, Observer, replay_plan

__all__ = [
    "FARTHER",
    "PLACED",
    "Reading",
    "Treatment",
    "boundary_sum",
    "carries_gradient",
    "doubtful_places",
    "follow_marks",
    "found_places",
    "reading_distance",
    "reading_errors",
    "readings",
    "replay_with_limits",
    "singular_marks",
]

READ_ROUNDING = 10.0
"""A value of f that is a derivative is taken to be off by this many eps times its magnitude."""

READINGS = (1, 2, 4, 8, 16, 32, 64)
"""Distances from a limit at which f is read, as multiples of the least one; beside a breakpoint they are as much
closer to each other as they are farther from it: to twice the least distance."""

AWAY_ULPS, AWAY_GAP = 64.0, 2.0**-40
"""How far from a breakpoint f is read, in spacings of numbers there and as a part of the next piece.

A root that was computed is a few spacings off, and one spacing beside it the side is often the wrong one.
"""

PLACED = 1.0 / 2.0
"""How far a place that search has found may be off, as a part of the distance at which f is read beside it.

Kinks of piecewise linear functions were up to 19 spacings of numbers off where f's rounding hides them, and 100
where the next one is near; what is far more than 16 is seen between the nodes and the place."""

FARTHER = 2.0**30
"""How many times farther from a place that search has found f may be read again, if there is room."""


@dataclass(frozen=True)
class Treatment:
    """How each of ``Limits.marks`` is differentiated, as bool tensors of shape ``(batch,)``.

    Where ``pathwise``, the nodes move with the mark and f is differentiated in x; where ``endless``, the
    derivative is infinite, with the sign of f; elsewhere the boundary moves alone. Where ``singular``, f is not
    finite at the mark.
    """

    pathwise: tuple[Tensor, ...]
    endless: tuple[Tensor, ...]
    singular: tuple[Tensor, ...]

    @property
    def moving(self) -> Tensor:
        """Which integrals' nodes follow a mark, bool of shape ``(batch,)``."""
        return torch.stack(self.pathwise).any(0)

    @property
    def moving_singular(self) -> Tensor:
        """Which integrals' nodes follow one at which f is singular."""
        return torch.stack([p & s for p, s in zip(self.pathwise, self.singular, strict=True)]).any(0)


@dataclass(frozen=True)
class _Term:
    """A stretch of zero width: f is averaged over ``start + move * [0, 1]`` and multiplied by ``width``.

    Where ``endless``, only the width is differentiated: f's own derivative may be infinite there too. Where not
    ``usable`` the mark has no derivative here, and start is some harmless place.
    """

    start: Tensor
    move: Tensor
    width: Tensor
    endless: Tensor
    usable: Tensor


def carries_gradient(mark: Tensor) -> bool:
    """Whether derivatives with respect to this tensor may be asked for."""
    if torch.compiler.is_compiling():  # which cannot follow a look at the levels
        return mark.requires_grad or in_transform() or forward_mode_open()
    return carries_derivative(mark)


def singular_marks(integrand: Integrand, limits: Limits, batch: int) -> tuple[Tensor, ...]:
    """Tell for each of ``limits.marks`` where f is not finite right at it, shape ``(batch,)``, without gradient.

    Only asked of marks that carry a gradient; the others are all False.
    """
    fixed = limits.detach()
    inner = fixed.inner_points(batch)
    asked = [i for i, mark in enumerate(limits.marks) if carries_gradient(mark)]
    no = torch.zeros_like(inner, dtype=torch.bool)
    singular = [no] * len(limits.marks)
    if asked:
        marks = fixed.marks
        x = torch.stack([torch.where(marks[i].isfinite(), marks[i], inner) for i in asked])
        with torch.no_grad():
            y = plain(integrand(x, slice(0, inner.shape[0])))
        good = y.isfinite()
        good = good.flatten(2).all(2) if good.ndim > 2 else good
        for finite, i in zip(good, asked, strict=True):
            singular[i] = ~finite
    return tuple(singular)


def boundary_sum(integrand: Integrand, limits: Limits, batch: int, treatment: Treatment | None) -> Tensor | float:
    """Return a zero of shape ``(batch, *event)`` with the derivatives with respect to limits and breakpoints."""
    terms = [term for _, term in _terms(limits, batch, treatment, 1)]
    if not terms:
        return 0.0
    inner = limits.a.detach()
    tau = torch.tensor(NODES, dtype=inner.dtype, device=inner.device)[:, None]
    weight = torch.tensor(WEIGHTS, dtype=inner.dtype, device=inner.device)
    x = torch.cat([(term.start + term.move * tau).expand(-1, batch) for term in terms])
    y = integrand(x, slice(0, batch))
    y = y.reshape(len(terms), len(NODES), *y.shape[1:])
    means = (y * align(weight, y[0])).sum(1)
    endless = align(torch.stack([term.endless.expand(batch) for term in terms]), means)
    # The sign is enough where the derivative is infinite, and f itself may be too: infinity times 0 is NaN.
    means = torch.where(endless, torch.sgn(means.detach().nan_to_num()), means)
    widths = align(torch.stack([term.width.expand(batch) for term in terms]), means)
    return (means * widths).sum(0)


def reading_errors(
    problem: Problem, treatment: Treatment | None, weight: Tensor, relative: Tensor | None
) -> list[Tensor]:
    """Estimate the error of the derivative with respect to each of ``limits.marks``, shape ``(batch,)``.

    f is read beside the mark, not at it: read at other distances, too, it tells what that costs, by how it rises
    and by how far it is from rising evenly. There f is a staircase: its next value is often the same. ``weight``
    ``(batch, *event)`` multiplies the derivative, and has the error ``relative`` ``(batch,)`` itself. Where the
    derivative is infinite the error is, too.
    """
    integrand, limits, batch = problem.integrand, problem.limits, problem.batch
    errors = [limits.a.detach().new_zeros(batch) for _ in limits.marks]
    if not batch:
        return errors
    terms = [_terms(limits, batch, treatment, times) for times in READINGS]
    with torch.no_grad():
        for same in zip(*terms, strict=True):
            index, term = same[0]
            places = torch.stack([other.start.detach().expand(batch) for _, other in same])
            y = (integrand(places, slice(0, batch)).detach() * weight.conj()).reshape(len(same), batch, -1)
            y, rises = y[0], y - y[0]
            even = rises[-1] * align(torch.as_tensor(READINGS, dtype=places.dtype, device=y.device) - 1.0, y[None])
            span = READINGS[-1] - 1.0
            # A limit is as far from where f is read first as that from the second, a breakpoint as far as the
            # last is from the first.
            reach = rises[-1].abs() / (span if index < 2 else 1.0)
            off = 2.0 * (reach + (rises - even / span).abs().amax(0))
            rounding = (READ_ROUNDING * limits.rounding.eps) * y.abs()
            rounding = rounding if relative is None else rounding + relative[:, None] * y.abs()
            error = (off + rounding).sum(1).masked_fill(~term.usable, 0.0)
            errors[index] = errors[index] + error.masked_fill(term.endless, torch.inf)
    return errors


@dataclass(frozen=True)
class Reading:
    """Where f is read for the derivative by one mark, on one side of it, and with which sign; ``(batch,)`` each.

    ``mark`` is its place among ``Limits.marks``; the rest is as in :class:`_Term`.
    """

    mark: int
    start: Tensor
    sign: Tensor | float
    endless: Tensor
    usable: Tensor


def readings(limits: Limits, batch: int, treatment: Treatment | None, reading: int = 1) -> list[Reading]:
    """Return where f is read beside all marks that carry a gradient, at one of the :data:`READINGS`."""
    fixed = limits.detach()
    inner = fixed.inner_points(batch)
    none = (torch.zeros_like(inner, dtype=torch.bool),) * len(limits.marks)
    treatment = treatment or Treatment(none, none, none)
    found: list[Reading] = []
    for i, mark in enumerate(limits.marks):
        if not carries_gradient(mark):
            continue
        usable, sides = _limit_sides(fixed, i, reading) if i < 2 else _breakpoint_sides(fixed, i - 2, reading)
        usable = usable & ~treatment.pathwise[i]
        for start, sign in sides:
            found.append(Reading(i, torch.where(usable, start, inner), sign, treatment.endless[i], usable))
    return found


def _terms(limits: Limits, batch: int, treatment: Treatment | None, reading: int) -> list[tuple[int, _Term]]:
    """Return the boundary terms of all marks that carry a gradient, with the marks' places among all.

    f is read beside the mark, at one of the :data:`READINGS`.
    """
    fixed = limits.detach()
    terms: list[tuple[int, _Term]] = []
    for read in readings(limits, batch, treatment, reading):
        move = torch.where(read.usable, limits.marks[read.mark] - fixed.marks[read.mark], 0.0)
        steep = torch.where(read.endless, move, 1.0).sqrt()  # 0 with an infinite derivative
        width = read.sign * torch.where(read.endless, steep, move)
        move = torch.where(read.endless, 0.0, move)
        terms.append((read.mark, _Term(read.start, move, width, read.endless, read.usable)))
    return terms


def _limit_sides(fixed: Limits, index: int, reading: int) -> tuple[Tensor, list[tuple[Tensor, Tensor | float]]]:
    """Tell where a limit has a derivative, where f is read for it, and with which sign."""
    here, other = fixed.marks[index], fixed.marks[1 - index]
    start = just_inside(here, other, fixed.x_dtype or here.dtype, reading)
    return here.isfinite(), [(start, -1.0 if index == 0 else 1.0)]


def _breakpoint_sides(
    fixed: Limits, index: int, reading: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor | float]]]:
    """Tell the same of a breakpoint, which has two sides."""
    here, *earlier = fixed.marks[index + 2], *fixed.marks[2 : index + 2]
    usable = (here > torch.minimum(fixed.a, fixed.b)) & (here < torch.maximum(fixed.a, fixed.b))
    for other in earlier:  # of equal ones the first counts
        usable = usable & (other != here)
    farther = 1.0 + (reading - 1) / (READINGS[-1] - 1)
    away, sign = farther * reading_distance(fixed, index), fixed.orient(torch.ones_like(fixed.a))
    return usable, [(here - away, sign), (here + away, -sign)]


def reading_distance(fixed: Limits, index: int) -> Tensor:
    """Return how far from a breakpoint the integrand is read, so that no rounding puts it on the wrong side."""
    here, edges = fixed.marks[index + 2], fixed.edges()
    below = torch.where(edges < here[:, None], edges, -torch.inf).amax(1)
    above = torch.where(edges > here[:, None], edges, torch.inf).amin(1)
    gap = torch.minimum(here - below, above - here)
    gap = torch.where(gap.isfinite(), gap, 1.0 + here.abs())
    least = AWAY_ULPS * (fixed.next_to(here, torch.full_like(here, torch.inf)) - here).abs()
    least = least if fixed.blur is None else torch.maximum(least, fixed.blur[:, index])
    return torch.minimum(torch.maximum(least, AWAY_GAP * gap), 0.25 * gap)


def follow_marks(limits: Limits, treatment: Treatment | None) -> Limits:
    """Return the limits, with gradient only where nodes follow them."""
    fixed = limits.detach()
    if treatment is None:
        return fixed
    marks = zip(treatment.pathwise, limits.marks, fixed.marks, strict=True)
    return limits.with_marks(tuple(torch.where(pathwise, mark, still) for pathwise, mark, still in marks))


def replay_with_limits(
    integrand: Integrand,
    plan: IntervalPlan,
    limits: Limits,
    treatment: Treatment | None,
    chunk_size: int | None,
    observer: Observer | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Replay the plan and add the boundary terms of the limits; without a treatment the boundaries move alone.

    ``observer`` and ``rows`` are those of :func:`quadgrad._core.replay.replay_plan`.
    """
    pieces = follow_marks(limits, treatment).pieces()
    total = replay_plan(integrand, plan, pieces, chunk_size or REPLAY_BLOCK, chunk_size is not None, observer, rows)
    value = limits.detach().orient(total)
    if any(carries_gradient(mark) for mark in limits.marks):
        value = value + boundary_sum(integrand, limits, plan.batch, treatment)
    if limits.found and plan.batch and (torch.is_grad_enabled() or derivatives_open()):
        with thinking():  # zero, and so is its derivative: no part of what is compared
            moved = kink_sum(integrand, *found_places(limits.detach(), plan.batch))
        value = value + limits.detach().orient(moved)
    return value


def doubtful_places(fixed: Limits, batch: int) -> tuple[Tensor, Tensor]:
    """Return places that search has found ``(k, batch)``, and how far from them derivatives are read on both sides.

    That is no nearer where another place is: two may have been found of one.
    """
    places, away, _ = found_places(fixed, batch)
    spacing = (fixed.next_to(places, torch.full_like(places, torch.inf)) - places).abs()
    apart = torch.maximum(away, AWAY_ULPS * spacing)
    lower, upper = torch.minimum(fixed.a, fixed.b), torch.maximum(fixed.a, fixed.b)
    return places, torch.where((places - apart > lower) & (places + apart < upper), apart, away)


def found_places(fixed: Limits, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return places that search has found ``(k, batch)``, and from where to where f may be read beside them.

    Harmless ones stand where an integral has fewer, or where its limits have left one outside.
    """
    lower, upper = torch.minimum(fixed.a, fixed.b), torch.maximum(fixed.a, fixed.b)
    inner, edges = fixed.inner_points(batch), fixed.edges()
    columns: list[Tensor] = []
    for index in range(len(fixed.marks) - 2 - fixed.found, len(fixed.marks) - 2):
        place, away = fixed.marks[2 + index], reading_distance(fixed, index)
        away = away.expand(batch)
        room = torch.where(edges == place[:, None], torch.inf, (edges - place[:, None]).abs()).amin(1)
        far = torch.minimum(FARTHER * away, 0.25 * room)
        inside = (place - far > lower) & (place + far < upper)  # False where one of them is NaN
        near = 0.01 * torch.minimum(inner - lower, upper - inner).clamp_max(1.0)
        far = torch.where(inside, far, near)
        columns.append(torch.stack((torch.where(inside, place, inner), torch.where(inside, away, 0.25 * far), far)))
    places, away, far = torch.stack(columns, 1).unbind()
    return places, torch.minimum(away, 0.25 * far), far
