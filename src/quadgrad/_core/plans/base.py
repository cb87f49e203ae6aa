"""What every plan has, whatever it was found for: a frozen record without gradient and without limits.

A geometry adds its own columns in a class of its own, which is entered under a short name; a saved plan holds that
name, a version and plain tensors, so that files do not depend on where our modules are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from quadgrad._core.printing import Printed
from quadgrad._core.status import Status

__all__ = ["Plan", "restore_plan"]

VERSION = 1
"""Of the file format: raise it when the meaning of what :meth:`Plan.__reduce__` writes changes."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Plan(Printed):
    """What a search decided about every element of a batch: the cells of a rule, or the points of a sample.

    A plan can be looked at, saved (``torch.save``), moved to a device, passed to a later call of the verb that made
    it (``quad(..., plan=plan)``, which estimates errors anew), or, if it has cells, trusted
    (:func:`quadgrad.replay`). It holds no limits: nodes and points follow from the limits given to it.

    Attributes
    ----------
    batch_shape : tuple of int
        Shape of the batch the plan was made for.
    """

    batch_shape: tuple[int, ...]

    geometry: ClassVar[str]

    says: ClassVar[Mapping[Status, str]] = {}
    """How an integral ended, where that is another sentence than the status' own."""

    def __init_subclass__(cls, geometry: str = "", **options: Any) -> None:
        """Enter a geometry under its name in files."""
        super().__init_subclass__(**options)
        if geometry:
            cls.geometry = geometry
            _GEOMETRIES[geometry] = cls

    @property
    def batch(self) -> int:
        """The number of integrals."""
        return math.prod(self.batch_shape)

    @property
    @abstractmethod
    def size(self) -> int:
        """How much there is to evaluate: cells, or points."""

    @abstractmethod
    def same(self, other: Any) -> bool:
        """Whether another plan evaluates at the same places."""

    def to(self, device: torch.device | str) -> Self:
        """Return the plan on another device."""
        moved = object.__new__(type(self))
        vars(moved).update({k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()})
        return moved

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how to save it: by a function of the package, a version, and plain tensors and scalars."""
        return restore_plan, (VERSION, self.geometry, self.contents)

    @property
    def contents(self) -> dict[str, Any]:
        """What it holds, by name: tensors, numbers and texts."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


_GEOMETRIES: dict[str, type[Plan]] = {}


def restore_plan(version: int, geometry: str, contents: dict[str, Any]) -> Plan:
    """Return a saved plan.

    Raises
    ------
    ValueError
        If this version of the library does not know the format.
    """
    age = "a newer" if version > VERSION or geometry not in _GEOMETRIES else "an older" if version < VERSION else ""
    if age:
        remedy = "update quadgrad" if age == "a newer" else "make the plan anew with quad(...).plan, and save that"
        raise ValueError(
            f"the plan was saved by {age} version of quadgrad ({geometry}, format {version}; this one reads format "
            f"{VERSION} of {', '.join(_GEOMETRIES)}): {remedy}"
        )
    return _GEOMETRIES[geometry](**contents)


# Files name the package alone: what stands below it may move.
restore_plan.__module__, restore_plan.__qualname__ = "quadgrad", "_restore_plan"
restore_plan.__name__ = "_restore_plan"
torch.serialization.add_safe_globals([restore_plan])
