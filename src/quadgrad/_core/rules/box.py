"""What a rule on boxes is: nodes in the unit cube, weights, and what tells how well it does.

Called by search (to estimate) and by replay (through the plan, which keeps nodes and weights).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.rules.rule import Array, Rule

__all__ = ["BESIDE_FACE", "BoxRule", "BoxRuleTensors", "extrapolate_line"]

BESIDE_FACE = {torch.float64: 2.0**-24, torch.float32: 2.0**-10}
"""How far from a face, as a part of the box, f is called to see what lies beyond the outermost nodes, by its dtype.

The polynomial is evaluated at that very place. So close that no strip worth seeing is left, but so far that
rounding does not move the place onto a limit, where f may be infinite.
"""


@dataclass(frozen=True)
class BoxRuleTensors:
    """A rule on a device, in the dtype of the sums.

    ``nodes`` ``(m + 2 d, d)`` are those of the rule and then two for each axis, close to the centres of its faces;
    ``weights`` ``(m,)`` and their absolute values ``sizes``; ``nulls`` ``(k, m)`` in levels of ``levels`` rows
    each; ``lines`` ``(d, s)`` are the places of the nodes on each axis; ``along`` ``(6, s)`` what is made of f
    there: the polynomial through them close to both faces, and its four highest coefficients.
    """

    nodes: Tensor
    weights: Tensor
    sizes: Tensor
    nulls: Tensor
    lines: Tensor
    along: Tensor
    levels: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class BoxRule:
    """A rule on the unit cube in d dimensions.

    Parameters
    ----------
    name : str
        The name that selects it, for example ``"gm9"``.
    nodes : numpy.ndarray, shape (m, d)
        Strictly inside of the unit cube, so that no integrand is called at a limit.
    weights : numpy.ndarray, shape (m,)
        They sum to 1; some are negative.
    degree : int
        Polynomials up to this total degree are integrated exactly.
    nulls : tuple of numpy.ndarray, shapes (k, m)
        Null rules that annihilate polynomials of ever lower degree, the highest first; empty for a product.
    lines : numpy.ndarray of int, shape (d, s)
        The places of the nodes on each axis through the centre, in one order for all axes.
    factor : Rule, optional
        The one-dimensional rule of which this is a product, the last axis fastest.
    orbits : tuple of int
        How many nodes, one after another, have the same weights, also in null rules; empty for a product.
    """

    name: str
    nodes: Array
    weights: Array
    degree: int
    nulls: tuple[Array, ...]
    lines: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    factor: Rule | None = None
    orbits: tuple[int, ...] = ()
    _cache: dict[tuple[Any, ...], BoxRuleTensors] = field(default_factory=dict, repr=False)

    @property
    def d(self) -> int:
        """The number of dimensions."""
        return self.nodes.shape[1]

    @property
    def rows(self) -> int:
        """At how many places f is called for each box that is searched."""
        return self.nodes.shape[0] + 2 * self.d

    def faces(self, beside: float) -> Array:
        """Return places close to the centres of the two faces of each axis, ``(2 d, d)``."""
        faces = np.full((self.d, 2, self.d), 0.5)
        axes = np.arange(self.d)
        faces[axes, 0, axes], faces[axes, 1, axes] = beside, 1.0 - beside
        return faces.reshape(-1, self.d)

    def tensors(
        self, dtype: torch.dtype, device: torch.device, seen_in: torch.dtype = torch.float64
    ) -> BoxRuleTensors:
        """Return the rule in real ``dtype`` on ``device``, for an f that sees x in another one.

        Kept, except inside transforms and inference mode.
        """
        key, beside = (dtype, device, seen_in), BESIDE_FACE[seen_in]
        if key in self._cache:
            return self._cache[key]
        nulls = np.vstack(self.nulls) if self.nulls else np.zeros((0, len(self.weights)))
        line = self.nodes[self.lines[0], 0]
        columns = (np.vstack((self.nodes, self.faces(beside))), self.weights, np.abs(self.weights), nulls)
        made = BoxRuleTensors(
            *(torch.as_tensor(column, dtype=dtype, device=device) for column in columns),
            lines=torch.as_tensor(self.lines, device=device),
            along=torch.as_tensor(extrapolate_line(line, beside), dtype=dtype, device=device),
            levels=tuple(len(level) for level in self.nulls),
        )
        if not in_transform() and not torch.is_inference_mode_enabled():
            self._cache[key] = made
        return made


def extrapolate_line(line: Array, beside: float) -> Array:
    """Return functionals ``(6, s)`` of values at places in the unit interval: close to both ends, and coefficients.

    Of the interpolating polynomial in Legendre's polynomials, the four of the highest degrees, ascending.
    """
    basis = np.polynomial.legendre.legvander(2.0 * line - 1.0, len(line) - 1)
    ends = np.polynomial.legendre.legvander(2.0 * np.array([beside, 1.0 - beside]) - 1.0, len(line) - 1)
    functionals = np.vstack((ends, np.eye(len(line))[-4:]))
    return np.asarray(np.linalg.solve(basis.T, functionals.T).T, dtype=np.float64)
