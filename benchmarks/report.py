"""Print findings: a sentence on the setting, the measurements, and every figure beside its target."""

from __future__ import annotations

import platform

import scipy
import torch
from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet

__all__ = ["show_findings", "show_setting"]


def show_setting(console: Console, kept: bool = False) -> None:
    """Print what every time depends on."""
    console.print(
        f"quadgrad {qg.__version__}, torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"SciPy {scipy.__version__}, Python {platform.python_version()}, {platform.machine()}"
        f"{'; freed memory is kept, by qg.keep_freed_memory()' if kept else ''}. "
        "What is compared runs in turn, in one process. Figures come from the medians of times, beside them those "
        "from the best; a target counts as met when both meet it.",
        highlight=False,
    )


def show_findings(findings: Findings, console: Console) -> None:
    """Print what one benchmark found."""
    console.print()
    console.print(Rule(f"[bold]{findings.title}", align="left"))
    console.print(findings.setting, highlight=False)
    for sheet in findings.sheets:
        console.print(measurements(sheet))
    console.print(figures(findings))
    for note in findings.notes:
        console.print(f"[dim]{note}[/]", highlight=False)


def measurements(sheet: Sheet) -> Table:
    """Return a table as it is; the first column is left-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, heading in enumerate(sheet.headings):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    return table


def figures(findings: Findings) -> Table:
    """Return the table of figures beside their targets."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("figure")
    for heading in ("measured", "best runs", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for figure in findings.figures:
        table.add_row(
            figure.label,
            f"[bold]{figure.measured:.3g} {figure.unit}",
            "" if figure.best is None else f"{figure.best:.3g} {figure.unit}",
            "" if figure.target is None else f"{figure.target} {figure.unit}",
            verdict(figure),
        )
    return table


def verdict(figure: Figure) -> str:
    """Say whether a target is met."""
    if figure.target is None:
        return ""
    met = figure.target.met(figure.measured)
    at_best = met if figure.best is None else figure.target.met(figure.best)
    if met and at_best:
        return "[green]met"
    return "[yellow]met in the best runs only" if at_best else "[red]not met"
