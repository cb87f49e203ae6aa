"""Pictures of plans: what is drawn, where, and that nothing global is touched."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

import quadgrad as qg
from helpers import t64
from quadgrad._plots import plot_plan

INF = float("inf")


def draw(plan, *arguments, **options):
    """Plot on a figure of its own, render it, and return the axes."""
    ax = plot_plan(plan, *arguments, ax=Figure().subplots(), **options)
    ax.figure.canvas.draw()
    return ax


def bars(ax):
    """Return the left and right end of each bar, and the numbers behind their colours."""
    (band,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    corners = torch.as_tensor([path.vertices[:, 0].tolist() for path in band.get_paths()])
    return corners.amin(1), corners.amax(1), torch.as_tensor(band.get_array().copy())


def peak(x, centre=0.3):
    return 1e-3 / ((x - centre) ** 2 + 1e-6)


def test_bars_are_the_cells_and_their_colour_the_error():
    plan = qg.quad(peak, t64(0.0), 1.0).plan
    ax = draw(plan, peak)
    left, right, error = bars(ax)
    assert ax.get_title() == f"{len(plan)} cells of gk21"
    torch.testing.assert_close((right - left).double(), plan.stop - plan.start, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(error, plan.error)
    assert left.min() == pytest.approx(0.0, abs=1e-6)
    assert right.max() == pytest.approx(1.0, abs=1e-6)
    assert ax.get_yscale() == "log", "the peak spans six decades"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "integrand")


def test_the_curve_is_the_integrand_from_left_to_right():
    ax = draw(qg.quad(peak, t64(0.0), 1.0).plan, peak, t64(0.0), 1.0)
    (line,) = ax.lines
    x, y = torch.as_tensor(line.get_xydata().copy()).unbind(1)
    assert (x.diff() > 0).all()
    torch.testing.assert_close(y, peak(x))
    assert y.max() > 990, "the curve must not miss the top of the peak"


def test_one_element_of_a_batch_is_drawn_with_its_own_argument():
    centre = t64([[0.2, 0.4], [0.6, 0.8]])
    plan = qg.quad(peak, 0.0, 1.0, (centre,)).plan
    ax = draw(plan, peak, 0.0, 1.0, (centre,), element=2)
    (line,) = ax.lines
    x, y = line.get_xdata(), line.get_ydata()
    assert x[y.argmax()] == pytest.approx(0.6, abs=1e-4)
    assert len(bars(ax)[0]) == int((plan.owner == 2).sum())


@pytest.mark.parametrize("element", [-1, 4])
def test_an_element_outside_the_batch_is_named(element):
    plan = qg.quad(peak, 0.0, 1.0, (t64([0.2, 0.4, 0.6, 0.8]),)).plan
    with pytest.raises(IndexError, match=f"element={element} is not in a plan of 4 integrals"):
        plot_plan(plan, element=element, ax=Figure().subplots())


@pytest.mark.parametrize(("a", "b"), [(0.0, INF), (-INF, 0.0), (-INF, INF)])
def test_infinite_limits_are_drawn_as_far_as_the_nodes_reach(a, b):
    f = lambda x: torch.exp(-(x**2))
    plan = qg.quad(f, t64(a), b).plan
    ax = draw(plan, f, t64(a), b)
    nodes = plan.nodes(t64(a), b)
    low, high = ax.get_xlim()
    assert low == pytest.approx(float(nodes.min()), rel=1e-3, abs=0.1)
    assert high == pytest.approx(float(nodes.max()), rel=1e-3, abs=0.1)
    assert ax.get_xscale() == "asinh"
    left, right, _ = bars(ax)
    assert torch.cat([left, right]).isfinite().all()


def test_the_line_is_interrupted_at_breakpoints():
    f = lambda x: (x > 0.3).to(x.dtype)
    ax = draw(qg.quad(f, t64(0.0), 1.0, points=0.3).plan, f, t64(0.0), 1.0, points=0.3)
    assert [set(line.get_ydata().tolist()) for line in ax.lines] == [{0.0}, {1.0}]


@pytest.mark.parametrize(
    ("f", "curves"),
    [
        (lambda x: torch.stack([x, x**2, x**3], dim=-1), 3),
        (lambda x: torch.exp(1j * x), 2),
        (lambda x: x.new_zeros((*x.shape, 0)), 0),
    ],
    ids=["event", "complex", "empty"],
)
def test_every_component_has_a_curve(f, curves):
    ax = draw(qg.quad(f, t64(0.0), 1.0).plan, f)
    assert len(ax.lines) == curves


def test_without_an_integrand_only_the_cells_are_drawn():
    plan = qg.quad(peak, t64(0.0), 1.0).plan
    ax = draw(plan)
    assert not ax.lines
    assert not ax.get_yticks().size
    assert len(bars(ax)[0]) == len(plan)


def test_an_empty_interval_has_no_cells_to_draw():
    ax = draw(qg.quad(peak, t64(1.0), 1.0).plan, peak, 1.0, 1.0)
    assert ax.get_title() == "0 cells of gk21"


def test_cells_whose_error_is_zero_or_infinite_are_drawn_too():
    plan = qg.quad(torch.zeros_like, t64(0.0), 1.0).plan
    assert not plan.error.any()
    assert len(plan) == 1 and draw(plan, torch.zeros_like).get_title() == "1 cell of gk21"
    failed = qg.quad(lambda x: torch.sqrt(x - 0.5), t64(0.0), 1.0, on_failure="ignore")
    assert failed.plan.error.isinf().any()
    left, _, error = bars(draw(failed.plan, lambda x: torch.sqrt(x - 0.5)))
    assert len(left) == len(failed.plan)
    assert error.isfinite().all()


def test_limits_that_require_grad_and_reversed_ones_are_fine():
    a, b = t64(2.0).requires_grad_(), t64(1.0).requires_grad_()
    left, right, _ = bars(draw(qg.quad(torch.sin, a, b).plan, torch.sin, a, b))
    assert (left.min().item(), right.max().item()) == pytest.approx((1.0, 2.0))
    assert a.grad is None


def test_without_axes_pyplot_makes_a_figure_and_no_setting_changes():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    before = matplotlib.rcParams.copy()
    ax = qg.quad(peak, t64(0.0), 1.0).plan.plot(peak)
    assert ax.figure.number in plt.get_fignums()
    assert matplotlib.rcParams == before
    plt.close(ax.figure)


def test_boxes_in_the_plane():
    f = lambda x, c: 1 / (1e-2 + ((x - c) ** 2).sum(-1))
    corners, centre = (t64([0.0, 0.0]), t64([1.0, 2.0])), t64([[0.3], [0.6]])[:, 0, None]
    plan = qg.cubature(f, *corners, (qg.element(centre, 1),), rtol=1e-4).plan
    own = plan.take(plan.owner == 1)
    ax = plan.plot(f, *corners, (qg.element(centre, 1),), element=1, ax=Figure().subplots())
    ax.figure.canvas.draw()
    boxes = next(c for c in ax.collections if isinstance(c, PolyCollection))
    drawn = torch.as_tensor(np.array([path.vertices for path in boxes.get_paths()]))
    cells = own.cells(*corners)
    torch.testing.assert_close(torch.stack((drawn.amin(1), drawn.amax(1)), 1), cells, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(torch.as_tensor(boxes.get_array().copy()), own.error.clamp_min(own.error.min()))
    assert ax.get_title() == f"{len(own)} cells of {plan.rule}" and len(ax.collections) > 1
    wide = qg.cubature(lambda x: torch.exp(-(x**2).sum(-1)), t64([-INF, 0.0]), t64([INF, 1.0]), rtol=1e-4).plan
    limits = wide.plot(None, [-INF, 0.0], [INF, 1.0], ax=Figure().subplots()).dataLim
    assert math.isfinite(limits.width) and limits.width > 4.0
    with pytest.raises(ValueError, match="3 dimensions"):
        qg.cubature(lambda x: x.sum(-1), [0.0] * 3, [1.0] * 3).plan.plot()


def ends_of(ax):
    boxes = next(c for c in ax.collections if isinstance(c, PolyCollection))
    return torch.as_tensor(np.concatenate([path.vertices for path in boxes.get_paths()]))


def test_what_functions_cut_out_of_a_box():
    r = t64([0.9, 0.7])
    disc, inside = qg.Where(lambda x, r: r**2 - (x**2).sum(-1)), []

    def f(x, r):
        inside.append(((x**2).sum(-1) <= r**2 + 1e-9).all())
        return torch.exp(x[..., 0])

    corners = (t64([-1.0, -1.0]), 1.0)
    plan = qg.cubature(f, *corners, (r,), region=disc, rtol=1e-4).plan
    ax = plan.plot(f, *corners, (r,), region=disc, element=1, ax=Figure().subplots())
    own = plan.owner == 1
    assert ax.get_title() == f"{int(own.sum())} cells of {plan.rule}" and all(inside)
    assert ends_of(ax).max().item() == pytest.approx(1.0)
    boxes = next(c for c in ax.collections if isinstance(c, PolyCollection))
    assert np.isnan(np.ma.filled(boxes.get_array(), np.nan)).sum() == int(plan.outside[own].sum())
    line = ax.collections[1].get_paths()[0].vertices
    assert np.abs(np.hypot(*line.T) - 0.7).max() < 1e-3
    plan.plot(*(None, *corners, (r,)), region=disc, ax=Figure().subplots())
    with pytest.raises(IndexError, match="element=2"):
        plan.plot(f, *corners, (r,), region=disc, element=2)


def test_boxes_of_a_region_are_pieces_of_it():
    ball = qg.Ball([[0.0, 0.0], [1.0, 1.0]], t64([0.5, 0.7]))
    f = lambda x: torch.exp(x[..., 0])
    plan = qg.cubature(f, region=ball, rtol=1e-6).plan
    ax = plan.plot(f, region=ball, element=1, ax=Figure().subplots())
    ends = (ends_of(ax) - 1.0).norm(dim=1)
    assert ends.max().item() == pytest.approx(0.7) and len(ax.collections) > 1
