"""A bar on the terminal for calls that take long; it goes away when they are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["Advance", "nothing", "show_progress"]

Advance = Callable[[int], None]
"""Is told how many points were added."""


def nothing(points: int) -> None:
    """Show nothing."""


@contextmanager
def show_progress(wanted: bool, most: int) -> Generator[Advance]:
    """Return a function that is told of points, and moves a bar on standard error if that is a terminal.

    Parameters
    ----------
    wanted : bool
        Whether to show one.
    most : int
        Points of the whole call, unless it needs fewer.
    """
    if not wanted or not sys.stderr.isatty():
        yield nothing
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        sys.stderr.write(
            "quadgrad: progress is shown by rich, which is not installed: pip install 'quadgrad[cli]'\n"
        )
        yield nothing
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("points, at most", total=most)
        yield lambda points: bar.advance(task, points)
