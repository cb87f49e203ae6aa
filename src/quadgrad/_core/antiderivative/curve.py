"""What the caller gets: a function of x, its inverse, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from quadgrad._core._torch import (
    carries_derivative,
    forward_mode_open,
    in_differentiation,
    without_derivatives,
)
from quadgrad._core.antiderivative.derivative import follow, stretch
from quadgrad._core.antiderivative.heights import Heights, Values, sample
from quadgrad._core.antiderivative.inverse import Inverse
from quadgrad._core.antiderivative.points import Curve, Points, keep_inside, receive, thinking
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.errors import IntegrandError, IntegrationWarning, warn
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.gradient.boundary import Treatment, boundary_sum, carries_gradient, singular_marks
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.misuse import NotItsValue
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.printing import Printed, counted
from quadgrad._core.reduce import align, reals, total
from quadgrad._core.rehearsal import current_rehearsal
from quadgrad._core.rehearsal import thinking as unseen
from quadgrad._core.result import describe
from quadgrad._core.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Antiderivative"]

DRAWN = [(k + 0.5) / 32.0 for k in range(32)]
"""Where in each cell a picture shows the curve."""


class Antiderivative(NotItsValue, Printed):
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

    its_value = "F(x)"
    its_array = "F(x).numpy(force=True)"

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
        return describe(self.status, self.plan) + self.detail

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
        if torch.compiler.is_compiling():  # points are looked at: one graph break instead of many
            call_eagerly = cast("Callable[..., Tensor]", torch.compiler.disable(self.__call__))
            return call_eagerly(x, complement=complement)
        with WithoutAutocast():
            points = keep_inside(receive(x, "x", self._curve, self._flows()), self._curve)
            return points.restore(self._at(points, complement))

    def inverse(self, y: Any, *, complement: bool = False) -> Tensor:
        """Return x at which the integral from a to x is y, or, as a ``complement``, that from x to b.

        Accurate relative to y, also where that is tiny, down to 1e-25 of the whole: close to b ask for the
        complement, whose y is small there. The error of x is that of y over f(x), so that an x that passes 0 inside
        of (a, b) has an absolute one: 5e-15 for the normal quantile at 1/2. Where such an x is wanted relative to
        itself, integrate from 0.

        Parameters
        ----------
        y : float or Tensor
            Broadcast with the batch. NaN gives NaN.
        complement : bool
            Whether y is the integral from x to b.

        Returns
        -------
        Tensor, shape ``broadcast(y, batch)``
            Differentiable, twice, by the implicit function theorem. Where f is 0 on a stretch, any x of it; where
            f(x) is 0 the derivative with respect to y is infinite, and all others are 0.

        Raises
        ------
        ValueError
            If f changes its sign, is complex or has components; or if there is no such x between a and b.
        """
        if torch.compiler.is_compiling():
            call_eagerly = cast("Callable[..., Tensor]", torch.compiler.disable(self.inverse))
            return call_eagerly(y, complement=complement)
        with WithoutAutocast():
            return self._inverse(receive(y, "y", self._curve, self._flows()), complement)

    # ------------------------------------------------------------------------------------------ evaluation

    def _at(self, points: Points, complement: bool) -> Tensor:
        """Return heights ``(p, *event)``."""
        curve, flows = self._curve, self._flows()
        turned, spots, value = (curve.limits.b < curve.limits.a).expand(curve.problem.batch), None, None
        with thinking():
            sides = [side for side in (True, False) if bool((turned == (side == complement)).any())]
            shift = self._beside(points)
            lost = points.fixed.isnan() | ~curve.error.isfinite().index_select(0, points.owners)
            if flows:
                spots = curve.places.find(points.fixed, points.owners)
            else:
                each = [self._side(side).evaluate(points.fixed, points.owner, curve.places) for side in sides]
                value = self._oriented(each, points, turned, complement)
        shift, lost = points.lowered(shift), points.lowered(lost)
        if spots is not None:
            spots, values = spots.map(points.lowered), self._replay()
            each = [values.heights(curve.places, side).at(spots, curve.places) for side in sides]
            value = self._oriented(each, points, turned, complement)
            value = self._with_boundaries(value, points, turned, complement)
        assert value is not None
        value = torch.where(align(lost, value), torch.nan, value)
        if carries_derivative(points.flat):
            sign, integrand, x = -1.0 if complement else 1.0, curve.problem.integrand, self._movable(points)
            if flows:
                slope = lambda x: sign * integrand(x + shift, points.owner)
                value = stretch(value, x, slope)
            else:
                slope = lambda x: sign * integrand((x + shift)[None], points.owner)[0]
                value = follow(value, x, slope)
        return value.to(curve.dtype.to_complex() if value.is_complex() else curve.dtype)

    def _beside(self, points: Points) -> Tensor:
        """Return how far from each point f is read as its derivative: at a limit, right beside it, inside.

        At 0 not by the least number there is: f's own derivative, in a mixed one, is to be finite there as well.
        """
        limits, at = self._curve.limits, points.fixed
        numbers = limits.rounding
        ends = [
            end.expand(self._curve.problem.batch).index_select(0, points.owners) for end in (limits.a, limits.b)
        ]
        shift = torch.zeros_like(at)
        for end, other in (ends, ends[::-1]):
            beside = (at == end) & end.isfinite() & (end != other)
            least = (numbers.eps * (other - end).abs()).clamp_max(numbers.tiny**0.5)
            step = torch.maximum((limits.next_to(end, other) - end).abs(), least)
            shift = torch.where(beside, torch.where(other > end, step, -step), shift)
        return shift

    def _movable(self, points: Points) -> Tensor:
        """Return points as f is called there for derivatives: those at infinity do not move, F is level there."""
        curve = self._curve
        if not curve.limits.infinite:
            return points.flat
        with thinking():
            inner = curve.limits.inner_points(curve.problem.batch).index_select(0, points.owners)
            away = points.fixed.isinf()
        return torch.where(points.lowered(away), points.lowered(inner), points.flat)

    def _oriented(self, each: list[Tensor], points: Points, turned: Tensor, complement: bool) -> Tensor:
        """Return integrals with the sign of the limits' order, from those on the sides of x that were asked for."""
        if not each:  # of an empty batch, with the derivatives of f's arguments
            return self._curve.problem.integrand(points.fixed[None], points.owner)[0]
        mine = turned.index_select(0, points.owner)
        value = each[0]
        if len(each) > 1:
            upward, downward = each
            value = torch.where(align(mine == complement, upward), upward, downward)
        return torch.where(align(mine, value), -value, value)

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
        if not problem.flowing:
            return False
        return torch.is_grad_enabled() or in_differentiation() or forward_mode_open()

    def _replay(self) -> Values:
        """Return f's values on the plan's nodes with their derivatives."""
        curve = self._curve
        values = sample(curve.problem.integrand, curve.values.plan, curve.limits.pieces(), 2**40)
        if current_rehearsal() is not None:  # they were made in another run
            return values
        with thinking():
            now, before = (
                total((v.at_nodes.abs() * v.plan.weight.reshape(-1, 1, *(1,) * len(self._event))).sum(0),
                      v.plan.owner, v.plan.batch)
                for v in (replace(values, at_nodes=plain(values.at_nodes)), curve.values)
            )  # fmt: skip
            gap = largest_component((now - before).abs())
            if bool((gap > curve.error + 1e3 * curve.problem.tolerance.eps * largest_component(before)).any()):
                raise IntegrandError(
                    "the integrand gives other values than when its antiderivative was made: what it depends on "
                    "has changed since (an optimizer's step, say), or it is not deterministic. Make the "
                    "antiderivative anew, or call it under torch.no_grad()"
                )
        return values

    def _with_boundaries(self, value: Tensor, points: Points, turned: Tensor, complement: bool) -> Tensor:
        """Add zeros with the derivatives by limits and breakpoints: those between x and the end that counts."""
        curve, batch, limits = self._curve, self._curve.problem.batch, self._curve.problem.limits
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
                with thinking():
                    below = fixed[i].expand(batch).index_select(0, points.owners) < points.fixed
                    counts = below == (turned.index_select(0, points.owners) == complement)
                counts = points.lowered(counts)
                zero = torch.where(align(counts, zero), zero, 0.0)
            value = value + zero
        return value

    # --------------------------------------------------------------------------------------------- inverse

    def _inverse(self, points: Points, complement: bool) -> Tensor:
        curve, owner = self._curve, points.owners
        with thinking():
            sign = self._direction()
            turned = (curve.limits.b < curve.limits.a).expand(curve.problem.batch)
            upward = (turned == complement).index_select(0, owner)
            height = self._reachable(points, (sign * torch.where(turned, -1.0, 1.0))[owner], complement)
            x = torch.full_like(height, torch.nan)
            for side in (True, False):
                mine = ((upward == side) & ~height.isnan()).nonzero().squeeze(1)
                if len(mine):
                    x[mine] = self._invert(side, sign).solve(height[mine], owner[mine])
            x = self._at_ends(x, height, owner, upward)
        if self._flows() or carries_derivative(points.flat):
            return points.restore(self._attach(x, points, complement, sign).to(curve.dtype))
        return points.restore(x.to(curve.dtype))

    def _attach(self, x: Tensor, points: Points, complement: bool, sign: Tensor) -> Tensor:
        """Return x with its derivatives: each of Newton's steps on a residual of 0 doubles the right order.

        Where f is 0 x rises infinitely steeply with y, and stays where it is whatever else changes: a step there
        would be 0 / 0, and no number any more. So it is where rounding of y alone moves x across the interval: at
        the far end, where F is all there is and f nearly 0.
        """
        fixed, limits = replace(points, fixed=x, flat=points.lowered(x)), self._curve.limits
        with thinking():
            shift = self._beside(fixed)
            width = (limits.b - limits.a).abs().expand(self._curve.problem.batch).index_select(0, points.owners)
            least = (torch.finfo(x.dtype).eps * points.fixed.abs() / width).clamp_min(torch.finfo(x.dtype).tiny)
        with without_derivatives(), unseen():
            place = self._movable(fixed).nan_to_num(0.0) + points.lowered(shift)
            slope = self._curve.problem.integrand(place[None], points.owner)[0].detach()
            steep = fixed.flat.isinf() | ~(slope.abs() >= points.lowered(least))
        slope, x = torch.where(steep, 1.0, -slope if complement else slope), fixed.flat
        moves = current_rehearsal() is not None and points.hidden is None  # x is that of the curve of another run
        for _ in range(2):
            here = replace(fixed, fixed=x.detach(), flat=x) if moves else replace(fixed, flat=x)
            residual = points.flat - self._at(here, complement)
            x = x + torch.where(steep, 0.0, (residual if moves else residual - residual.detach()) / slope)
        if carries_derivative(points.flat):
            rise = torch.where(steep, points.flat - points.flat.detach(), 1.0).sqrt()
            x = x + torch.where(steep, (-sign if complement else sign)[points.owner] * rise, 0.0)
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
        whole = curve.sizes.index_select(0, points.owners)
        slack = curve.error.index_select(0, points.owners) + 4.0 * torch.finfo(whole.dtype).eps * whole
        height = (points.fixed * orientation).masked_fill(slack.isinf(), torch.nan)
        bad = (height < -slack) | (height > whole + slack)
        if bool(bad.any()):
            i, owner = int(bad.nonzero()[0]), points.owners
            ends = sorted((0.0, float(whole[i] * orientation[i])))
            what = "integral from x to b" if complement else "integral from a to x"
            raise ValueError(
                f"y = {float(points.fixed[i]):.10g} is no {what} (integral {int(owner[i])}): they are between "
                f"{ends[0]:.10g} and {ends[1]:.10g}"
            )
        return torch.minimum(height.clamp_min(0.0), whole)

    def _at_ends(self, x: Tensor, height: Tensor, owner: Tensor, upward: Tensor) -> Tensor:
        """Put what is all or nothing at the limits themselves."""
        curve = self._curve
        lower, upper = (
            edge.expand(curve.problem.batch).index_select(0, owner)
            for edge in (
                torch.minimum(curve.limits.a, curve.limits.b),
                torch.maximum(curve.limits.a, curve.limits.b),
            )
        )
        x = torch.minimum(torch.maximum(x, lower), upper)  # what rounding has put beyond a limit
        whole = curve.sizes.index_select(0, owner)
        x = torch.where(height <= 0.0, torch.where(upward, lower, upper), x)
        return torch.where((height >= whole) & (height > 0.0), torch.where(upward, upper, lower), x)

    def drawn(self, element: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a picture of one integral shows, of an infinite interval as far as nodes reach.

        That is x ``(p,)`` and heights ``(p, components)``, ascending, the ends ``(2, n)`` of its cells, and errors.
        """
        curve, plan = self._curve, self.plan
        if not 0 <= element < plan.batch:
            raise IndexError(f"element={element} is not in a batch of {plan.batch} antiderivatives")
        with thinking():
            cells = plan.take(plan.owner == element)
            layout = lay_out(curve.limits.pieces(), cells.row, cells.start, cells.stop, None)
            inner, ends = (layout.nodes(plan.tau.new_tensor(at))[0] for at in (DRAWN, (0.0, 1.0)))
            x = (
                torch.cat((inner, ends.clamp(inner.min(), inner.max()) if plan.infinite else ends))
                if len(cells)
                else inner
            )
            x = x.flatten().sort().values
            y = self._side(True).evaluate(x, torch.full_like(x, element, dtype=torch.int64), curve.places)
            if bool((curve.limits.b < curve.limits.a).expand(plan.batch)[element]):
                y = y - self._side(True).evaluate(x[-1:], torch.full((1,), element, device=x.device), curve.places)
            ends = ends.clamp(x.min(), x.max()) if len(cells) else ends
        return x.cpu(), reals(y, 1).reshape(len(x), -1).cpu(), ends.cpu(), cells.error.cpu()

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
