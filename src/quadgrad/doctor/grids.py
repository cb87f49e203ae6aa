"""Sampling an image at the nearest pixel: a rounding that torch does unseen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["NEAREST", "round_grid"]

NEAREST = "grid_sample(nearest)"
_SAMPLE = inspect.signature(torch.nn.functional.grid_sample)


def round_grid(args: Any, kwargs: Any, decide: Callable[[Tensor, Tensor], Tensor]) -> tuple[Any, Any]:
    """Return the arguments of ``grid_sample`` with a grid on pixels, if it takes the nearest one.

    ``decide`` is given places in pixels and the nearest whole ones, and returns which of these to take.
    """
    bound = _SAMPLE.bind(*args, **kwargs)
    bound.apply_defaults()
    image, grid = bound.arguments["input"], bound.arguments["grid"]
    if bound.arguments["mode"] != "nearest":
        return args, kwargs
    sizes = torch.tensor(image.shape[:1:-1], dtype=grid.dtype, device=grid.device)
    with torch.no_grad():  # as torch: from the first pixel's middle to the last one's, or from border to border
        first, scale = (
            (-1.0, 2.0 / (sizes - 1.0).clamp(min=1.0))
            if bound.arguments["align_corners"]
            else (1.0 / sizes - 1.0, 2.0 / sizes)
        )
        places = (grid - first) / scale
        rounded = first + scale * decide(places, places.round()) - grid
    bound.arguments["grid"] = grid + rounded
    return bound.args, bound.kwargs
