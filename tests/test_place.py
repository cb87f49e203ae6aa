"""Where nodes are placed: cells of every kind, on finite and infinite pieces, beside a naive scalar version."""

import math

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import DEPTH, EXTRAPOLATED, LINEAR, LOGARITHMIC, Pieces, place

INF = math.inf
TAU = torch.linspace(0.02, 0.98, 7, dtype=torch.float64)
CELLS = [
    (0.0, 1.0, LINEAR),
    (0.25, 0.375, LINEAR),
    (-0.5, -0.25, LINEAR),
    (0.0, 0.5, EXTRAPOLATED),
    (-0.125, 0.0, EXTRAPOLATED + 2),
    (2.0**-9, 2.0**-3, LOGARITHMIC),
    (-0.25, -(2.0**-5), LOGARITHMIC),
]
ENDS = [(0.0, 1.0), (-3.0, 2.0), (5.0, 5.0), (-INF, 2.0), (1.0, INF), (-INF, INF)]


def _slow(lower: float, upper: float, start: float, stop: float, kind: int, tau: float) -> float:
    """One node, by the definition."""
    fraction = start + tau * (stop - start)
    if kind != LINEAR:
        outer, inner = (stop, start) if start >= 0 else (start, stop)
        fraction = outer * (inner / outer if inner else 2.0**-DEPTH) ** tau
    p, q = (fraction, 1.0 - fraction) if start >= 0 else (1.0 + fraction, -fraction)
    if math.isinf(lower) and math.isinf(upper):
        return p / q - q / p
    if math.isinf(lower):
        return upper - q / p
    if math.isinf(upper):
        return lower + p / q
    return q * lower + p * upper


def _all_cells(ends: list[tuple[float, float]]) -> tuple[Pieces, Tensor, Tensor, Tensor, Tensor]:
    lower, upper = torch.tensor(ends, dtype=torch.float64).unbind(1)
    pieces = Pieces(lower.clone(), upper.clone(), 1, infinite=bool(torch.tensor(ends).isinf().any()))
    row = torch.arange(len(ends)).repeat_interleave(len(CELLS))
    start, stop, kind = torch.tensor(CELLS, dtype=torch.float64).repeat(len(ends), 1).unbind(1)
    return pieces, row, start, stop, kind.to(torch.int8)


def test_every_kind_of_cell_on_every_kind_of_piece_agrees_with_the_definition() -> None:
    for ends in (ENDS, ENDS[:3]):
        pieces, row, *cells = _all_cells(ends)
        x, factor = place(pieces, row, *cells, TAU)
        step = 1e-6
        for n, (r, *cell) in enumerate(zip(row.tolist(), *(c.tolist() for c in cells), strict=True)):
            start, stop, kind = cell
            for m, tau in enumerate(TAU.tolist()):
                here, *beside = (_slow(*ends[r], start, stop, kind, tau + d) for d in (0.0, step, -step))
                assert abs(x[m, n].item() - here) <= 1e-14 * max(1.0, abs(here))
                slope = abs(beside[0] - beside[1]) / (2.0 * step)
                assert abs(factor.expand_as(x)[m, n].item() - slope) <= 1e-8 * max(1.0, slope)


def test_evenly_spread_nodes_on_finite_pieces_have_one_factor_for_each_cell() -> None:
    pieces, row, start, stop, _ = _all_cells(ENDS[:3])
    x, factor = place(pieces, row, start, stop, None, TAU)
    assert factor.shape == (1, len(row))
    assert torch.equal(x, place(pieces, row, start, stop, torch.zeros_like(row, dtype=torch.int8), TAU)[0])


def test_neighbours_leave_no_gap_far_from_zero() -> None:
    lower = torch.tensor([1e12], dtype=torch.float64)
    pieces = Pieces(lower, lower + 1.0, 1, infinite=False)
    edges = torch.arange(65, dtype=torch.float64) / 64
    start, stop = edges[:-1], edges[1:]
    upper_half = (start >= 0.5).to(torch.float64)
    start, stop = start - upper_half, stop - upper_half
    _, factor = place(pieces, torch.zeros(64, dtype=torch.int64), start, stop, None, TAU)
    assert factor.sum().item() == 1.0


def test_derivatives_by_finite_ends_are_finite_and_right_whatever_stands_beside_them() -> None:
    pieces, row, *cells = _all_cells(ENDS)
    for name in ("lower", "upper"):
        end = getattr(pieces, name).requires_grad_()
        x, factor = place(pieces, row, *cells, TAU)
        direction = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).reshape(x.shape)
        near = (x.detach().abs() < 1e3) * direction
        (slope,) = torch.autograd.grad((x * near).sum() + (factor * near).sum(), end)
        assert slope.isfinite().all()
        h = 1e-6
        for r in (0, 1, 3 if name == "upper" else 4):
            moved: list[Tensor] = []
            for d in (h, -h):
                other = {"lower": pieces.lower.detach(), "upper": pieces.upper.detach()}
                other[name] = other[name].index_add(0, torch.tensor([r]), torch.tensor([d], dtype=torch.float64))
                x, factor = place(Pieces(**other, count=1, infinite=True), row, *cells, TAU)
                moved.append(((x + factor) * near).sum())
            assert abs(slope[r].item() - (moved[0] - moved[1]).item() / (2 * h)) < 1e-5
        getattr(pieces, name).requires_grad_(False)
