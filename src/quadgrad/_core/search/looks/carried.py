"""What single nodes saw, carried over to other pieces: breakpoints move, what was seen stays where it is.

Search from a new breakpoint knows nothing of what the search before has seen there, and its nodes may be too far
apart to see that again: of a narrow feature whose place became a breakpoint nothing would be left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import concatenate
from quadgrad._core.search.looks.open_spikes import from_lower
from quadgrad._core.search.looks.witnesses import fractions

__all__ = ["Sights"]

NEAREST = 2.0**-40
"""What was seen at the end of a piece is looked for so close to it, as a part of the piece."""

WIDEST = 0.25
"""Nodes are taken to be no farther apart than this part of a piece."""


@dataclass(frozen=True)
class Sights:
    """Spikes of some integrals, as x and as x of what was next to it on both sides, ``(k,)``."""

    owner: Tensor
    x: Tensor
    before: Tensor
    after: Tensor

    @staticmethod
    def of(problem: Problem, spikes: Tensor, mine: Tensor, earlier: Sights | None = None) -> Sights | None:
        """Read spikes ``(k, 3)`` of integrals that are ``mine`` ``(batch,)``, and add them to earlier ones."""
        spikes = spikes[mine[spikes[:, 0].long() // problem.pieces.count]]
        if not len(spikes):
            return earlier
        row, place, apart = spikes[:, 0].long(), from_lower(spikes[:, 1]), spikes[:, 2]
        around = (place, (place - apart).clamp_min(NEAREST), (place + apart).clamp_max(1.0 - NEAREST))
        x, before, after = (lay_out(problem.pieces, row, t, t, None).nodes(t.new_zeros(1))[0][0] for t in around)
        new = Sights(row // problem.pieces.count, x, before, after)
        return new if earlier is None else concatenate([earlier, new])

    def spikes(self, problem: Problem, mine: Tensor, places: Tensor) -> Tensor | None:
        """Return the spikes of integrals that are ``mine`` ``(batch,)``, on the pieces that a problem has now.

        Breakpoints ``places`` ``(batch, m)`` in sight of a spike are spikes, too, of pieces that it is not in: what
        was seen may go on beyond them. One at a breakpoint is a spike of both pieces.
        """
        chosen = mine[self.owner].nonzero().squeeze(1)
        if not len(chosen):
            return None
        near = places.double()[self.owner[chosen]]
        near = near.masked_fill((near < self.before[chosen, None]) | (near > self.after[chosen, None]), torch.nan)
        index, column = torch.cat((self.x[chosen, None], near), 1).isfinite().nonzero().unbind(1)
        x, index = torch.cat((self.x[chosen, None], near), 1)[index, column], chosen[index]
        count = problem.pieces.count
        row = (self.owner[index, None] * count + torch.arange(count, device=index.device)).flatten()
        lower, upper = (end.double().expand(problem.batch * count)[row] for end in problem.pieces.ends(slice(None)))
        x, own, before, after = (
            t.repeat_interleave(count) for t in (x, self.x[index], self.before[index], self.after[index])
        )
        here = (lower <= x) & (x <= upper) & (lower < upper)
        here &= (x == own) | (own < lower) | (own > upper)
        row, lower, upper, *around = (t[here] for t in (row, lower, upper, x, before, after))
        place, low, high = (
            fractions(t.clamp(lower, upper), lower, upper)[0].clamp(NEAREST, 1.0 - NEAREST) for t in around
        )
        apart = torch.maximum(place - low, high - place).clamp(NEAREST, WIDEST)
        place = torch.where(place == 1.0 - NEAREST, -NEAREST, place)
        order = apart.argsort(stable=True)  # of what was seen several times, from closer and closer, the last
        return torch.stack((row.double(), place, apart), 1)[order]
