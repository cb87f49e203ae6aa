"""Samples whose derivative torch takes from their distribution, not from the way in which they are drawn.

A draw by rejection with the same random numbers jumps as its parameter moves, or moves otherwise than its quantile
does. What torch differentiates is the quantile (Figurnov, Mohamed and Mnih, 2018): in runs that are compared a
sample moves as that does, to first order.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from quadgrad._core._torch import derivative_of_dirichlet, derivative_of_gamma

__all__ = ["IMPLICIT", "moved_sample"]


def _gamma(sample: Tensor, concentration: Tensor, change: Tensor) -> Tensor:
    return derivative_of_gamma(concentration, sample) * change


def _dirichlet(sample: Tensor, concentration: Tensor, change: Tensor) -> Tensor:
    parts = derivative_of_dirichlet(sample, concentration) * change
    return parts - sample * parts.sum(-1, keepdim=True)


IMPLICIT: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "_standard_gamma": _gamma, "_Dirichlet": _dirichlet,
}  # fmt: skip


def moved_sample(name: str, sample: Tensor, before: Tensor, concentration: Tensor) -> Tensor:
    """Return a sample that was drawn at another concentration, moved as its quantile moves."""
    return sample + IMPLICIT[name](sample, before, concentration - before)
