"""Pictures of plans: where the cells of an integral went, and how large the error is on each.

Called as a method of what they show. matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from quadgrad._core.antiderivative.curve import Antiderivative
from quadgrad._core.integrand import Argument, Integrand, tensor_and_ndim
from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.plans.cut import CutPlan
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.regions.mapped import Mapped, over_unit_cube
from quadgrad._core.regions.mesh import cut_cells
from quadgrad._core.regions.where import Boundary, Where
from quadgrad._core.verbs.inputs import flatten, flatten_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_antiderivative", "plot_boxes", "plot_cut", "plot_plan"]

FAR = 100.0
"""Where infinite sides are drawn farther than this, scales are those of asinh."""

LINES = 201
"""Lines along each axis of the grid on which a region and the integrand in it are drawn."""

_Plan = TypeVar("_Plan", IntervalPlan, BoxPlan)


def plot_plan(
    plan: IntervalPlan, f: Callable[..., Any] | None = None, a: Any = 0.0, b: Any = 1.0, args: Any = (),
    *, points: Any = None, element: int = 0, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw the cells of one integral as bars coloured by their error, and the integrand above them.

    Parameters
    ----------
    plan : IntervalPlan
        As in ``quad(...).plan``.
    f : callable, optional
        ``f(x, *args)`` as for :func:`quadgrad.quad`; all its components are drawn.
    a, b, args, points
        What :func:`quadgrad.quad` was given. An infinite interval is drawn as far as its nodes reach.
    element : int
        Which integral of the (flattened) batch.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot makes a new figure unless given. It is returned.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> from matplotlib.figure import Figure
    >>> f = lambda x: 1e-3 / ((x - 0.3) ** 2 + 1e-6)
    >>> plan = qg.quad(f, 0.0, torch.tensor(1.0, dtype=torch.float64)).plan
    >>> ax = plan.plot(f, ax=Figure().subplots())
    >>> ax.get_title() == f"{len(plan)} cells of gk21"
    True
    """
    cells, ax = _cells_of(plan, element), _axes(ax)
    ax.set(title=_title(len(cells), plan.rule), xlabel="x")
    if len(cells) == 0:
        return ax
    integrand, limits, *_ = flatten(f or torch.zeros_like, a, b, args, points, trusted=plan)
    x, ends = _place(cells, limits.detach())
    if f is None:
        ax.set_yticks([])
    else:
        with torch.no_grad():
            y = integrand(x, cells.owner).detach().cpu()
        y = (torch.view_as_real(y) if y.is_complex() else y).reshape(*x.shape, -1)
        _draw_integrand(ax, x.cpu(), y, cells.piece.cpu())
    _draw_cells(ax, ends.cpu(), cells.error.cpu())
    _span(ax, ends, plan.infinite)
    return ax


def _place(cells: IntervalPlan, limits: Limits) -> tuple[Tensor, Tensor]:
    """Return the curve's points, ``(33, n)`` or ``(129, n)``, and the cells' ends ``(2, n)``."""
    first, last = float(cells.tau.min()), float(cells.tau.max())
    tau = torch.linspace(first, last, 33, dtype=torch.float64, device=cells.row.device)
    layout = lay_out(limits.pieces(), cells.row, cells.start, cells.stop, None)
    x, _ = layout.nodes(tau)
    ends, _ = layout.nodes(tau.new_tensor([0.0, 1.0]))
    if not cells.infinite:
        return x, ends
    # Close together where the picture is wide: what is even in tau is a polygon there.
    share = torch.linspace(0.0, 1.0, 129, dtype=torch.float64, device=x.device)[:, None]
    x = torch.sinh(torch.lerp(torch.asinh(x[:1]), torch.asinh(x[-1:]), share)).clamp(x.amin(0), x.amax(0))
    # An infinite end has no place in the picture, the nodes next to it have.
    return x, ends.clamp(x.min(), x.max())


IntervalPlan.plot = plot_plan


def plot_boxes(
    plan: BoxPlan, f: Callable[..., Any] | None = None, a: Any = 0.0, b: Any = 1.0, args: Any = (),
    *, region: Mapped | None = None, element: int = 0, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw the boxes of one integral in the plane, coloured by their error, over the integrand's level lines.

    Parameters
    ----------
    plan : BoxPlan
        As in ``cubature(...).plan``, of two dimensions.
    f : callable, optional
        ``f(x, *args)`` as for :func:`quadgrad.cubature`; the first of its components is drawn, of complex ones the
        modulus.
    a, b, args
        What :func:`quadgrad.cubature` was given. Infinite sides are drawn as far as nodes reach.
    region : Ball, Simplex or Nested, optional
        The region, in the place of a and b: boxes are drawn as the pieces of it that they are.
    element : int
        Which integral of the (flattened) batch.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot makes a new figure unless given. It is returned.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> from matplotlib.figure import Figure
    >>> f = lambda x: 1 / (1e-2 + ((x - 0.3) ** 2).sum(-1))
    >>> plan = qg.cubature(f, [0.0, 0.0], [1.0, 1.0], rtol=1e-4).plan
    >>> ax = plan.plot(f, [0.0, 0.0], [1.0, 1.0], ax=Figure().subplots())
    >>> ax.get_title() == f"{len(plan)} cells of {plan.rule}"
    True
    """
    if plan.d != 2:
        raise ValueError(f"boxes in {plan.d} dimensions cannot be drawn: a picture has two")
    cells, ax = _cells_of(plan, element), _plane(ax)
    ax.set_title(_title(len(cells), plan.rule))
    if len(cells) == 0:
        return ax
    given = torch.zeros_like if f is None else f
    if region is None:
        (integrand, box, *_), placed = flatten_box(given, a, b, args, trusted=plan), None
    else:
        # On the unit cube, without the stretch that the integral has there.
        every = over_unit_cube(given, region, args)[1]
        count = len(every) - len(region.parameters())
        kinds = tuple([Argument(v, shared=False, element_ndim=n) for v, n in map(tensor_and_ndim, every[:count])])
        place = lambda u, *v: region.place(u, v[count:], v[:count])[0]
        own = lambda u, *v: Integrand(given, kinds, 0, u.dtype, u.dtype, True, point_ndim=1).call(
            place(u, *v), list(v[:count])
        )
        integrand, box, *_ = flatten_box(own, [0.0] * 2, [1.0] * 2, every, trusted=plan)
        placed = replace(integrand, function=place, event=(2,))
    layout = box.detach().lay_out(cells)
    with torch.no_grad():
        u, ends = layout.nodes(cells.tau)[0], layout.nodes(_outline(cells.tau, 1 if placed is None else 8))[0]
        x = u if placed is None else placed(u, cells.owner)
        ends = ends if placed is None else placed(ends, cells.owner)
        low, high = x.amin((0, 1)), x.amax((0, 1))
        infinite = cells.infinite or bool(ends.isinf().any() | ends.isnan().any())
        ends = torch.minimum(torch.maximum(ends.nan_to_num(), low), high) if infinite else ends
        if f is not None:
            y = integrand(u, cells.owner).detach().cpu()
            y = (y.abs() if y.is_complex() else y).reshape(x.shape[0] * x.shape[1], -1)[:, 0]
            flat, fine = x.reshape(-1, 2).cpu(), y.isfinite()
            draw: Any = ax.tricontour  # whose annotations leave out how triangles are told
            draw(*flat[fine].T.numpy(), y[fine].numpy(), levels=12, colors="0.3", linewidths=0.6)
    _draw_boxes(ax, ends.cpu(), cells.error.cpu())
    if infinite and float(ends.abs().max()) > FAR:
        ax.set(xscale="asinh", yscale="asinh")
    return ax


def plot_cut(
    plan: CutPlan, f: Callable[..., Any] | None = None, a: Any = 0.0, b: Any = 1.0, args: Any = (),
    *, region: Where | Boundary, element: int = 0, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw the cells of one integral over a part of the plane, and the region over the integrand's level lines.

    Cells are coloured by their error, those that are outside are white; the thick line is where the functions
    vanish.

    Parameters
    ----------
    plan : CutPlan
        As in ``cubature(..., region=region).plan``, of two dimensions.
    f : callable, optional
        ``f(x, *args)`` as for :func:`quadgrad.cubature`; it is called in the region alone, and the first of its
        components is drawn, of complex ones the modulus.
    a, b, args, region
        What :func:`quadgrad.cubature` was given.
    element : int
        Which integral of the (flattened) batch.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot makes a new figure unless given. It is returned.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> from matplotlib.figure import Figure
    >>> disc, f = qg.Where(lambda x: 0.5 - (x**2).sum(-1)), lambda x: torch.exp(x[..., 0])
    >>> plan = qg.cubature(f, [-1.0, -1.0], 1.0, region=disc, rtol=1e-4).plan
    >>> ax = plan.plot(f, [-1.0, -1.0], 1.0, region=disc, ax=Figure().subplots())
    >>> ax.get_title() == f"{len(plan)} cells of {plan.rule}"
    True
    """
    d = plan.level.shape[0]
    if d != 2:
        raise ValueError(f"cells in {d} dimensions cannot be drawn: a picture has two")
    own = _own_cells(plan, element).nonzero().squeeze(1)
    ax = _plane(ax)
    ax.set_title(_title(len(own), plan.rule))
    integrand, box, *_ = flatten_box(f or torch.zeros_like, a, b, args)
    g = replace(integrand, function=region.functions, event=(plan.active.shape[1],), output_dtype=None)
    low, side = (t[own] for t in cut_cells(plan))
    with torch.no_grad():
        box = box.detach().take(own.new_tensor([element]))
        ends = box.place(low + side * _outline(low, 1)[:, None])[0]
        line = torch.linspace(0.0, 1.0, LINES, dtype=low.dtype, device=low.device)
        x = box.place(torch.cartesian_prod(line, line)[:, None])[0]
        v = g(x, own.new_tensor([element]))[:, 0].amin(-1)
        y = torch.full_like(v, torch.nan)
        if f is not None and not plan.surface and bool((v > 0.0).any()):
            inside = integrand(x[v > 0.0], own.new_tensor([element])).reshape(int((v > 0.0).sum()), -1)[:, 0]
            y[v > 0.0] = (inside.abs() if inside.is_complex() else inside).to(y.dtype)
    grid = [t.reshape(LINES, LINES).cpu().numpy() for t in (*x[:, 0].T, v, y.masked_fill(y.isinf(), torch.nan))]
    if len(y[y.isfinite()].unique()) > 1:
        ax.contour(*grid[:2], grid[3], levels=12, colors="0.3", linewidths=0.6)
    if bool((v > 0.0).any()) and bool((v < 0.0).any()):
        ax.contour(*grid[:3], levels=[0.0], colors="k", linewidths=1.5)
    _draw_boxes(ax, ends.cpu(), plan.error[own].masked_fill(plan.outside[own], torch.nan).cpu())
    return ax


def _plane(ax: Axes | None) -> Axes:
    """Return where to draw points of the plane."""
    ax = _axes(ax)
    ax.set(xlabel="x[..., 0]", ylabel="x[..., 1]")
    return ax


def _outline(like: Tensor, parts: int) -> Tensor:
    """Return points along the sides of the unit square, ``(4 * parts, 2)``."""
    t = torch.arange(parts, dtype=like.dtype, device=like.device) / parts
    still = torch.zeros_like(t)
    sides = ((t, still), (1.0 + still, t), (1.0 - t, 1.0 + still), (still, 1.0 - t))
    return torch.cat([torch.stack(side, dim=-1) for side in sides])


def _draw_boxes(ax: Axes, ends: Tensor, error: Tensor) -> None:
    """Draw boxes, given points ``(k, n, 2)`` along the sides of each; those whose error is NaN stay white."""
    from matplotlib.collections import PolyCollection

    norm, numbers = _colours(error)
    numbers[error.isnan().numpy()] = math.nan
    drawn = PolyCollection(
        ends.movedim(0, 1).tolist(), array=numbers, norm=norm, cmap="plasma_r", edgecolors="0.6", lw=0.3
    )
    drawn.set_zorder(0)
    ax.add_collection(drawn)
    ax.autoscale_view()
    ax.figure.colorbar(drawn, ax=ax, label="error of the cell")


BoxPlan.plot = plot_boxes
CutPlan.plot = plot_cut


def plot_antiderivative(curve: Antiderivative, *, element: int = 0, ax: Axes | None = None) -> Axes:
    """Draw one antiderivative above its cells, as bars coloured by how far off it may be inside each.

    Parameters
    ----------
    element : int
        Which of the (flattened) batch. All its components are drawn.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot makes a new figure unless given. It is returned.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> from matplotlib.figure import Figure
    >>> F = qg.antiderivative(torch.cos, 0.0, torch.tensor(6.0, dtype=torch.float64))
    >>> ax = F.plot(ax=Figure().subplots())
    >>> ax.get_ylabel()
    'antiderivative'
    """
    x, y, ends, error = curve.drawn(element)
    ax = _axes(ax)
    ax.set(title=_title(ends.shape[1], curve.plan.rule), xlabel="x", ylabel="antiderivative")
    if ends.shape[1] == 0:
        return ax
    for component, heights in enumerate(y.unbind(1)):
        ax.plot(x, heights, color=f"C{component}")
    _draw_cells(ax, ends, error)
    _span(ax, ends, curve.plan.infinite)
    return ax


Antiderivative.plot = plot_antiderivative


def _cells_of(plan: _Plan, element: int) -> _Plan:
    """Return the cells of one integral of the batch."""
    return plan.take(_own_cells(plan, element))


def _own_cells(plan: IntervalPlan | BoxPlan | CutPlan, element: int) -> Tensor:
    """Tell which cells are those of one integral of the batch."""
    if not 0 <= element < plan.batch:
        raise IndexError(f"element={element} is not in a plan of {plan.batch} integrals")
    return plan.owner == element


def _axes(ax: Axes | None) -> Axes:
    """Return where to draw: in a new figure unless given."""
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1]
    return ax


def _title(count: int, rule: str) -> str:
    """Say how many cells are drawn."""
    return f"{count} cell{'' if count == 1 else 's'} of {rule}"


def _span(ax: Axes, ends: Tensor, infinite: bool) -> None:
    """Let the picture end where the cells do."""
    if infinite and float(ends.abs().max()) > FAR:
        ax.set_xscale("asinh")  # smooth, where symlog has a kink that looks like one of the curve's
    ax.set_xlim(float(ends.min()), float(ends.max()))


def _draw_integrand(ax: Axes, x: Tensor, y: Tensor, piece: Tensor) -> None:
    """Draw each component, interrupted at breakpoints; on a log scale if a positive f is spiky."""
    for one in piece.unique().tolist():
        here = (piece == one).nonzero().squeeze(1)
        here = here[x[0, here].argsort()]
        for component, curve in enumerate(y[:, here].unbind(2)):
            ax.plot(x[:, here].T.flatten(), curve.T.flatten(), color=f"C{component}")
    finite = y[y.isfinite()]
    if finite.numel() and finite.min() > 0.0 and finite.max() > 1e3 * finite.quantile(0.25):
        ax.set_yscale("log")
    ax.set_ylabel("integrand")


def _draw_cells(ax: Axes, ends: Tensor, error: Tensor) -> None:
    """Draw a band below the curve: a bar for each cell, ticks at their ends."""
    from matplotlib.collections import PolyCollection

    scale, band = ax.yaxis.get_transform(), ax.get_xaxis_transform()
    low, high = scale.transform(ax.get_ylim())
    ax.set_ylim(bottom=scale.inverted().transform([low - 0.15 * (high - low)])[0])
    bars = [[(left, 0.0), (right, 0.0), (right, 0.06), (left, 0.06)] for left, right in ends.T.tolist()]
    norm, numbers = _colours(error)
    options: dict[str, Any] = {"norm": norm, "cmap": "plasma_r", "edgecolors": "face", "transform": band}
    drawn = PolyCollection(bars, array=numbers, **options)
    ax.add_collection(drawn, autolim=False)
    ax.vlines(ends.flatten().tolist(), 0.06, 0.1, transform=band, color="0.3", lw=0.5)
    ax.figure.colorbar(drawn, ax=ax, label="error of the cell")


def _colours(error: Tensor) -> tuple[Any, Any]:
    """Return a logarithmic scale for the errors of cells, and the numbers to be put on it."""
    from matplotlib.colors import LogNorm

    positive = error[error.isfinite() & (error > 0.0)].tolist() or [1.0]
    norm = LogNorm(min(positive), max(max(positive), 10.0 * min(positive)), clip=True)
    return norm, error.clamp(min(positive)).nan_to_num().numpy()
