"""Jumps of which no operation told: values along the direction, beside what autograd's slopes there add up to.

A step of Python's, NumPy's or TorchScript's, or of an operation that is on nobody's list, shows in the values: they
change by more than slopes tell, and from half as far apart as well. What is smooth, or bends, is then told better.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from numpy.polynomial import Polynomial

from quadgrad.doctor.crossings import Jump
from quadgrad.doctor.examine import A_LINE, Examination
from quadgrad.doctor.places import Place
from quadgrad.doctor.prints import Look, first_to_jump
from quadgrad.doctor.trace import Event
from quadgrad.doctor.values import hold

__all__ = ["find_untold"]

_PLACES = (0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0)
_NEAR = 0.3
"""Where values are looked at, unless they were as near as that, of the distance, already."""

_REACH, _WITHIN = 2.0, 0.25
"""So far at most, and in integrals, whose nodes stay where the first run put them: a jump inside is near one."""

_TOLD = 1e-4
"""Of the change of the values: what slopes may be off without a doubt."""

_JUMPS, _OWN = 2.0, 9
"""Between places w apart a bend is off by half of w times what slopes differ by at most, what is smooth by less.

What is off by more is followed also where runs have come to an end, by so many of its own.
"""

_QUARTER = 0.25
"""What a bend may be off falls to in half the width: a jump that cannot stand out in the runs left is let be."""

_KEPT = 0.75
"""This part of it stays in one half of a gap, of a jump; where slopes are wrong, each half has its half."""

_NARROW = 2.0**-8
"""As close, in sizes of what is varied, a jump is brought; what rises as steeply passes for one."""


class _Gap(NamedTuple):
    """Neighbours, by how much the values there differ from what slopes tell, and that of what a bend may be off."""

    left: Look
    right: Look
    off: float
    share: float

    @property
    def middle(self) -> float:
        return 0.5 * (self.left.t + self.right.t)

    @property
    def width(self) -> float:
        return self.right.t - self.left.t


def find_untold(x: Examination) -> Jump | None:
    """Return a jump along the first direction that is nearer than two sizes of the inputs, if values show one."""
    refused: list[float] = []
    whole: dict[tuple[float, float], float] = {}  # what halves were off by together
    reach = _WITHIN if x.program.rehearsal.kept else _REACH
    x.look(0.0)
    spent = 0
    while True:
        gaps = [gap for gap in _gaps(x, reach) if gap.middle not in refused]
        jumps = [gap for gap in gaps if gap.share > _JUMPS]
        seen = (*x.looks, *refused)
        waiting = [t for t in _PLACES if not any(abs(other - t) < _NEAR * abs(t) for other in seen)]
        waiting = [t for t in waiting if abs(t) <= reach]
        if jumps:
            gap = max(jumps, key=lambda gap: gap.share)
            if gap.width <= _NARROW:
                if gap.off > _KEPT * whole.get((gap.left.t, gap.right.t), 0.0):
                    return _jump(x, gap)
                refused.append(gap.middle)
                continue
            t, left = gap.middle, max(x.left() + A_LINE, _OWN - spent)
            whole[gap.left.t, t] = whole[t, gap.right.t] = gap.off
        elif waiting:
            t, left = waiting[0], max(x.left(), 3 - len(x.looks))
        elif gaps := [gap for gap in gaps if gap.share > _JUMPS * _QUARTER ** x.left()]:
            t, left = max(gaps, key=lambda gap: gap.off).middle, x.left()
        else:
            return None
        if left < 1:
            return None
        spent += 1
        try:
            x.look(t)
        except Exception:  # so far away the program may not be defined, and says so in its own way
            refused.append(t)


def _gaps(x: Examination, reach: float) -> list[_Gap]:
    """Return between which neighbours values are off, by the better one of two rules: trapezium and cubic."""
    looks = [x.looks[t] for t in sorted(x.looks) if abs(t) <= reach]
    least = max(x.noise, _TOLD * max(abs(look.value - x.base.value) for look in looks))
    gaps: list[_Gap] = []
    for a, b in itertools.pairwise(looks):
        apart = _NEAR * (b.t - a.t)  # what is closer tells nothing more
        before, after = [o for o in looks if o.t < a.t - apart], [o for o in looks if o.t > b.t + apart]
        near = [*before[-1:], a, b, *after[:1]]
        change, slopes = b.value - a.value, [look.slope for look in near]
        cubic, _ = Polynomial.fit([look.t for look in near], slopes, len(near) - 1, full=True)
        total = cubic.integ()
        rules = 0.5 * (b.t - a.t) * (a.slope + b.slope), total(b.t) - total(a.t)
        off = min(abs(change - float(rule)) for rule in rules)
        bend = 0.5 * (b.t - a.t) * (max(slopes) - min(slopes))
        if off > least:
            gaps.append(_Gap(a, b, off, off / (bend + least)))
    return gaps


def _jump(x: Examination, gap: _Gap) -> Jump:
    """Return the jump between two neighbours, with the operation that shows it first; without one if none does."""
    near, far = sorted((gap.left, gap.right), key=lambda look: abs(look.t))
    others: Sequence[Look] = [look for look in x.looks.values() if look.prints and look not in (near, far)]
    beside = [*sorted((o for o in others if o.t < gap.left.t), key=lambda o: -o.t)[:1],
              *sorted((o for o in others if o.t > gap.right.t), key=lambda o: o.t)[:1]]  # fmt: skip
    found = first_to_jump(near, far, beside)
    op, place = ("", Place("?", 0, (0, 0), "", "user")) if found is None else found[:2]
    return Jump(Event(place, op, hold(None)), 1, gap.off, abs(near.t))
