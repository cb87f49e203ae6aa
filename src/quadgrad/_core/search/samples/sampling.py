"""How many points a sample needs: rounds that double it, until two in a row meet the tolerance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from quadgrad._core.blocks import on_device
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.estimates.replicates import FEWEST, Estimate, ReplicateSums
from quadgrad._core.mesh.box import Box
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.problem import Problem
from quadgrad._core.progress import Advance, nothing
from quadgrad._core.ranks import PARTS, Ranks
from quadgrad._core.reduce import align
from quadgrad._core.search.samples.placing import place_points
from quadgrad._core.search.task import Found, noise
from quadgrad._core.status import Status

__all__ = ["BLOCK", "Sample", "block_width", "blocks", "cut", "hold_memory", "search_samples", "tile_size"]

BLOCK = 2**16
"""Points at which f is called at a time: they stay in the processor's cache, and calls cost little beside them."""

NUMBERS = 2**19
"""Coordinates and values of a block of points, which are fewer then in many dimensions."""

HELD = 2**24
"""Bytes that are asked for and given back before a sample: the C library then keeps what a block frees for the next
one. Otherwise the system takes it and returns it zeroed, which cost half of the time."""

TABLE = 2**16
"""Bins of all maps that are used at a time, unless that is one map: their ends and widths stay in the cache."""

LONGEST = 4
"""Blocks in a part at most, where there are more than enough parts: ranks hear of an error after each."""

EXTREME = 2.0**400
"""Values whose modulus is beyond this, or below its inverse, are scaled: their squares would leave the range."""


Block = TypeVar("Block")


@dataclass(frozen=True)
class Sample:
    """What to sample, and when to stop.

    ``first`` points of each replicate are taken in the first round, ``most`` in all. A sample is ``fixed`` where no
    tolerance was asked for. ``every`` component of f has to be seen, or any will do. f is known to be constant but
    for jumps with ``steps``. ``advance`` is told of points.
    """

    plan: PointsPlan
    first: int
    most: int
    fixed: bool
    confidence: float
    ranks: Ranks
    every: bool = True
    steps: bool = False
    advance: Advance = nothing


def blocks(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut the points from ``start`` to before ``stop`` into blocks: where each begins, how many it has."""
    for low in range(start, stop, width):
        yield low, min(width, stop - low)


def cut(each: list[Block]) -> list[list[Block]]:
    """Return blocks in parts of a sum, which do not depend on how many ranks share them."""
    share = max(1, min(LONGEST, -(-len(each) // PARTS)))
    return [each[low : low + share] for low in range(0, len(each), share)]


def block_width(problem: Problem, plan: PointsPlan, batch: int) -> int:
    """Return how many points of each replicate to take at a time, for so many integrals: a power of two."""
    event = 1
    for size in problem.integrand.event or ():
        event *= size
    most = on_device(1, problem.limits.a.device)
    nodes = problem.chunk_size or max(1, most * min(BLOCK // max(1, event), NUMBERS // (plan.d + 1 + event)))
    return 2 ** max(0, (nodes // max(1, plan.count * batch)).bit_length() - 1)


def tile_size(problem: Problem, plan: PointsPlan) -> int:
    """Return how many integrals to sample together."""
    size = (problem.chunk_size or BLOCK * PARTS) // plan.count
    if plan.grid is not None:
        size = min(size, TABLE // max(1, plan.grid.shape[1] * plan.grid.shape[2]))
    return max(1, size)


def hold_memory(device: torch.device) -> None:
    """Have the C library keep what blocks free, for the next ones."""
    if device.type == "cpu":
        torch.empty(HELD, dtype=torch.uint8, device=device)


def search_samples(problem: Problem, sample: Sample) -> Found:
    """Sample every integral of a problem that is outside of all transforms, some at a time."""
    size = tile_size(problem, sample.plan)
    if problem.batch <= size:
        return _Rounds(problem, sample).run()
    parts = [(low, min(problem.batch, low + size)) for low in range(0, problem.batch, size)]
    each = [
        _Rounds(problem.part(*part), replace(sample, plan=sample.plan.take(slice(*part)))).run() for part in parts
    ]
    names = ("value", "error", "status", "nfev", "lost", "effective")
    joined: dict[str, Any] = {name: torch.cat([getattr(one, name) for one in each]) for name in names}
    n = torch.cat([one.plan.n for one in each])
    return Found(replace(sample.plan, n=n), **joined)


class _Rounds:
    """The rounds of some integrals: those that are done cost nothing more."""

    def __init__(self, problem: Problem, sample: Sample) -> None:
        self.problem, self.sample, self.plan = problem, sample, sample.plan
        self.n = torch.zeros_like(self.plan.n)
        self.sums = self._no_sums(problem.batch)
        self.scale: Tensor | None = None
        empty = problem.pieces.empty
        # There f may be infinite everywhere, which it is asked for the sake of derivatives by the limits only.
        self.empty = empty if bool(empty.any()) else None

    def _no_sums(self, batch: int) -> ReplicateSums:
        integrand = self.problem.integrand
        dtype = integrand.output_dtype or integrand.sum_dtype
        return ReplicateSums.none(self.plan.count, (batch, *(integrand.event or ())), dtype, self.n.device)

    def run(self) -> Found:
        """Double the sample until every integral is done."""
        sample = self.sample
        status = torch.full_like(self.n, int(Status.SAMPLED if sample.fixed else Status.MAX_NFEV))
        met = torch.zeros_like(status, dtype=torch.bool)
        active = torch.arange(self.problem.batch, device=self.n.device)
        start, stop = 0, sample.first
        while active.numel():
            self._add(active, start, stop)
            met, done = self._judge(status, met)
            if stop >= sample.most:
                break
            active = active[~done[active]]
            start, stop = stop, min(2 * stop, sample.most)
        estimate = self._estimate()
        value = estimate.value.masked_fill(align(self.sums.lost > 0, estimate.value), torch.nan)
        return Found(
            replace(self.plan, n=self.n),
            value,
            estimate.error,
            status,
            self.n * self.plan.replicates,
            self.sums.lost,
            estimate.effective,
        )

    def _judge(self, status: Tensor, met_before: Tensor) -> tuple[Tensor, Tensor]:
        """Enter how integrals end; return which meet their tolerance in this round, and which are done."""
        estimate, tolerance = self._estimate(), self.problem.tolerance
        lost = self.sums.lost > 0
        status.masked_fill_(lost, int(Status.NONFINITE))
        if self.sample.fixed:
            return met_before, lost
        allowed = (tolerance.rtol * largest_component(estimate.value.abs())).clamp_min(tolerance.atol)
        met = (estimate.error <= allowed) & (estimate.effective >= FEWEST) & ~lost
        # One round that looks good is luck too often: 12 of 8,384 were wrong, of two in a row none.
        finished = (met & met_before) | (self.problem.pieces.empty & ~lost)
        stuck = (estimate.error <= estimate.floor) & (estimate.floor > allowed)
        status.masked_fill_(finished, int(Status.CONVERGED)).masked_fill_(stuck & ~lost, int(Status.ROUNDOFF))
        return met, lost | finished | stuck

    def _estimate(self) -> Estimate:
        sample = self.sample
        estimate = Estimate.of(
            self.sums, self.n.clamp_min(1), sample.confidence, noise(self.problem), sample.every, sample.steps
        )
        return estimate if self.scale is None else estimate.scaled(self.scale)

    def _add(self, active: Tensor, start: int, stop: int) -> None:
        """Add the points from index ``start`` to before ``stop`` of some integrals."""
        everyone = active.numel() == self.problem.batch
        owner = slice(0, self.problem.batch) if everyone else active
        plan, box = (
            (self.plan, self.problem.pieces)
            if everyone
            else (self.plan.take(active), self.problem.pieces.take(active))
        )
        width = block_width(self.problem, plan, active.numel())
        parts = cut(list(blocks(start, stop, width)))

        def compute(part: int) -> list[Tensor]:
            whole = self._no_sums(active.numel())
            for low, count in parts[part]:
                whole.add(self._block(plan, box, owner, low, count).tensors())
                # The other ranks add as many meanwhile.
                self.sample.advance(count * plan.replicates * active.numel() * self.sample.ranks.count)
            return whole.tensors()

        none = lambda: self._no_sums(active.numel()).tensors()
        sums = self.sample.ranks.fold(len(parts), compute, none)
        # Looked for afterwards, as it is rare: beforehand it took a fifth of the time of a small sample.
        size = largest_component(ReplicateSums(*sums).size) / (stop * plan.replicates)
        if start == 0 and bool(_is_extreme(size).any()):
            self.scale = self._scale_of(plan, box, owner, width)
            sums = sums if self.scale is None else self.sample.ranks.fold(len(parts), compute, none)
        self.sums.add(sums, owner)
        self.n[owner] = stop

    def _block(self, plan: PointsPlan, box: Box, owner: Tensor | slice, start: int, count: int) -> ReplicateSums:
        x, weight, _ = place_points(plan, box, start, count)
        columns = self.problem.batch if isinstance(owner, slice) else owner.numel()
        y = self.problem.integrand(x.expand(-1, columns, -1), owner)
        if self.empty is not None:
            empty = self.empty if isinstance(owner, slice) or self.empty.shape[0] == 1 else self.empty[owner]
            y = y.masked_fill(align(empty[None], y), 0.0)
        if self.scale is not None:
            scale = self.scale if isinstance(owner, slice) else self.scale[owner]
            y = y / align(scale[None], y)
        return ReplicateSums.of(y, weight, plan.count)

    def _scale_of(self, plan: PointsPlan, box: Box, owner: slice | Tensor, width: int) -> Tensor | None:
        """Return what to divide the values of each integral by, as the first few points have them."""
        sums = self._block(plan, box, owner, 0, min(width, 16))
        size = largest_component(sums.size)
        extreme = _is_extreme(size) & size.isfinite()
        if not bool(extreme.any()):
            return None
        return torch.where(extreme, torch.exp2(size.log2().round()), 1.0)


def _is_extreme(size: Tensor) -> Tensor:
    return (size > EXTREME) | ((size < 1.0 / EXTREME) & (size > 0.0))
