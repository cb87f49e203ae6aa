"""The one loop of the search, in any geometry: evaluate the new cells, decide on all cells at hand, again.

Each round every running integral is summed anew. An integral is done when its summed error meets the tolerance;
else some of its cells are split, the others settle. Settled cells of an integral whose sum is still too large (the
value, and with it the tolerance, may have shrunk) are reopened once no integral runs any more.

What does the work is a *body*: tensor operations for cells of any shape and on any device
(:mod:`quadgrad._core.search.tensors`), or the compiled kernel for intervals on the CPU
(:mod:`quadgrad._core.search.native`). The loop knows neither cells nor what they cost.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

__all__ = ["Bodies", "Tally", "Watcher", "finish_rounds", "search_rounds"]

R = TypeVar("R", covariant=True)


class Tally(Protocol):
    """How many integrals run on, and how many wait, all in all, to be taken back with their settled cells."""

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...


class Bodies(Protocol[R]):
    """The state of one search: cells at hand, settled cells, and the books of all integrals."""

    def open(self, first: Any) -> None:
        """Take the cells to start with, or, if None, whole pieces, and open the books of all integrals."""
        ...

    def evaluate(self) -> None:
        """Place nodes in the cells at hand, call f a block of nodes at a time, and estimate value and error."""
        ...

    def decide(self) -> Tally:
        """Judge every running integral, put away what has settled, and split the other cells at hand."""
        ...

    def withdraw(self) -> None:
        """Take the integrals that wait back, with all their cells as they were estimated; none waits then."""
        ...

    def close(self) -> R:
        """Return the totals, and all settled cells, sorted by row; those of one row as they settled."""
        ...


class Watcher(Protocol):
    """Is shown a search each time its new cells are evaluated, and may end integrals."""

    def see(self, search: Any) -> None: ...


def search_rounds(bodies: Bodies[R], first: Any) -> R:
    """Search from the given cells, or from whole pieces, until no integral runs or waits."""
    bodies.open(first)
    bodies.evaluate()
    return finish_rounds(bodies)


def finish_rounds(bodies: Bodies[R], watcher: Watcher | None = None) -> R:
    """Decide on cells that are estimated, and search on until no integral runs or waits."""
    while True:
        if watcher is not None:
            watcher.see(bodies)
        tally = bodies.decide()
        if tally.running:
            bodies.evaluate()
        elif tally.waiting:
            bodies.withdraw()
            watcher = None  # rounds are counted no longer as they would be for one integral alone
        else:
            return bodies.close()
