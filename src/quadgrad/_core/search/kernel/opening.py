"""What the kernel can search, and the first cell of a single integral, on which f shows what it returns."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass

from torch import Tensor

from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.cells import WHOLE
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.problem import Problem
from quadgrad._core.rules import Rule
from quadgrad._core.search.kernel.library import CELL, LAYOUT, Setting, load
from quadgrad._core.search.kernel.memory import in_memory, numbers, pointer

__all__ = ["Opening", "open_native", "suits_native"]


def suits_native(task: Problem) -> bool:
    """Whether the kernel can search this: what f returns has components, and all is in the CPU's memory."""
    pieces, event = task.pieces, task.integrand.event
    return event is not None and 0 not in event and _is_open(pieces, task.rule)


def _is_open(pieces: Pieces, rule: Rule) -> bool:
    return rule.mirrored and in_memory(pieces.lower) and in_memory(pieces.upper) and load() is not None


@dataclass(slots=True)
class Opening:
    """A single integral's first cell and its nodes, and f there as f returned it, which may carry a gradient."""

    setting: Setting
    room: Tensor
    slope: Tensor | None
    x: Tensor
    y: Tensor


def open_native(integrand: Integrand, pieces: Pieces, rule: Rule) -> tuple[Integrand, Opening] | None:
    """Call f on the first cell of a single integral, not knowing yet what it returns; None where that is no cell.

    Returned with it is the integrand that knows its output.
    """
    if pieces.count > 1 or not _is_open(pieces, rule):
        return None
    kernel, setting, rows = load(), Setting.of(pieces, rule), rule.nodes.size + WHOLE
    room, x, slope = numbers(CELL + LAYOUT), numbers(rows, 1), numbers(rows) if pieces.infinite else None
    cell = room.data_ptr()
    layout = cell + 8 * CELL
    if kernel.begin(byref(setting), 1, cell, None, layout) == 0:
        return None
    kernel.place(byref(setting), True, True, cell, 1, x.data_ptr(), pointer(slope), layout, 1)
    integrand, y = integrand.probe(x)
    return integrand, Opening(setting, room, slope, x, y)
