"""Runs of the caller's program that are compared with each other: all of them integrate on the same cells.

Opened by what runs a program again and again with inputs a little moved (:mod:`quadgrad.doctor`). A search that
runs anew would decide anew, and the difference of two runs would be that of two plans. Every call replays, too,
also where no gradient reaches it: only in a replay are the integrand's own operations seen.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["Rehearsal", "current_rehearsal", "decided", "thinking"]

T = TypeVar("T")


@dataclass
class Rehearsal:
    """One run; the first finds what later ones take over.

    ``kept`` has what each call found, in the order in which they began, ``tolerance`` the largest relative error
    that one of them was allowed. While the library ``thinks`` (searches, looks at the integrand), what it does is
    no part of the program.
    """

    kept: list[Any] = field(default_factory=lambda: [])
    repeats: bool = False
    tolerance: float = 0.0
    thinks: int = 0
    _calls: int = 0

    @contextmanager
    def open(self) -> Generator[Rehearsal]:
        """Return a context in which calls belong to this run."""
        token = _rehearsal.set(self)
        try:
            yield self
        finally:
            _rehearsal.reset(token)

    @contextmanager
    def thinking(self) -> Generator[None]:
        """Return a context in which the library thinks."""
        self.thinks += 1
        try:
            yield
        finally:
            self.thinks -= 1

    def again(self) -> Rehearsal:
        """Return a run that takes over what this one found."""
        return Rehearsal(self.kept, repeats=True, tolerance=self.tolerance)

    def begin(self, tolerance: float) -> int:
        """Return the number of a call that begins."""
        self.tolerance = max(self.tolerance, tolerance)
        self._calls += 1
        if not self.repeats:
            self.kept.append(None)
        return self._calls - 1

    def found(self, call: int) -> Any:
        """Return what the call of this number found in the first run, or None."""
        return self.kept[call] if self.repeats and call < len(self.kept) else None

    def keep(self, call: int, found: Any) -> None:
        """Keep what a call has found."""
        if not self.repeats:
            self.kept[call] = found


_rehearsal: ContextVar[Rehearsal | None] = ContextVar("quadgrad_rehearsal", default=None)


def current_rehearsal(thinking: bool = False) -> Rehearsal | None:
    """Return the run that is open, unless the library thinks, in which case it is asked for by ``thinking``."""
    run = _rehearsal.get()
    return run if run is None or thinking or not run.thinks else None


def thinking() -> AbstractContextManager[None]:
    """Return a context in which the library thinks, where runs are compared."""
    run = current_rehearsal()
    return nullcontext() if run is None else run.thinking()


def decided(decide: Callable[[], T], tolerance: float = 0.0) -> T:
    """Return what the library decides on: where runs are compared, what it decided in the first of them."""
    run = current_rehearsal()
    if run is None:
        return decide()
    call = run.begin(tolerance)
    kept = run.found(call)
    if kept is None:
        with run.thinking():
            kept = (decide(),)
        run.keep(call, kept)
    return kept[0]
