"""What the doctor says: a verdict, the lines, the ledger."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

__all__ = ["Report", "Row", "Verdict"]


class Verdict(StrEnum):
    """What a program, or a line of it, is found to be; ``meaning`` is a sentence."""

    OK = "OK"
    KINK = "KINK"
    ZERO = "ZERO"
    STEP = "STEP"
    SEVERED = "SEVERED"
    EDITED = "EDITED"
    WRONG = "WRONG"
    NAN = "NAN"
    RAISES = "RAISES"
    UNLOCATED = "SEVERED OR WRONG"
    INCONCLUSIVE = "INCONCLUSIVE"
    INTENDED = "INTENDED"
    UNUSED = "UNUSED"

    @property
    def meaning(self) -> str:
        """What it means, as a sentence."""
        return _MEANINGS[self]


_MEANINGS = {
    Verdict.OK: "autograd's derivative is the true one, within the error bar.",
    Verdict.KINK: "the program has a kink right here; autograd's derivative lies between those of both sides.",
    Verdict.ZERO: "the output does not change with what requires grad: saturated, dead, or not used.",
    Verdict.STEP: "the output jumps where an input crosses a level; no derivative tells of that.",
    Verdict.SEVERED: "a part of the derivative never reaches autograd.",
    Verdict.EDITED: "memory was changed behind autograd's back.",
    Verdict.WRONG: "a backward pass does not fit its forward pass.",
    Verdict.NAN: "the gradient is not finite although the value is.",
    Verdict.RAISES: "torch refuses.",
    Verdict.UNLOCATED: "the gradient is severed or wrong at a place that could not be located.",
    Verdict.INCONCLUSIVE: "no verdict is possible.",
    Verdict.INTENDED: "marked as intended, taken for constant.",
    Verdict.UNUSED: "changes nothing.",
}


@dataclass(frozen=True)
class Row:
    """One line of the program.

    Attributes
    ----------
    file, line, source : str, int, str
        Where it stands, and what it says.
    columns : pair of int
        Where on the line the expression stands; ``(0, 0)`` if that is not known.
    operation : str
        What was done, several joined by commas.
    count : int
        How often it was done in one run.
    lost, error : float
        What it takes away of the derivative along the first direction, and how far that may be off; of a STEP how
        far the output jumps.
    share : float
        The part of the derivative.
    verdict : Verdict
        What it is.
    remedy : str
        What to write instead, or why it is intended.
    """

    file: str
    line: int
    source: str
    columns: tuple[int, int]
    operation: str
    count: int
    lost: float
    error: float
    share: float
    verdict: Verdict
    remedy: str

    @property
    def place(self) -> str:
        """``file:line``, without folders."""
        return f"{os.path.basename(self.file)}:{self.line}"


@dataclass(frozen=True)
class Report:
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

    verdict: Verdict
    rows: list[Row] = field(default_factory=lambda: [])
    true: float = float("nan")
    error: float = float("nan")
    autograd: float = float("nan")
    gap: float = float("nan")
    cause: str = ""
    notes: list[str] = field(default_factory=lambda: [])
    runs: int = 0
    seconds: float = 0.0
    one_run: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there is no finding."""
        return self.verdict == Verdict.OK

    @property
    def findings(self) -> list[Row]:
        """The rows that are findings."""
        quiet = (Verdict.INTENDED, Verdict.UNUSED, Verdict.KINK, Verdict.OK)
        return [row for row in self.rows if row.verdict not in quiet]

    @property
    def folded(self) -> list[Row]:
        """The rows that change nothing, which tables leave out."""
        return [row for row in self.rows if row.verdict == Verdict.UNUSED]

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        from quadgrad.doctor.show import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return str(self)  # what a failing `assert report` shows

    def _repr_html_(self) -> str:
        from quadgrad.doctor.page import as_html

        return as_html(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page in HTML: the table, and the source with what was found beside its lines.

        Parameters
        ----------
        path : path
            A file, which is replaced.
        """
        from quadgrad.doctor.page import as_html

        Path(path).write_text(as_html(self), encoding="utf-8")
