"""The recipes: every block prints what it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pages import BLOCK, group, run

RECIPES = {
    page.stem: page.read_text(encoding="utf-8")
    for page in sorted((Path(__file__).parents[1] / "docs" / "recipes").glob("*.md"))
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=group(text)) for name, text in RECIPES.items()])
def test_every_python_block_prints_what_it_says(name: str) -> None:
    if name == "solar_cell":
        pytest.importorskip("pvlib")
    if name == "c_function" and shutil.which("gcc") is None:
        pytest.skip("needs a C compiler")
    text = RECIPES[name]
    assert {match[1] for match in BLOCK.finditer(text)} == {"pycon"}
    assert ">>>" not in BLOCK.sub("", text)
    names = run(text, f"{name}.md")
    assert names
    if name == "numpy_in_a_model":
        losses = np.array([names["by_torch"], names["by_vjp"], names["by_differences"]])
        assert losses.shape == (3, 8)
        assert np.ptp(losses, axis=0).max() < 1e-6
