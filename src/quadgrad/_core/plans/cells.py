"""Cells on which a rule integrates, in any geometry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import locate
from quadgrad._core.mesh.interval import EXTRAPOLATED, LINEAR
from quadgrad._core.plans.base import Plan
from quadgrad._core.printing import counted

__all__ = ["CellPlan", "Layout", "Mesh"]


AnyPlan = TypeVar("AnyPlan", bound="CellPlan")


class Layout(Protocol):
    """Cells of a mesh, ready to have nodes placed on them."""

    def nodes(self, tau: Tensor, part: slice | None = None) -> tuple[Tensor, Tensor]:
        """Return x ``(m, n, ...)`` at the nodes ``tau`` of some cells, and f's factor there, ``(m or 1, n)``."""
        ...


class Mesh(Protocol):
    """Where cells lie, once there are limits: the one thing that replay asks of a geometry."""

    def lay_out(self, cells: Any) -> Layout:
        """Return the layout of a plan's cells."""
        ...

    def tensors(self) -> list[Tensor]:
        """Return what may carry a gradient: tensors of one row for each of a plan's pieces, or one for all."""
        ...

    def with_tensors(self, tensors: list[Tensor]) -> Mesh:
        """Return the same with others in their place."""
        ...

    def part(self, first: int, last: int) -> Mesh:
        """Return the mesh of the integrals from ``first`` to before ``last``."""
        ...


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CellPlan(Plan):
    """The cells on which a rule integrates every element of a batch.

    Attributes
    ----------
    rule : str
        The rule's name.
    pieces : int
        Pieces of each integral: in one dimension one more than the number of breakpoints.
    row : Tensor of int64, shape (n,)
        ``owner * pieces + piece``, ascending.
    error : Tensor, shape (n,)
        Estimated error on each cell when it was searched.
    kind : Tensor of int8, shape (n,)
        0 where the rule's nodes are spread evenly. 1 where they are spread over the logarithm of the distance from
        an end of the piece; 2 + c where such a cell touches the end and its integral is extrapolated to it, in
        column c of the epsilon algorithm (0 is the plain sum).
    tau, weight : Tensor, shape (m, ...) and (m,)
        The rule on the unit cell.
    shares : Tensor, shape (s, m), optional
        What gives the terms of the extrapolated series: the integrals over equal parts of the unit cell.
    term : Tensor of int64, shape (n,), optional
        Of cells whose integrals are terms of a series that is taken to its limit: of which, and which term, see
        :mod:`quadgrad._core.estimates.series`; 0 of the others. None where there are no others.
    stalled : Tensor of int64, shape (batch,), optional
        How integrals ended that did not converge on these cells, else 0: they are not refined again before their
        error grows. See :class:`quadgrad.Integrator`.
    inspected : bool
        Whether an integrand was looked at for jumps between these cells' ends; not done again while they last.
    even : bool
        Whether all cells are of kind 0.
    crowded : int
        How many are of another kind.
    extrapolated : Tensor of int64, optional
        The places of the cells whose integral is extrapolated, if there are any.
    """

    rule: str
    pieces: int
    row: Tensor
    error: Tensor
    kind: Tensor
    tau: Tensor
    weight: Tensor
    shares: Tensor | None = None
    term: Tensor | None = None
    inspected: bool = False
    stalled: Tensor | None = None
    even: bool = field(init=False)
    crowded: int = field(init=False)
    extrapolated: Tensor | None = field(init=False)

    always: ClassVar[tuple[str, ...]] = ("row", "error", "kind")
    """Fields with one entry for each cell."""

    of_integrals: ClassVar[tuple[str, ...]] = ()
    """Optional fields with one row for each integral, NaN where there is less to say of it than of others."""

    def __post_init__(self) -> None:
        """Find out, once, what a later replay must not wait for the device to tell."""
        others = int(self.kind.count_nonzero()) if len(self) else 0
        vars(self).update(even=others == 0, crowded=others, extrapolated=None)
        if others:
            vars(self).update(extrapolated=locate(self.touches, int(self.touches.count_nonzero())))

    def same(self, other: Any) -> bool:
        """Whether another plan has the same cells."""
        if type(self) is not type(other) or len(self) != len(other):
            return False
        rest = [name for name in self.columns if name not in ("error", "kind")]
        return all(torch.equal(getattr(self, name), getattr(other, name)) for name in rest)

    @abstractmethod
    def mesh(self, a: Any, b: Any, points: Any = None) -> Mesh:
        """Return where the cells lie between limits, which are broadcast over the plan's batch."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields with one entry for each cell."""
        return self.always if self.term is None else (*self.always, "term")

    @property
    def terms(self) -> Tensor:
        """Of which term of a series each cell is part, int64 of shape ``(n,)``."""
        return torch.zeros_like(self.row) if self.term is None else self.term

    @property
    def owner(self) -> Tensor:
        """The integral (flattened over the batch) of each cell, shape ``(n,)``."""
        return self.row if self.pieces == 1 else self.row // self.pieces

    @property
    def piece(self) -> Tensor:
        """The piece within its integral of each cell, shape ``(n,)``."""
        return self.row % self.pieces

    @property
    def linear(self) -> Tensor:
        """Which cells have evenly spread nodes, bool of shape ``(n,)``."""
        return self.kind == LINEAR

    @property
    def touches(self) -> Tensor:
        """Which cells are extrapolated to the end that they touch, bool of shape ``(n,)``."""
        return self.kind >= EXTRAPOLATED

    @property
    def functionals(self) -> Tensor:
        """What replay asks of f on a cell, ``(k, m)``: the integral, and the terms of a series if any is summed."""
        if self.extrapolated is None or self.shares is None:
            return self.weight[None]
        return torch.cat((self.weight[None], self.shares))

    @property
    def column(self) -> Tensor | None:
        """In which columns of the epsilon table the integrals of ``extrapolated`` cells are."""
        return None if self.extrapolated is None else self.kind.index_select(0, self.extrapolated) - EXTRAPOLATED

    def with_column(self, column: Tensor) -> Self:
        """Return the plan with other columns for its ``extrapolated`` cells."""
        assert self.extrapolated is not None
        return replace(
            self, kind=self.kind.index_copy(0, self.extrapolated, (column + EXTRAPOLATED).to(torch.int8))
        )

    def __len__(self) -> int:
        return self.row.shape[0]

    @property
    def size(self) -> int:
        """The number of cells."""
        return len(self)

    def coarser(self, allowed: Tensor) -> Self:
        """Return a plan that may do as well, where an error ``(batch,)`` is allowed: search has to see.

        It is the plan itself where a geometry does not know how to merge cells.
        """
        return self

    def common(self) -> Self | None:
        """Return cells ``()`` that many of the integrals share, to start others from; None if that is no help."""
        return None

    def nodes(self, a: Any, b: Any, points: Any = None) -> Tensor:
        """Return the abscissae for the given limits, shape ``(m, n, ...)``.

        Parameters
        ----------
        a, b : float or Tensor
            Limits, broadcast over the plan's batch.
        points : Tensor, optional
            As many breakpoints as the plan was made with, along the last dimension.
        """
        return self.place(self.mesh(a, b, points))[0]

    def weights(self, a: Any, b: Any, points: Any = None) -> Tensor:
        """Return what each node's value is multiplied by, shape ``(m, n)``: positive also where ``a > b``.

        Where a cell touches a singular end they belong to the part that its nodes cover; what
        :func:`quadgrad.replay` extrapolates beyond is no weighted sum.
        """
        return self.place(self.mesh(a, b, points))[1]

    def place(self, mesh: Mesh) -> tuple[Tensor, Tensor]:
        """Return abscissae and weights on a mesh, see :meth:`nodes` and :meth:`weights`."""
        x, factor = mesh.lay_out(self).nodes(self.tau.to(self.error))
        return x, self.weight.to(factor)[:, None] * factor

    def take(self, index: Tensor | slice) -> Self:
        """Return the plan with some of its cells, by their places, a slice, or where a mask is true."""
        return self._with(self._take(index))

    def noted(self, inspected: bool = False, stalled: Tensor | None = None) -> Self:
        """Return the plan with other notes about its cells."""
        plan = object.__new__(type(self))
        vars(plan).update(vars(self), inspected=inspected, stalled=stalled)
        return plan

    def with_notes_of(self, other: Self, which: Tensor) -> Self:
        """Return the plan with what another one, of as many pieces, holds of some integrals ``(batch,)``."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in self.of_integrals}
        kept = {
            k: torch.where(which[:, None], b, a) for k, (a, b) in pairs.items() if a is not None and b is not None
        }
        return self._with(kept) if kept else self

    def groups(self) -> list[tuple[Tensor | None, Self]]:
        """Return parts whose nodes are all spread in one way, with the places of their cells; None if it is all.

        Logarithms are dear: where few cells ask for them, the others should not pay.
        """
        if not 0 < self.crowded < len(self):
            return [(None, self)]
        linear, crowding = self.linear, locate(~self.linear, self.crowded)
        if self.row.is_cpu and not torch.compiler.is_compiling():  # nothing is waited for, and it is quicker
            evenly = linear.nonzero().squeeze(1)
        else:
            evenly = locate(linear, len(self) - self.crowded)
        ends = None if self.extrapolated is None else torch.searchsorted(crowding, self.extrapolated)
        parts = ((evenly, True, 0, None), (crowding, False, self.crowded, ends))
        return [
            (index, self._with(self._take(index) | {"even": even, "crowded": crowded, "extrapolated": ends}))
            for index, even, crowded, ends in parts
        ]

    def part_extrapolated(self) -> tuple[Self, Self | None]:
        """Return the plan without the cells whose integral is extrapolated, and these alone if there are any."""
        if self.extrapolated is None or not len(self.extrapolated):
            return self, None
        rest = torch.ones_like(self.row, dtype=torch.bool).index_fill(0, self.extrapolated, False)
        return self.take(rest), self.take(self.extrapolated)

    def join(self, other: Self) -> Self:
        """Return the plan with the cells of both, sorted by row; those of one row stay in their order."""
        row, order = torch.cat((self.row, other.row)).sort(stable=True)
        rest = {name: torch.cat((getattr(self, name), getattr(other, name)))[order] for name in self.always[1:]}
        if self.term is not None or other.term is not None:
            rest["term"] = torch.cat((self.terms, other.terms))[order]
        return replace(self, row=row, **rest)

    @staticmethod
    def join_batches(plans: Sequence[AnyPlan], batch_shape: tuple[int, ...]) -> AnyPlan:
        """Return the plan of all integrals of some plans, one after the other.

        Those with fewer pieces get empty ones behind their own.
        """
        pieces = max(plan.pieces for plan in plans)
        low, rows = 0, list[Tensor]()
        for plan in plans:
            rows.append((plan.owner + low) * pieces + plan.piece)
            low += plan.batch
        columns: dict[str, Any] = {
            name: torch.cat([getattr(plan, name) for plan in plans]) for name in plans[0].always[1:]
        }
        columns["term"] = None
        if any(plan.term is not None for plan in plans):
            columns["term"] = torch.cat([plan.terms for plan in plans])
        inspected = all(plan.inspected for plan in plans)
        for name in plans[0].of_integrals:
            columns[name] = _pad_and_join([getattr(plan, name) for plan in plans], [plan.batch for plan in plans])
        return replace(
            plans[0],
            batch_shape=batch_shape,
            pieces=pieces,
            inspected=inspected,
            stalled=None,
            row=torch.cat(rows),
            **columns,
        )

    def part(self, cells: slice, low: int, high: int) -> Self:
        """Return some cells of the integrals from ``low`` to before ``high``, as a plan of those alone."""
        columns = self._take(cells)
        columns |= {"row": columns["row"] - low * self.pieces, "batch_shape": (high - low,)}
        if self.stalled is not None:
            columns["stalled"] = self.stalled[low:high]
        return self._with(
            columns | {name: t[low:high] for name in self.of_integrals if (t := getattr(self, name)) is not None}
        )

    def _take(self, index: Tensor | slice) -> dict[str, Any]:
        return {name: getattr(self, name)[index] for name in self.columns}

    def _with(self, changes: dict[str, Any]) -> Self:
        """Return the plan with other cells: quicker than ``replace``, which a single integral would notice."""
        part = object.__new__(type(self))
        vars(part).update(vars(self) | changes)
        if not self.even and "even" not in changes:
            part.__post_init__()
        return part

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed of the plan."""
        heading = f"Plan of {counted(len(self), 'cell')} for {counted(self.batch, 'integral')}"
        facts = {"rule": f"{self.rule}, {self.tau.shape[0]} nodes in each cell"}
        if self.row.device.type == "meta":
            return heading, facts
        if self.batch != 1:
            each = torch.bincount(self.owner, minlength=self.batch)
            most = f"{int(each.min())} to {int(each.max())} of each" if self.batch else "none"
            facts["batch"] = f"{self.batch_shape}, cells {most}"
        if self.pieces > 1:
            facts["pieces"] = f"{self.pieces} of each integral"
        if not self.even:
            touching = 0 if self.extrapolated is None else len(self.extrapolated)
            spread = int(self.kind.count_nonzero())
            facts["singular ends"] = f"{spread} cells beside them, {touching} extrapolated"
        if len(self):
            facts["error"] = f"{float(self.error.max()):.2g} at most in one cell"
        return heading, facts


def _pad_and_join(parts: list[Tensor | None], counts: list[int]) -> Any:
    """Return the rows of all parts, with NaN where one has fewer columns than another; None if none has any."""
    width = max(0 if part is None else part.shape[1] for part in parts)
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    each = [like.new_empty((n, 0)) if part is None else part for part, n in zip(parts, counts, strict=True)]
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, width - part.shape[1]), value=torch.nan) for part in each])
