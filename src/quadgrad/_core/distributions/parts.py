"""A distribution taken apart: its parameter tensors, and how to build it again from others.

Parameters then travel as arguments of an integrand. What each integral of a batch has for its own is known, and
nothing is closed over.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    TransformedDistribution,
    transforms,
)

from quadgrad._core.integrand import Element, element

__all__ = ["Parts", "take_apart"]


@dataclass(frozen=True)
class Parts:
    """Parameters ``(*batch, *element)`` of a distribution, and the function that builds it from others."""

    tensors: tuple[Element, ...]
    build: Callable[[Sequence[Any]], Any]


def take_apart(distribution: Distribution) -> Parts:
    """Return the parameters of a distribution, found by ``arg_constraints``, and how to build it from others.

    Raises
    ------
    TypeError
        If its class cannot be called with its parameters.
    """
    return _take_apart(distribution, 0)


def _take_apart(distribution: Any, extra: int) -> Parts:
    """Do it for one whose last ``extra`` batch dimensions belong to each element."""
    if isinstance(distribution, Independent):
        count = distribution.reinterpreted_batch_ndims
        base = _take_apart(distribution.base_dist, extra + count)
        return Parts(base.tensors, lambda t: Independent(base.build(t), count, validate_args=False))
    if isinstance(distribution, MixtureSameFamily):
        return _join(
            [
                _take_apart(distribution.mixture_distribution, extra),
                _take_apart(distribution.component_distribution, extra + 1),
            ],
            lambda pair: MixtureSameFamily(*pair, validate_args=False),
        )
    if type(distribution) is TransformedDistribution:
        whole = extra + len(distribution.event_shape)
        chain = [_take_transform_apart(t, whole) for t in distribution.transforms]
        # An event that transforms alone make up stays a batch of the base, which is longer by it.
        longer = len(distribution.base_dist.batch_shape) - len(distribution.batch_shape)
        base = _take_apart(distribution.base_dist, extra + max(0, longer))
        return _join([base, *chain], lambda made: TransformedDistribution(made[0], made[1:], validate_args=False))
    return _by_constructor(distribution, extra)


def _join(parts: Sequence[Any], build: Callable[[list[Any]], Any]) -> Parts:
    """Return the parts of something that is built of several."""
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part.tensors))

    def build_all(tensors: Sequence[Any]) -> Any:
        each = [p.build(tensors[low:high]) for p, low, high in zip(parts, ends[:-1], ends[1:], strict=True)]
        return build(each)

    return Parts(tuple(t for part in parts for t in part.tensors), build_all)


def _by_constructor(distribution: Any, extra: int) -> Parts:
    """Return the parts of a distribution that its class builds from its parameters by name."""
    kind = type(distribution)
    constants: dict[str, Any] = {}
    found: dict[str, Element] = {}
    constraints = distribution.arg_constraints
    for name in _names(distribution):
        value = getattr(distribution, name)
        core = constraints[name].event_dim if name in constraints else 0
        core = max(core, getattr(value, "ndim", 0) - len(distribution.batch_shape))
        if not isinstance(value, Tensor):
            constants[name] = value
            continue
        if name in constraints:
            value = value.expand((*distribution.batch_shape, *value.shape[value.ndim - core :]))
        found[name] = element(value, min(value.ndim, core + extra))

    def build(tensors: Sequence[Any]) -> Distribution:
        given = dict(zip(found, tensors, strict=True))
        if isinstance(given.get("scale_tril"), Tensor):  # draws would depend on what lies above, densities not
            given["scale_tril"] = given["scale_tril"].tril()
        return kind(**constants, **given, validate_args=False)

    try:
        again = build([v.tensor for v in found.values()])
        shapes = [(d.batch_shape, d.event_shape) for d in (distribution, again)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"shapes {shapes[1]} instead of {shapes[0]}")
    except Exception as error:
        raise TypeError(
            f"{kind.__name__} cannot be built from its parameters {', '.join(found) or '(none)'}: {error}. They "
            "are found through arg_constraints and passed by name. Let its constructor accept them and "
            "validate_args, or pass a function of params that returns the distribution, and params="
        ) from error
    return Parts(tuple(found.values()), build)


def _names(distribution: Any) -> list[str]:
    """Return by which names the constructor is given what the distribution consists of."""
    if isinstance(distribution, MultivariateNormal):
        return ["loc", "scale_tril"]  # what it was given is one of four
    accepted = inspect.signature(type(distribution).__init__).parameters
    names = [n for n in distribution.arg_constraints if n in accepted]
    if "scale_tril" in names:
        names = [n for n in names if n not in ("covariance_matrix", "precision_matrix")]
    if {"probs", "logits"} <= set(names):
        holder = getattr(distribution, "_categorical", distribution)
        # The one that it was given: what is computed from the other is cut off at the ends of [0, 1].
        names.remove("logits" if "probs" in vars(holder) else "probs")
    needed = (n for n, p in accepted.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    return names + [n for n in needed if n not in names and hasattr(distribution, n) and n != "self"]


def _take_transform_apart(transform: Any, whole: int) -> Any:
    """Return the parts of a transform, of something with ``whole`` dimensions for each element."""
    kind = type(transform)
    if isinstance(transform, transforms.ComposeTransform):
        each = [_take_transform_apart(t, whole) for t in transform.parts]
        return _join(each, lambda made: transforms.ComposeTransform(made))
    if isinstance(transform, transforms.IndependentTransform):
        count = transform.reinterpreted_batch_ndims
        base = _take_transform_apart(transform.base_transform, whole)
        return _join([base], lambda made: transforms.IndependentTransform(made[0], count))
    if isinstance(transform, transforms.CumulativeDistributionTransform):
        base = _take_apart(transform.distribution, whole)
        return _join([base], lambda made: kind(made[0]))
    names = {transforms.AffineTransform: ("loc", "scale"), transforms.PowerTransform: ("exponent",)}.get(kind, ())
    if not names and getattr(transform, "_inv", None) is not None and kind.__name__ == "_InverseTransform":
        base = _take_transform_apart(transform.inv, whole)
        return _join([base], lambda made: made[0].inv)
    values = {name: getattr(transform, name) for name in names}
    tensors = {n: v for n, v in values.items() if isinstance(v, Tensor)}
    if not tensors:  # what a transform of the caller's own holds is closed over, as a network is
        return Parts((), lambda _: transform)
    rest = {n: v for n, v in values.items() if n not in tensors}
    if kind is transforms.AffineTransform:
        rest["event_dim"] = transform.event_dim
    found = tuple(element(v, min(v.ndim, whole)) for v in tensors.values())
    return Parts(found, lambda t: kind(**rest, **dict(zip(tensors, t, strict=True))))


def floating(tensors: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """Return the floating ones among them in a dtype."""
    return [t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors]
