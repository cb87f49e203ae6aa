"""Long samples: the bar that shows on a terminal and nowhere else, and memory that does not depend on n."""

from __future__ import annotations

import io
import sys

import pytest
import torch

import quadgrad as qg
from benchmarks.samples import BACKWARD, Case, run_fresh
from helpers import t64
from quadgrad._core.progress import show_progress


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def integrate(**options: object) -> qg.Result:
    return qg.qmc(lambda x: torch.exp(-(x**2).sum(-1)), t64([0.0, 0.0]), 1.0, n=2**16, **options)


def test_a_bar_shows_on_a_terminal_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    result = integrate(progress=True)
    said = terminal.getvalue()
    assert "points, at most" in said
    assert "65536/65536" in said
    assert said.rstrip().endswith("\x1b[2K")  # the line is cleared
    assert torch.equal(result.value, integrate().value)


def test_boxes_show_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    peaks = lambda **options: (
        qg.cubature(
            lambda x: torch.exp(-(x**2).sum(-1)), t64([0.0, 0.0]), 1.0, rtol=1e-9, max_nfev=10_000, **options
        ).value
    )
    value = peaks(progress=True)
    assert "/10000" in terminal.getvalue() and terminal.getvalue().rstrip().endswith("\x1b[2K")
    assert torch.equal(value, peaks())


def test_nothing_shows_unless_asked_for_or_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    integrate()
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    integrate(progress=True)
    assert file.getvalue() == ""


def test_without_rich_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert torch.equal(integrate(progress=True).value, integrate().value)
    assert terminal.getvalue().count("\n") == 1
    assert "pip install 'quadgrad[cli]'" in terminal.getvalue()


def test_the_bar_counts_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with show_progress(True, 100) as advance:
        advance(30)
        advance(12)
    assert "42/100" in terminal.getvalue()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_backward_pass_through_ten_million_points_stays_below_a_gibibyte() -> None:
    """10^8 points without gradient are on the page ``samples`` of the benchmarks: memory is the same."""
    outcome = run_fresh(Case(BACKWARD, gradient=True))
    assert outcome.nfev >= BACKWARD
    assert outcome.peak < 2**30
    assert outcome.off < 1e-6
