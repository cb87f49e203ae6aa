"""A gradient that is NaN although the integral is finite: noticed when it is computed, and told with its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import is_not
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import derivatives_open, edges_to_before, nodes_made
from quadgrad._core.errors import IntegrationWarning, warn
from quadgrad._core.gradient.derivative import as_reals
from quadgrad._core.gradient.mode import Primal
from quadgrad._core.gradient.parameters import captured
from quadgrad._core.integrand import Argument, Integrand
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.replay import REPLAY_BLOCK

__all__ = ["Watched"]


class Watched:
    """Tensors whose gradients are looked at in the backward pass: arguments, and what f closes over.

    Of an integral inside another one nothing is looked at: the outer one sees what becomes of it, and warns once.
    """

    def __init__(self, integrand: Integrand) -> None:
        """Put what looks at its gradient in the place of each argument that may get one."""
        self.primal: Primal | None = None
        self.integrand, self._start, self._aliases = integrand, nodes_made(), list[Tensor]()
        record = current_record()
        self._looks = torch.is_grad_enabled() and not derivatives_open() and (record is None or record.depth <= 1)
        if self._looks:
            arguments = tuple([self._watch(i, argument) for i, argument in enumerate(integrand.arguments)])
            if any(map(is_not, arguments, integrand.arguments)):
                self.integrand = replace(integrand, arguments=arguments)

    def told(self, primal: Primal) -> None:
        """Take what the search has found."""
        self.primal = primal

    def follow(self, value: Tensor) -> None:
        """Look at the gradients that leave the graph of the integrals for what f closes over."""
        primal = self.primal
        if not self._looks or primal is None or not value.requires_grad or not len(primal.plan):
            return
        known = [*self._aliases, *primal.problem.limits.marks]
        finder = None
        for node, places in edges_to_before(value, self._start, known):
            finder = finder or _Finder.of(primal)
            node.register_hook(partial(_look_at_edges, finder, places))

    def _watch(self, index: int, argument: Argument) -> Argument:
        value = argument.value
        if not isinstance(value, Tensor) or not value.requires_grad:
            return argument
        watched = value.view_as(value)
        self._aliases.append(watched)

        def look(gradient: Tensor | None) -> None:
            if self.primal is not None and _is_lost(gradient):
                _Finder.of(self.primal).report_argument(index)

        watched.register_hook(look)
        return replace(argument, value=watched)


def _is_lost(gradient: Tensor | None) -> bool:
    """Whether there is a NaN in a gradient; nothing is known of several gradients at once."""
    if gradient is None:  # what takes no part in what is differentiated
        return False
    try:
        total = gradient.sum()
        return bool(total != total)
    except RuntimeError:  # none of them is a number by itself
        return False


def _look_at_edges(
    finder: _Finder, places: Sequence[tuple[int, Tensor | Any]], gradients: Sequence[Tensor | None], _: Any
) -> None:
    """Look at what an operation hands back along some of its edges; report it once."""
    for place, target in places:
        if not finder.done and place < len(gradients) and _is_lost(gradients[place]):
            finder.report_closed(target)


@dataclass
class _Finder:
    """Finds where a derivative is NaN, of integrals that are ``finite`` ``(batch,)``.

    It holds no part of the graph, which would hold it: nobody would free them.
    """

    problem: Problem
    plan: IntervalPlan
    finite: Tensor
    done: bool = False

    @staticmethod
    def of(primal: Primal) -> _Finder:
        """Return the finder of a call after its search."""
        problem = primal.problem
        still = replace(problem, integrand=problem.integrand.with_still_arguments(), limits=problem.limits.detach())
        finite = primal.found.value.isfinite()
        finite = (finite.flatten(1).all(1) if finite.ndim > 1 else finite) & primal.found.error.isfinite()
        return _Finder(replace(still, given=(), sources=()), primal.plan, finite)

    def report_argument(self, index: int) -> None:
        """Say where the derivative by an argument is NaN."""
        arguments, f = list(self.problem.integrand.arguments), self.problem.integrand
        own = arguments[index].value.requires_grad_(True)
        self._report(f"args[{index}]", [own], f)

    def report_closed(self, target: Tensor | Any) -> None:
        """Say where the derivative by what f closes over is NaN: a leaf, or what was computed by a node."""
        self.done = True
        f = self.problem.integrand
        leaf = target if isinstance(target, Tensor) else None
        for name, tensor in captured(f.function):
            if tensor is leaf or (leaf is None and tensor.grad_fn is target):
                self._report(f"{name}, which f closes over,", [tensor], f)
                return
        what = "a tensor" if leaf is None else f"a tensor of shape {tuple(leaf.shape)}"
        self._report(f"{what} that f closes over", [] if leaf is None else [leaf], f)

    def _report(self, name: str, tensors: Sequence[Tensor], f: Integrand) -> None:
        with InnerRecord():  # integrals inside f have nothing to say
            place = self._find(f, tensors) if tensors else None
        if place is None and tensors:
            return
        if not tensors and not bool(self.finite.all()):  # whose gradient it is cannot be told
            return
        where = "" if place is None else f"at x = {place[0]:.6g}, where f = {place[1]:.3g}, "
        warn(
            f"the gradient with respect to {name} is NaN although the integral is finite: {where}the derivative of "
            "f is NaN. Most often that is 0 times infinity: "
            "a factor underflows to 0, and the derivative of another one, such as exp, overflows. Write f so "
            "that nothing overflows where it is 0 (exp(-u) / -expm1(-u) for 1 / expm1(u); "
            "torch.clamp what goes into exp, use torch.sigmoid, or select by torch.where what goes in, not what "
            "comes out), or end the interval before",
            IntegrationWarning,
        )

    def _find(self, f: Integrand, tensors: Sequence[Tensor]) -> tuple[float, float] | None:
        """Return the first node at which the derivative is NaN where f is not, and f there."""
        plan = self.plan.take(self.finite[self.plan.owner])
        pieces, step = self.problem.pieces, max(1, REPLAY_BLOCK // plan.tau.shape[0])
        for low in range(0, len(plan), step):
            cells = plan.take(slice(low, low + step))
            x, _ = pieces.lay_out(cells).nodes(plan.tau)
            if not _is_nan_somewhere(f, x, cells.owner, tensors):
                continue
            x, owner = _first(f, x, cells.owner, tensors)
            return float(x), float(f(x, owner).detach().abs().amax())
        return None


def _is_nan_somewhere(f: Integrand, x: Tensor, owner: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether the derivative of f by one of the tensors is NaN at some of the nodes where f is finite."""
    with torch.enable_grad():
        y = f(x, owner)
        total = as_reals(y, 0).sum()
        if not total.requires_grad or not bool(y.isfinite().all()):
            return False
        found: Any = torch.autograd.grad(total, tensors, allow_unused=True, retain_graph=True)
    return any(g is not None and bool(g.isnan().any()) for g in found)


def _first(f: Integrand, x: Tensor, owner: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return by bisection one of the nodes ``(1, 1)`` where the derivative is NaN, and its integral."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        lost = _is_nan_somewhere(f, x[:, :half], owner[:half], tensors)
        x, owner = (x[:, :half], owner[:half]) if lost else (x[:, half:], owner[half:])
    while len(x) > 1:
        half = len(x) // 2
        x = x[:half] if _is_nan_somewhere(f, x[:half], owner, tensors) else x[half:]
    return x, owner
