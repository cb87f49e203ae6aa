"""Derivatives from differences: a step for each input, shrunk until it sees what is there, and error bars.

Inputs that no output shares are moved together (:mod:`quadgrad.bridge.structure`). A first step fits a function
that changes over the scale of its inputs. Where the stencil says that it does not see the function, or the points
very close to x contradict it, the step shrinks; where truncation and noise are out of balance it is balanced. Of
two estimates that contradict each other the one with the smaller step is right. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quadgrad.bridge.apart import apart
from quadgrad.bridge.contract import Array
from quadgrad.bridge.problem import TINY, Problem, along, part
from quadgrad.bridge.stencils import (
    COARSEST,
    KINK,
    LEVELS,
    NOISY,
    STENCIL,
    TOGETHER,
    Estimate,
    estimate,
    evaluate,
    fit,
    judge,
    judge_together,
    place,
    single_step,
)

__all__ = ["Found", "differentiate", "directional", "fixed_steps", "slope_along"]

PASSES = 12
"""How often steps are chosen: from the first to a few spacings of x, and back once."""
GROWTH = 32.0
"""By how much a step grows, or shrinks where it does not see the function or points lie outside the domain."""
POOR = 100.0
"""Steps are chosen anew where the error is this many times what a well-scaled function gives."""
LARGEST = 0.5
"""Steps grow to this share of an input's scale, or of 1 where that is more: an output that stays 0 asks for ever
longer ones, and nobody knows what a function does out there."""
ENOUGH, FEW = 5.0, 0.02
"""Of noisy functions 100 times would be anything: so many times what noise allows, or so large a share, will do."""
ROUGH = 30.0
"""Where truncation is estimated at less than this many times the noise, the estimate is noise itself."""
SAME = 0.05
"""A bend that is the same, within this, at a much smaller step is a kink."""
CLOSE = 10.0
"""Estimates that contradict each other by less than so many of their errors are both believed less."""
CLEAR = 100.0
"""Beyond the size of an input slopes are believed that are so many times their errors: others may be chance. A
longer step casts doubt on a shorter one by less than so many errors of that."""
CACHED = 2**14
"""How many elements are worked on at once."""
ORDER = {"forward": 1, "central": 2, "richardson": 2}
QUALITY = {"forward": 1 / 2, "central": 2 / 3, "richardson": 5 / 6}
"""The power of the noise that a method's error has, for a function that is well scaled."""


@dataclass(frozen=True)
class Found:
    """Derivatives in compressed form with their errors, and the scales of the inputs that the steps turned out."""

    value: Array
    error: Array
    scale: Array


@dataclass
class _Kept:
    """The best estimates so far, all ``(groups, m)``; what the last step of each said; whether there is a kink."""

    value: Array
    error: Array
    width: Array
    seen: Array
    kink: Array
    last: Estimate
    last_width: Array

    @classmethod
    def first(cls, found: Estimate, width: Array, problem: Problem) -> _Kept:
        """Keep a first estimate; outputs in steps that stand still contradict no other."""
        still = found.value == 0.0
        believed = np.where(problem.loud & still, np.inf, width) if still.any() else width
        return cls(found.value, found.error, believed, found.seen, np.zeros(found.value.shape, bool), found, width)

    def own(self) -> None:
        """Take copies of what is shared, before it is written to."""
        for name in ("value", "error", "width", "seen", "last_width"):
            setattr(self, name, np.array(np.broadcast_to(getattr(self, name), self.kink.shape)))
        self.last = Estimate(*(np.array(part) for part in vars(self.last).values()))

    def enter(self, groups: Array, found: Estimate, width: Array) -> None:
        """Write down what the last step of some groups said."""
        for name, new in vars(found).items():
            getattr(self.last, name)[groups] = new
        self.last_width[groups] = width


def differentiate(problem: Problem, method: str) -> Found:
    """Return the compressed Jacobian by ``"central"``, ``"forward"`` or ``"richardson"`` differences."""
    # Steps of noisy functions are long: where two points agree by chance, a third does not.
    if method == "forward" and np.mean(problem.loud) > 0.5:
        method = "central"
    with np.errstate(all="ignore"):
        if problem.structure.by_elements:
            return _by_elements(problem, method)
        return _central(problem) if method == "central" else _refined(problem, method)


def _central(problem: Problem) -> Found:
    """Take third points for each input only where there are doubts if they have a few in common."""
    every = np.arange(problem.structure.groups)
    fitted = fit(problem, problem.scale * first_step(problem, "central"), "central")
    points = place(problem, *fitted, "central")
    outputs = evaluate(problem, every, points[:2])
    found = judge_together(problem, fitted, points[:2], outputs)
    if found is not None:
        problem = apart(problem, found)
        width = problem.structure.spread(fitted[0], every)
        # The truncation of so many inputs adds up, by chance; that of one is what there may be doubts about.
        one = _Kept.first(replace(found, truncation=found.truncation / TOGETHER**0.5), width, problem)
        if not _doubts(problem, one, "central")[0].any():
            kept = _Kept.first(found, width, problem)
            return _found(problem, kept, _last_word(problem, kept, "central", True), problem.scale)
    outputs = np.concatenate((outputs, evaluate(problem, every, points[2:])))
    return _refined(problem, "central", judge(problem, every, fitted, points, outputs, "central"))


def _by_elements(problem: Problem, method: str) -> Found:
    """Differentiate a function that works elementwise: all elements once, then those in doubt.

    In blocks that stay in the cache, with all evaluations between: a pass over a million numbers takes ten times as
    long where it has to ask for memory.
    """
    groups, size = problem.structure.source.shape
    every = np.arange(groups)
    relative = first_step(problem, method)
    problem = replace(problem, typical_noise=problem.typical)
    columns = [slice(i, i + CACHED) for i in range(0, size, CACHED)]
    blocks = [part(problem, each) for each in columns]
    fitted = [fit(block, block.scale * relative, method) for block in blocks]
    points = np.empty((*STENCIL[method], groups, size))
    for each, block, (step, side) in zip(columns, blocks, fitted, strict=True):
        points[..., each] = place(block, step, side, method).reshape(*STENCIL[method], groups, -1)
    sent = points.reshape(-1, groups * size)
    outputs = [evaluate(problem, every, p) for p in sent] if problem.one_by_one else evaluate(problem, every, sent)
    value, error = np.empty((groups, size), np.result_type(*{y.dtype for y in outputs})), np.empty((groups, size))
    doubtful: list[tuple[Array, Estimate]] = []
    for each, block, (step, side) in zip(columns, blocks, fitted, strict=True):
        at = points[..., each].reshape(*STENCIL[method], -1)
        found = judge(block, every, (step, side), at, [y[:, each] for y in outputs], method)
        kept = _Kept.first(found, block.structure.spread(step, every), block)
        doubts = np.flatnonzero(_doubts(block, kept, method)[0].any(axis=0))
        value[:, each], error[:, each] = kept.value, _last_word(block, kept, method, not doubts.size)
        if doubts.size:
            doubtful.append((each.start + doubts, found.at(doubts)))
    if not doubtful:
        return Found(value, error, problem.scale)
    chosen = np.concatenate([which for which, _ in doubtful])
    first = Estimate(
        *(np.concatenate(t, axis=1) for t in zip(*(vars(f).values() for _, f in doubtful), strict=True))
    )
    again, scale = _refined(part(problem, chosen), method, first), problem.scale.reshape(groups, size).copy()
    value = value.astype(np.result_type(value, again.value), copy=False)
    value[:, chosen], error[:, chosen] = again.value, again.error
    scale[:, chosen] = again.scale.reshape(groups, -1)
    return Found(value, error, scale.reshape(-1))


def _refined(problem: Problem, method: str, first: Estimate | None = None) -> Found:
    """Differentiate with steps that are chosen anew until nothing is in doubt; ``first`` is what the first saw."""
    structure = problem.structure
    every = np.arange(structure.groups)
    relative = first_step(problem, method)
    step = problem.scale * relative
    fitted = fit(problem, step, method)
    found = estimate(problem, every, fitted, method) if first is None else first
    kept = _Kept.first(found, structure.spread(fitted[0], every), problem)
    chosen, too_long, tried, settled = step, np.full(step.shape, np.inf), [fitted[0]], False
    for turn in range(PASSES):
        problem = apart(problem, kept.last)
        poor, blind = _doubts(problem, kept, method)
        settled = not poor.any()
        if settled:
            break
        if not turn:
            kept.own()
        too_long = np.where(structure.collect(blind.astype(np.float64), every) > 0.0, step, too_long)
        moved = np.minimum(_next_steps(problem, step, kept.last, poor, blind, method), too_long / 4.0)
        # Where a step has been, its estimate is known.
        fresh = np.all([np.abs(np.log2(fit(problem, moved, method)[0] / other)) >= 1.0 for other in tried], axis=0)
        groups = every[poor.any(axis=1) & structure.collect_groups(fresh)]
        if not groups.size:
            break
        step = np.where(fresh & np.isin(structure.colour, groups), moved, step)
        fitted = fit(problem, step, method)
        tried.append(fitted[0])
        width = structure.spread(fitted[0], groups)
        found = _judged(problem, kept, groups, estimate(problem, groups, fitted, method), width, method)
        # Beyond the size of an input a function that is not seen to change clearly may do so unseen.
        beyond = structure.spread((step > problem.scale).astype(np.float64), groups) > 0.0
        hidden = (beyond & (np.abs(found.value) <= CLEAR * found.error)) | (problem.loud & (found.value == 0.0))
        better = _merge(kept, groups, found, width, hidden)
        chosen = np.where(structure.collect(better.astype(np.float64), groups) > 0.0, step, chosen)
    return _found(problem, kept, _last_word(problem, kept, method, settled), chosen / relative)


def _found(problem: Problem, kept: _Kept, error: Array, scale: Array) -> Found:
    known = problem.structure.known(np.arange(problem.structure.groups))
    return Found(np.where(known, kept.value, 0.0), np.where(known, error, 0.0), scale)


def first_step(problem: Problem, method: str) -> float:
    """Return the first step of a method, relative to the scale."""
    return COARSEST if method == "richardson" else balanced(problem, ORDER[method])


def balanced(problem: Problem, order: int) -> float:
    """Return the relative step that balances truncation and noise for a function that is well scaled."""
    return problem.typical ** (1.0 / (order + 1))


# ------------------------------------------------------------------------------------------ what to believe


def _doubts(problem: Problem, kept: _Kept, method: str) -> tuple[Array, Array]:
    """Return which entries need another step, and which of them because theirs sees nothing."""
    groups = np.arange(problem.structure.groups)
    poor = blind = _poor(problem, kept, method) & ~kept.kink
    if poor.any():
        blind = poor & ~kept.last.seen & np.isfinite(kept.last.error)
    gap = _contradiction(problem, kept)
    if gap.any():
        other = (gap > 0.0) & problem.structure.known(groups)
        poor, blind = poor | other, blind | other
    return poor, blind


def _poor(problem: Problem, kept: _Kept, method: str) -> Array:
    """Return where the error is far above what differences of a well-scaled function have."""
    groups, value, error = np.arange(problem.structure.groups), kept.value, kept.error
    if (error < _allowed(problem.precision ** QUALITY[method]) * np.abs(value)).all():  # nearly always
        return np.zeros(error.shape, bool)
    size = np.abs(problem.value) / problem.structure.spread(np.maximum(problem.scale, 1.0), groups)
    size = np.fmax(np.where(np.isfinite(value), np.abs(value), 0.0), size)
    rough = np.where(problem.value != 0.0, problem.noise / np.abs(problem.value), 0.0)
    poor = error > _allowed(np.clip(rough, problem.precision, 0.1) ** QUALITY[method]) * size
    # An output that is 0 all around has the error of the smallest number, which is no share of 0.
    poor &= (size > 0.0) | (kept.last.truncation > 0.0) | problem.loud
    return poor & problem.structure.known(groups) & np.isfinite(problem.value)


def _allowed(best: Any) -> Any:
    """Return from which relative error on steps are chosen anew, where that of a well-scaled function is best."""
    return np.minimum(POOR * best, np.maximum(ENOUGH * best, FEW))


def _contradiction(problem: Problem, kept: _Kept) -> Array:
    """Return by how much each output's derivatives miss the slope that points very close to x have, ``(m,)``."""
    look, gap = problem.look, np.zeros(problem.value.size)
    if look is None or not kept.value.size:
        return gap
    length = problem.structure.spread(look.direction, np.arange(problem.structure.groups), fill=0.0)
    missed = np.abs(_total(kept.value * length) - look.slope)
    over = missed > 2.0 * (_total(kept.error * np.abs(length)) + look.error)
    return np.where(over, missed, gap) if over.any() else gap


def _total(values: Array) -> Array:
    """Return sums over the groups ``(groups, m)``."""
    return values[0] if len(values) == 1 else values.sum(axis=0)


def _judged(problem: Problem, kept: _Kept, groups: Array, found: Estimate, width: Array, method: str) -> Estimate:
    """Return an estimate judged by how it compares with that at the step before, and write it down."""
    before, ratio = kept.last.bend[groups], width / kept.last_width[groups]
    noise = NOISY * np.sqrt(6.0) * problem.noise
    kink = (
        ~found.seen & (found.bend > noise / width) & (ratio < 0.25) & (np.abs(found.bend - before) <= SAME * before)
    )
    # Of a smooth function bends are proportional to the step, except for the noise of the shorter one.
    longer = (ratio > 4.0) & kept.last.seen[groups]
    allowed = np.where(longer, before + noise / kept.last_width[groups], before) * ratio
    smooth = ~found.seen & ((ratio < 0.25) | longer) & (found.bend <= 1.5 * allowed)
    kept.kink[groups] |= kink
    truncation = np.where(kink, np.maximum(found.truncation, KINK * found.bend), found.truncation)
    if method != "richardson":  # what is less than the order allows is rounding that cancels
        shrunk = np.where(kept.last.seen[groups] & (ratio < 1.0), kept.last.truncation[groups], 0.0)
        truncation = np.fmax(truncation, np.where(np.isfinite(shrunk), shrunk, 0.0) * ratio ** ORDER[method])
    found = replace(found, truncation=truncation, seen=found.seen | kink | smooth)
    kept.enter(groups, found, width)
    return found


def _merge(kept: _Kept, groups: Array, found: Estimate, width: Array, hidden: Array) -> Array:
    """Take over what is better, or contradicts what a longer step said, and is not hidden; return where."""
    error, old = found.error, kept.error[groups]
    gap = np.abs(found.value - kept.value[groups])
    refuted = gap > error + old
    better = np.where(refuted, (width < kept.width[groups]) & np.isfinite(error), error < old) & ~hidden
    # What contradicts without having seen the function's scale itself is not believed more than what it
    # contradicts; and what is contradicted by little may be noisier than it seems: not by a step that saw nothing,
    # nor by a longer one that is itself so wrong.
    doubtful = np.where(width < kept.width[groups], kept.seen[groups], gap <= CLEAR * old)
    close = refuted & (gap <= CLOSE * (error + old)) & doubtful
    error = np.where((refuted & ~found.seen) | close, np.fmax(error, gap), error)
    # Where nothing moved at all, steps too coarse to be seen from here may have been taken for none.
    flat = refuted & (kept.value[groups] == 0.0)
    kept.error[groups] = np.where(close | flat, np.fmax(old, gap), old)
    for name, new in (("value", found.value), ("error", error), ("width", width), ("seen", found.seen)):
        table = getattr(kept, name)
        table[groups] = np.where(better, new, table[groups])
    return better


def _last_word(problem: Problem, kept: _Kept, method: str, settled: bool) -> Array:
    """Return the errors: infinite where no step has seen the function, with what the look contradicts.

    ``settled`` says that there are no doubts.
    """
    error, rises = kept.error, problem.look is not None and bool(problem.look.rise.any())
    if settled and not rises and problem.apart is None:
        return error
    if not kept.seen.all():
        lost = ~kept.seen & ~kept.kink & ~problem.loud & _poor(problem, kept, method)
        error = np.where(lost, np.inf, error)
    if problem.look is None:
        return error
    gap, rise = _contradiction(problem, kept), problem.look.rise
    if gap.any() or rises:
        groups = np.arange(problem.structure.groups)
        length = np.abs(problem.structure.spread(problem.look.direction, groups))
        # Any entry may be the one that is wrong, and the others hide a part of it.
        hidden = np.where(gap > 0.0, gap + problem.look.error + (error * length).sum(axis=0), 0.0)
        error = np.maximum(error, np.maximum(hidden, rise) / length)
    return error if problem.apart is None else np.maximum(error, problem.apart.rise)


# ------------------------------------------------------------------------------------------------- steps


def _next_steps(problem: Problem, step: Array, found: Estimate, poor: Array, blind: Array, method: str) -> Array:
    """Return steps that balance what was found; much smaller ones where they see nothing, or leave the domain."""
    structure, order, relative = problem.structure, ORDER[method], first_step(problem, method)
    groups = np.arange(structure.groups)
    lost = poor & ~np.isfinite(found.error)
    usable = poor & ~lost & ~blind
    ratio = np.where(usable, found.truncation / np.maximum(found.rounding, TINY), 0.0)
    count = structure.collect(usable.astype(np.float64), groups)
    mean = structure.collect(np.minimum(ratio, 1e30), groups) / np.maximum(count, 1.0)
    if method == "richardson":
        shorter = 0.5 ** (LEVELS - 1)
        shrunk = np.full_like(mean, shorter)
    else:
        shorter = 1.0 / GROWTH
        shrunk = np.maximum(mean, 1.0) ** (-1.0 / (order + 1))
    # Where noise rules, as it does next to 0 for a function that does not care how small x is: from x's scale to 1.
    grown = np.maximum(GROWTH * step, relative)
    near = step < 0.5 * LARGEST * problem.scale  # at first only as far as the input is large
    grown = np.minimum(grown, np.maximum(step, LARGEST * np.maximum(problem.scale, np.where(near, 0.0, 1.0))))
    moved = np.where(count == 0.0, step, np.where(mean > ROUGH, step * shrunk, grown))
    moved = np.where(structure.collect(blind.astype(np.float64), groups) > 0.0, step * shorter, moved)
    # The distance to 0 is the best guess of how far a domain reaches.
    near = np.where(problem.x != 0.0, np.abs(problem.x), np.inf) * relative
    outside = structure.collect(lost.astype(np.float64), groups) > 0.0
    return np.where(outside, np.minimum(step / GROWTH, near), moved)


def directional(problem: Problem, method: str, direction: Array, power: float | None = None) -> Array:
    """Return the derivatives along a direction, ``(m,)``.

    ``power`` fixes the relative step at that power of the precision, whatever the noise is.
    """
    if not direction.any():
        return np.zeros_like(problem.value)
    line = along(problem, direction)
    if power is None:
        return differentiate(line, method).value[0]
    return _once(line, power)[0]


def fixed_steps(problem: Problem, power: float) -> Array:
    """Return the compressed Jacobian by central differences with steps that do not depend on what is found."""
    return _once(problem, power)


def _once(problem: Problem, power: float) -> Array:
    with np.errstate(all="ignore"):
        slope = single_step(problem, problem.scale * problem.typical**power)
    return np.where(problem.structure.known(np.arange(problem.structure.groups)), slope, 0.0)


def slope_along(line: Problem, function: Callable[[float], Array], power: float) -> Array:
    """Differentiate a function of t at 0 with a step that fits the line's bounds, relative to its scale."""
    step, side = fit(line, line.scale * line.typical**power, "richardson")
    h = float(step[0])
    if side[0] == 0.0:
        return (function(h) - function(-h)) / (2.0 * h)
    h = h * float(side[0])
    return (4.0 * function(h) - function(2.0 * h) - 3.0 * function(0.0)) / (2.0 * h)
