"""The recipes: every block prints what it says."""

from __future__ import annotations

import doctest
import io
import re
from pathlib import Path

import numpy as np
import pytest

RECIPES = sorted((Path(__file__).parents[1] / "docs" / "recipes").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page: Path) -> dict[str, object]:
    """Run the blocks of a page, one after the other; return the names they leave behind."""
    text = page.read_text(encoding="utf-8")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF)
    names: dict[str, object] = {}
    said = io.StringIO()
    for match in BLOCK.finditer(text):
        line = text[: match.start(2)].count("\n")
        test = doctest.DocTestParser().get_doctest(match[2], names, page.name, str(page), line)
        assert test.examples
        runner.run(test, out=said.write, clear_globs=False)
        names = test.globs
    assert runner.failures == 0, said.getvalue()
    return names


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_every_python_block_prints_what_it_says(page: Path) -> None:
    names = run(page)
    assert names
    text = page.read_text(encoding="utf-8")
    assert {match[1] for match in BLOCK.finditer(text)} == {"pycon"}
    assert ">>>" not in BLOCK.sub("", text)
    if page.stem == "numpy_in_a_model":
        losses = np.array([names["by_torch"], names["by_vjp"], names["by_differences"]])
        assert losses.shape == (3, 8)
        assert np.ptp(losses, axis=0).max() < 1e-6
