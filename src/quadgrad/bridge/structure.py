"""Which output depends on which input, and hence which inputs a stencil may move together.

Inputs and outputs are flat vectors here. Inputs of one *group* are moved together, because no output depends on
two of them; a Jacobian is then known from one column for each group (Curtis, Powell and Reid, *IMA J. Appl. Math.*
13, 1974). It knows nothing of how derivatives are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from scipy import sparse

from quadgrad._core.errors import BridgeError
from quadgrad.bridge.contract import Array, all_finite
from quadgrad.bridge.lazy import lazy

__all__ = ["Jacobian", "Structure"]


@dataclass(frozen=True)
class Structure:
    """Groups of inputs, and for each group and output the input of the group on which the output depends.

    Attributes
    ----------
    colour : array, shape (n,)
        The group of each input.
    source : array, shape (groups, m) or (groups, 1)
        Indices of inputs, -1 where an output depends on none of the group; ``(groups, 1)`` if it is the same for
        every output, as in a dense Jacobian.
    outputs : int
        m.
    """

    colour: Array
    source: Array
    outputs: int

    @classmethod
    def dense(cls, inputs: int, outputs: int) -> Structure:
        """Every output may depend on every input."""
        every = np.arange(inputs)
        return cls(every, every[:, None], outputs)

    @staticmethod
    @lru_cache(maxsize=2)
    def elementwise(
        shapes: tuple[tuple[int, ...], ...], output_shapes: tuple[tuple[int, ...], ...], whole: tuple[int, ...]
    ) -> Structure:
        """Broadcast inputs to ``whole``: outputs begin with that shape and depend on the matching elements.

        Kept for the shapes of the last calls: of a million elements it takes longer to make than to use.
        """
        sizes = [prod(shape) for shape in shapes]
        first = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.intp)
        rows: list[Array] = []
        for start, size, shape in zip(first, sizes, shapes, strict=True):
            index = np.broadcast_to(start + np.arange(size).reshape(shape), whole)
            parts = [
                np.broadcast_to(index.reshape(whole + (1,) * (len(s) - len(whole))), s).ravel()
                for s in output_shapes
            ]
            rows.append(np.concatenate(parts))
        outputs = sum(prod(s) for s in output_shapes)
        source = np.stack(rows) if rows else np.zeros((0, outputs), np.intp)
        return Structure(np.repeat(np.arange(len(shapes)), sizes), source, outputs)

    @staticmethod
    @lru_cache(maxsize=8)
    def in_rows(groups: int, size: int) -> Structure:
        """Each group has an input for each output, in the outputs' order."""
        return Structure(np.repeat(np.arange(groups), size), np.arange(groups * size).reshape(groups, size), size)

    @classmethod
    def declared(cls, sparsity: Any, inputs: int, outputs: int) -> Structure:
        """Colour the columns of a matrix ``(outputs, inputs)`` whose nonzero entries may be nonzero derivatives."""
        given: Any = sparsity if sparse.issparse(sparsity) else np.asarray(sparsity)
        matrix: Any = sparse.csc_array(given)
        if matrix.shape != (outputs, inputs):
            raise BridgeError(
                f"sparsity has shape {matrix.shape}; expected (outputs, inputs) = {(outputs, inputs)}, all outputs "
                "and all inputs counted one element after the other"
            )
        matrix.eliminate_zeros()
        columns = [matrix.indices[a:b] for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)]
        colour = np.zeros(inputs, np.intp)
        rows: list[Array] = []
        # The fullest columns first: they are the hardest to place.
        for j in sorted(range(inputs), key=lambda j: -columns[j].size):
            used = columns[j]
            group = next((g for g, row in enumerate(rows) if np.all(row[used] < 0)), len(rows))
            if group == len(rows):
                rows.append(np.full(outputs, -1, np.intp))
            rows[group][used] = j
            colour[j] = group
        return cls(colour, np.stack(rows) if rows else np.zeros((0, outputs), np.intp), outputs)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return self.source.shape[0]

    @property
    def is_dense(self) -> bool:
        """Whether each group is one input, on which every output may depend."""
        return self.source.shape[1] == 1 and self.source.shape[0] == self.colour.size

    def members(self, groups: Array) -> Array:
        """Return the inputs of each group, as a mask ``(groups, n)``."""
        return groups[:, None] == self.colour

    def known(self, groups: Array) -> Array:
        """Return where an output depends on the group, ``(groups, m)`` or ``(groups, 1)``."""
        return self.source[groups] >= 0

    @lazy
    def in_order(self) -> bool:
        """Whether output i depends on input i of each group, inputs counted group by group."""
        groups, size = self.source.shape
        if self.colour.size != groups * size or size != self.outputs or not size:
            return False
        return bool(np.array_equal(self.source.ravel(), np.arange(groups * size)))

    @property
    def by_elements(self) -> bool:
        """Whether there are several outputs and none shares an input with another."""
        return self.in_order and self.outputs > 1

    @lazy
    def all_move(self) -> bool:
        """Whether every input is in group 0."""
        return not self.colour.any()

    def collect_groups(self, marked: Array) -> Array:
        """Return which groups have an input that is marked."""
        return np.bincount(self.colour, marked, minlength=self.groups)[: self.groups] > 0.0

    def spread(self, values: Array, groups: Array, fill: float = 1.0) -> Array:
        """Return for each group and output the value, of ``(..., n)``, of the input it depends on."""
        if self.in_order and groups.size == self.groups:
            return values.reshape(*values.shape[:-1], *self.source.shape)
        if self.is_dense and groups.size == self.groups:
            return values[..., None]
        source = self.source[groups]
        if values.shape[-1] == 0:
            return np.full(values.shape[:-1] + source.shape, fill)
        return np.where(source >= 0, values[..., source], fill)

    def collect(self, values: Array, groups: Array) -> Array:
        """Return for each input the sum of ``(groups, m)`` over the outputs that depend on it."""
        if self.in_order and groups.size == self.groups:
            return values.ravel()
        source = self.source[groups]
        if source.shape[1] == 1:
            total = np.zeros(self.colour.size)
            total[source[:, 0]] = values.sum(axis=1)
            return total
        mask = source >= 0
        return np.bincount(source[mask], values[mask], minlength=self.colour.size)


@dataclass(frozen=True)
class Jacobian:
    """A Jacobian in compressed form, with the error of each entry.

    Attributes
    ----------
    structure : Structure
    value : array, shape (groups, m)
    error : array, shape (groups, m), or None
        None for derivatives that were given, not estimated.
    """

    structure: Structure
    value: Array
    error: Array | None

    def pull(self, cotangents: Array) -> Array:
        """Return the vector-Jacobian products ``(e, n)`` of cotangents ``(e, m)``, real."""
        value = np.conj(self.value) if np.iscomplexobj(self.value) else self.value
        return np.real(self._contract(value, cotangents))

    def pull_error(self, cotangents: Array) -> Array | None:
        """Return by how much each of :meth:`pull` may be wrong."""
        if self.error is None:
            return None
        size = np.abs(cotangents)
        if all_finite(self.error):
            return self._contract(self.error, size)
        lost = ~np.isfinite(self.error)
        found = self._contract(np.where(lost, 0.0, self.error), size)
        return np.where(
            self._contract(lost.astype(np.float64), (size > 0.0).astype(np.float64)) > 0.0, np.inf, found
        )

    def push(self, tangents: Array) -> Array:
        """Return the Jacobian-vector products ``(e, m)`` of tangents ``(e, n)``."""
        if self.structure.is_dense:
            return tangents @ self.value
        spread = self.structure.spread(tangents, np.arange(self.structure.groups), fill=0.0)
        return (spread * self.value).sum(axis=1)

    def output_error(self) -> Array | None:
        """Return for each output the largest error of its derivatives."""
        if self.error is None:
            return None
        return self.error[0] if len(self.error) == 1 else self.error.max(axis=0, initial=0.0)

    def _contract(self, table: Array, cotangents: Array) -> Array:
        structure = self.structure
        if structure.is_dense:
            return cotangents @ table.T
        if structure.in_order:
            return (cotangents[:, None, :] * table).reshape(len(cotangents), -1)
        mask = structure.source >= 0
        index, size = structure.source[mask], structure.colour.size
        rows = [(table * g)[mask] for g in cotangents]
        return np.stack([_sums(index, row, size) for row in rows]) if rows else np.zeros((0, size))


def _sums(index: Array, values: Array, size: int) -> Array:
    real = np.bincount(index, np.real(values), minlength=size)
    return real + 1j * np.bincount(index, np.imag(values), minlength=size) if np.iscomplexobj(values) else real
