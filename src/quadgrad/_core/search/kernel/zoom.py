"""The compiled kernel closes in on the greatest bends of f; from here f is called."""

from __future__ import annotations

from ctypes import byref

from torch import Tensor

from quadgrad._core.problem import Problem
from quadgrad._core.search.kernel.library import ZOOMED, Zoom, load
from quadgrad._core.search.kernel.memory import BYTES, INTEGERS, in_memory, numbers
from quadgrad._core.search.piles.zoom import BOUNDED, DIVISIONS, SMOOTH, SURE, Zoomed, divisions, zoom
from quadgrad._core.search.task import call_places, noise

__all__ = ["zoom_native"]


def zoom_native(problem: Problem, owner: Tensor, low: Tensor, high: Tensor) -> Zoomed:
    """Return what :func:`quadgrad._core.search.piles.zoom.zoom` does."""
    x = low + (high - low) * divisions(low)
    y, n, info, kernel = call_places(problem, owner, x), len(owner), problem.pieces.rounding, load()
    if not in_memory(y):
        return zoom(problem, owner, low, high)
    columns = y.shape[2]
    place, doubt, room = numbers(n), numbers(n), numbers(n * (ZOOMED + 4 * columns))
    spent, found = INTEGERS.new_empty(n), BYTES.new_empty(n)
    asks = Zoom(
        noise(problem), info.eps, info.tiny**0.5, BOUNDED, SMOOTH**SURE, SMOOTH ** (SURE - 1), n, columns, 0,
        *(t.data_ptr() for t in (room, place, doubt, found, spent)), 0, 0, 0,
    )  # fmt: skip
    kept = [t.contiguous() for t in (low, high, owner)]
    kernel.begin_zoom(byref(asks), *(t.data_ptr() for t in kept))
    while True:
        y, x, asked = y.contiguous(), numbers((DIVISIONS - 2) * n), INTEGERS.new_empty(n)  # f keeps what it got
        asks.y, asks.x, asks.owner = y.data_ptr(), x.data_ptr(), asked.data_ptr()
        n = kernel.go_on_zooming(byref(asks))
        if not n:
            return place, found > 0, doubt, spent
        asks.n, asks.round = n, asks.round + 1
        x, asked = x[: (DIVISIONS - 2) * n].view(DIVISIONS - 2, n), asked[:n]
        y = call_places(problem, asked, x)
