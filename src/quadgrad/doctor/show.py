"""The report as text: plain, or a table of rich in a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from quadgrad.doctor.rows import Row, Summary, Verdict

__all__ = ["as_table", "as_text", "cost_of", "ledger_of"]

STYLES = {Verdict.OK: "green", Verdict.UNUSED: "dim", Verdict.INTENDED: "dim", Verdict.KINK: "yellow"}


def as_text(report: Summary) -> str:
    """Return the report as plain text."""
    lines = [f"{report.verdict}: {report.verdict.meaning}"]
    if report.cause:
        lines += textwrap.wrap(report.cause, 110, initial_indent="  ", subsequent_indent="  ")
    lines += [f"  {line}" for line in ledger_of(report)]
    for row in shown(report):
        lines.append(f"  {row.verdict:10} {row.place}  {row.operation}  {amount_of(row)}".rstrip())
        lines.append(f"             {row.source}")
        lines += textwrap.wrap(row.remedy, 96, initial_indent="             -> ", subsequent_indent=" " * 16)
    lines += [f"  note: {note}" for note in (*report.notes, *folded_note(report))]
    lines.append(f"  {cost_of(report)}")
    return "\n".join(lines)


def shown(report: Summary) -> list[Row]:
    """Return the rows that are not folded."""
    return [row for row in report.rows if row.verdict != Verdict.UNUSED]


def folded_note(report: Summary) -> list[str]:
    """Say which lines were folded."""
    folded = report.folded
    if not folded:
        return []
    places = ", ".join(dict.fromkeys(row.place for row in folded[:6])) + (", ..." if len(folded) > 6 else "")
    return [f"{len(folded)} more line{'s' * (len(folded) > 1)} severed what changes nothing: {places}"]


def ledger_of(report: Summary) -> list[str]:
    """Return the ledger, along the first direction."""
    if report.true != report.true:
        return []
    terms = [row.lost for row in report.rows if row.verdict in (Verdict.SEVERED, Verdict.WRONG, Verdict.EDITED)]
    total = "".join(f" {'+' if t >= 0 else '-'} {abs(t):.6g}" for t in terms)
    total += " (lines)" * bool(terms)
    return [
        f"true derivative {report.true:.10g} +- {report.error:.1e}, autograd {report.autograd:.10g}"
        " (along one random direction)",
        f"ledger: {report.autograd:.6g} (autograd){total} + {report.gap:.1e} (unexplained)",
    ]


def amount_of(row: Row) -> str:
    """Say how much a line takes away, or how far it jumps."""
    often = f"x{row.count}  " if row.count > 1 else ""
    if row.verdict == Verdict.STEP:
        return f"{often}jumps by {row.lost:.3g}"
    if row.verdict in (Verdict.SEVERED, Verdict.WRONG, Verdict.EDITED):
        return f"{often}lost {row.lost:.6g} +- {row.error:.0e} ({row.share:.0%} of the derivative)"
    return often


def cost_of(report: Summary) -> str:
    """Say what the examination cost."""
    return f"{report.runs} runs, {report.seconds:.3g} s; one run by itself takes {report.one_run:.3g} s"


def as_table(report: Summary) -> Any:
    """Return the report as what rich prints; rich has to be there."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    style = STYLES.get(report.verdict, "red")
    parts: list[Any] = [Text.assemble((report.verdict.value, f"bold {style}"), f": {report.verdict.meaning}")]
    parts += [Text(f"  {line}") for line in ([report.cause] if report.cause else []) + ledger_of(report)]
    if shown(report):
        table = Table(show_lines=True)
        for name in ("line", "operation", "lost", "verdict", "write instead"):
            table.add_column(name, overflow="fold")
        for row in shown(report):
            table.add_row(
                Text(f"{row.place}\n{row.source}"), row.operation, amount_of(row),
                Text(row.verdict.value, style=STYLES.get(row.verdict, "red")), Text(row.remedy),
            )  # fmt: skip
        parts.append(table)
    parts += [Text(f"  note: {note}") for note in (*report.notes, *folded_note(report))]
    parts.append(Text(f"  {cost_of(report)}", style="dim"))
    return Group(*parts)
