"""Integrals inside integrands: the inner errors are the outer one's noise, their warnings become one.

While search calls an integrand, it opens a record; an inner call of a verb finds it and writes to it
instead of warning by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["InnerRecord", "Uncertain", "current_record"]


class Uncertain(Protocol):
    """What f was given by somebody who knows how wrong it is, and how wrong its derivatives are."""

    @property
    def outputs(self) -> Sequence[Tensor]:
        """What f goes on with, in the graph."""
        ...

    @property
    def errors(self) -> Sequence[Tensor | None]:
        """How wrong each output is, in its shape without trailing dimensions; None if that is not known."""
        ...

    def gradient_errors(self, cotangents: Sequence[Tensor], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return how wrong the gradients by tensors are of the outputs, times what is handed back to them."""
        ...


@dataclass
class InnerRecord:
    """What a call has to say when it is done.

    The relative error of inner integrals of which nobody knows at which nodes they were, the largest one of any,
    what those that failed had to say, the first jump not marked, and, of a part of a batch, the numbers of
    arguments on which f does not depend although they require grad. ``depth`` tells how many integrals surround the
    inner ones: a record is of one, unless it is ``kept_by_a_verb`` around integrals of its own, or parts of one; it
    is given if f is called ``again``, for what must come out as it did.
    ``heard`` has errors and values of inner integrals since f was called last, ``typical`` is the error of f for
    those of which the nodes are known, over f, ``sums`` tell it over all nodes. ``uncertain`` collects, for whoever
    asks for it with a list, what f computed with, ``hidden`` says that some of it was in a transform of f's own.
    ``said`` is what functions inside f have warned of, in all records that are open.
    """

    noise: float = 0.0
    largest: float = 0.0
    failures: dict[str, int] = field(default_factory=lambda: {})
    jump: str = ""
    severed: tuple[str, ...] = ()
    kept_by_a_verb: bool = False
    depth: int = 1
    again: bool = False
    sums: tuple[float, float] = (0.0, 0.0)
    typical: float = 0.0
    heard: list[tuple[Tensor, Tensor]] = field(default_factory=lambda: [])
    uncertain: list[Uncertain] | None = None
    hidden: bool = False
    said: set[str] = field(default_factory=lambda: set())
    _token: Token[InnerRecord | None] | None = None

    def __enter__(self) -> InnerRecord:
        """Collect the reports of inner integrals from here on."""
        outer = current_record()
        if not self.again:
            self.depth = (0 if outer is None else outer.depth) + (not self.kept_by_a_verb)
        self.said = self.said if outer is None else outer.said
        self._token = _record.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave it to the surrounding integral again."""
        if self._token is not None:
            _record.reset(self._token)

    @staticmethod
    def current() -> InnerRecord:
        """Return the record that is open."""
        record = current_record()
        assert record is not None
        return record

    def __reduce__(self) -> Any:
        """Leave out what is this process' own."""
        return InnerRecord, (self.noise, self.largest, self.failures, self.jump, self.severed)

    def note(self, noise: float, failures: dict[str, int]) -> None:
        """Enter what an inner call reports."""
        self.noise = max(self.noise, noise)
        self.largest = max(self.largest, noise)
        self._count(failures)

    def hear(self, error: Tensor, value: Tensor, failures: dict[str, int]) -> None:
        """Enter what an inner call reports, and the errors and sizes of its integrals."""
        if error.numel():
            size = value.abs().reshape(error.numel(), -1).amax(1) if value.numel() else torch.zeros_like(error)
            self.heard.append((error.reshape(-1), size))
        self._count(failures)

    def take(self, y: Tensor, nodes: int) -> Tensor | None:
        """Return how far f ``y`` ``(m, n, *event)`` may be off for the errors of inner integrals, ``(m, n)``.

        None if there are none, or not one or several for each of the ``nodes``; then their relative error counts
        for all nodes alike.
        """
        heard, self.heard = self.heard, []
        if not heard:
            return None
        errors, sizes = (torch.cat(parts) for parts in zip(*heard, strict=True))
        top = float(sizes.max())
        relative = float(errors.max()) / top if top > 0.0 else 0.0
        self.largest = max(self.largest, relative)
        one_each = all(len(error) == nodes for error, _ in heard)
        if not one_each and not (all(len(error) == 1 for error, _ in heard) and len(heard) % nodes == 0):
            self.noise = max(self.noise, relative)
            return None
        shape = (-1, nodes) if one_each else (nodes, -1)
        errors, sizes = (t.reshape(shape).T if one_each else t.reshape(shape) for t in (errors, sizes))
        height = y.abs().double().reshape(nodes, -1).amax(1)
        # In proportion to f: what f makes of an inner integral is most often a multiple of it.
        off = (errors * torch.where(sizes > 0.0, height[:, None] / sizes, 1.0)).nan_to_num(0.0, 0.0, 0.0).sum(1)
        # Null rules have to know what a small difference says nothing of; what nodes are off beyond that is added.
        # A mean of square roots: few nodes close to an end, where f is worse, are not to stand for all.
        roots, heights = (t.nan_to_num(0.0, 0.0, 0.0) for t in ((off * height).sqrt(), height))
        self.sums = (self.sums[0] + float(roots.sum()), self.sums[1] + float(heights.sum()))
        self.typical = (self.sums[0] / self.sums[1]) ** 2 if self.sums[1] > 0.0 else 0.0
        return (off - self.typical * height).clamp_min(0.0).nan_to_num(0.0, 0.0, 0.0).reshape(y.shape[:2])

    def _count(self, failures: dict[str, int]) -> None:
        for sentence, count in failures.items():
            self.failures[sentence] = self.failures.get(sentence, 0) + count


_record: ContextVar[InnerRecord | None] = ContextVar("quadgrad_inner_record", default=None)


def current_record() -> InnerRecord | None:
    """Return the record of the surrounding integral, if there is one."""
    return _record.get()
