"""Several decisions brought to where they change by one displacement: two runs tell whether any of them jumps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quadgrad.doctor.examine import Examination
from quadgrad.doctor.program import Run
from quadgrad.doctor.roots import WIDTH
from quadgrad.doctor.trace import Order

__all__ = ["Crossing", "Together"]

_LOOKS = 32
_FAR = 8.0
"""So many sizes of what is varied a displacement may go along one direction, at most."""


class Crossing(NamedTuple):
    """A decision's margin that is thought to be zero at ``t``; ``column`` is what it stands for."""

    number: int
    element: int
    column: int
    t: float


class Together:
    """Displacements that are sums of the random directions, along each of which the rates of margins are known."""

    def __init__(
        self, examination: Examination, at_point: Run, values: Callable[[Run, int], Tensor | None]
    ) -> None:
        self.x, self.at_point, self.values = examination, at_point, values

    def cross(self, crossings: Sequence[Crossing]) -> tuple[list[Crossing], dict[int, float], float]:
        """Cross as many of these as there are directions at once, in two runs: their margins vanish together.

        Returns which were crossed, by how much the output jumps with the outcomes of which decision, and how far
        away that is.
        """
        directions = [(d, *next(iter(d.sides.items()))) for d in self.x.directions if d.sides]
        chosen, rates = self._choose(crossings, [(h, sides) for _, h, sides in directions])
        if len(chosen) < 2:
            return [], {}, 0.0
        margins = torch.tensor([self._margin(c, self.at_point) for c in chosen], dtype=torch.float64)
        shares = torch.linalg.lstsq(rates, -margins[:, None], driver="gelsd").solution[:, 0].tolist()
        distance = max(map(abs, shares))
        if distance > _FAR:
            return [], {}, 0.0
        every = [d.steps for d, _, _ in directions]
        steps = [_weighed(shares, each) for each in zip(*every, strict=True)]
        run = lambda t, outcomes: self.x.program.run(
            Order(base=self.x.trace, margins=True, outcomes=outcomes), steps, t
        )
        try:
            near, far = run(1.0 - WIDTH, {}), run(1.0 + WIDTH, {})
        except Exception:  # so far away the program may not be defined
            return [], {}, 0.0
        signs = [[self._margin(c, side) > 0.0 for c in chosen] for side in (self.at_point, near, far)]
        crossed = [c for c, here, a, b in zip(chosen, *signs, strict=True) if here == a != b]
        change = sum(abs(share) * d.size for share, (d, _, _) in zip(shares, directions, strict=True))
        noise = 1e3 * self.x.eps * max(self.at_point.size, near.size) + 200.0 * WIDTH * change
        sizes: dict[int, float] = {}
        if abs(far.value - near.value) > noise:
            for k in {c.number for c in crossed}:
                size = abs(run(1.0 - WIDTH, {k: far.trace.decisions[k].out}).value - near.value)
                sizes |= {k: size} if size > noise else {}
        return crossed, sizes, distance

    def _choose(self, crossings: Sequence[Crossing], sides: Sequence[Any]) -> tuple[list[Crossing], Tensor]:
        """Return those, the nearest first, whose margins move independently of each other, and their rates."""
        chosen: list[Crossing] = []
        rates = torch.zeros(0, len(sides), dtype=torch.float64)
        for crossing in crossings[:_LOOKS]:
            row = [
                (self._margin(crossing, right) - self._margin(crossing, left)) / (2.0 * h)
                for h, (right, left) in sides
            ]
            more = torch.cat([rates, torch.tensor([row], dtype=torch.float64)])
            if bool(more.isfinite().all()) and int(torch.linalg.matrix_rank(more, rtol=1e-4)) == len(more):
                chosen, rates = [*chosen, crossing], more
            if len(chosen) == len(sides):
                break
        return chosen, rates

    def _margin(self, crossing: Crossing, run: Run) -> float:
        values = self.values(run, crossing.number)
        return float("nan") if values is None else float(values[crossing.element])


def _weighed(shares: Sequence[float], steps: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(steps[0])
    for share, step in zip(shares, steps, strict=True):
        total = total + share * step
    return total
