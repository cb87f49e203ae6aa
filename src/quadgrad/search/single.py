"""Adaptive search for one integral: the decisions of :mod:`quadgrad.search.adaptive` in Python floats.

One tensor operation costs as much as evaluating a cheap integrand on a hundred nodes, and a round of
the batched search needs a hundred of them. Here a round is a handful: place the nodes, call f, apply
the rule. The two searches make the same plan, which the tests check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quadgrad._torch import in_transform
from quadgrad.maps import frame
from quadgrad.search.cells import BESIDE, DEEP, EVERY, FAINT, GEOMETRIC, LIMIT, LINEAR, SCANNED, STEP, ULPS
from quadgrad.search.edges import call_with_edges, look_at_edges
from quadgrad.search.ends import evaluate_ends
from quadgrad.search.estimate import BEYOND, EDGES, FLOOR, NULLS, PLACE, ROUGHER, SAFETY, SLOPES, SLOW, UNRESOLVED
from quadgrad.search.start import First
from quadgrad.search.task import PATIENCE, SHARE, Found, Task, noise
from quadgrad.status import Status

__all__ = ["search_single", "suits_single"]


@dataclass(slots=True)
class _Cell:
    """One cell: its piece, its ends as fractions of it, what the rule found on it, and f where it is known."""

    row: int
    start: float
    stop: float
    kind: int = LINEAR
    value: float = 0.0
    error: float = 0.0
    floor: float = 0.0
    refinable: bool = False
    lean: float = 0.0
    at_start: float = math.nan
    at_stop: float = math.nan
    at_middle: float = math.nan


def suits_single(task: Task) -> bool:
    """Whether the task is one integral of a real scalar integrand, outside transforms."""
    dtype = task.integrand.output_dtype
    alone = task.batch == 1 and task.integrand.event == () and not in_transform()
    return alone and dtype is not None and not dtype.is_complex


def search_single(task: Task, first: First | None = None) -> Found:
    """Search one integral as :func:`quadgrad.search.adaptive.search` does, by default from its whole pieces."""
    if first is None:
        edges = zip(task.pieces.lower.tolist(), task.pieces.upper.tolist(), strict=True)
        fresh = [_Cell(row, 0.0, 1.0) for row, (lower, upper) in enumerate(edges) if upper > lower]
    else:
        kinds = [LINEAR] * first.row.shape[0] if first.kind is None else first.kind.tolist()
        columns = (first.row.tolist(), first.start.tolist(), first.stop.tolist(), kinds)
        fresh = [_Cell(*cell) for cell in zip(*columns, strict=True)]
        _enter_edges(task, first, fresh)
    settled: list[_Cell] = []
    nodes = task.rule.nodes.size
    nfev = (nodes + BESIDE) * len(fresh)
    bad, reopened = 0, False
    _measure(task, fresh, edges=first is None)
    while True:
        cells = settled + fresh
        value, error, floor = sum(c.value for c in cells), sum(c.error for c in cells), sum(c.floor for c in cells)
        tolerance = _tolerance(task, value, floor)
        target = max(tolerance, 2.0 * floor)
        bad = bad + 1 if math.isinf(error) else 0
        faint = FAINT * abs(value) <= error <= target
        scan = [c for c in fresh if faint and _to_scan(c, 0.5 * error)]
        if (error <= target and not scan) or bad > PATIENCE:
            status = Status.CONVERGED if error <= tolerance else Status.ROUNDOFF
            status = Status.NONFINITE if bad > PATIENCE else status
            break
        limit = target * (1.0 if reopened else SHARE) / max(1, len(fresh))
        split = scan or [c for c in fresh if c.error > limit and c.refinable]
        if not split and not reopened:
            settled, fresh, reopened, bad = [], sorted(cells, key=lambda c: c.row), True, 0
            continue
        if not split:
            large = task.tolerance.eps**0.5 * abs(value)
            status = Status.DIVERGENT if error > large else Status.ROUNDOFF
            break
        parts, finer = _refine(split)
        cost = nodes * len(parts) + len(finer) // 2 + BESIDE * sum(c.kind != LINEAR for c in parts)
        if nfev + cost > task.max_nfev:
            status = Status.MAX_NFEV
            break
        nfev += cost
        if finer:
            _look_between(task, finer)
        chosen = {id(c) for c in split}
        settled += [c for c in fresh if id(c) not in chosen]
        fresh = parts
        reopened = False
        _measure(task, fresh)
    return _found(task, cells, [value, error], status, nfev)


def _enter_edges(task: Task, first: First, cells: list[_Cell]) -> None:
    """Call f at the edges of the cells of a plan that have linear nodes; rare enough for tensors."""
    linear = torch.tensor([i for i, cell in enumerate(cells) if cell.kind == LINEAR], dtype=torch.int64)
    chosen = (t[linear.to(t.device)] for t in (first.row, first.start, first.stop))
    for i, at_start, at_stop in zip(linear.tolist(), *look_at_edges(task, *chosen).tolist(), strict=True):
        cells[i].at_start, cells[i].at_stop = at_start, at_stop


def _measure(task: Task, cells: list[_Cell], edges: bool = False) -> None:
    """Apply the rule to cells and enter what it finds; ``edges``: call f near the edges of linear ones, too."""
    ends = [cell for cell in cells if cell.kind != LINEAR]
    if ends:
        cells = [cell for cell in cells if cell.kind == LINEAR]
        _measure_ends(task, ends)
    if cells:
        _measure_linear(task, cells, edges)


def _measure_ends(task: Task, cells: list[_Cell]) -> None:
    """Apply the rule to cells with logarithmic nodes; rare enough for tensors."""
    device = task.pieces.lower.device
    row = torch.tensor([c.row for c in cells], device=device)
    ends = torch.tensor([[c.start for c in cells], [c.stop for c in cells]], dtype=torch.float64, device=device)
    found = evaluate_ends(task, row, ends[0], ends[1])
    columns = (found.value, found.error, found.floor, found.refinable, found.lean, found.kind)
    for cell, entries in zip(cells, zip(*(t.tolist() for t in columns), strict=True), strict=True):
        cell.value, cell.error, cell.floor, cell.refinable, cell.lean, cell.kind = entries


def _measure_linear(task: Task, cells: list[_Cell], edges: bool) -> None:
    """Apply the rule to cells, a block of nodes at a time, and enter what it finds."""
    real = task.pieces.lower.dtype
    step = max(1, task.block // task.rule.nodes.size)
    info = torch.finfo(real)
    outermost = float(task.rule.nodes[0])
    finest, narrowest = 4.0 * info.eps / outermost, info.tiny**0.5
    for first in range(0, len(cells), step):
        part = cells[first : first + step]
        found = _apply_rule(task, part, edges)
        eps = noise(task)
        for cell, (sums, size, scale, reach, cell.at_middle) in zip(part, found, strict=True):
            value, (left, right, slope_1, slope_2) = sums[0], sums[SLOPES]
            cell.floor = FLOOR * eps * scale * size
            variation = abs(slope_1) + abs(slope_2)
            rounding = cell.floor + min(PLACE * info.eps * reach * variation, scale * size)
            blur = min(PLACE * info.eps * reach / max(scale, info.tiny), 1.0)
            error, decay = _null_rule_error(
                sums[NULLS], size + variation * (blur / (2.0 * eps)), task.rule.order_gap, eps
            )
            seen = BEYOND * (abs(sums[1]) + abs(sums[2]))
            gaps = (
                abs(edge - f) - seen for edge, f in zip(sums[EDGES], (cell.at_start, cell.at_stop), strict=True)
            )
            error += sum(gap for gap in gaps if 0.0 < gap < math.inf) * outermost
            cell.error = max(scale * error, rounding)
            side = float(abs(right) > ROUGHER * abs(left)) - float(abs(left) > ROUGHER * abs(right))
            cell.lean = side * (2.0 if decay >= UNRESOLVED else 1.0)
            cell.value = scale * value
            if not (math.isfinite(cell.error) and math.isfinite(value)):
                cell.value, cell.error, cell.floor, rounding = 0.0, math.inf, 0.0, 0.0
            wide = scale > finest * reach and cell.stop - cell.start > narrowest
            cell.refinable = wide and cell.error > rounding


def _apply_rule(
    task: Task, cells: list[_Cell], edges: bool
) -> Iterable[tuple[list[float], float, float, float, float]]:
    """Return of each cell all functionals of f, the integral of abs(f), the scale, the reach, f at the middle."""
    y, scale, reach = _call_with_edges(task, cells) if edges else _call(task, cells, task.rule.nodes)
    with np.errstate(all="ignore"):  # f need not be finite
        sums, sizes = task.rule.functionals @ y, task.rule.weights @ abs(y)
    return zip(sums.T.tolist(), sizes.tolist(), scale, reach, y[len(y) // 2].tolist(), strict=True)


def _call(task: Task, cells: list[_Cell], tau: np.ndarray) -> tuple[np.ndarray, list[float], list[float]]:
    """Return f times the slope at the places ``tau`` of each cell, the scale and the reach."""
    x, slope, scale, reach = _place(task, cells, tau)
    y = task.integrand(x, slice(0, 1))
    return (y if slope is None else y * slope).detach().resolve_neg().cpu().numpy(), scale, reach


def _call_with_edges(task: Task, cells: list[_Cell]) -> tuple[np.ndarray, list[float], list[float]]:
    """Call f right beside the limits, too, and enter it; where that cannot be, see :mod:`quadgrad.search.edges`."""
    real, pieces = task.pieces.lower.dtype, task.pieces
    eps = torch.finfo(real).eps
    near = max(LIMIT, ULPS * eps)
    lower, upper = pieces.lower.tolist(), pieces.upper.tolist()
    ends = [(lower[c.row], upper[c.row]) for c in cells]
    if not pieces.infinite and all(near * (b - a) > 4.0 * eps * (abs(a) + b - a) for a, b in ends):
        y, scale, reach = _call(task, cells, np.concatenate(([near], task.rule.nodes, [1.0 - near])))
        beside, y = y[[0, -1]], y[1:-1]
    else:
        row = torch.tensor([c.row for c in cells], device=pieces.lower.device)
        zero = torch.zeros(len(cells), dtype=real, device=row.device)
        layout, inside = frame(pieces, row, zero, zero + 1.0), torch.zeros((2, len(cells)), dtype=torch.bool)
        values, slope, known = call_with_edges(task, layout, inside.to(row.device), slice(None), slice(0, 1))
        y = (values if slope is None else values * slope).resolve_neg().cpu().numpy()
        beside, scale, reach = known.cpu().numpy(), layout.scale.tolist(), layout.reach.tolist()
    for cell, at_start, at_stop in zip(cells, *beside.tolist(), strict=True):
        cell.at_start, cell.at_stop = at_start, at_stop
    return y, scale, reach


def _look_between(task: Task, finer: list[_Cell]) -> None:
    """Call f between pairs of neighbouring cells, where it is not known."""
    x, slope, *_ = _place(task, finer[1::2], np.zeros(1))
    y = task.integrand(x, slice(0, 1))
    y = (y if slope is None else y * slope).detach()
    for left, right, between in zip(finer[::2], finer[1::2], y[0].tolist(), strict=True):
        left.at_stop = right.at_start = between


def _place(
    task: Task, cells: list[_Cell], tau: np.ndarray
) -> tuple[Tensor, Tensor | None, list[float], list[float]]:
    """Return nodes and slopes as tensors, scale and reach of each cell: see :class:`quadgrad.maps.Frame`."""
    pieces = task.pieces
    real, device = pieces.lower.dtype, pieces.lower.device
    if pieces.infinite:
        start, stop = torch.tensor([[c.start for c in cells], [c.stop for c in cells]], dtype=real, device=device)
        layout = frame(pieces, torch.tensor([c.row for c in cells], device=device), start, stop)
        x, slope = layout.nodes(torch.as_tensor(tau, dtype=real, device=device), slice(None))
        return x, slope, layout.scale.tolist(), layout.reach.tolist()
    lower, upper = pieces.lower.tolist(), pieces.upper.tolist()
    left: list[float] = []
    scale: list[float] = []
    for cell in cells:
        low, high = lower[cell.row], upper[cell.row]
        left.append((high if cell.start < 0.0 else low) + (high - low) * cell.start)
        scale.append((high - low) * (cell.stop - cell.start))
    x = torch.from_numpy(np.multiply.outer(tau, scale) + left)
    return x.to(device, real), None, scale, [abs(place) for place in left]


def _null_rule_error(nulls: list[float], size: float, order_gap: int, eps: float) -> tuple[float, float]:
    """Return the error on the unit interval and the decay, as :func:`quadgrad.search.estimate.apply_rule` does."""
    pairs = [abs(nulls[i]) + abs(nulls[i + 1]) for i in range(0, len(nulls), 2)]
    quiet = 2.0 * eps * size
    decay = max((max(high - quiet, 0.0) / low if low else 0.0) for high, low in zip(pairs, pairs[1:], strict=False))
    if decay < SLOW:
        return SAFETY * pairs[-1] * (decay / SLOW) ** (order_gap + len(pairs) - 1), decay
    return SAFETY * max(pairs), decay


def _tolerance(task: Task, value: float, floor: float) -> float:
    allowed = max(task.tolerance.rtol * abs(value), task.tolerance.atol)
    if abs(value) <= 5.0 * floor:
        allowed = max(allowed, 5.0 * floor)
    return allowed


def _refine(cells: list[_Cell]) -> tuple[list[_Cell], list[_Cell]]:
    """Refine cells, as :func:`quadgrad.search.cells.refine` does, in the same order; the halves of halves again."""
    halved = [c for c in cells if c.kind == LINEAR and not _turns(c)]
    halves = [
        (half, cell.lean == side) for cell in halved for half, side in zip(_bisect(cell), (-2.0, 2.0), strict=True)
    ]
    finer = [quarter for half, blamed in halves if blamed for quarter in _bisect(half)]
    finer += [half for c in cells if c.kind != LINEAR and not _closes_in(c) for half in _bisect(c)]
    turned = [replace(c, kind=GEOMETRIC) for c in cells if _turns(c)]
    closer = [part for c in cells if _closes_in(c) for part in _close_in(c)]
    return [half for half, blamed in halves if not blamed] + finer + turned + closer, finer


def _turns(cell: _Cell) -> bool:
    """Whether a cell, to be refined, gets logarithmic nodes."""
    at_lower, at_upper = cell.start == 0.0, cell.stop == 0.0
    if cell.kind != LINEAR or not (at_lower or at_upper):
        return False
    level = -math.log2(cell.stop - cell.start)
    tried = level % EVERY >= 2.0 if level > 2.0 else level < 1.0
    return not tried and ((at_lower and cell.lean < 0.0) or (at_upper and cell.lean > 0.0) or level >= DEEP)


def _to_scan(cell: _Cell, most: float) -> bool:
    """Whether a cell has to be refined before a faint integral is believed."""
    if cell.error < FAINT * abs(cell.value):
        return False
    at_end = cell.start == 0.0 or cell.stop == 0.0
    wide = (cell.kind == LINEAR and at_end) or cell.stop - cell.start > SCANNED
    rough = cell.refinable and cell.error > cell.floor
    return ((rough or cell.floor == 0.0) and wide) or (rough and cell.error > most)


def _closes_in(cell: _Cell) -> bool:
    """Whether a cell, to be refined, has logarithmic nodes and its parts get them, too."""
    return cell.kind != LINEAR and cell.lean <= 0.0


def _close_in(cell: _Cell) -> tuple[_Cell, _Cell]:
    if cell.start == 0.0 or cell.stop == 0.0:
        middle = (cell.start + cell.stop) * STEP
    else:
        middle = math.copysign(math.sqrt(abs(cell.start)) * math.sqrt(abs(cell.stop)), cell.start + cell.stop)
    return _Cell(cell.row, cell.start, middle, GEOMETRIC), _Cell(cell.row, middle, cell.stop, GEOMETRIC)


def _bisect(cell: _Cell) -> tuple[_Cell, _Cell]:
    middle = 0.5 * (cell.start + cell.stop)
    turn = 1.0 if middle >= 0.5 else 0.0
    left, right = _Cell(cell.row, cell.start, middle), _Cell(cell.row, middle - turn, cell.stop - turn)
    left.at_start, left.at_stop, right.at_start, right.at_stop = (
        cell.at_start,
        cell.at_middle,
        cell.at_middle,
        cell.at_stop,
    )
    return left, right


def _found(task: Task, cells: list[_Cell], sums: list[float], status: Status, nfev: int) -> Found:
    """Return what was found as tensors, the cells sorted by row."""
    cells = sorted(cells, key=lambda c: c.row) if len(cells) > 1 else cells
    device, dtype = task.pieces.lower.device, task.pieces.lower.dtype

    kinds = [c.kind for c in cells]

    def column(numbers: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.array(numbers)).to(device, dtype)

    return Found(
        column([c.row for c in cells], torch.int64),
        column([c.start for c in cells], torch.float64),
        column([c.stop for c in cells], torch.float64),
        column([c.error for c in cells], dtype),
        column(kinds, torch.int8) if any(kinds) else None,
        column(sums[:1], task.integrand.output_dtype or dtype),
        column(sums[1:], dtype),
        column([int(status)], torch.int64),
        column([nfev], torch.int64),
    )
