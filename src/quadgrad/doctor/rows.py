"""What was found: verdicts, rows, and the figures of a report."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Row", "Summary", "Verdict"]


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
class Summary:
    """The figures of a report; see :class:`quadgrad.doctor.Report`, which shows them."""

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
