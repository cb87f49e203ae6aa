"""Waves that decay so fast that bisection gets to where they are nothing for less than a series takes.

A series is found for one end at a time, from some hundred calls of f that wait for each other: milliseconds, in
which cells of thousands of nodes are refined for a batch. It is for what no end of nodes gets to.
"""

from __future__ import annotations

import torch

from quadgrad._core.search.ends.towards import Line
from quadgrad._core.search.ends.waves import NEGLIGIBLE, SCAN, stretch, turns
from quadgrad._core.search.task import call_places

__all__ = ["count_nodes_left"]

OCTAVES, EACH = 12, 4
"""So many octaves farther out f is called, at so many places in each half of one."""

FIRST, COUNTED = 0.25, 24
"""In this part of the stretch where series look for waves their changes of sign are counted, so many at most: where
there are more, places may see any other one."""

FOR_HALF_A_WAVE = 14
"""Nodes that bisection takes for half a wave, to 1e-8: 12 to 16 for exp(-p x) cos w x, w/p from 3 to 100."""


def count_nodes_left(lines: list[Line], distances: list[float]) -> list[float]:
    """Return how many nodes bisection will take towards infinite ends until f is nothing; inf where it never is.

    Where cells pile up at these distances. It takes one call of f for all; lines count it.
    """
    if not lines:
        return []
    starts = [stretch(line, distance) for line, distance in zip(lines, distances, strict=True)]
    starts = [(begin, FIRST * length) for begin, length in starts]
    begin, length = torch.tensor(starts, dtype=torch.float64, device="cpu").T
    golden = torch.arange(2 * OCTAVES * EACH, dtype=torch.float64, device="cpu") * 0.6180339887498949 % 1.0
    farther = torch.exp2(0.5 * torch.arange(2 * OCTAVES, dtype=torch.float64, device="cpu"))
    far = (begin + length) * (farther[:, None] * (1.0 + 0.4 * golden.view(-1, EACH))).flatten()[:, None]
    # Not evenly spread: of a fast wave places would see any other one, or any tenth.
    uneven = (torch.arange(SCAN, dtype=torch.float64, device="cpu") * 0.6180339887498949 % 1.0).sort().values
    u = torch.cat((begin + length * uneven[:, None], far))
    x = torch.stack([line.x(column) for line, column in zip(lines, u.unbind(1), strict=True)], 1)
    y = call_places(lines[0].problem, torch.cat([line.owner for line in lines]), x.to(lines[0].device)).cpu()
    for line in lines:
        line.spent += len(u)
    changes = turns(y[:SCAN])[0].sum(0).amax(1).clamp_min(1)
    size = y.abs().amax(2)
    most, beyond = size[:SCAN].amax(0), size[SCAN:].unflatten(0, (-1, EACH)).amax(1)
    there = (beyond > NEGLIGIBLE * most) | ~beyond.isfinite()
    halves = torch.arange(1, len(farther) + 1, device="cpu")[:, None]
    last = (there * halves).amax(0)  # so many halves of octaves something is
    end = (begin + length) * torch.exp2(0.5 * last)
    left = FOR_HALF_A_WAVE * changes / length * (end - begin)
    return left.masked_fill((last == len(farther)) | ~most.isfinite() | (changes > COUNTED), torch.inf).tolist()
