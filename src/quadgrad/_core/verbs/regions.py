"""Where an integral in several dimensions is taken, as the caller says it: corners of a box, or a region."""

from __future__ import annotations

from typing import Any

from quadgrad._core.regions.mapped import Mapped, over_unit_cube
from quadgrad._core.regions.where import Boundary, Where

__all__ = ["open_region"]


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
            )
        return f, a, b, args, vectorized
    if isinstance(region, Where | Boundary):
        raise TypeError(
            f"{verb} takes no {type(region).__name__}: it is for quadgrad.cubature, in a few dimensions"
        )
    if not isinstance(region, Mapped):
        raise TypeError(
            f"region={region!r:.80} is no region: {verb} takes quadgrad.Ball, Sphere, Simplex and Nested"
        )
    if a is not None or b is not None:
        raise TypeError(
            f"a and b are the corners of a box: leave them out where region is a {type(region).__name__}"
        )
    function, args = over_unit_cube(f, region, args, vectorized)
    return function, [0.0] * region.dims, [1.0] * region.dims, args, True
