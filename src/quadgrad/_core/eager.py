"""Functions that ``torch.compile`` does not look into."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

__all__ = ["left_eager"]

P = ParamSpec("P")
R = TypeVar("R")


def left_eager(verb: Callable[P, R]) -> Callable[P, R]:
    """Let a compiler break the graph at a function, once: a search cannot be traced, and would break it many times.

    ``torch.compiler.disable`` is asked for when there is a compiler: to load one takes seconds.
    """

    @functools.wraps(verb)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return cast("Callable[P, R]", torch.compiler.disable(verb))(*args, **kwargs)
        return verb(*args, **kwargs)

    return called
