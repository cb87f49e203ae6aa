"""Everything private to torch that quadgrad touches, in one place.

Each name has a canary in ``tests/test_torch_canary.py`` that fails when torch changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.utils import _python_dispatch, _pytree

__all__ = ["dispatch_mode_open", "forward_mode_open", "in_transform", "register_pytree", "tangent_of"]


def in_transform() -> bool:
    """Whether a ``torch.func`` transform (``grad``, ``vmap``, ``jvp`` ...) surrounds the caller."""
    return _functorch.peek_interpreter_stack() is not None


def forward_mode_open() -> bool:
    """Whether a forward-mode level is open, so that tangents may flow even where gradients are off."""
    return forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def dispatch_mode_open() -> bool:
    """Whether operators are being recorded or replaced: a tracer, fake tensors, a ``TorchDispatchMode``."""
    mode = _python_dispatch._get_current_dispatch_mode()  # pyright: ignore[reportPrivateUsage]
    return mode is not None


def register_pytree(
    cls: type,
    flatten: Callable[[Any], tuple[list[torch.Tensor], Any]],
    unflatten: Callable[[Any, Any], Any],
) -> None:
    """Make torch's transforms accept and return instances of ``cls``."""
    _pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
    )


def tangent_of(tensor: Tensor) -> Tensor | None:
    """Return the tangent at the current forward-mode level, if it has one."""
    return forward_ad.unpack_dual(tensor).tangent
