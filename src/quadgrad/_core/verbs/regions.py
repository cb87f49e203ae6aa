"""Where an integral in several dimensions is taken, as the caller says it: corners of a box, or a region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quadgrad._core.integrand import Element
from quadgrad._core.keywords import turned_round
from quadgrad._core.regions.mapped import Mapped, over_unit_cube
from quadgrad._core.regions.through import Through
from quadgrad._core.regions.where import Boundary, Where
from quadgrad._core.verbs.inputs import flatten_box

__all__ = ["open_cut", "open_region"]


def open_region(
    verb: str, f: Any, a: Any, b: Any, args: Any, region: Any, vectorized: bool
) -> tuple[Any, Any, Any, Any, bool]:
    """Return the function, the corners of the boxes and the arguments of an integral over boxes that is the same.

    Raises
    ------
    TypeError
        If neither corners nor a region are given, both are, or the region is none.
    """
    if region is None:
        if a is None or b is None:
            raise TypeError(
                f"{verb} needs the corners a and b of a box, or region=, such as quadgrad.Ball([0, 0], 1)"
                + _meant(a)
            )
        return f, a, b, args, vectorized
    if not isinstance(region, Mapped):
        raise TypeError(
            f"region={region!r:.80} is no region: {verb} takes quadgrad.Ball, Sphere, Simplex, Nested, Where and "
            "Boundary"
        )
    if a is not None or b is not None:
        raise TypeError(
            f"a and b are the corners of a box: leave them out where region is a {type(region).__name__}"
        )
    function, args = over_unit_cube(f, region, args, vectorized)
    return function, [0.0] * region.dims, [1.0] * region.dims, args, True


def open_cut(
    f: Any, a: Any, b: Any, args: Any, region: Where | Boundary, vectorized: bool
) -> tuple[Through, tuple[Any, ...]]:  # fmt: skip
    """Return the function on the unit cube whose integral is that over what is cut out of boxes, and its arguments.

    Raises
    ------
    TypeError
        If corners are missing.
    ValueError
        If a side is infinite, or the corners do not fit.
    """
    name = type(region).__name__
    if a is None or b is None:
        raise TypeError(f"qmc needs the corners a and b of the boxes that {name} cuts a part out of")
    given = tuple(args) if isinstance(args, tuple | list) else (args,)
    given = tuple(
        [v if isinstance(v, Tensor) or not hasattr(v, "__array__") else torch.as_tensor(v) for v in given]
    )
    integrand, box, shape, _ = flatten_box(f, a, b, given, vectorized)
    if box.infinite:
        raise ValueError(
            f"{name} needs finite corners a and b: give a box that holds the region, or as much of it as counts"
        )
    corners = [
        Element(corner.reshape((*shape, box.d) if corner.shape[0] > 1 else (box.d,)).to(integrand.call_dtype), 1)
        for corner in box.marks
    ]
    through = Through.of(f, region.functions, given, box.d, region.surface, vectorized)
    return through, (*given, *corners)


def _meant(a: Any) -> str:
    """Say what to write where something else than a corner was given alone."""
    if isinstance(a, Mapped | Where | Boundary):
        return f". It has a name: region={type(a).__name__}(...)"
    return turned_round(a)
