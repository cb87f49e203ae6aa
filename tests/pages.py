"""Pages with examples: their blocks are run one after the other, and print what they say."""

from __future__ import annotations

import doctest
import io
import re
from importlib.util import find_spec

import pytest

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TENSORFLOW = re.compile(r"\b(tensorflow|tf|qgt|keras)\b")


def run(text: str, name: str) -> dict[str, object]:
    """Run the Python blocks of a page; return the names that they leave behind.

    Where TensorFlow is not installed, the blocks that use it are left out, and the test counts as skipped.
    """
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF)
    names: dict[str, object] = {"__name__": "__main__"}  # where functions on the page say they are from
    said = io.StringIO()
    left_out = 0
    for match in BLOCK.finditer(text):
        if match[1] != "pycon":
            continue
        if TENSORFLOW.search(match[2]) and find_spec("tensorflow") is None:
            left_out += 1
            continue
        test = doctest.DocTestParser().get_doctest(match[2], names, name, name, text[: match.start(2)].count("\n"))
        assert test.examples
        runner.run(test, out=said.write, clear_globs=False)
        names = test.globs
    assert runner.failures == 0, said.getvalue()
    if left_out:
        pytest.skip(f"{left_out} blocks need TensorFlow, which is not installed; the others print what they say")
    return names


def group(text: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a page: what uses TensorFlow runs in one worker."""
    return [pytest.mark.xdist_group("tensorflow")] if TENSORFLOW.search(text) else []
