"""The check of a kept plan by the values that its replay computes: one pass gives value, gradient and error.

Replay shows each block of values to a :class:`Watch`, which estimates the cells as search does; f is called beside
their nodes in addition. Then search goes on from what was estimated: no node is evaluated twice, and what needs no
refinement is done at once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from quadgrad._core._torch import outside_transforms, without_derivatives
from quadgrad._core.estimates.spikes import Spikes
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.interval import EXTRAPOLATED
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.intervals import interval_parts, record
from quadgrad._core.search.kernel.opening import suits_native
from quadgrad._core.search.kernel.values import UnreadableError
from quadgrad._core.search.kernel.zoom import zoom_native
from quadgrad._core.search.looks.witnesses import Witnesses
from quadgrad._core.search.native import NativeBodies
from quadgrad._core.search.piles.watch import watched
from quadgrad._core.search.piles.zoom import zoom
from quadgrad._core.search.stalled import search_on
from quadgrad._core.search.task import Found, hear, noise
from quadgrad._core.search.tensors import TensorBodies, TurnsComplexError, add_inner_error
from quadgrad._core.search.tiles import ask_witnesses, enter_witnesses, look_closer

__all__ = ["Watch"]


class Watch:
    """Sees the values of a replay of the cells ``first``, until search goes on: a backward pass may repeat them."""

    def __init__(self, problem: Problem, first: IntervalPlan) -> None:
        self.problem, self.first = problem, first
        self._closed = self._unreadable = False
        sight = _NativeSight if suits_native(problem) else _TensorSight
        self._witnesses = ask_witnesses(problem, first)
        self._sight: _NativeSight | _TensorSight = sight(problem, first, self._witnesses)

    def see(self, index: Tensor, y: Tensor, factor: Tensor) -> None:
        """Look at the values on some cells, and call f beside their nodes, too."""
        if self._closed or self._unreadable:
            return
        with without_derivatives(), outside_transforms():
            try:
                self._sight.see(index, plain(y).detach())
            except (UnreadableError, TurnsComplexError):
                self._unreadable = True

    def restart(self) -> None:
        """Forget what was seen: all of it comes again."""
        self._sight.restart()

    def search(self) -> Found | None:
        """Search on from the cells seen; None if f returned what search cannot read."""
        self._closed = True
        if self._unreadable:
            return None
        on = lambda watcher: search_on(self._sight.close(), self.problem, self.first, watcher)
        try:
            found = watched(self.problem, on, self._sight.zoom)
        except (UnreadableError, TurnsComplexError):
            return None
        return look_closer(self.problem, enter_witnesses(found, self._witnesses))


class _NativeSight:
    """Cells as the kernel estimates them: it has those with logarithmic nodes behind the others."""

    zoom = staticmethod(zoom_native)

    def __init__(self, problem: Problem, first: IntervalPlan, witnesses: Witnesses | None) -> None:
        self.bodies = NativeBodies(problem, witnesses)
        self.bodies.open(first)
        self.place = None if first.even else (~first.linear).sort(stable=True).indices.argsort()

    def see(self, index: Tensor, y: Tensor) -> None:
        if len(index):  # a block of neighbours of one kind
            self.bodies.see(int(index[0] if self.place is None else self.place[index[0]]), y)

    def restart(self) -> None:
        self.bodies.restart()

    def close(self) -> NativeBodies:
        self.bodies.close_first()
        return self.bodies


class _TensorSight:
    """Cells as tensor operations estimate them."""

    zoom = staticmethod(zoom)

    def __init__(self, problem: Problem, first: IntervalPlan, witnesses: Witnesses | None) -> None:
        if witnesses is not None:
            problem = replace(problem, budget=witnesses.most)
        self.problem, self.first = problem, first
        self.spikes = Spikes(None if witnesses is None else witnesses.note)
        parts = interval_parts(problem, spikes=self.spikes)
        self.bodies = TensorBodies(problem, *parts, partial(record, problem, self.spikes))
        self.parts: list[tuple[Tensor, Cells]] = []

    def see(self, index: Tensor, y: Tensor) -> None:
        problem, first, off = self.problem, self.first, hear(y)
        y, m = self.bodies.widen(y), len(y)
        whole, linear = first.whole[index], first.linear[index]
        for mine in (whole & linear, ~whole & linear, ~linear):
            here = index[mine]
            if not len(here):
                continue
            cells = first.take(here)
            mesh, estimate = interval_parts(problem, cells.kind.to(torch.int64) - EXTRAPOLATED, self.spikes)
            (new,) = mesh.start(cells)
            places = mesh.place(new)
            beside = problem.integrand(torch.cat((places.x[:1], places.x[m + 1 :])), places.owner).detach()
            beside = self.bodies.widen(beside)
            seen = torch.cat((beside[:1], y[:, mine], beside[1:]))
            cells = estimate(new, places, seen, noise(problem))
            self.parts.append((here, add_inner_error(problem, cells, None if off is None else off[:, mine])))

    def restart(self) -> None:
        self.parts.clear()
        self.spikes.clear()

    def close(self) -> TensorBodies[Found]:
        self.bodies.open(self.first)
        if self.parts:
            index, cells = (torch.cat([i for i, _ in self.parts]), Cells.join([c for _, c in self.parts]))
            self.bodies.cells = cells.take(index.argsort())
        return self.bodies
