"""Where a curve that only rises reaches a height: bracketed Newton's steps in the cell that is known to hold it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.antiderivative.coefficients import chebyshev_sum
from quadgrad._core.antiderivative.heights import BLOCK, Heights, Values
from quadgrad._core.antiderivative.places import Lookup, Places

__all__ = ["Inverse"]

STEPS = 120
"""Newton's steps and bisections; a bracket cannot be halved more often."""


@dataclass(frozen=True)
class Inverse:
    """What to look heights up in, of a curve that rises where ``sign`` ``(k,)`` is 1, and falls where it is -1.

    The part of a cell from its end is what is solved for, from the lower limit if the curve is ``upward``, or else
    from the upper: it is accurate relative to its own size.
    """

    places: Places
    heights: Heights
    slopes: Tensor
    sign: Tensor
    lookup: Lookup

    @staticmethod
    def of(values: Values, places: Places, sign: Tensor, upward: bool) -> Inverse:
        """Prepare the inverse of integrals that have the given ``sign`` ``(batch,)``."""
        heights = values.heights(places, upward)
        sign = sign.index_select(0, places.owner)
        sums = sign * heights.sums
        if upward:
            lookup = Lookup(sums, places.owner, values.plan.batch)
        else:  # sums fall with x
            lookup = Lookup(sums.flip(0), (values.plan.batch - 1 - places.owner).flip(0), values.plan.batch)
        return Inverse(places, heights, values.slopes(places), sign, lookup)

    def solve(self, height: Tensor, owner: Tensor) -> Tensor:
        """Return x ``(p,)`` where integrals of f's modulus are as large as ``height`` ``(p,)``."""
        size = BLOCK if height.device.type == "cpu" else 64 * BLOCK
        parts = [
            self._solve(height[low : low + size], owner[low : low + size]) for low in range(0, len(height), size)
        ]
        return torch.cat(parts) if parts else height

    def _solve(self, height: Tensor, owner: Tensor) -> Tensor:
        heights, places, count = self.heights, self.places, len(self.sign)
        if heights.upward:
            cell = self.lookup.find(height, owner)
        else:
            cell = count - 1 - self.lookup.find(height, self.lookup.count - 1 - owner)
        share = self._newton(cell, height)
        x = places.x(cell, share, heights.upward)
        if heights.tails is None or not len(places.tails):
            return x
        number = places.number.index_select(0, cell)
        where = (number >= 0).nonzero().squeeze(1)
        tail, of = number[where], cell[where]
        near = (places.sign[of] > 0) == heights.upward
        missing = (height[where] - (self.sign * heights.sums)[of]).clamp_min(0.0)
        whole = (self.sign[of] * heights.tails.whole[tail]).clamp_min(0.0)
        left = torch.where(near, missing, (whole - missing).clamp_min(0.0))
        depth = heights.tails.where(tail, self.sign[of] * left)
        return x.index_copy(0, where, places.in_tail(of, depth))

    def _newton(self, cell: Tensor, height: Tensor) -> Tensor:
        """Return the part of each cell, from the end it is measured from, at which the height is reached."""
        heights, sign = self.heights, self.sign.index_select(0, cell)
        rest = height - sign * heights.sums.index_select(0, cell)
        own = (sign * heights.integral.index_select(0, cell)).clamp_min(torch.finfo(rest.dtype).tiny)
        share = (rest / own).clamp(0.0, 1.0)
        low, high = torch.zeros_like(share), torch.ones_like(share)
        eps, done = torch.finfo(share.dtype).eps, torch.zeros_like(share, dtype=torch.bool)
        turn = 1.0 if heights.upward else -1.0
        for _ in range(STEPS):
            t = turn * (2.0 * share - 1.0)
            excess = torch.addcmul(-rest, share, sign * chebyshev_sum(heights.means, cell, t, False))
            slope = sign * chebyshev_sum(self.slopes, cell, t, False)
            low, high = torch.where(excess <= 0.0, share, low), torch.where(excess >= 0.0, share, high)
            step = share - excess / slope
            inside = (step >= low) & (step <= high)
            step = torch.where(inside, step, 0.5 * (low + high))
            # What rounding leaves of the excess: the step that it asks for is still taken.
            settled = (excess.abs() <= eps * (0.5 * height + 4.0 * rest)) | ((step - share).abs() <= eps * share)
            share = torch.where(done | (excess == 0.0), share, step)
            done = done | settled
            if bool(done.all()):
                break
        return share
