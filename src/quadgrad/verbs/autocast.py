"""``torch.autocast`` applies to the user's function, and not to the sums over what it returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["without_autocast"]

Function = Callable[..., Any]


@contextmanager
def without_autocast() -> Generator[Callable[[Function], Function]]:
    """Switch autocast off inside; yield what gives a function the state that it was in.

    The cache of cast weights is not used: one that was filled while search had gradients off would sever them.
    """
    active = [(kind, torch.get_autocast_dtype(kind)) for kind in _device_types() if torch.is_autocast_enabled(kind)]

    def restore(f: Function) -> Function:
        if not active or not callable(f):
            return f

        @functools.wraps(f, updated=())
        def under_autocast(*args: Any) -> Any:
            with ExitStack() as stack:
                for kind, dtype in active:
                    stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
                return f(*args)

        return under_autocast

    with ExitStack() as stack:
        for kind, _ in active:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield restore


def _device_types() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
