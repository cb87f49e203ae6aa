"""Pictures of plans: where the cells of an integral went, and how large the error is on each.

Called as a method of what they show. matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from quadgrad._core.antiderivative.curve import Antiderivative
from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.verbs.inputs import flatten, flatten_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_antiderivative", "plot_boxes", "plot_plan"]

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
    *, element: int = 0, ax: Axes | None = None,
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
    cells, ax = _cells_of(plan, element), _axes(ax)
    ax.set(title=_title(len(cells), plan.rule), xlabel="x[..., 0]", ylabel="x[..., 1]")
    if len(cells) == 0:
        return ax
    integrand, box, *_ = flatten_box(f or (lambda x, *_: x.sum(-1)), a, b, args, trusted=plan)
    layout = box.detach().lay_out(cells)
    x, _ = layout.nodes(cells.tau)
    ends = layout.nodes(torch.stack((torch.zeros_like(cells.tau[0]), torch.ones_like(cells.tau[0]))))[0]
    ends = ends.clamp(x.amin((0, 1)), x.amax((0, 1))) if cells.infinite else ends
    if f is not None:
        with torch.no_grad():
            y = integrand(x, cells.owner).detach().cpu()
        y = (y.abs() if y.is_complex() else y).reshape(x.shape[0] * x.shape[1], -1)[:, 0]
        flat, fine = x.reshape(-1, 2).cpu(), y.isfinite()
        draw: Any = ax.tricontour  # whose annotations leave out how triangles are told
        draw(*flat[fine].T.numpy(), y[fine].numpy(), levels=12, colors="0.3", linewidths=0.6)
    _draw_boxes(ax, ends.cpu(), cells.error.cpu())
    return ax


def _draw_boxes(ax: Axes, ends: Tensor, error: Tensor) -> None:
    """Draw boxes, given two opposite corners ``(2, n, 2)`` of each."""
    from matplotlib.collections import PolyCollection

    (left, low), (right, high) = ends[0].T, ends[1].T
    corners = torch.stack([torch.stack(p, -1) for p in ((left, low), (right, low), (right, high), (left, high))], 1)
    norm, numbers = _colours(error)
    drawn = PolyCollection(corners.tolist(), array=numbers, norm=norm, cmap="plasma_r", edgecolors="0.6", lw=0.3)
    drawn.set_zorder(0)
    ax.add_collection(drawn)
    ax.autoscale_view()
    ax.figure.colorbar(drawn, ax=ax, label="error of the cell")


BoxPlan.plot = plot_boxes


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
    if not 0 <= element < plan.batch:
        raise IndexError(f"element={element} is not in a plan of {plan.batch} integrals")
    return plan.take(plan.owner == element)


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
    if infinite and float(ends.abs().max()) > 100.0:
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
