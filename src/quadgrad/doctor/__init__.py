"""Where a gradient is severed or wrong: which line, how much of the derivative, and what to write instead.

``quadgrad.doctor.check(fn, *inputs)`` runs a function and reports; ``with quadgrad.doctor.intended("why"):`` marks
what severs on purpose. ``quadgrad doctor script.py:function`` does the same from a command line, and the fixture of
:mod:`quadgrad.doctor.fixture` in tests.
"""

from __future__ import annotations

from quadgrad.doctor.check import check
from quadgrad.doctor.marks import intended
from quadgrad.doctor.report import Report
from quadgrad.doctor.rows import Row, Verdict

__all__ = ["Report", "Row", "Verdict", "check", "intended"]


def __dir__() -> list[str]:
    """Show what is public."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
