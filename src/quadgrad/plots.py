"""Pictures of plans: where the cells of an integral went, and how large the error is on each.

Called by :meth:`quadgrad.Plan.plot` and by whoever wants to look. matplotlib is imported only when a
picture is drawn, and nothing global of it is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quadgrad.maps import frame
from quadgrad.plan import Plan
from quadgrad.verbs.inputs import prepare_replay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_plan"]

SAMPLES = 33
"""Points of the curve in each cell: cells are narrow where the integrand is steep, and so are the steps."""


def plot_plan(
    plan: Plan,
    f: Callable[..., Any] | None = None,
    a: Any = 0.0,
    b: Any = 1.0,
    args: Any = (),
    *,
    points: Any = None,
    element: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the cells of one integral as bars coloured by their error, and the integrand above them.

    Parameters
    ----------
    plan : Plan
        As in ``quad(...).plan``.
    f : callable, optional
        ``f(x, *args)`` as for :func:`quadgrad.quad`; without it only the cells are drawn. The components of a
        vector-valued f, and the real and imaginary part of a complex one, are drawn one by one.
    a, b, args, points
        What :func:`quadgrad.quad` was given. An infinite interval is drawn as far as its nodes reach.
    element : int
        Which integral of the (flattened) batch.
    ax : matplotlib.axes.Axes, optional
        Where to draw; pyplot makes a new figure unless given.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    IndexError
        If the batch has no such element.

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
    if not 0 <= element < plan.batch:
        raise IndexError(f"element={element} is not in a plan of {plan.batch} integrals")
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1]
    x, edges, error, piece = _lay_out(plan, (a, b, points), element)
    count = error.shape[0]
    ax.set_title(f"{count} cell{'' if count == 1 else 's'} of {plan.rule}")
    ax.set_xlabel("x")
    if count == 0:
        return ax
    if f is None:
        ax.set_yticks([])
    else:
        _draw_integrand(ax, x, piece, _values(plan, f, (a, b, points), args, element, x))
    _draw_cells(ax, edges, error)
    low, high = float(edges.min()), float(edges.max())
    if plan.infinite and max(-low, high) > 100.0:
        ax.set_xscale("symlog", linthresh=1.0)
    ax.set_xlim(low, high)
    return ax


def _lay_out(plan: Plan, where: tuple[Any, Any, Any], element: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return one integral's curve points ``(SAMPLES, n)``, cell ends ``(2, n)``, errors and pieces, from left to right.

    In float64, where the ends of narrow cells do not coincide.
    """
    limits = plan.flatten_limits(*where).detach()
    limits = limits.with_marks(tuple(mark.to("cpu", torch.float64) for mark in limits.marks))
    mine = (plan.owner == element).nonzero().squeeze(1)
    row, start, stop, error, piece = (
        t.index_select(0, mine).cpu() for t in (plan.row, plan.start, plan.stop, plan.error, plan.piece)
    )
    layout = frame(limits.pieces(), row, start.double(), stop.double())
    seen = torch.linspace(float(plan.tau.min()), float(plan.tau.max()), SAMPLES, dtype=torch.float64)
    # The ends themselves have no place on an infinite interval; a little inside they have.
    x, _ = layout.nodes(torch.cat([seen, seen.new_tensor([1e-9, 1.0 - 1e-9])]), slice(None))
    x, ends = x[:-2], x[-2:]
    if plan.infinite and x.numel():
        ends = ends.clamp(float(x.min()), float(x.max()))
    order = ends[0].argsort()
    return x[:, order], ends[:, order], error[order], piece[order]


def _values(
    plan: Plan, f: Callable[..., Any], where: tuple[Any, Any, Any], args: Any, element: int, x: Tensor
) -> Tensor:
    """Return f on the curve, shape ``(SAMPLES, n, components)``."""
    a, b, points = where
    integrand, _ = prepare_replay(f, plan, a, b, args, points)
    owner = torch.full((x.shape[1],), element, device=plan.row.device)
    with torch.no_grad():
        y = integrand(x.to(plan.row.device), owner).detach().cpu()
    y = torch.view_as_real(y) if y.is_complex() else y
    return y.reshape(*x.shape, -1)


def _draw_integrand(ax: Axes, x: Tensor, piece: Tensor, y: Tensor) -> None:
    """Draw a line for each component, interrupted where a breakpoint lies."""
    for one in piece.unique().tolist():
        here = x[:, piece == one].T.flatten()
        for component in range(y.shape[2]):
            ax.plot(here, y[:, piece == one, component].T.flatten(), color=f"C{component}", lw=1.5)
    finite = y[y.isfinite()]
    if finite.numel() and float(finite.min()) > 0.0 and float(finite.max() / finite.min()) > 1e3:
        ax.set_yscale("log")
    ax.set_ylabel("integrand")


def _draw_cells(ax: Axes, edges: Tensor, error: Tensor) -> None:
    """Draw the cells as a band below everything drawn so far: a bar for each, ticks at their ends."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LogNorm

    scale = ax.yaxis.get_transform()
    bottom, top = scale.transform(ax.get_ylim())
    ax.set_ylim(bottom=float(scale.inverted().transform([bottom - 0.15 * (top - bottom)])[0]))
    band = ax.get_xaxis_transform()
    bars = [[(low, 0.0), (high, 0.0), (high, 0.06), (low, 0.06)] for low, high in edges.T.tolist()]
    known = error[error.isfinite() & (error > 0.0)].tolist() or [1.0]
    norm = LogNorm(min(known), max(known) if max(known) > min(known) else 10.0 * min(known))
    shades = error.clamp(min(known)).nan_to_num(posinf=torch.finfo(error.dtype).max).numpy()
    drawn = PolyCollection(
        bars, array=shades, norm=norm, cmap="plasma_r", edgecolors="face", linewidths=1.0, transform=band
    )
    ax.add_collection(drawn, autolim=False)
    ax.vlines(edges.flatten().tolist(), 0.06, 0.1, transform=band, color="0.3", lw=0.5)
    ax.figure.colorbar(drawn, ax=ax, label="error of the cell")
