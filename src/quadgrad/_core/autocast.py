"""``torch.autocast`` applies to the user's function, and not to the sums over what it returns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

__all__ = ["WithoutAutocast"]

Function = Callable[..., Any]
DEVICES = ("cpu", "cuda")


class WithoutAutocast:
    """Switch autocast off inside; :meth:`restore` gives a function the state that it was in.

    The cache of cast weights is not used: one that was filled while search had gradients off would sever them.
    """

    __slots__ = ("active", "stack")

    def __enter__(self) -> WithoutAutocast:
        """Note which kinds of device cast, and let them not."""
        self.active = [
            (kind, torch.get_autocast_dtype(kind)) for kind in DEVICES if torch.is_autocast_enabled(kind)
        ]
        self.stack = ExitStack() if self.active else None
        if self.stack is not None:
            for kind, _ in self.active:
                self.stack.enter_context(torch.autocast(kind, enabled=False))
        return self

    def __exit__(self, *error: Any) -> None:
        """Let them cast again."""
        if self.stack is not None:
            self.stack.close()

    def restore(self, f: Function) -> Function:
        """Return the function as it is to be called inside."""
        active = self.active
        if not active or not callable(f):
            return f

        @functools.wraps(f, updated=())
        def under_autocast(*args: Any) -> Any:
            with ExitStack() as stack:
                for kind, dtype in active:
                    stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
                return f(*args)

        return under_autocast
