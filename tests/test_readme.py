"""The README: its examples print what they say, its limits are the real ones, its links lead somewhere."""

from __future__ import annotations

import re
import runpy
from math import inf, pi
from pathlib import Path

import pytest
import torch

import quadgrad as qg
from helpers import t64
from pages import BLOCK, group, run
from quadgrad import Status

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LANGUAGES = {"sh", "pycon"}


@pytest.mark.parametrize("text", [pytest.param(README, marks=group(README), id="README")])
def test_every_python_block_prints_what_it_says(text: str) -> None:
    assert len(run(text, "README.md")) > 10


def test_no_python_escapes_the_test() -> None:
    assert {match[1] for match in BLOCK.finditer(README)} == LANGUAGES
    outside = BLOCK.sub("", README)
    assert ">>>" not in outside
    assert "```" not in outside


def test_statuses_are_quoted_as_they_are() -> None:
    for status in Status:
        assert f"| `{status.name}` | {status.message} |" in README


@pytest.mark.parametrize(
    ("f", "a", "b", "rtol", "status", "digits"),
    [
        (lambda x: (1 - x) ** -0.9, 0.0, 1.0, 1e-12, Status.ROUNDOFF, 11),
        (lambda x: (torch.sin(x) + torch.sin(2**0.5 * x)) / x, 0.0, inf, 1e-8, Status.MAX_NFEV, None),
        (
            lambda x: torch.stack([torch.sin(x) / x, torch.sin(2 * x) / x], -1),
            0.0,
            inf,
            1e-8,
            Status.MAX_NFEV,
            None,
        ),
    ],
    ids=["rounding", "two frequencies", "events"],
)
def test_what_it_says_this_version_does_not_do(
    f, a: float, b: float, rtol: float, status: Status, digits: int | None
) -> None:
    """When one of these starts to work, the README has to change."""
    result = qg.quad(f, t64(a), b, rtol=rtol, on_failure="ignore")
    assert int(result.status) == status
    if digits is not None:
        assert 10.0**-digits < 10 * result.error / result.value < 100 * 10.0**-digits


def test_the_box_in_a_long_interval_is_seen_and_the_narrow_bell_is_not() -> None:
    box = lambda x: ((x > 0) & (x < 1)).to(x.dtype)
    torch.testing.assert_close(qg.quad(box, t64(-1.0), 1e4).value, t64(1.0))
    bells = lambda x: torch.exp(-(x**2)) + torch.exp(-(((x - 3.3) / 1e-3) ** 2))
    missed = qg.quad(bells, t64(0.0), 10.0)
    assert missed.converged
    assert abs(missed.value - pi**0.5 / 2) < 1e-7


def test_links_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"`?make (\w+)", "\n".join(match[2] for match in BLOCK.finditer(README))):
        assert f"\n{name}:" in makefile, name


def test_the_pictures_are_small_and_the_one_of_the_idea_is_what_happens(tmp_path: Path) -> None:
    assert (ROOT / "docs/demo.png").stat().st_size < 300_000
    runpy.run_path(str(ROOT / "docs/idea.py"))["main"](tmp_path)
    assert 0 < (tmp_path / "idea.svg").stat().st_size < 100_000
