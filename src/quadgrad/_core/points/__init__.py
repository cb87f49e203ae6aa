"""Sequences of points in the unit cube by name. A new one is a class in a file of its own, entered here."""

from __future__ import annotations

import torch

from quadgrad._core.points.lattice import Lattice
from quadgrad._core.points.pseudorandom import Pseudorandom
from quadgrad._core.points.sequence import Sequence
from quadgrad._core.points.sobol import Sobol

__all__ = ["SEQUENCES", "Lattice", "Pseudorandom", "Sequence", "Sobol", "make_sequence"]

SEQUENCES: dict[str, type[Sequence]] = {kind.name: kind for kind in (Sobol, Lattice, Pseudorandom)}
"""Sequences by their names: one from elsewhere is entered here before it is used."""


def make_sequence(
    name: str,
    d: int,
    seed: int = 0,
    replicates: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Sequence:
    """Return a sequence by its name.

    Parameters
    ----------
    name : str
        ``"sobol"``, ``"lattice"`` or ``"random"``.
    d, seed, replicates, device, dtype
        As for :class:`Sequence`.

    Raises
    ------
    TypeError, ValueError
        If there is no such sequence, or an argument is of the wrong kind or size.

    Examples
    --------
    >>> from quadgrad._core.points import make_sequence
    >>> sobol = make_sequence("sobol", d=3, replicates=16)
    >>> sobol.points(0, sobol.rounded(1000)).shape
    torch.Size([16, 1024, 3])
    """
    if not isinstance(name, str) or name not in SEQUENCES:
        raise ValueError(f"sequence={name!r} is not known: choose one of {', '.join(map(repr, SEQUENCES))}")
    return SEQUENCES[name](d, seed, replicates, device, dtype)
