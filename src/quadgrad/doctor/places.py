"""Which line of the user's an operation belongs to."""

from __future__ import annotations

import inspect
import linecache
import os
from types import FrameType
from typing import NamedTuple

__all__ = ["Place", "place_of", "source_of"]

_OTHERS = {"torch", "numpy", "scipy", "quadgrad", "contextlib", "functools", "threading", "concurrent", "copy"}
"""Packages whose lines are nobody's to mend."""

_WORKINGS = ("torch._functorch", "torch._higher_order_ops", "torch.autograd.graph")
"""Modules whose operations are the machinery of a transform."""


_NAMED = {"_SpectralNorm": "spectral_norm", "SpectralNorm": "spectral_norm"}
"""What users call a class of a library that works behind an innocent call of theirs."""


class Place(NamedTuple):
    """A line, the columns of the expression on it, and by which call of a library the operation was done.

    ``owner`` is who did the operation: ``"user"``, ``"library"`` (torch, NumPy), ``"engine"`` (an integral's own
    workings or a transform's) or ``"optimiser"``.
    """

    file: str
    line: int
    columns: tuple[int, int]
    through: str
    owner: str

    @property
    def key(self) -> tuple[str, int]:
        """The line."""
        return self.file, self.line

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


def place_of(frame: FrameType | None = None) -> Place:
    """Return the innermost line that is the user's, from the caller of the doctor's own code upwards."""
    frame = frame or inspect.currentframe()
    owner, through, named = "user", "", ""
    while frame is not None and _module(frame).startswith("quadgrad.doctor"):
        frame = frame.f_back
    if frame is not None and _module(frame).startswith(_WORKINGS):
        owner = "engine"
    while frame is not None and frame.f_back is not None:
        name = _module(frame)
        package = name.partition(".")[0]
        if package not in _OTHERS:
            break
        if package == "quadgrad" and owner != "optimiser":  # what it has torch or SciPy do is its own, too
            owner = "engine"
        elif name.startswith("torch.optim"):
            owner = "optimiser"
        elif owner == "user":
            owner = "library"
        through = frame.f_code.co_qualname
        named = named or _NAMED.get(through.partition(".")[0], "")
        if through == "Module._wrapped_call_impl":
            through = type(frame.f_locals["self"]).__name__
        frame = frame.f_back
    through = named or through
    if frame is None:
        return Place("?", 0, (0, 0), through, owner)
    return Place(frame.f_code.co_filename, frame.f_lineno, _columns(frame), through, owner)


def _module(frame: FrameType) -> str:
    if frame.f_code.co_filename.startswith("<"):  # an example in a docstring has the name of its module
        return ""
    return frame.f_globals.get("__name__", "") or ""


def _columns(frame: FrameType) -> tuple[int, int]:
    """Return where on its line the expression stands that is being evaluated; ``(0, 0)`` if nobody knows."""
    for number, (first, last, start, end) in enumerate(frame.f_code.co_positions()):
        if 2 * number == frame.f_lasti:
            if first != last or first != frame.f_lineno:
                return 0, 0
            return start or 0, end or 0
    return 0, 0


def source_of(place: Place) -> str:
    """Return the text of the line, without its indentation."""
    return linecache.getline(place.file, place.line).strip()
