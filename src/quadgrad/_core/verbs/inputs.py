"""The door: convert and check what the caller passed, once, with the caller's own shapes in the messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import belongs_to_transform
from quadgrad._core.broadcasting import broadcast_shapes
from quadgrad._core.gradient import GradientMode
from quadgrad._core.integrand import Element, Integrand, make_argument, take_arguments, tensor_and_ndim
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.box import Box
from quadgrad._core.mesh.limits import Limits, stack_points
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.points.sequence import whole_number
from quadgrad._core.problem import LIMIT_GRADIENTS, Problem
from quadgrad._core.rules import get_rule
from quadgrad._core.tolerance import epsilon, make_tolerance, sum_dtype, working_dtype

__all__ = [
    "check_limit_gradient",
    "check_options",
    "flatten",
    "prepare",
    "prepare_box",
    "refuse_other_than_functions",
    "sampled_tolerances",
    "unlike_points",
    "whole_budget",
]

SAMPLED_RTOL = 1e-3
"""The relative tolerance of a sample unless n or a tolerance is given: more costs millions of points."""


def prepare(
    f: Callable[..., Any],
    a: Any,
    b: Any,
    args: Any,
    points: Any,
    vectorized: bool = True,
    rule: str = "gk21",
    tolerances: tuple[float | None, float] = (None, 0.0),
    budget: float | None = None,
    **options: Any,
) -> Problem:
    """Check and flatten the integrand, its limits, arguments and breakpoints; options are the problem's."""
    integrand, limits, shape, sources, given = flatten(f, a, b, args, points, vectorized)
    tolerance = make_tolerance(*tolerances, epsilon(integrand.call_dtype))
    if not isinstance(rule, str):
        raise TypeError(f"rule={rule!r} is no name: write rule='gk21'")
    return Problem(
        integrand, limits, shape, get_rule(rule), tolerance, budget=whole_budget(budget), sources=sources,
        given=given, **options,
    )  # fmt: skip


def whole_budget(max_nfev: Any) -> Any:
    """Return the most nodes that a caller allows, which may be given as 1e6, or be without bounds, infinite."""
    return max_nfev if max_nfev is None or max_nfev == math.inf else whole_number("max_nfev", max_nfev)


Sources = tuple[Tensor | None, ...]
"""The caller's own tensors behind what was flattened."""


def flatten(
    f: Any, a: Any, b: Any, args: Any, points: Any, vectorized: bool = True, trusted: IntervalPlan | None = None
) -> tuple[Integrand, Limits, tuple[int, ...], Sources, Sources]:
    """Return integrand and limits over the flattened batch, its shape, and the sources of limits and arguments.

    With a plan that is ``trusted`` its batch is theirs, and no value is looked at.
    """
    refuse_other_than_functions(f)
    args = take_arguments(args)
    numbers = [a, b, points]  # among which NumPy's have a dtype
    a, b = _limit("a", a), _limit("b", b)
    tensors = _tensors(a, b, args)
    _refuse_mixed_devices(tensors | dict(_passed_in("points", points)))
    call_dtype = _dtype(tensors, numbers)
    points = None if points is None else _stacked(points)
    first = next(iter(tensors.values()), points) if trusted is None else trusted.row
    device = torch.device("cpu") if first is None else tensor_and_ndim(first)[0].device
    points = None if points is None else points.to(device)
    shape = _batch_shape(tensors, points) if trusted is None else trusted.batch_shape
    if trusted is not None:
        infinite, ordered = trusted.infinite, isinstance(a, float) and isinstance(b, float) and a <= b
    else:
        lower, upper = _number(a), _number(b)
        infinite = not (_is_finite("a", a, lower) & _is_finite("b", b, upper))
        ordered = None if lower is None or upper is None else lower <= upper
    wide = sum_dtype(device)
    flat = [_flatten(end, shape, wide, device, share=points is None) for end in (a, b)]
    marks = None if points is None else _flatten_points(points, shape, wide)
    arguments = tuple([make_argument(v, shape) for v in args])
    if ordered is None:
        ordered = not bool(plain(flat[1] < flat[0]).any())
    sources = [end if isinstance(end, Tensor) else None for end in (a, b)]
    sources += [points] * (0 if points is None else points.shape[-1])
    originals = [tensor_and_ndim(v)[0] for v in args]
    passed = tuple([v if isinstance(v, Tensor) else None for v in originals])
    integrand = Integrand(f, arguments, len(shape), call_dtype, wide, vectorized)
    return (
        integrand,
        # By half precision's own spacing hardly a cell could be split: of 300 tails 93 converged, by single's all.
        Limits(flat[0], flat[1], marks, infinite, ordered, x_dtype=torch.promote_types(call_dtype, torch.float32)),
        shape,
        tuple(sources),
        passed,
    )


def prepare_box(
    f: Callable[..., Any], a: Any, b: Any, args: Any, vectorized: bool, tolerances: tuple[float | None, float],
    **options: Any,
) -> Problem:  # fmt: skip
    """Check and flatten the integrand, boxes and arguments of a sample; options are the problem's."""
    integrand, box, shape, given = flatten_box(f, a, b, args, vectorized)
    tolerance = make_tolerance(*sampled_tolerances(*tolerances), epsilon(integrand.call_dtype))
    return Problem(integrand, box, shape, None, tolerance, given=given, **options)


def sampled_tolerances(rtol: float | None, atol: float) -> tuple[float, float]:
    """Return the tolerances of a sample; where none is given it is the usual one, also of one that is fixed."""
    return (SAMPLED_RTOL if atol == 0.0 else 0.0) if rtol is None else rtol, atol


def flatten_box(
    f: Any, a: Any, b: Any, args: Any, vectorized: bool = True, trusted: BoxPlan | None = None
) -> tuple[Integrand, Box, tuple[int, ...], Sources]:
    """Return integrand and boxes over the flattened batch, its shape, and the sources of the arguments.

    With a plan that is ``trusted`` its batch is theirs, and no value is looked at.
    """
    refuse_other_than_functions(f)
    args = take_arguments(args)
    corners = {"a": a, "b": b}
    tensors = _tensors(None, None, args)
    passed_in = {label: t for name, v in corners.items() for label, t in _passed_in(name, v)}
    _refuse_mixed_devices(tensors | passed_in)
    first = next(iter((tensors | passed_in).values()), None)
    device = torch.device("cpu") if first is None else tensor_and_ndim(first)[0].device
    call_dtype = _dtype(tensors | passed_in, (a, b))
    wide = sum_dtype(device)
    ends = [_corner(name, v, device, wide) for name, v in corners.items()]
    if max(end.ndim for end in ends) == 0:
        raise ValueError(
            "a and b are both single numbers: limits in d dimensions have shape (*batch, d), for example [0.0, 0.0]"
        )
    d = max(end.shape[-1] for end in ends if end.ndim)
    for name, end in zip(("a", "b"), ends, strict=True):
        if end.ndim and end.shape[-1] not in (1, d) or d == 0:
            raise ValueError(
                f"a of shape {tuple(ends[0].shape)} and b of shape {tuple(ends[1].shape)} differ in their last "
                "dimension, which enumerates the coordinates"
            )
        if trusted is None and bool(plain(end.isnan()).any()):
            bad = plain(end.isnan()).nonzero()[0]
            raise ValueError(f"limit {name} is NaN at index {tuple(bad.tolist())}")
    shapes = tensors | {n: Element(end, min(1, end.ndim)) for n, end in zip(("a", "b"), ends, strict=True)}
    shape = _batch_shape(shapes, None) if trusted is None else trusted.batch_shape
    infinite = trusted.infinite if trusted is not None else any(bool(plain(end.isinf()).any()) for end in ends)
    ends = [end if end.ndim and end.shape[-1] == d else end.expand(*end.shape[:-1], d) for end in ends]
    flat = [
        end.reshape(1, d) if end.shape[:-1].numel() == 1 else end.expand(*shape, d).reshape(-1, d) for end in ends
    ]
    integrand = Integrand(
        f, tuple([make_argument(v, shape) for v in args]), len(shape), call_dtype, wide, vectorized, point_ndim=1
    )
    originals = [tensor_and_ndim(v)[0] for v in args]
    passed = tuple([v if isinstance(v, Tensor) else None for v in originals])
    return integrand, Box(flat[0], flat[1], infinite, torch.promote_types(call_dtype, torch.float32)), shape, passed


def refuse_other_than_functions(f: Any) -> None:
    """Say what else there is for an f that cannot be called."""
    if callable(f):
        return
    text = f"f must be a function f(x, *args), not {type(f).__name__}"
    if isinstance(f, Tensor) or _is_array(f) or isinstance(f, list | tuple):
        text += (
            ": pass the function itself, quad(f, a, b), not what it returned; numbers that are already there are "
            "integrated by quadgrad.simpson, quadgrad.trapezoid or quadgrad.spline"
        )
    elif isinstance(f, str):
        text += f": write lambda x: {f}, with torch's functions"
    elif isinstance(f, int | float):
        text += f": f comes first, then the limits; a constant is lambda x: {f}"
    raise TypeError(text)


def _refuse_mixed_devices(tensors: dict[str, Tensor | Element]) -> None:
    """Refuse tensors on several devices, by name; numbers in args that are on the CPU go with all, as in torch."""
    each = {name: tensor_and_ndim(v)[0] for name, v in tensors.items()}
    if all([t.is_cpu for t in each.values()]):
        return
    spread = {n: t for n, t in each.items() if t.ndim or not t.is_cpu or not n.startswith("args")}
    if len({t.device for t in spread.values()}) <= 1:
        if nowhere := [name for name, t in spread.items() if t.is_meta]:
            raise ValueError(f"{nowhere[0]} is on the meta device, where tensors have shapes and no numbers")
        return
    shown = ", ".join(f"{name} on {t.device}" for name, t in spread.items())
    home = next(str(t.device) for t in spread.values() if not t.is_cpu)
    raise ValueError(
        f"the tensors of one call are on several devices: {shown}. Move them to one, such as "
        f".to({home!r}); f is called, "
        "and the result is, where they are"
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, Tensor)


def _passed_in(name: str, value: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors that a corner is made of, with the names by which the caller knows them."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if not isinstance(value, list | tuple):
        return []
    return [pair for i, each in enumerate(value) for pair in _passed_in(f"{name}[{i}]", each)]


def _corner(name: str, value: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a corner of the boxes as a real tensor; tensors in a list keep their gradient."""
    if isinstance(value, list | tuple) and _passed_in(name, value):
        each = [_corner(f"{name}[{i}]", v, device, dtype) for i, v in enumerate(value)]
        if len({one.shape for one in each}) > 1:
            shown = ", ".join(str(tuple(one.shape)) for one in each)
            raise ValueError(f"{name} is a list of tensors of different shapes: {shown}")
        return torch.stack(each)
    if not isinstance(value, Tensor | Element | complex):
        try:
            value = torch.as_tensor(value, dtype=None if _is_array(value) else dtype, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}={value!r} is no real number, or list of them: {error}") from None
    return _limit(name, value).to(device, dtype)


def _flatten_points(points: Tensor, batch_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    lead, count = points.shape[:-1], points.shape[-1]
    points = points.to(dtype)
    if lead.numel() == 1:
        return points.reshape(1, count)
    return points.expand(*batch_shape, count).reshape(math.prod(batch_shape), count)


def _tensors(a: Any, b: Any, args: Sequence[Any]) -> dict[str, Tensor | Element]:
    """Return what the caller passed as a tensor, by the name it was passed as."""
    found: dict[str, Tensor | Element] = {}
    for name, end in (("a", a), ("b", b)):
        if isinstance(end, Tensor):
            found[name] = end
    for i, value in enumerate(args):
        if isinstance(value, (Tensor, Element)):
            found[f"args[{i}]"] = value
    return found


def _limit(name: str, value: Any) -> Any:
    """Return a limit as a float or a real tensor."""
    if type(value) is float:  # as most are
        return value
    if isinstance(value, Element):
        raise TypeError(
            f"{name} must be a number or tensor, not quadgrad.element: limits are never per-element vectors"
        )
    if not isinstance(value, Tensor):
        if isinstance(value, complex):
            raise TypeError(f"{name}={value!r} is complex: cells must be ordered, so limits must be real")
        if isinstance(value, int | float | np.floating | np.integer):
            return float(value)
        try:
            value = torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} must be a number or a tensor (inf and -inf included), not {value!r:.80}: "
                + (f"write float({value!r:.80})" if isinstance(value, str | Fraction | Decimal) else str(error))
            ) from None
    if value.is_complex():
        raise TypeError(
            f"{name} is a complex tensor ({value.dtype}): cells must be ordered, so limits must be real"
        )
    return value


def _dtype(tensors: dict[str, Tensor | Element], numbers: Sequence[Any]) -> torch.dtype:
    """Return the working dtype of everything the caller passed as a tensor, or as NumPy's numbers."""
    each = [tensor_and_ndim(v)[0] for v in tensors.values()]
    return working_dtype([*each, *_typed(numbers)])


def _typed(values: Any) -> Iterator[Tensor]:
    """Yield what has a dtype of its own in a list, or in lists of lists: tensors, NumPy's arrays and scalars."""
    if isinstance(values, Tensor):
        yield values
    elif _is_array(values):
        array = np.asarray(values)
        yield torch.as_tensor(array.astype(np.float64) if array.dtype == np.longdouble else array, device="cpu")
    elif isinstance(values, list | tuple):
        for value in values:
            if value is not None and type(value) not in (float, int):  # which most are
                yield from _typed(value)


def _stacked(points: Any) -> Tensor:
    try:
        return stack_points(points)
    except (TypeError, ValueError, RuntimeError) as error:
        raise unlike_points(points, error) from None


def unlike_points(points: Any, error: Exception) -> TypeError:
    """Return the error that says how breakpoints are written."""
    text = f"points must be numbers or tensors, not {points!r:.80}: "
    if isinstance(points, str):
        return TypeError(f"{text}write points=[0.3, 0.7]")
    if not isinstance(points, Sequence):
        return TypeError(f"{text}make a list of them, points=[0.3, 0.7]")
    if any(isinstance(row, Sequence) for row in points):
        return TypeError(f"{text}each integral has a row, and NaN fills up those that are shorter")
    return TypeError(f"{text}{error}")


def _batch_shape(tensors: dict[str, Tensor | Element], points: Tensor | None) -> tuple[int, ...]:
    each = {name: tensor_and_ndim(v) for name, v in tensors.items()}
    shapes = {name: tuple(t.shape[: t.ndim - ndim]) for name, (t, ndim) in each.items()}
    if points is not None:
        shapes["points"] = tuple(points.shape[:-1])
    different = {shape for shape in shapes.values() if shape}
    if len(different) <= 1:
        return different.pop() if different else ()
    try:
        return tuple(broadcast_shapes(*different))
    except RuntimeError:
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"the batch shapes do not broadcast: {shown}. An argument that carries a vector, matrix or sequence "
            "for each element is passed as quadgrad.element(t, ndim=k), or closed over if it is the same for all; "
            "points enumerates breakpoints along its last dimension"
        ) from None


def _number(end: Any) -> float | None:
    """Return a limit as a number if that is quick to ask for: several operations on a tensor are not."""
    if isinstance(end, float):
        return end
    return end.item() if end.numel() == 1 and end.is_cpu and not belongs_to_transform(end) else None


def _is_finite(name: str, end: Any, number: float | None) -> bool:
    """Refuse a limit that is NaN; return whether all of it is finite. It may be known as a ``number``."""
    if number is not None and not math.isnan(number):
        return math.isfinite(number)
    if isinstance(end, float):
        raise ValueError(f"limit {name} is NaN")
    if not (end.is_floating_point() and bool(plain(~end.isfinite()).any())):
        return True
    missing = plain(end.isnan())  # lanes of a transform in front
    bad = missing.nonzero()
    if bad.shape[0] > 0:
        where = f" at index {tuple(bad[0].tolist())}" if missing.ndim else ""
        raise ValueError(f"limit {name} is NaN{where} ({bad.shape[0]} of {missing.numel()} are)")
    return False


def _flatten(
    end: Any, batch_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, share: bool
) -> Tensor:
    """Return a limit with one entry for each integral, or, if it may be shared and is, a single one."""
    if isinstance(end, float):
        return torch.full((1 if share else math.prod(batch_shape),), end, dtype=dtype, device=device)
    end = end.to(dtype)
    if share and end.numel() == 1:
        return end.reshape(1)
    return end.expand(batch_shape).flatten()


def check_options(on_failure: str, chunk_size: int | None, gradient: Any) -> None:
    """Refuse options of any verb that cannot be meant."""
    if on_failure not in ("warn", "raise", "ignore"):
        raise ValueError(f"on_failure={on_failure!r} is not one of 'warn', 'raise', 'ignore'")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size={chunk_size!r} must be a positive whole number of nodes")
    if not isinstance(gradient, GradientMode):
        raise TypeError(f"gradient={gradient!r} must be a gradient mode: quadgrad.Reuse() or quadgrad.Resolve()")


def check_limit_gradient(limit_gradient: str) -> None:
    """Refuse a way to differentiate by the limits that there is not."""
    if limit_gradient not in LIMIT_GRADIENTS:
        raise ValueError(f"limit_gradient={limit_gradient!r} is not one of {', '.join(map(repr, LIMIT_GRADIENTS))}")
