"""What the demo prints: a few words before each table, and every number beside its reference."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table
from torch import Tensor

from quadgrad._core.search.kernel.library import describe
from quadgrad._demo import outcome

__all__ = ["Report"]


class Report:
    """Print the demo's findings to a console.

    Parameters
    ----------
    console : Console
        Where to print; progress is shown only if it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = min(console.width, 100)

    def say(self, text: str) -> None:
        """Print a paragraph, its lines joined and wrapped to a readable width."""
        self.console.print(" ".join(text.split()), highlight=False, width=self.width)

    def chapter(self, title: str, text: str) -> None:
        """Print a heading and a paragraph."""
        self.console.print()
        self.console.print(Rule(f"[bold]{title}", align="left"), width=self.width)
        self.say(text)

    @contextmanager
    def fitting(self, label: str) -> Generator[outcome.Progress]:
        """Show a line that follows a fit; nothing is shown when output is not a terminal."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(pulse_style="cyan"),
            TextColumn("{task.completed} evaluations{task.fields[objective]}"),
            TimeElapsedColumn(),
        )
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not terminal) as progress:
            task = progress.add_task(label, total=None, objective="")

            def update(evaluations: int, objective: float) -> None:
                progress.update(task, completed=evaluations, objective=f", objective {objective:.3f}")

            yield update

    def checks(self, checks: Sequence[outcome.Check], source: str) -> None:
        """Print our numbers beside those of ``source``."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("", no_wrap=True)
        table.add_column("unit", style="dim", no_wrap=True)
        for heading, style in (("quadgrad", "bold"), (source, ""), ("off by", ""), ("allowed", "dim")):
            table.add_column(heading, justify="right", style=style, no_wrap=True)
        table.add_column("")
        for check in checks:
            relative = check.unit == outcome.RELATIVE
            table.add_row(
                check.label,
                check.unit,
                "" if relative else f"{check.ours:.{check.digits}f}",
                "" if relative else f"{check.reference:.{check.digits}f}",
                f"{check.difference:+.1e}",
                "" if check.tolerance is None else f"{check.tolerance:.1e}",
                "" if check.tolerance is None else "[green]ok" if check.passed else "[red]OFF",
            )
        self.console.print(table)

    def costs(self, costs: Iterable[outcome.Cost]) -> None:
        """Print what each call of ``quad`` cost and how far it was off."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("one call of quad")
        table.add_column("integrals", justify="right")
        table.add_column("evaluations\neach", justify="right")
        table.add_column("reported\nerror", justify="right")
        table.add_column("true\nerror", justify="right")
        table.add_column("against")
        table.add_column("time\n(ms)", justify="right")
        table.add_column("")
        for cost in costs:
            table.add_row(
                cost.label,
                f"{cost.reported.numel():,}",
                span(cost.evaluations),
                f"{cost.reported.max().item():.0e}",
                f"{cost.true.max().item():.0e}",
                cost.source,
                f"{1e3 * cost.seconds:.1f}",
                "[green]ok" if cost.honest else "[red]OFF",
            )
        self.console.print(table)

    def closing(self, failed: Sequence[str], picture: Path, seconds: float) -> None:
        """Say whether everything agreed, how long it took, and where the picture is."""
        if failed:
            self.say(f"[red]Off by more than allowed:[/] {'; '.join(failed)}.")
        else:
            self.say("[green]Every number agrees with its reference; every reported error covers the true one.[/]")
        self.say(f"{seconds:.1f} s in all, with torch {torch.__version__} and {torch.get_num_threads()} threads.")
        self.say(f"The search's compiled kernel: {describe()}.")
        self.console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


def span(evaluations: Tensor) -> str:
    """Return the range of evaluation counts, as one number if all are equal."""
    low, high = int(evaluations.min()), int(evaluations.max())
    return f"{low}" if low == high else f"{low} to {high}"
