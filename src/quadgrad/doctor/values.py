"""What operations return, held as it is, put back, and moved: tensors of any transform, numbers, arrays, nests."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import (
    add_lanes,
    belongs_to_transform,
    flatten_tree,
    in_transform,
    outside_transforms,
    unflatten_tree,
    unwrap,
)

__all__ = [
    "Held",
    "add",
    "difference",
    "hold",
    "is_continuous",
    "moves",
    "plain_copy",
    "restore",
    "same",
    "same_outcome",
    "size_of",
    "tensors_in",
]


class Held(NamedTuple):
    """A value that outlives the run that made it: plain leaves, the nest, and which ``vmap`` levels each had."""

    leaves: tuple[Any, ...]
    form: Any
    levels: tuple[tuple[int, ...], ...]


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors among arguments, in order; cheaper than flattening them."""
    found: list[Tensor] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, tuple | list):
            waiting.extend(reversed(one))
        elif isinstance(one, dict):
            waiting.extend(reversed(one.values()))
    return found


def plain_copy(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return a copy without gradient and transforms, lanes in front, and the levels of these lanes."""
    if not in_transform():
        return tensor.detach().clone(), ()
    plain, sizes = unwrap(tensor)
    with outside_transforms():  # which would wrap the copy, too
        return plain.clone(), tuple(sorted(sizes))


def _copy(leaf: Any) -> tuple[Any, tuple[int, ...]]:
    if isinstance(leaf, Tensor):
        return plain_copy(leaf)
    return (leaf.copy() if isinstance(leaf, np.ndarray) else leaf), ()


def hold(value: Any) -> Held:
    """Copy a value, so that nothing done to it later is done to the copy."""
    leaves, form = flatten_tree(value)
    copies = [_copy(leaf) for leaf in leaves]
    return Held(tuple(copy for copy, _ in copies), form, tuple(levels for _, levels in copies))


def restore(held: Held, like: Any = None) -> Any:
    """Return the value again; where it was a parameter or required grad, a new leaf that does."""
    likes = flatten_tree(like)[0] if like is not None else [None] * len(held.leaves)
    return unflatten_tree(
        [_restored(*each) for each in zip(held.leaves, held.levels, likes, strict=False)], held.form
    )


def _restored(leaf: Any, levels: tuple[int, ...], like: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if not isinstance(leaf, Tensor):
        return leaf
    with outside_transforms():
        fresh = leaf.clone()
    fresh = add_lanes(fresh, levels)
    if isinstance(like, Tensor) and like.requires_grad and not like.is_leaf and not belongs_to_transform(like):
        return like + (
            fresh - like.detach()
        )  # torch takes its derivative for zero; what follows must see that it has one
    if isinstance(like, Tensor) and not belongs_to_transform(like) and like.requires_grad and like.is_leaf:
        fresh.requires_grad_()
        if isinstance(like, torch.nn.Parameter):
            fresh = torch.Tensor._make_subclass(torch.nn.Parameter, fresh.detach(), True)
    return fresh


def difference(new: Held, old: Held) -> Held | None:
    """Return how far a value moved; None where it has another form, or shape."""
    if new.form != old.form or len(new.leaves) != len(old.leaves):
        return None
    parts: list[Any] = []
    for a, b in zip(new.leaves, old.leaves, strict=True):
        if isinstance(a, Tensor) != isinstance(b, Tensor) or getattr(a, "shape", ()) != getattr(b, "shape", ()):
            return None
        with outside_transforms():
            parts.append(a - b if is_continuous(a) and is_continuous(b) else None)
    return Held(tuple(parts), old.form, old.levels)


def is_continuous(leaf: Any) -> bool:
    """Whether a value can move a little: a floating or complex one."""
    if isinstance(leaf, Tensor):
        return leaf.is_floating_point() or leaf.is_complex()
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "fc"
    return isinstance(leaf, float | complex)


def add(value: Any, moved: Held) -> Any:
    """Return a value with a difference added."""
    leaves, form = flatten_tree(value)
    sums = [
        leaf
        if step is None
        else leaf.detach() + add_lanes(step, levels)
        if isinstance(leaf, Tensor)
        else leaf + step
        for leaf, step, levels in zip(leaves, moved.leaves, moved.levels, strict=True)
    ]
    sums = [_like(total, leaf) for total, leaf in zip(sums, leaves, strict=True)]
    return unflatten_tree(sums, form)


def _like(total: Any, leaf: Any) -> Any:
    """Return the sum as what it was added to: a leaf that requires grad, or a parameter."""
    if total is leaf or not isinstance(leaf, Tensor) or belongs_to_transform(leaf):
        return total
    if not leaf.requires_grad:
        return total
    if not leaf.is_leaf:
        return leaf + (total - leaf.detach())
    if isinstance(leaf, torch.nn.Parameter):
        return torch.Tensor._make_subclass(torch.nn.Parameter, total.detach(), True)
    return total.requires_grad_()


def same(a: Held, b: Held) -> bool:
    """Whether two values agree to the last bit."""
    if a.form != b.form or len(a.leaves) != len(b.leaves):
        return False
    return all(_same(x, y) for x, y in zip(a.leaves, b.leaves, strict=True))


def same_outcome(a: Held, b: Held) -> bool:
    """Whether what moves in steps is the same, whatever else an operation returned."""
    if len(a.leaves) != len(b.leaves):
        return False
    return all(
        _same(x, y)
        for x, y in zip(a.leaves, b.leaves, strict=True)
        if not (isinstance(x, Tensor) and x.is_floating_point() and len(a.leaves) > 1)
    )


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor):
        if not isinstance(y, Tensor) or x.shape != y.shape or x.dtype != y.dtype:
            return False
        return torch.equal(x, y) or (x.is_floating_point() and bool(((x == y) | (x.isnan() & y.isnan())).all()))
    if isinstance(x, np.ndarray):
        return isinstance(y, np.ndarray) and np.array_equal(x, y, equal_nan=x.dtype.kind in "fc")
    if isinstance(x, float) and isinstance(y, float):  # a number that notes how it is compared is not asked to
        x, y = float(x), float(y)
    return x is y or x == y or (x != x and y != y)


def moves(moved: Held | None) -> bool:
    """Whether anything moved."""
    return moved is None or size_of(moved) > 0.0


def size_of(moved: Held) -> float:
    """Return the largest entry of a difference."""
    sizes = [0.0]
    for leaf in moved.leaves:
        if isinstance(leaf, Tensor):
            sizes.append(float(leaf.abs().max()) if leaf.numel() else 0.0)
        elif leaf is not None:
            sizes.append(float(np.max(np.abs(leaf))) if np.size(leaf) else 0.0)
    return max(sizes)
