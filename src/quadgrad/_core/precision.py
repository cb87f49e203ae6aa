"""Half precision inside a function that is called in another one: seen by what its operations return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from quadgrad._core.integrand import Integrand

__all__ = ["half_inside"]


class _Seen(TorchFunctionMode):
    """Notes the coarsest dtype that an operation has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.half: torch.dtype | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation."""
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype in (torch.float16, torch.bfloat16) and self.half != torch.bfloat16:
            self.half = out.dtype
        return out


def half_inside(integrand: Integrand, x: Tensor, owner: Tensor | slice) -> torch.dtype | None:
    """Return the half precision that f computes in at x, called in another one; None if there is none.

    Parameters
    ----------
    integrand : Integrand
    x : Tensor, shape (m, n, *point)
    owner : Tensor or slice
        Each column's integral.
    """
    if integrand.call_dtype.itemsize < 4 or not integrand.vectorized:
        return None
    with torch.no_grad(), _Seen() as seen:
        integrand(x, owner)
    return seen.half
