"""The report as a page: the table, and the source with what was found beside its lines."""

from __future__ import annotations

import linecache
import os
from html import escape

from quadgrad.doctor.rows import Row, Summary, Verdict
from quadgrad.doctor.show import amount_of, cost_of, folded_note, ledger_of, shown

__all__ = ["as_html"]

_AROUND = 6
"""Lines of source that are shown above and below one that has a row."""

_STYLE = """
.qg { font: 14px/1.45 system-ui, sans-serif; color: #222; background: #fff }
.qg table { border-collapse: collapse; margin: 1em 0 } .qg td, .qg th { border: 1px solid #ccc; padding: .3em .6em;
text-align: left; vertical-align: top } .qg code, .qg pre { font: 13px/1.45 ui-monospace, monospace }
.qg pre { border: 1px solid #ccc; padding: .6em; overflow-x: auto } .qg .bad { background: #fde2e1 }
.qg .mild { background: #fff4cf } .qg mark { background: #f6a5a1 } .qg .say { color: #a31515 }
.qg .no { color: #999; user-select: none }
"""


def as_html(report: Summary) -> str:
    """Return the report as HTML that stands alone."""
    parts = [f'<style>{_STYLE}</style><div class="qg"><h2>{report.verdict}</h2><p>{escape(report.verdict.meaning)}']
    parts += [f" {escape(report.cause)}</p>", *(f"<p>{escape(line)}</p>" for line in ledger_of(report))]
    if shown(report):
        parts.append("<table><tr><th>line<th>operation<th>lost<th>verdict<th>write instead</tr>")
        parts += [_table_row(row) for row in shown(report)]
        parts.append("</table>")
    parts += [f"<p>{escape(note)}</p>" for note in (*report.notes, *folded_note(report))]
    parts += [_annotated(file, rows) for file, rows in _by_file(report).items()]
    parts.append(f"<p>{escape(cost_of(report))}</p></div>")
    return "\n".join(parts)


def _table_row(row: Row) -> str:
    cells = (row.place, row.operation, amount_of(row), row.verdict.value, row.remedy)
    return f'<tr class="{_class_of(row)}">' + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>"


def _class_of(row: Row) -> str:
    if row.verdict in (Verdict.UNUSED, Verdict.INTENDED, Verdict.OK):
        return ""
    return "mild" if row.verdict == Verdict.KINK else "bad"


def _by_file(report: Summary) -> dict[str, list[Row]]:
    files: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.line:
            files.setdefault(row.file, []).append(row)
    return files


def _annotated(file: str, rows: list[Row]) -> str:
    """Return the source around the rows of one file."""
    source, at = linecache.getlines(file), {row.line: row for row in reversed(rows)}
    near = sorted({n for line in at for n in range(line - _AROUND, line + _AROUND + 1) if 1 <= n <= len(source)})
    if not near:
        return ""
    lines: list[str] = []
    before = near[0] - 1
    for number in near:
        if number != before + 1:
            lines.append('<span class="no">   ...</span>')
        before = number
        lines.append(_source_line(number, source[number - 1].rstrip("\n"), at.get(number)))
    return f"<h3>{escape(os.path.basename(file))}</h3><pre>" + "\n".join(lines) + "</pre>"


def _source_line(number: int, text: str, row: Row | None) -> str:
    label = f'<span class="no">{number:4} </span>'
    if row is None:
        return label + escape(text)
    start, end = row.columns
    if end > start:  # in bytes of the line
        raw = text.encode()
        parts = [escape(part.decode(errors="replace")) for part in (raw[:start], raw[start:end], raw[end:])]
        body = f"{parts[0]}<mark>{parts[1]}</mark>{parts[2]}"
    else:
        body = escape(text)
    said = f"{row.verdict}: {row.operation} {amount_of(row)}".strip()
    return f'{label}<span class="{_class_of(row)}">{body}</span>  <span class="say"># {escape(said)}</span>'
