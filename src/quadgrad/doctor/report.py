"""The doctor's report, which shows itself as text, as a page, or as a failing assertion."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from quadgrad.doctor.page import as_html
from quadgrad.doctor.rows import Summary
from quadgrad.doctor.show import as_text

__all__ = ["Report"]


@dataclass(frozen=True, repr=False)
class Report(Summary):
    """The doctor's report; true in a condition if no finding was made.

    ``print(report)`` shows a table, ``report.save("report.html")`` writes a page with the annotated source.

    Attributes
    ----------
    verdict : Verdict
        The gravest finding; ``Verdict.OK`` if there is none.
    rows : list of Row
        The lines that sever, are wrong or jump, the gravest first; marked ones and those that change nothing last.
    true, error : float
        The directional derivative along the first random direction, and its error bar.
    autograd : float
        The same of autograd.
    gap : float
        What neither autograd nor the rows explain of it.
    cause : str
        Why there is no verdict, or what a place that could not be located may be.
    notes : list of str
        What else is worth knowing.
    runs : int
        How often the function was called.
    seconds, one_run : float
        How long that took, and one call by itself.
    """

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return as_text(self)

    def __repr__(self) -> str:
        return str(self)  # what a failing `assert report` shows

    def _repr_html_(self) -> str:
        return as_html(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page in HTML: the table, and the source with what was found beside its lines.

        Parameters
        ----------
        path : path
            A file, which is replaced.
        """
        Path(path).write_text(as_html(self), encoding="utf-8")
