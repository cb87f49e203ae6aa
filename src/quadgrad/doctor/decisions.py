"""Operations whose results move in steps, and the numbers that decide when."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quadgrad.doctor.names import COMPARISONS, DRAWS, ROUNDINGS, SELECTIONS, SHAPED
from quadgrad.doctor.values import is_continuous, plain_copy, tensors_in

__all__ = ["is_decision", "quantity_of"]

_TO_INTEGERS = frozenset(("to", "type", "as_tensor", "tensor", "astype"))
_WITH_PLACES = frozenset(("max", "min", "median"))


def is_decision(name: str, args: Any, result: Any, flows: bool = False) -> bool:
    """Whether an operation, not in place, turned floating point numbers into something that moves in steps.

    ``flows`` tells that a derivative flows to one of them: then any integer that is made of it counts.
    """
    if name in COMPARISONS or name in ROUNDINGS or name in DRAWS:
        return any(map(_is_floating, tensors_in(args)))
    if name in SELECTIONS:
        return any(map(_is_floating, tensors_in(args))) and (
            name not in _WITH_PLACES or not isinstance(result, Tensor)
        )
    if name in _TO_INTEGERS and isinstance(result, Tensor) and not _is_floating(result) and not result.is_complex():
        return any(map(_is_floating, tensors_in(args)))
    return flows and name not in SHAPED and any(not is_continuous(t) for t in tensors_in(result))


def _is_floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def quantity_of(name: str, args: Any, kwargs: Any, result: Any) -> tuple[Tensor | None, str]:
    """Return the numbers that decide, a plain tensor, and at which levels; None where the outcome alone tells."""
    with torch.no_grad():
        try:
            quantity, levels = _quantity(name, args, kwargs)
        except (TypeError, ValueError, RuntimeError, IndexError):
            return None, "outcome"
    return (None if quantity is None else plain_copy(quantity)[0].double()), levels


def _quantity(name: str, args: Any, kwargs: Any) -> tuple[Tensor | None, str]:
    if name in COMPARISONS:
        other = args[1] if len(args) > 1 else kwargs.get("other")
        return args[0] - other, "zero"
    if name in DRAWS:
        return tensors_in((args, kwargs))[-1], "draw"
    if name in SELECTIONS:
        return _selected(name, args, kwargs)
    if name in ("floor_divide", "__floordiv__", "remainder", "fmod", "__mod__"):
        return args[0] / args[1], "integers"
    if name in ("__rfloordiv__", "__rmod__"):
        return args[1] / args[0], "integers"
    if name in ("threshold", "threshold_", "_threshold"):
        return args[0] - args[1], "zero"
    if name == "hardshrink":
        return args[0].abs() - (args[1] if len(args) > 1 else kwargs.get("lambd", 0.5)), "zero"
    if name.startswith("round") and (digits := kwargs.get("decimals", args[1] if len(args) > 1 else 0)):
        return args[0] * 10.0**digits, "halves"
    if name in ROUNDINGS or name in _TO_INTEGERS:
        return tensors_in(args)[0], ROUNDINGS.get(name, "integers")
    return None, "outcome"


def _selected(name: str, args: Any, kwargs: Any) -> tuple[Tensor | None, str]:
    """Return the numbers among which is chosen, in rows, and what of their order counts: one rank, or all."""
    if name in ("searchsorted", "bucketize"):
        edges, x = (args[0], args[1]) if name == "searchsorted" else (args[1], args[0])
        x = torch.as_tensor(x)
        return x[..., None] - (edges if edges.ndim == 1 else edges[..., None, :]), "zero"
    x = args[0]
    dim = _dimension(name, args, kwargs)
    x = x.flatten() if dim is None or x.ndim == 0 else x.movedim(dim, -1)
    if name in ("argmax", "max"):
        return x, "rank0"
    if name in ("argmin", "min"):
        return x, "rank-1"
    if name == "median":
        return x, f"rank{x.shape[-1] // 2}"
    if name == "topk":
        k = int(args[1] if len(args) > 1 else kwargs["k"])
        smallest = kwargs.get("largest", args[3] if len(args) > 3 else True) is False
        return -x if smallest else x, f"top{k}"
    return x, "order"


def _dimension(name: str, args: Any, kwargs: Any) -> int | None:
    """Return along which dimension places are told; None for all of them."""
    position = 2 if name == "topk" else 1
    dim = kwargs.get("dim", args[position] if len(args) > position else None)
    if isinstance(dim, int) and not isinstance(dim, bool):
        return dim
    return None if name in ("argmax", "argmin", "unique") else -1
