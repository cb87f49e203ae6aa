"""A sum over the cells of a plan whose backward pass evaluates it again, part by part.

One ``autograd.Function`` stands for all of it: it keeps what the sum is differentiated with respect to, and neither
values nor graph of the integrand. :mod:`quadgrad._core.replay` says what the sum over a part is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from quadgrad._core._torch import pull_back
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.closure import Closure, Unchanged, stand_in, uncompiled
from quadgrad._core.errors import IntegrandError
from quadgrad._core.integrand import Integrand
from quadgrad._core.nesting import InnerRecord
from quadgrad._core.plans.cells import CellPlan, Mesh
from quadgrad._core.reduce import total

__all__ = ["Rows", "WeightedSum", "recompute", "with_gradient"]

_CHANGED = (
    "the integrand is not deterministic: in the backward pass it depended on a tensor on which it had not depended "
    "before. Pass such tensors in args, or leave chunk_size out"
)


class Rows:
    """One row for each integral (or each of its pieces), from parts that each add to some of them."""

    def __init__(self, count: int, like: Tensor | None = None) -> None:
        self._count, self._like = count, like
        self._whole: Tensor | None = None
        self._parts: list[Tensor] = []
        self._places: list[Tensor] = []

    def add(self, low: int, part: Tensor) -> None:
        """Add to the rows from ``low`` on."""
        high = low + part.shape[0]
        if torch.is_grad_enabled():
            self._parts.append(part)
            self._places.append(torch.arange(low, high, device=part.device))
            return
        if self._whole is None:
            like = part if self._like is None else self._like  # which may have hidden lanes that zeros have not
            self._whole = like.new_zeros((self._count, *part.shape[1:]), dtype=part.dtype)
        self._whole[low:high] += part

    def join(self) -> Tensor | None:
        """Return all rows; None if nothing was added."""
        if self._parts:
            return total(torch.cat(self._parts), torch.cat(self._places), self._count)
        return self._whole


class _Sum:
    """One tensor, to which each part adds; half precision is added up in single precision."""

    def __init__(self) -> None:
        self._whole: Tensor | None = None
        self._dtype = torch.float32

    def add(self, low: int, part: Tensor) -> None:
        """Add a part, wherever it comes from."""
        self._dtype = part.dtype
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        self._whole = part if self._whole is None else self._whole + part

    def join(self) -> Tensor | None:
        """Return the sum; None if nothing was added."""
        return None if self._whole is None else self._whole.to(self._dtype)


@dataclass(frozen=True)
class WeightedSum:
    """What there is to sum up: all of it, or the part of some consecutive cells."""

    integrand: Integrand
    plan: CellPlan
    mesh: Mesh

    def tensors(self) -> list[Any]:
        """Return what the sum may be differentiated with respect to, beside what f closes over."""
        return [*self.mesh.tensors(), *(a.value for a in self.integrand.arguments)]

    def rows_of(self, place: int) -> int:
        """Return how many rows each integral has of a tensor among :meth:`tensors`; 0 if all share one."""
        ends = self.mesh.tensors()
        if place < len(ends):
            return 0 if ends[place].shape[0] == 1 else self.plan.pieces
        return 0 if self.integrand.arguments[place - len(ends)].shared else 1

    def part(self, cells: slice, low: int, high: int) -> WeightedSum:
        """Return the sum over some cells of the integrals from ``low`` to before ``high``."""
        return WeightedSum(
            self.integrand.part(low, high), self.plan.part(cells, low, high), self.mesh.part(low, high)
        )

    def with_tensors(self, places: Sequence[int], tensors: Sequence[Tensor]) -> WeightedSum:
        """Return the same with others at these places among :meth:`tensors`."""
        each = self.tensors()
        for place, tensor in zip(places, tensors, strict=True):
            each[place] = tensor
        count = len(each) - len(self.integrand.arguments)
        arguments = tuple(replace(a, value=v) for a, v in zip(self.integrand.arguments, each[count:], strict=True))
        return WeightedSum(
            replace(self.integrand, arguments=arguments), self.plan, self.mesh.with_tensors(each[:count])
        )

    def seen_by(self, closure: Closure) -> WeightedSum:
        """Return the same with a function whose closed-over tensors are replaced."""
        function = closure.around(self.integrand.function)
        return WeightedSum(replace(self.integrand, function=function), self.plan, self.mesh)

    def cuts(self, size: int) -> Iterator[_Cut]:
        """Cut into parts of at most ``size`` cells: of several whole integrals, or of one alone."""
        plan = self.plan
        low = first = 0
        while low < plan.batch:
            high, last = plan.batch, len(plan)
            if last - first > size:
                high = max(low + 1, int(plan.row[first + size]) // plan.pieces)
                last = int(torch.searchsorted(plan.row, high * plan.pieces))
            for start in range(first, max(last, first + 1), size):
                yield slice(start, min(last, start + size)), low, high
            low, first = high, last


_Cut = tuple[slice, int, int]
"""Which cells a part has, and from which integral to before which."""

Sums = Callable[[WeightedSum, int], Tensor]
"""The sums over a part, ``(batch, *event)``, which begins with the given cell of the whole plan."""


def recompute(work: WeightedSum, size: int, sums: Sums, again: Sums, rows: Rows | None = None) -> Tensor | None:
    """Return the sums over all cells, ``size`` of them at a time; None if not all can be seen that they depend on.

    ``sums`` is called once for each part, ``again`` for each in every backward pass. What ``sums`` returns is
    collected in ``rows``, if given.
    """
    places = [i for i, t in enumerate(work.tensors()) if isinstance(t, Tensor) and t.requires_grad]
    inputs: list[Tensor] = [work.tensors()[i] for i in places]
    still = work.with_tensors(places, [t.detach() for t in inputs])
    closure, value, depends = Closure(), rows or Rows(work.plan.batch), False
    try:
        for cut in still.cuts(size):
            part, given = _evaluate(still, cut, places, closure, sums, connected=False)
            if not closure.explains(part, given):
                return None
            depends = depends or part.requires_grad
            with torch.no_grad():
                value.add(cut[1], part)
            del part, given  # before the next one is evaluated
    except RuntimeError:  # f may not bear the stand-ins
        return None
    whole = value.join()
    if whole is None or not depends:
        return whole
    constants = Unchanged(t for i, t in enumerate(work.tensors()) if i not in places)
    recipe = _Recipe(still, size, again, places, closure.tensors, constants)
    return with_gradient(whole, recipe, (*inputs, *closure.tensors))


def _evaluate(
    work: WeightedSum, cut: _Cut, places: Sequence[int], closure: Closure, sums: Sums, connected: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the sums over one part, and the stand-ins for the tensors at these places that they are made of."""
    part = work.part(*cut)
    tensors = part.tensors()
    with torch.enable_grad(), uncompiled:
        given = [stand_in(tensors[place], connected) for place in places]
        return sums(part.with_tensors(places, given).seen_by(closure), cut[0].start), given


class Recipe(Protocol):
    """How the derivatives of a value are made."""

    def differentiate(self, saved: Sequence[Tensor], gradient: Tensor) -> Sequence[Tensor | None]:
        """Return the products with the gradient; differentiable if the grad mode says so."""
        ...


def with_gradient(value: Tensor, recipe: Recipe, tensors: Iterable[Tensor]) -> Tensor:
    """Return a value whose backward pass asks a recipe for the products with respect to these tensors."""
    # Views, which a closure around this one sees, unlike what a Function is given.
    return _Recomputed.apply(recipe, [value], *(t.view_as(t) for t in tensors))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: Recipe, value: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(*inputs)
        return value.pop()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        saved = ctx.saved_tensors  # a checkpoint around the integral computes it again to have them
        # As it was in the forward pass: f has a state of its own, and integrals inside it have told what they are.
        with WithoutAutocast(), InnerRecord():
            return None, None, *ctx.recipe.differentiate(saved, gradients[0])


@dataclass(frozen=True)
class _Recipe:
    """How to evaluate the sums again: ``work`` carries no gradient, its tensors at ``places`` are given anew."""

    work: WeightedSum
    size: int
    sums: Sums
    places: list[int]
    closed: list[Tensor]
    constants: Unchanged

    def differentiate(self, saved: Sequence[Tensor], gradient: Tensor) -> list[Tensor | None]:
        """Return the products with the gradient; differentiable if the grad mode says so."""
        self.constants.check()
        connected, count = torch.is_grad_enabled(), len(self.places)
        rows = [self.work.rows_of(place) for place in self.places] + [0] * len(self.closed)
        found = [Rows(r * self.work.plan.batch, gradient) if r else _Sum() for r in rows]
        work = self.work.with_tensors(self.places, saved[:count])
        with torch.enable_grad():
            closed = [stand_in(t, connected) for t in saved[count:]]
        for cut in work.cuts(self.size):
            products = self._products(work, cut, closed, gradient[cut[1] : cut[2]], connected)
            for sums, r, product in zip(found, rows, products, strict=False):
                if product is not None:
                    sums.add(r * cut[1], product)
        return [sums.join() for sums in found]

    def _products(
        self, work: WeightedSum, cut: _Cut, closed: list[Tensor], gradient: Tensor, connected: bool
    ) -> tuple[Tensor | None, ...]:
        """Return the same of one part; nothing if it depends on nothing."""
        closure = Closure(zip(self.closed, closed, strict=True))
        part, given = _evaluate(work, cut, self.places, closure, self.sums, connected)
        if not closure.explains(part, given):
            raise IntegrandError(_CHANGED)
        if not part.requires_grad:
            return ()
        tensors = (*given, *closed)
        return pull_back([part], tensors, [gradient], create_graph=connected)
