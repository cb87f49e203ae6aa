"""What the caller gets: a function of x, its inverse, and how far to trust them."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from quadgrad._core._torch import (
    carries_derivative,
    forward_mode_open,
    in_differentiation,
    in_transform,
    outside_transforms,
    without_derivatives,
)
from quadgrad._core.antiderivative.derivative import follow
from quadgrad._core.antiderivative.heights import Heights, Values, sample
from quadgrad._core.antiderivative.inverse import Inverse
from quadgrad._core.antiderivative.places import Places
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.errors import IntegrandError, IntegrationWarning, warn
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.gradient.boundary import Treatment, boundary_sum, carries_gradient, singular_marks
from quadgrad._core.lanes import Lanes, plain
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.printing import Printed, counted
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align, total
from quadgrad._core.result import describe
from quadgrad._core.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Antiderivative", "Curve", "Points"]


@dataclass(frozen=True)
class Curve:
    """A searched problem and its curve, flattened over the batch and all lanes, without derivatives.

    ``signs`` ``(batch, 2)`` are the integrals of f's positive and negative part, ``error`` ``(batch,)`` that of the
    curve, ``sizes`` ``(batch,)`` its largest modulus. ``dtype`` is that of heights.
    """

    problem: Problem
    limits: Limits
    values: Values
    places: Places
    signs: Tensor
    error: Tensor
    sizes: Tensor
    dtype: torch.dtype
    lanes: Lanes | None = None


@dataclass(frozen=True)
class Points:
    """What the caller passed, flattened: ``(p,)``, and whose it is; ``restore`` gives results the caller's shape."""

    flat: Tensor
    fixed: Tensor
    owner: Tensor
    restore: Callable[[Tensor], Tensor]


class Antiderivative(Printed):
    """The integral of f from a to x, as a function of x; :func:`quadgrad.antiderivative` makes it.

    Attributes
    ----------
    error : Tensor, shape ``batch``
        Estimated absolute error at any x (the largest over the event; of the modulus if complex). No gradient.
    status : Tensor of int64, shape ``batch``
        A :class:`quadgrad.Status` for each integral.
    nfev : Tensor of int64, shape ``batch``
        Nodes at which f was called.
    plan : Plan
        The cells, for ``torch.save``, :func:`quadgrad.replay` and pictures.
    detail : str
        More on a failure, for :attr:`message`.
    """

    if TYPE_CHECKING:
        plot: ClassVar[Callable[..., Axes]]  # quadgrad._plots puts it here

    def __init__(
        self, curve: Curve, error: Tensor, status: Tensor, nfev: Tensor, plan: IntervalPlan, detail: str = ""
    ) -> None:
        self.error, self.status, self.nfev, self.plan, self.detail = error, status, nfev, plan, detail
        self._curve = curve
        self._heights: dict[bool, Heights] = {}
        self._inverses: dict[bool, Inverse] = {}

    @property
    def converged(self) -> Tensor:
        """Where the error meets its tolerance: bool, shape ``batch``."""
        return self.status == int(Status.CONVERGED)

    @property
    def message(self) -> str:
        """How the integrals ended, in a sentence for each way."""
        return describe(self.status) + self.detail

    def __call__(self, x: Any, *, complement: bool = False) -> Tensor:
        """Return the integral from a to x, or, as a ``complement``, that from x to b.

        Each is as accurate as f's own values where it is small: the complement near b, the integral near a.

        Parameters
        ----------
        x : float or Tensor
            Broadcast with the batch: ``(n, 1)`` gives n heights of each of a row of integrals. NaN gives NaN.
        complement : bool
            Whether the integral from x to b is wanted.

        Returns
        -------
        Tensor, shape ``broadcast(x, batch) + event``
            Differentiable with respect to x (the derivative is f itself, called when it is asked for), a (b, of the
            complement), breakpoints and everything f depends on.

        Raises
        ------
        ValueError
            If an x is outside of [a, b], or x does not broadcast with the batch.
        IntegrandError
            If f has changed since: with parameters that require grad, it is called anew on the plan's nodes.
        """
        with WithoutAutocast():
            points = self._receive(x, "x")
            return points.restore(self._at(self._inside(points), complement))

    def inverse(self, y: Any, *, complement: bool = False) -> Tensor:
        """Return x at which the integral from a to x is y, or, as a ``complement``, that from x to b.

        Accurate relative to y, also where that is tiny: close to b ask for the complement, whose y is small there.

        Parameters
        ----------
        y : float or Tensor
            Broadcast with the batch. NaN gives NaN.
        complement : bool
            Whether y is the integral from x to b.

        Returns
        -------
        Tensor, shape ``broadcast(y, batch)``
            Differentiable, twice, by the implicit function theorem. Where f is 0 on a stretch, any x of it.

        Raises
        ------
        ValueError
            If f changes its sign, is complex or has components; or if there is no such x between a and b.
        """
        with WithoutAutocast():
            return self._inverse(self._receive(y, "y"), complement)

    # ------------------------------------------------------------------------------------------ evaluation

    def _at(self, points: Points, complement: bool, attached: Tensor | None = None) -> Tensor:
        """Return heights ``(p, *event)``; ``attached`` takes the place of x where that is differentiated."""
        curve = self._curve
        limits, flows = curve.problem.limits, self._flows()
        with self._thinking():
            turned = (curve.limits.b < curve.limits.a).expand(curve.problem.batch)
            sides = [side for side in (True, False) if bool((turned == (side == complement)).any())]
            value = None if flows else self._stored(points, sides, turned, complement)
            spots = curve.places.find(points.fixed, points.owner) if flows else None
        if spots is not None:
            values = self._replay()
            heights = [values.heights(curve.places, side) for side in sides]
            value = self._oriented([h.at(spots, curve.places) for h in heights], points, turned, sides, complement)
            value = self._with_boundaries(value, points, limits, turned, complement)
        assert value is not None
        value = torch.where(align(points.fixed.isnan(), value), torch.nan, value)
        moving = points.flat if attached is None else attached
        if carries_derivative(moving):
            sign = -1.0 if complement else 1.0
            value = follow(value, moving, lambda x: sign * self._slope(x, points.owner))
        return value.to(curve.dtype.to_complex() if value.is_complex() else curve.dtype)

    def _stored(self, points: Points, sides: list[bool], turned: Tensor, complement: bool) -> Tensor:
        curve = self._curve
        each = [self._side(side).evaluate(points.fixed, points.owner, curve.places) for side in sides]
        return self._oriented(each, points, turned, sides, complement)

    def _oriented(
        self, each: list[Tensor], points: Points, turned: Tensor, sides: list[bool], complement: bool
    ) -> Tensor:
        """Return integrals with the sign of the limits' order, from those on each side of x that was asked for."""
        if not each:
            return self._curve.values.at_nodes.new_zeros((len(points.fixed), *self._event))
        if len(each) == 1:
            return -each[0] if sides[0] == complement else each[0]
        mine = turned.index_select(0, points.owner)
        upward, downward = each
        return torch.where(align(mine != complement, upward), -downward if not complement else downward, upward
                           if not complement else -upward)  # fmt: skip

    @property
    def _event(self) -> tuple[int, ...]:
        return self._curve.problem.integrand.event or ()

    def _side(self, upward: bool) -> Heights:
        if upward not in self._heights:
            with torch.inference_mode(False):
                self._heights[upward] = self._curve.values.heights(self._curve.places, upward)
        return self._heights[upward]

    def _flows(self) -> bool:
        """Whether derivatives may be asked for of what f depends on, or of limits."""
        problem = self._curve.problem
        if not problem.flowing or problem.batch == 0:
            return False
        return torch.is_grad_enabled() or in_differentiation() or forward_mode_open()

    @contextmanager
    def _thinking(self) -> Generator[None]:
        """Leave all transforms and derivatives."""
        outside: AbstractContextManager[Any] = outside_transforms() if in_transform() else nullcontext()
        with without_derivatives(), outside:
            yield

    def _replay(self) -> Values:
        """Return f's values on the plan's nodes with their derivatives."""
        curve = self._curve
        values = sample(curve.problem.integrand, curve.values.plan, curve.limits.pieces(), 2**40)
        with self._thinking():
            now, before = (
                total((v.at_nodes.abs() * v.plan.weight.reshape(-1, 1, *(1,) * len(self._event))).sum(0),
                      v.plan.owner, v.plan.batch)
                for v in (replace(values, at_nodes=plain(values.at_nodes)), curve.values)
            )  # fmt: skip
            gap = largest_component((now - before).abs())
            if bool((gap > curve.error + 1e3 * curve.problem.tolerance.eps * largest_component(before)).any()):
                raise IntegrandError(
                    "the integrand gives other values than when its antiderivative was made: what it depends on has "
                    "changed since (an optimizer's step, say), or it is not deterministic. Make the antiderivative "
                    "anew, or call it under torch.no_grad()"
                )
        return values

    def _slope(self, x: Tensor, owner: Tensor) -> Tensor:
        """Return f at x ``(p,)``, at a limit that right beside it; infinite where it is so at a limit."""
        curve = self._curve
        limits = curve.limits
        ends = [end.expand(curve.problem.batch).index_select(0, owner) for end in (limits.a, limits.b)]
        with self._thinking():
            at = plain(x)
            shift = torch.zeros_like(at)
            for end, other in (ends, ends[::-1]):
                beside = limits.next_to(end, other)
                shift = torch.where((at == end) & end.isfinite() & (end != other), beside - end, shift)
        return curve.problem.integrand((x + shift)[None], owner)[0]

    def _with_boundaries(
        self, value: Tensor, points: Points, limits: Limits, turned: Tensor, complement: bool
    ) -> Tensor:
        """Add zeros with the derivatives by limits and breakpoints: those between x and the end that counts."""
        curve, batch = self._curve, self._curve.problem.batch
        moving = [i for i, mark in enumerate(limits.marks) if carries_gradient(mark) and i != int(not complement)]
        if not moving:
            return value
        singular = singular_marks(curve.problem.integrand, limits, batch)
        if any(bool(singular[i].any()) for i in moving):
            warn(
                "the derivative of an antiderivative with respect to a limit or breakpoint is infinite: f is not "
                "finite there. Detach it if its derivative is not wanted",
                IntegrationWarning,
            )
        no = tuple(torch.zeros_like(mask) for mask in singular)
        treatment, fixed = Treatment(no, singular, singular), curve.limits.marks
        for i in moving:
            marks = tuple(mark if i == k else fixed[k] for k, mark in enumerate(limits.marks))
            zero = boundary_sum(curve.problem.integrand, limits.with_marks(marks), batch, treatment)
            assert isinstance(zero, Tensor)
            zero = zero.index_select(0, points.owner)
            if i > 1:
                place = fixed[i].expand(batch).index_select(0, points.owner)
                below = place < points.fixed
                counts = below == (turned.index_select(0, points.owner) == complement)
                zero = torch.where(align(counts, zero), zero, 0.0)
            value = value + zero
        return value

    # --------------------------------------------------------------------------------------------- inverse

    def _inverse(self, points: Points, complement: bool) -> Tensor:
        curve = self._curve
        with self._thinking():
            sign = self._direction()
            turned = (curve.limits.b < curve.limits.a).expand(curve.problem.batch)
            upward = (turned == complement).index_select(0, points.owner)
            # From the end that the integral belongs to; where that is the upper one of a > b, its sign is turned.
            orientation = sign.index_select(0, points.owner) * torch.where(turned, -1.0, 1.0)[points.owner]
            height = self._reachable(points, orientation, complement)
            x = torch.full_like(height, torch.nan)
            for side in (True, False):
                mine = ((upward == side) & ~height.isnan()).nonzero().squeeze(1)
                if len(mine):
                    owner = points.owner[mine]
                    x[mine] = self._keep_inside(self._invert(side, sign).solve(height[mine], owner), owner)
            x = self._at_ends(x, height, points.owner, upward)
        if self._flows() or carries_derivative(points.flat):
            x = self._attach(x, points, complement)
        return points.restore(x.to(curve.dtype))

    def _attach(self, x: Tensor, points: Points, complement: bool) -> Tensor:
        """Return x with its derivatives: each of Newton's steps on a residual of 0 doubles the order that is right."""
        with self._thinking():
            # What is not moved by a finite slope (a singular end, NaN) has no derivative to speak of.
            slope = plain(self._slope(x.nan_to_num(0.0), points.owner)) * (-1.0 if complement else 1.0)
        fixed = replace(points, fixed=x, flat=x)
        for _ in range(2):
            residual = points.flat - self._at(fixed, complement, attached=x)
            x = x + (residual - residual.detach()) / slope
        return x

    def _invert(self, upward: bool, sign: Tensor) -> Inverse:
        if upward not in self._inverses:
            with torch.inference_mode(False):
                self._inverses[upward] = Inverse.of(self._curve.values, self._curve.places, sign, upward)
        return self._inverses[upward]

    def _direction(self) -> Tensor:
        """Return 1 where the curve rises from the lower to the upper limit, -1 where it falls; refuse others."""
        curve = self._curve
        if self._event or curve.values.at_nodes.is_complex():
            raise ValueError(
                f"an inverse is asked of an f that returns {'complex numbers' if not self._event else 'components'}"
                ": make the antiderivative of one real function"
            )
        rising, falling = curve.signs.unbind(1)
        bad = torch.minimum(rising, falling) > curve.error
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            raise ValueError(
                f"F has no inverse: f changes its sign (integral {i}: {float(rising[i]):.3g} where it is positive, "
                f"-{float(falling[i]):.3g} where it is negative). Split the interval where f is 0"
            )
        return torch.where(falling > rising, -1.0, 1.0).to(rising.dtype)

    def _reachable(self, points: Points, orientation: Tensor, complement: bool) -> Tensor:
        """Return y as a positive integral, what is beyond the range by less than its error moved onto it."""
        curve = self._curve
        whole = curve.sizes.index_select(0, points.owner)
        slack = curve.error.index_select(0, points.owner) + 4.0 * torch.finfo(whole.dtype).eps * whole
        height = points.fixed * orientation
        bad = (height < -slack) | (height > whole + slack)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            ends = sorted((0.0, float(whole[i] * orientation[i])))
            what = "integral from x to b" if complement else "integral from a to x"
            raise ValueError(
                f"y = {float(points.fixed[i]):.10g} is no {what} (integral {int(points.owner[i])}): they are between "
                f"{ends[0]:.10g} and {ends[1]:.10g}"
            )
        return torch.minimum(height.clamp_min(0.0), whole)

    def _at_ends(self, x: Tensor, height: Tensor, owner: Tensor, upward: Tensor) -> Tensor:
        """Put what is all or nothing at the limits themselves."""
        curve = self._curve
        lower, upper = (
            edge.expand(curve.problem.batch).index_select(0, owner)
            for edge in (torch.minimum(curve.limits.a, curve.limits.b), torch.maximum(curve.limits.a, curve.limits.b))
        )
        whole = curve.sizes.index_select(0, owner)
        x = torch.where(height <= 0.0, torch.where(upward, lower, upper), x)
        return torch.where((height >= whole) & (height > 0.0), torch.where(upward, upper, lower), x)

    # ------------------------------------------------------------------------------------- what comes and goes

    def _receive(self, given: Any, name: str) -> Points:
        """Broadcast what was passed with the batch, lanes of transforms included, and flatten it."""
        curve = self._curve
        device, dtype = curve.limits.a.device, curve.limits.a.dtype
        given = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=None if hasattr(given, "dtype")
                                                                        else dtype)  # fmt: skip
        if given.is_complex():
            raise TypeError(f"{name} is a complex tensor ({given.dtype}): it must be real")
        own, made = curve.lanes, curve.problem.batch_shape
        batch = made[len(own.sizes) :] if own else made
        try:
            shape = torch.broadcast_shapes(given.shape, batch)
        except RuntimeError:
            raise ValueError(
                f"{name} of shape {tuple(given.shape)} does not broadcast with the batch {tuple(batch)}: give each "
                f"integral several with shape (n, {', '.join('1' * len(batch))})"
            ) from None
        lanes = Lanes.of([given, *([own.carrier] if own else [])]) if in_transform() else None
        spread = given.to(device, dtype).expand(shape)
        mine = own.count if own else 1
        others = lanes.count // mine if lanes else 1
        lifted = lanes.lift(spread) if lanes else spread
        extra = shape[: len(shape) - len(batch)].numel()
        inner = curve.problem.batch // mine if curve.problem.batch else 0
        # Lanes in which F was made stand beside its batch, all others in front.
        flat = lifted.reshape(mine, others * extra, inner).movedim(0, 1).reshape(-1)
        owner = torch.arange(curve.problem.batch, device=device).repeat(others * extra)

        def restore(value: Tensor) -> Tensor:
            rest = value.shape[1:]
            value = value.reshape(others * extra, mine, inner, *rest).movedim(1, 0)
            if lanes is None:
                return value.reshape(*shape, *rest)
            return lanes.lower(value.reshape(lanes.count, *shape, *rest))

        with self._thinking():
            fixed = plain(flat)
        return Points(flat, fixed, owner, restore)

    def _inside(self, points: Points) -> Points:
        """Refuse points outside of their limits, but for the rounding of x, and put those onto them."""
        limits, batch = self._curve.limits, self._curve.problem.batch
        with self._thinking():
            ends = torch.stack([end.expand(batch) for end in (limits.a, limits.b)]).aminmax(dim=0)
            if batch == 1:
                low, high = ends.min, ends.max
            else:
                low, high = (end.index_select(0, points.owner) for end in ends)
            x, eps = points.fixed, 2.0 * limits.rounding.eps
            if x.numel() == 0:
                return points
            bad = (x < low) | (x > high)
            if not bool(bad.any()):
                return points
            bad = (x < low - eps * low.abs()) | (x > high + eps * high.abs())
            if bool(bad.any()):
                i = int(bad.nonzero()[0])
                which = int(points.owner[i])
                a, b = (float(end.expand(batch)[which]) for end in (limits.a, limits.b))
                of = f" of integral {which}" if batch > 1 else ""
                raise ValueError(
                    f"x = {float(x[i]):.17g} is outside of the interval [{a:.10g}, {b:.10g}]{of}: the antiderivative "
                    "is known there alone. Make it on a wider one"
                )
            return replace(points, fixed=torch.minimum(torch.maximum(x, low), high))

    @property
    def _batch_shape(self) -> tuple[int, ...]:
        return tuple(self.status.shape)

    def _keep_inside(self, x: Tensor, owner: Tensor) -> Tensor:
        """Take back what rounding has put beyond a limit."""
        a, b = (end.expand(self._curve.problem.batch) for end in (self._curve.limits.a, self._curve.limits.b))
        lower, upper = (edge.index_select(0, owner) for edge in (torch.minimum(a, b), torch.maximum(a, b)))
        return torch.minimum(torch.maximum(x, lower), upper)

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed."""
        numbers = plain(self.status).flatten().tolist()
        ends = [f"{numbers.count(s)} {s.name}" if len(numbers) > 1 else s.name for s in Status if s in numbers]
        error = plain(self.error)
        facts = {
            "error": f"{float(error.max()):.2g} at most" if error.numel() else "none",
            "status": ", ".join(ends),
            "nfev": f"{int(plain(self.nfev).sum()):,}",
            "plan": repr(self.plan).splitlines()[0],
        }
        heading = f"Antiderivative of {counted(len(numbers), 'integrand')}"
        return heading, facts if bool(plain(self.converged).all()) else facts | {"message": self.message}
