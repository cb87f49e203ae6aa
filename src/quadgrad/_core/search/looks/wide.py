"""The ends of very wide finite pieces: what has a scale of about 1 there lies between an end and the nearest node.

Maps of infinite intervals put nodes at distances of about 1 from the end. On [0, 1e30] no node is there, nor is any
place of a grid. So where nothing was seen, f is called closer and closer to both ends, down to a distance of 2^-8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import LIMIT
from quadgrad._core.problem import Problem

__all__ = ["OCTAVES", "call_close", "cells_towards", "depth"]

OCTAVES = 4
"""So many octaves lie between two places."""

NEAREST = round(-math.log2(LIMIT))
"""Up to 2^-44 of the piece others look."""

CLOSEST = 8
"""Places come as close as 2^-8 to an end."""

RATIO = 8
"""Cells around what was seen grow by so many octaves, one after another."""


def depth(problem: Problem, row: Tensor) -> Tensor:
    """Return how many places close to each end pieces have, ``(k,)``; none unless they are finite and very wide."""
    lower, upper = problem.pieces.ends(row)
    octaves = torch.log2(upper.double() - lower.double()).expand(row.shape) + (CLOSEST - NEAREST)
    return torch.where(octaves < torch.inf, octaves, 0.0).clamp_min(0.0).div(OCTAVES).floor().to(torch.int64)


def call_close(problem: Problem, row: Tensor, deep: Tensor) -> tuple[Tensor, Tensor]:
    """Return f ``(2 * m, k, *event)`` at ``deep`` places, closer and closer to lower ends, then to upper ones.

    And which of these ``(2 * m, k)`` are such places.
    """
    step = torch.arange(1, int(deep.max()) + 1, device=row.device)[:, None]
    lower, upper = (end.double() for end in problem.pieces.ends(row))
    away = torch.exp2(-(NEAREST + OCTAVES * step).double()) * (upper - lower)
    there = (step <= deep).repeat(2, 1)
    x = torch.where(there, torch.cat((lower + away, upper - away)), 0.5 * (lower + upper))
    return problem.integrand(x, row // problem.pieces.count).detach(), there


def cells_towards(row: Tensor, at: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, start and stop of cells of whole pieces that narrow towards what was seen at a place."""
    rows, starts, stops = list[int](), list[float](), list[float]()
    for one, place in zip(row.tolist(), at.tolist(), strict=True):
        octave = NEAREST + OCTAVES * (place % count)
        edges = [0.0, *(2.0**-k for k in range(octave, 1, -RATIO)), 0.5]
        low, high = [*edges[:-1], -0.5], [*edges[1:], 0.0]
        upper = place >= count
        starts += [-t for t in high] if upper else low
        stops += [-t for t in low] if upper else high
        rows += [one] * len(low)
    device = row.device
    start, stop = (torch.tensor(t, dtype=torch.float64, device=device) + 0.0 for t in (starts, stops))
    return torch.tensor(rows, device=device), start, stop
