"""The shape that shapes broadcast to.

``torch.broadcast_shapes`` imports SymPy at its first call, 600 modules: half a second for one integral.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["broadcast_shapes"]


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """Return the shape that these broadcast to; ``RuntimeError`` where they do not, as in torch."""
    if torch.compiler.is_compiling():  # which knows it for sizes that are symbols
        return torch.broadcast_shapes(*shapes)
    sizes = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for i in range(-len(shape), 0):
            if sizes[i] == 1:
                sizes[i] = shape[i]
            elif shape[i] not in (1, sizes[i]):
                raise RuntimeError(f"the shapes {[tuple(s) for s in shapes]} do not broadcast")
    return torch.Size(sizes)
