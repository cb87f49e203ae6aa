"""One call of a verb, from input to result. Search, replay and the gradient modes take it whole."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform, outside_transforms, without_derivatives
from quadgrad._core.blocks import on_device
from quadgrad._core.integrand import Integrand
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.cells import WHOLE
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.progress import Advance, nothing
from quadgrad._core.rehearsal import Rehearsal, current_rehearsal
from quadgrad._core.tolerance import Tolerance

__all__ = ["BLOCK", "LIMIT_GRADIENTS", "LimitGradient", "Problem"]

BLOCK = 2**17
"""Nodes evaluated at a time without a ``chunk_size``; more than in a replay, which keeps what f makes."""

MAX_NFEV = 30_000
"""Most nodes to spend on one integral, unless the caller says."""

LimitGradient = Literal["auto", "boundary", "pathwise"]
LIMIT_GRADIENTS = get_args(LimitGradient)


@dataclass(slots=True)
class Problem:
    """What is integrated, between which limits, how well, and how much of it at a time.

    ``limits`` is the domain of all integrals, in any geometry. They, and what ``integrand`` holds, may carry
    gradients; :meth:`outside` gives a problem without. ``rule`` is that of the cells, None where points are
    sampled. ``sources`` are the caller's own tensors behind ``limits.marks`` (breakpoints share one, and stand
    along its last dimension), ``given`` those behind the arguments. ``jumps`` is a function whose zeros are
    breakpoints, ``opening`` what is known already of a single first cell, ``flowing`` whether derivatives flow to
    values, which search has to keep out. ``zeros`` are those of ``jumps`` as they stand first among the
    breakpoints: by which component each was found, and where it has a derivative; int64 and bool of shape ``(batch,
    k)``. ``reaches`` tells whether search is to look for what bisection does not reach, ``reaches_inside``
    whether for places where f is rough, and ``series`` whether for series at ends: who else but replay evaluates a
    plan does not know these. ``depth`` is 1 more than the number of integrals around. ``max_cells``
    is how many cells of one integral may be held, to be halved, and ``advance`` is told of nodes that search asks
    for.
    """

    integrand: Integrand
    limits: Any
    batch_shape: tuple[int, ...]
    rule: Any
    tolerance: Tolerance
    budget: int | None = None
    chunk_size: int | None = None
    limit_gradient: LimitGradient = "auto"
    sources: tuple[Tensor | None, ...] = ()
    given: tuple[Tensor | None, ...] = ()
    jumps: Integrand | None = None
    opening: Any = None
    flowing: bool = False
    stretches: Any = None
    reaches: bool = False
    reaches_inside: bool = True
    series: bool = False
    zeros: tuple[Tensor, Tensor] | None = None
    depth: int = 1
    max_cells: int | None = None
    advance: Advance = nothing

    @property
    def pieces(self) -> Any:
        """The stretches between limits and breakpoints."""
        if self.stretches is None:
            self.stretches = self.limits.detach().pieces()
        return self.stretches

    @property
    def batch(self) -> int:
        """The number of integrals."""
        return math.prod(self.batch_shape)

    @property
    def block(self) -> int:
        """The number of nodes evaluated at a time."""
        if self.integrand.captured is not None:  # which counts by itself, all lanes together
            return 2**40
        numbers = math.prod(self.integrand.event or ())
        if self.rule is not None and self.rule.nodes.ndim > 1:  # points of several coordinates
            numbers = max(numbers, self.rule.nodes.shape[1])
        return self.chunk_size or max(1, on_device(BLOCK, self.pieces.tensors()[0].device) // max(1, numbers))

    @property
    def tile(self) -> int:
        """The number of integrals searched together."""
        return max(1, self.batch) if self.chunk_size is None else self.chunk_size

    @property
    def max_nfev(self) -> int:
        """The most nodes to spend on one integral."""
        least = (self.rule.nodes.shape[0] + WHOLE) * self.pieces.count
        if self.budget is None:
            return max(MAX_NFEV, 5 * least)
        if self.budget < least:
            raise ValueError(
                f"max_nfev={self.budget} is less than the first round of {self.rule.name} needs: {least} nodes"
            )
        return self.budget

    def part(self, first: int, last: int) -> Problem:
        """Return the problem of the integrals from ``first`` to before ``last``."""
        return replace(
            self, integrand=self.integrand.part(first, last), limits=self.limits.part(first, last),
            stretches=self.pieces.part(first, last), batch_shape=(last - first,),
        )  # fmt: skip

    def with_found(self, places: Tensor | None) -> Problem:
        """Return the problem with places ``(batch, k)`` that search has found among its breakpoints."""
        if places is None:
            return self
        limits = self.limits.with_found(places, self.batch)
        source = places if len(self.sources) < 3 or self.sources[2] is None else self.sources[2]
        if source is not places:
            source = torch.cat(
                (source.expand(*self.batch_shape, -1), places.reshape(*self.batch_shape, -1)), dim=-1
            )
        points = limits.points.shape[1]
        return self.between(limits, (*self.sources[:2], *(source,) * points))

    def between(self, limits: Limits, sources: tuple[Tensor | None, ...] = ()) -> Problem:
        """Return the problem with other limits, or breakpoints."""
        return replace(self, limits=limits, sources=sources, stretches=None)

    def outside(self) -> AbstractContextManager[Problem]:
        """Return a context outside of all transforms, where search thinks, and the problem as it is seen there."""
        if (run := current_rehearsal(thinking=True)) is not None:
            return self._unseen(run)
        return self._outside() if self.flowing or in_transform() else nullcontext(self)

    @contextmanager
    def _unseen(self, run: Rehearsal) -> Generator[Problem]:
        with run.thinking(), self._outside() as plain_problem:
            yield plain_problem

    @contextmanager
    def _outside(self) -> Generator[Problem]:
        if in_transform():
            with without_derivatives(), outside_transforms() as stack:
                limits = self.limits.with_marks(tuple(plain(mark) for mark in self.limits.marks))
                integrand, jumps = self.integrand.outside(stack), self.jumps and self.jumps.outside(stack)
                yield replace(self.between(limits), integrand=integrand, jumps=jumps)
        else:
            with without_derivatives():
                fixed = self.limits.detach()
                yield self if fixed is self.limits else self.between(fixed)
