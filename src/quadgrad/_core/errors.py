"""The exceptions and warnings callers can catch, and how warnings are given."""

from __future__ import annotations

import inspect
import linecache
import re
import sys
import tokenize
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

__all__ = [
    "BridgeError",
    "BridgeWarning",
    "IntegrandError",
    "IntegrationError",
    "IntegrationWarning",
    "PlanError",
    "SeveredGradientWarning",
    "Site",
    "UnmarkedJumpWarning",
    "calling_expression",
    "calling_name",
    "calling_site",
    "prescription",
    "speaker",
    "warn",
]


class Site(NamedTuple):
    """A line of somebody's code: its file, its number, and the names of its module."""

    file: str
    line: int
    names: dict[str, Any]


Speaker = Callable[[str, type[Warning]], tuple[str, Site | None] | None]

speaker: ContextVar[Speaker | None] = ContextVar("quadgrad_speaker", default=None)
"""How a front for another framework puts a warning, and whose line it names where the stack does not tell.

It returns None where there is nothing to say.
"""


class _AsItIs:
    ag_pass_through = True
    """AutoGraph of TensorFlow, which makes exceptions of its own of all others, lets these through."""


class IntegrandError(_AsItIs, ValueError):
    """The integrand broke the calling contract: a wrong shape, no tensor, or not deterministic."""


class IntegrationError(_AsItIs, ArithmeticError):
    """Some integrals did not converge and ``on_failure="raise"`` was asked for."""


class PlanError(_AsItIs, ValueError):
    """A plan does not fit the call it is passed to: other rule, batch, number of breakpoints or kind of limits.

    ``batch_shape`` is the call's, if it is the batch that does not fit.
    """

    batch_shape: tuple[int, ...] | None = None


class IntegrationWarning(UserWarning):
    """Some integrals did not converge, a derivative with respect to a limit is infinite, or a gradient NaN."""


class SeveredGradientWarning(UserWarning):
    """An input requires grad, but the integrand's output does not depend on it through torch."""


class UnmarkedJumpWarning(SeveredGradientWarning):
    """The integrand jumps at a place whose movement with a parameter is not in the gradient."""


class BridgeError(_AsItIs, ValueError):
    """A wrapped function broke its contract: a wrong type, shape or dtype, or a derivative that does not fit."""


class BridgeWarning(UserWarning):
    """A wrapped function returned NaN or infinity."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn the caller: the first line up the stack that is neither ours nor a framework's.

    Python shows a text once for each line. Here texts that differ by numbers alone are one text: a training that
    warns in one step, of an x, warns in the next step of another x.
    """
    site, speak = None, speaker.get()
    if speak is not None:
        said = speak(message, category)
        if said is None:
            return
        message, site = said
    file, line, names = site or calling_site()
    shown = names.setdefault("__warningregistry__", {})
    text, kind = (message, category, line), (re.sub(r"-?\d[\d.,e+-]*", "#", message), category, line)
    if kind in shown:
        # As if Python had shown this text, too. If filters have changed since, it forgets that, and shows the text:
        # what we could not find out.
        shown[text] = True
    warnings.warn_explicit(message, category, file, line, names.get("__name__"), shown)
    if shown.pop(text, False):  # only of filters that show a text once is there an entry
        shown[kind] = True


def calling_site() -> Site:
    """Return the first line up the stack that is neither ours nor a framework's."""
    frame = _calling_frame()
    return Site(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)


def calling_expression() -> str:
    """Return the expression on that line which is being evaluated, in one line; empty where no source is known."""
    frame = _calling_frame()
    first, last, start, end = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [
        linecache.getline(frame.f_code.co_filename, n, frame.f_globals).encode() for n in range(first, last + 1)
    ]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return " ".join(_uncommented([line.decode(errors="replace") for line in lines])).strip()


def _uncommented(lines: list[str]) -> list[str]:
    """Return lines without the comments at their ends, and without the space around them."""
    try:
        for token in tokenize.generate_tokens(iter([*lines, ""]).__next__):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    except (tokenize.TokenError, SyntaxError):  # the rest of a line is missing, which the expression is a part of
        pass
    return [line.strip() for line in lines]


def calling_name(module: str) -> str:
    """Return what a module is called on that line: ``qg``, after ``import quadgrad as qg``; empty if by no name."""
    frame = _calling_frame()
    for names in (frame.f_locals, frame.f_globals):
        for name, value in names.items():
            if value is sys.modules.get(module) and name.isidentifier():
                return name
    return ""


def prescription(called: str = "") -> str:
    """Say what shows the line that severs: a statement that runs where this call stands."""
    if speaker.get() is not None:  # TensorFlow's functions are not the doctor's
        return ""
    call, library = calling_expression(), calling_name("quadgrad")
    if not call.endswith(")") or len(call) > 300:
        call = "..."  # the caller knows what stands there
    run = f"print({library or 'quadgrad'}.doctor.check(lambda: {call}{called}))"
    return f". In place of this call, the line is named by: {'' if library else 'import quadgrad; '}{run}"


def _calling_frame() -> FrameType:
    frame = inspect.currentframe()
    while frame and frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _FRAMEWORKS:
        frame = frame.f_back
    assert frame is not None
    return frame


_FRAMEWORKS = ("quadgrad", "torch", "tensorflow", "keras")
