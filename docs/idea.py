"""Draw the idea of the library as it happens: ``python docs/idea.py`` writes ``docs/idea.svg``.

The integral of a peak: where search calls the integrand, round after round; its plan; the sum over the plan.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import quadgrad as qg

HERE = Path(__file__).parent
CENTRE, WIDTH = 0.62, 0.02
BLUE, ORANGE, GREY = "#3465a4", "#d9730d", "#777777"


def peak(x: Tensor) -> Tensor:
    return WIDTH**2 / ((x - CENTRE) ** 2 + WIDTH**2)


def search() -> tuple[list[Tensor], qg.Plan]:
    """Return the nodes of each round and the plan."""
    rounds: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        rounds.append(x.flatten().clone())
        return peak(x)

    plan = qg.quad(watched, torch.zeros((), dtype=torch.float64), 1.0, rule="gk15").plan
    return [nodes for nodes in rounds if nodes.numel() >= 15], plan  # else a look between cells


def draw_rounds(axes: Axes, rounds: list[Tensor]) -> None:
    for number, nodes in enumerate(rounds):
        axes.vlines(nodes, -number - 0.25, -number + 0.25, color=BLUE, linewidth=0.6)
    axes.set_yticks([-number for number in range(len(rounds))], [f"round {n + 1}" for n in range(len(rounds))])
    axes.tick_params(axis="y", length=0, labelcolor=GREY)
    axes.set_ylim(-len(rounds) + 0.4, 0.6)
    axes.set_title("search")
    axes.set_xlabel("decides what is discrete:\nwhich cells, when to stop. No gradient")


def draw_plan(axes: Axes, plan: qg.Plan) -> None:
    for left, right in plan.cells(0.0, 1.0).tolist():
        axes.add_patch(
            plt.Rectangle((left, 0.3), right - left, 0.4, facecolor="#dfe8f4", edgecolor=BLUE, linewidth=0.8)
        )
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_title("plan")
    axes.set_xlabel("cells as fractions, without limits:\nlook at it, save it, start from it")


def draw_replay(axes: Axes, plan: qg.Plan) -> None:
    x = torch.linspace(0.0, 1.0, 301, dtype=torch.float64)
    nodes = plan.nodes(0.0, 1.0).flatten()
    axes.fill_between(x, peak(x), color="#dfe8f4")
    axes.plot(x, peak(x), color=BLUE, linewidth=1.0)
    axes.plot(nodes, peak(nodes), ".", color=ORANGE, markersize=2.5)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([])
    axes.set_title("replay")
    axes.set_xlabel("one sum over the plan in ordinary torch:\nits derivatives are torch's, of any order")


def draw() -> Figure:
    """Return the picture."""
    rounds, plan = search()
    figure, panels = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained", gridspec_kw={"wspace": 0.12})
    draw_rounds(panels[0], rounds)
    draw_plan(panels[1], plan)
    draw_replay(panels[2], plan)
    for axes in panels:
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 1], ["a", "b"])
        axes.spines[["left", "right", "top"]].set_visible(False)
    for axes in panels[1:]:
        axes.annotate("→", (-0.1, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=18, color=GREY)
    return figure


def main(folder: Path = HERE) -> None:
    """Write it; the same each time."""
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "quadgrad", "font.size": 9}):
        draw().savefig(folder / "idea.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
