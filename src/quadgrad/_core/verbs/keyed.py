"""Cells kept for each datum, by its key: what serves minibatches that are drawn afresh."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.plans.cells import CellPlan
from quadgrad._core.verbs.merging import Merging

__all__ = ["KeyedCells", "as_keys"]

LOCK = threading.Lock()
"""What replicas of a model in several threads keep is one pool. No copy and no file has to leave out this lock."""

NOTES = len(fields(Merging)) + 3
"""Numbers kept for each datum: where its cells begin and how many they are, when it was used, whether it has
stalled, and what :class:`Merging` holds; the number of cells is in there."""


def as_keys(key: Any) -> Tensor:
    """Return whole numbers, one for each integral of the batch."""
    keys = key if isinstance(key, Tensor) else torch.as_tensor(key, device="cpu")
    if isinstance(key, list | tuple) and keys.numel() == 0:  # which torch takes for floats
        keys = keys.long()
    if keys.dtype.is_floating_point or keys.dtype.is_complex or keys.dtype == torch.bool:
        raise TypeError(
            f"key holds {keys.dtype}: it is a whole number for each integral, such as the datum's index"
        )
    return keys.detach().to(torch.int64)


class KeyedCells:
    """The cells of all data seen, those least lately used forgotten where they are more than ``most``.

    Cells lie behind one another in ``columns``; a datum's new ones are put at the end, and what is no longer used
    is swept out when it is as much as the rest.
    """

    def __init__(self, most: int) -> None:
        self.most, self.calls = most, 0
        self.like: CellPlan | None = None
        self.keys = torch.zeros(0, dtype=torch.int64, device="cpu")
        self.notes = torch.zeros((NOTES, 0), dtype=torch.int64, device="cpu")
        self.places = torch.zeros((0, 0), dtype=torch.float64, device="cpu")  # that search has found, of each datum
        self.columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def state(self) -> dict[str, Any]:
        """Return plain tensors and a plan, for files."""
        return {name: value for name, value in vars(self).items() if name != "most"}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        vars(self).update(state)

    def move(self, to: Callable[[Tensor], Tensor]) -> None:
        """Put all cells on another device."""
        if self.like is not None:
            device = to(self.like.row[:0]).device
            if device.type == "meta":
                return self.__init__(self.most)
            self.like = self.like.to(device)
            self.columns = {name: column.to(device) for name, column in self.columns.items()}

    def take(self, keys: Tensor) -> tuple[CellPlan | None, Merging]:
        """Return the cells of a batch, none for data not seen before, and when to merge them."""
        with LOCK:
            return self._take(keys)

    def _take(self, keys: Tensor) -> tuple[CellPlan | None, Merging]:
        flat, batch = keys.cpu().reshape(-1), keys.numel()
        place, known = self._find(flat)
        if self.like is None or not bool(known.any()):
            return None, Merging.start(batch, torch.device("cpu"))
        fresh = torch.stack(Merging.start(batch, flat.device).columns())
        notes = torch.where(
            known, self.notes[:, place], torch.cat((torch.zeros_like(self.notes[:3, place]), fresh))
        )
        begin, stalled = notes[0], notes[2]
        count = torch.where(known, notes[-1], 0)
        owner = torch.arange(batch, device="cpu").repeat_interleave(count)
        index = torch.arange(len(owner), device="cpu") - (count.cumsum(0) - count)[owner] + begin[owner]
        device = self.like.row.device
        columns = {name: column[index.to(device)] for name, column in self.columns.items()}
        places = self.places[place].masked_fill(~known[:, None], torch.nan).to(device)
        places = places[:, places.isfinite().any(0)]
        pieces = self.like.pieces + places.shape[1]
        columns["row"] = owner.to(device) * pieces + columns["row"]
        if places.shape[1]:
            columns["places"] = places
        plan = replace(self.like, batch_shape=tuple(keys.shape), pieces=pieces, stalled=None, **columns)
        plan = plan.noted(plan.inspected, stalled.to(device) if bool(stalled.any()) else None)
        return plan, Merging(*notes[3:].unbind())

    def put(self, keys: Tensor, plan: CellPlan, merging: Merging) -> None:
        """Keep a batch's cells; of a datum that is in it several times, the last ones."""
        with LOCK:
            self._put(keys, plan, merging)

    def _put(self, keys: Tensor, plan: CellPlan, merging: Merging) -> None:
        self.calls += 1
        found = getattr(plan, "places", None)
        found = self.places.new_zeros((plan.batch, 0)) if found is None else found.to(self.places)
        pieces = plan.pieces - found.shape[1]  # between the caller's own breakpoints: the others are each datum's
        if self.like is None or (self.like.rule, self.like.pieces) != (plan.rule, pieces):
            self.__init__(self.most)
            self.calls = 1
            self.columns = {name: getattr(plan, name)[:0] for name in plan.columns}
        flat = keys.cpu().reshape(-1)
        like = plan.take(slice(0, 0)).noted(plan.inspected)
        self.like = replace(like, pieces=pieces, places=None) if found.shape[1] else like
        unique, number = flat.unique(return_inverse=True)
        last = torch.zeros_like(unique).scatter_reduce(0, number, torch.arange(len(flat), device="cpu"), "amax")
        self._enter(unique)
        place, _ = self._find(unique)
        # Sorted by integral they are already: those of each stand together.
        size = torch.bincount(plan.owner.cpu(), minlength=plan.batch)
        begin = len(self.columns["row"]) + size.cumsum(0) - size
        stalled = torch.zeros_like(size) if plan.stalled is None else plan.stalled.cpu()
        notes = torch.stack(
            (begin, torch.full_like(size, self.calls), stalled, *(c.cpu() for c in merging.columns()))
        )
        notes[-1] = size
        self.notes[:, place] = notes[:, last]
        width = max(found.shape[1], self.places.shape[1])
        found, self.places = (_pad(table, width) for table in (found, self.places))
        self.places[place] = found[last]
        new = {name: plan.piece if name == "row" else getattr(plan, name) for name in plan.columns}
        self.columns = {name: torch.cat((old, new[name])) for name, old in self.columns.items()}
        self._sweep()

    def _find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return where keys stand, and whether they do."""
        place = torch.searchsorted(self.keys, keys).clamp_max(max(0, len(self.keys) - 1))
        return place, (self.keys[place] == keys) if len(self.keys) else torch.zeros_like(keys, dtype=torch.bool)

    def _enter(self, keys: Tensor) -> None:
        """Make room for keys not seen before."""
        _, known = self._find(keys)
        new = keys[~known]
        self.keys, order = torch.cat((self.keys, new)).sort()
        self.notes = torch.cat((self.notes, self.notes.new_zeros((NOTES, len(new)))), dim=1)[:, order]
        self.places = torch.cat((self.places, self.places.new_zeros((len(new), self.places.shape[1]))))[order]

    def _sweep(self) -> None:
        """Forget what is too much, and close gaps if there are many."""
        size = self.notes[-1]
        if len(self.columns["row"]) <= min(self.most, 2 * int(size.sum())):
            return
        latest = self.notes[1].argsort(descending=True, stable=True)
        keep = torch.zeros_like(size, dtype=torch.bool)
        keep[latest] = size[latest].cumsum(0) <= self.most
        self.keys, self.notes, self.places = self.keys[keep], self.notes[:, keep], self.places[keep]
        begin, size = self.notes[0], self.notes[-1]
        owner = torch.arange(len(size), device="cpu").repeat_interleave(size)
        index = (torch.arange(len(owner), device="cpu") - (size.cumsum(0) - size)[owner] + begin[owner]).to(
            self.columns["row"].device
        )
        self.columns = {name: column[index] for name, column in self.columns.items()}
        self.notes[0] = size.cumsum(0) - size


def _pad(table: Tensor, width: int) -> Tensor:
    """Return a table with so many columns, the new ones NaN."""
    return torch.nn.functional.pad(table, (0, width - table.shape[1]), value=torch.nan)
