"""The demo's one picture: survival, distances, their gradient, and where the cells went."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from quadgrad._demo.cells import CENTRE, WIDTH, PeakResult, peak
from quadgrad._demo.data import Lifetimes
from quadgrad._demo.distances import COSMOLOGIES, DistanceResult
from quadgrad._demo.network import GROUPS, NetworkFit
from quadgrad._demo.survival import WeibullFit, kaplan_meier

__all__ = ["draw"]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLACK, ORANGE, BLUE, GREEN, RED = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00"


def draw(
    path: Path,
    flies: Lifetimes,
    weibull: WeibullFit,
    network: NetworkFit,
    distances: DistanceResult,
    cells: PeakResult,
) -> None:
    """Write the picture to ``path``; the ending of its name decides the format."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2)
    draw_survival(figure.add_subplot(grid[0, 0]), flies, weibull, network)
    draw_distances(figure.add_subplot(grid[0, 1]), distances)
    draw_gradient(figure.add_subplot(grid[1, 1]), distances)
    peak_and_cells = grid[1, 0].subgridspec(2, 1, height_ratios=(3, 1))
    above = figure.add_subplot(peak_and_cells[0])
    below = figure.add_subplot(peak_and_cells[1], sharex=above)
    draw_peak(above, cells)
    bars = draw_cells(below, cells)
    scale = above.inset_axes((0.55, 0.85, 0.4, 0.05))
    figure.colorbar(bars, cax=scale, orientation="horizontal", label="error of the cell")
    figure.savefig(path, dpi=130)


def draw_survival(axes: Axes, flies: Lifetimes, weibull: WeibullFit, network: NetworkFit) -> None:
    """Draw the Kaplan-Meier steps of each group and of all flies, and the fits over them."""
    for index, (name, colour) in enumerate(zip(GROUPS, (BLUE, ORANGE), strict=True)):
        member = flies.group == index
        ages, alive = kaplan_meier(flies.days[member], flies.died[member])
        axes.step(
            [0, *ages.tolist()], [1, *alive.tolist()], where="post", color=colour, lw=1, label=f"{name}, seen"
        )
        axes.plot(network.days, network.survival[index], color=colour, lw=2, label=f"{name}, network")
        axes.fill_between(network.days, network.lower[index], network.upper[index], color=colour, alpha=0.2, lw=0)
    ages, alive = kaplan_meier(flies.days, flies.died)
    axes.step([0, *ages.tolist()], [1, *alive.tolist()], where="post", color=BLACK, lw=1, label="all flies, seen")
    fitted = torch.exp(-((network.days / weibull.scale) ** weibull.shape))
    axes.plot(network.days, fitted, color=BLACK, lw=2, ls="--", label="all flies, Weibull")
    axes.set(xlabel="age (days)", ylabel="share alive", ylim=(0, 1.02), xlim=(0, 80))
    axes.set_title("Survival of 163 flies: Kaplan-Meier steps and fits (95 % bands)")
    axes.legend(frameon=False, fontsize=9)


def draw_distances(axes: Axes, distances: DistanceResult) -> None:
    """Draw the luminosity distance in each universe."""
    styles = zip(COSMOLOGIES, distances.distance, (BLACK, BLUE, ORANGE), ("-", "--", ":"), strict=True)
    for name, distance, colour, style in styles:
        axes.plot(distances.redshift, distance / 1e3, color=colour, ls=style, lw=2, label=name)
    axes.set(xlabel="redshift", ylabel="luminosity distance (Gpc)", xlim=(0, 8), ylim=(0, None))
    axes.set_title("Distance at 1,000 redshifts")
    axes.legend(frameon=False)


def draw_gradient(axes: Axes, distances: DistanceResult) -> None:
    """Draw the gradient of the flat w0wa distance, each parameter scaled to a small change of it."""
    scales = (("H0 by 1 %", 0.7), ("Om by 0.01", 0.01), ("w0 by 0.01", 0.01), ("wa by 0.01", 0.01))
    for (name, step), slope, colour in zip(scales, distances.gradient, (BLACK, BLUE, ORANGE, GREEN), strict=True):
        change = 100 * step * slope / distances.distance[1]
        axes.semilogx(distances.redshift, change, color=colour, lw=2, label=name)
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set(xlabel="redshift", ylabel="change of the distance (%)")
    axes.set_title("Its gradient: what the distance does when a parameter grows")
    axes.legend(frameon=False, fontsize=9)


def draw_peak(axes: Axes, cells: PeakResult) -> None:
    """Draw the integrand with the cell boundaries under it."""
    x = torch.cat([torch.linspace(low, high, 40) for low, high in zip(cells.lower, cells.upper, strict=True)])
    axes.semilogy(x, peak(x, torch.tensor(CENTRE), torch.tensor(WIDTH)), color=BLACK, lw=1.5)
    axes.set(ylabel="integrand", xlim=(0, 1))
    axes.tick_params(labelbottom=False)
    axes.set_title(f"Where the {len(cells.lower)} cells went: a peak of width {WIDTH:g} at {CENTRE:g}")
    axes.vlines(cells.lower, 0, 0.06, transform=axes.get_xaxis_transform(), color=RED, lw=0.8)


def draw_cells(axes: Axes, cells: PeakResult) -> LineCollection:
    """Draw each cell as a bar at the height of its width, coloured by its error, and return the bars."""
    bars = [[(low, high - low), (high, high - low)] for low, high in zip(cells.lower, cells.upper, strict=True)]
    error = cells.error.clamp(min=torch.finfo(cells.error.dtype).tiny)
    norm = LogNorm(max(error.min().item(), 1e-6 * error.max().item()), error.max().item(), clip=True)
    drawn = LineCollection(bars, array=error.numpy(), norm=norm, cmap="plasma_r", linewidths=4)
    axes.add_collection(drawn)
    width = cells.upper - cells.lower
    axes.set(xlabel="x", ylabel="cell width", yscale="log", xlim=(0, 1))
    axes.set_ylim(0.5 * width.min().item(), 2 * width.max().item())
    return drawn
