"""Adaptive search: which cells, and when to stop, for all integrals of a call at once.

Each round evaluates the new cells of every running integral, sums each integral's value and error
anew, and parts its cells into *settled* ones and those to bisect. An integral is done when its summed
error meets the tolerance. Settled cells of an integral whose sum is still too large (the value,
and with it the tolerance, may have shrunk) are reopened once nothing else is left to do.

No gradient flows here, and every decision goes through :mod:`quadgrad._core.lanes`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from quadgrad._core.estimates.endpoint_values import call_with_edges, edges_inside, seen
from quadgrad._core.estimates.null_rules import PLACE, apply_rule, largest_component, scale_estimates
from quadgrad._core.estimates.singular_ends import evaluate_ends
from quadgrad._core.lanes import largest, somewhere
from quadgrad._core.mesh.cells import (
    BESIDE,
    CLOSER,
    HALVE,
    KEEP,
    LINEAR,
    PART,
    REVERT,
    TURN,
    Cells,
    Counts,
    count_children,
    is_faint,
    locate,
    plan_moves,
    plan_parts,
    refine,
    to_scan,
)
from quadgrad._core.mesh.interval import Frame, frame
from quadgrad._core.mesh.poles import Parts, ellipse
from quadgrad._core.reduce import total
from quadgrad._core.search.start import First
from quadgrad._core.search.task import PATIENCE, SHARE, Found, Task, noise
from quadgrad._core.status import Status
from quadgrad._core.tolerance import Tolerance

__all__ = ["allowed_error", "linear_cells", "node_blur", "search"]

RUN, WAIT = -1, -2


@dataclass(frozen=True)
class Running:
    """The integrals still running: their numbers, the sums over their settled cells, their costs."""

    who: Tensor
    value: Tensor
    error: Tensor
    floor: Tensor
    count: Tensor
    nfev: Tensor
    bad: Tensor

    def take(self, index: Tensor) -> Running:
        """Return the integrals at ``index``."""
        return Running(*(getattr(self, f.name).index_select(0, index) for f in fields(self)))

    def __len__(self) -> int:
        return self.who.shape[0]


@dataclass(frozen=True)
class Verdict:
    """One round's decisions.

    ``move`` says how each cell is refined (``KEEP`` of :mod:`.cells` and following), ``parts`` into what
    those are parted that are bisected; ``wanted`` is the number of new cells of each integral, ``code`` RUN, WAIT
    or a status, ``nfev`` what will have been spent, ``bad`` the rounds with values that are not finite.
    """

    move: Tensor
    parts: Parts
    wanted: Tensor
    code: Tensor
    nfev: Tensor
    bad: Tensor


class Ledger:
    """The settled cells, and the totals of the integrals that stopped running."""

    def __init__(self, pieces_each: int, nfev: Tensor, sums: tuple[Tensor, Tensor, Tensor]) -> None:
        """Start with the sums of all integrals, taken for converged."""
        self.pieces_each = pieces_each
        self.status, self.nfev = torch.zeros_like(nfev), nfev
        self.value, self.error, self.floor = sums
        self.settled: list[Cells] = []
        self.withdrawn = 0

    def enter(self, running: Running, code: Tensor, gone: Tensor, sums: tuple[Tensor, ...]) -> None:
        """Keep the totals of the integrals at the indices ``gone``."""
        who = running.who.index_select(0, gone)
        self.status = self.status.index_copy(0, who, code.index_select(0, gone))
        self.nfev = self.nfev.index_copy(0, who, running.nfev.index_select(0, gone))
        self.value, self.error, self.floor = (
            old.index_copy(0, who, new.index_select(0, gone))
            for old, new in zip((self.value, self.error, self.floor), sums, strict=True)
        )

    def withdraw(self) -> tuple[Tensor, Tensor, Cells]:
        """Take back the integrals that wait, with all their cells: who, the cells' owners, the cells.

        The cells left behind get a row beyond all rows, which :meth:`close` cuts off.
        """
        waits = self.status == WAIT
        asked = torch.cat((waits, waits.new_zeros(1)))
        nowhere = waits.shape[0] * self.pieces_each
        taken: list[Cells] = []
        for i, cells in enumerate(self.settled):
            again = asked.index_select(0, cells.row // self.pieces_each)
            taken.append(cells.take(locate(again, int(again.sum()))))
            self.settled[i] = replace(cells, row=cells.row.masked_fill(again, nowhere))
        cells = Cells.join(taken)
        unseen = torch.full_like(cells.height, torch.inf)
        cells = replace(cells, height=unseen)  # poles are not in the kernel's books
        self.withdrawn += len(cells)
        local = (waits.cumsum(0) - 1).index_select(0, cells.row // self.pieces_each)
        return locate(waits, int(waits.sum())), local, cells

    def close(self) -> Found:
        """Return the totals with the plan's cells, sorted by row; those of one row as they settled."""
        row, start, stop, error, kind = (
            torch.cat([getattr(cells, name) for cells in self.settled])
            for name in ("row", "start", "stop", "error", "kind")
        )
        if len(self.settled) > 1:
            row, order = row.sort(stable=True)
            kept = row.shape[0] - self.withdrawn
            row, order = row[:kept], order[:kept]
            start, stop, error, kind = (t.index_select(0, order) for t in (start, stop, error, kind))
        return Found(row, start, stop, error, kind, self.value, self.error, self.status, self.nfev)


def search(task: Task, first: First) -> Found:
    """Search from the given cells; integrals without a cell are zero and converged."""
    n, row, device = task.batch, first.row, first.row.device
    who = torch.arange(n, device=device)
    # One cell each. A passed plan may have as many cells as there are integrals, and yet not one for each.
    whole = task.pieces.count == 1 and row.shape[0] == n and first.kind is None and bool((row == who).all())
    if first.kind is None:
        cells, known = _evaluate(task, row, first.start, first.stop, whole=whole, edges=True)
    else:
        order = first.kind.sort(stable=True).indices
        by_kind = First(*(t.index_select(0, order) for t in (row, first.start, first.stop)))
        unknown = torch.full((2, len(row)), torch.nan, dtype=task.pieces.lower.dtype, device=device)
        linear = int((first.kind == LINEAR).sum())
        cells, known = _evaluate_all(
            task, by_kind.row, by_kind.start, by_kind.stop, unknown, linear, None, edges=True
        )
        cells, known = cells.take(order.argsort()), known.index_select(1, order.argsort())
    owner = _owner(task, row)
    count = torch.ones_like(who) if whole else total(torch.ones_like(owner), owner, n)
    nfev = count * (task.rule.nodes.size + BESIDE)
    running = _begin(who, count, nfev, cells)
    sums = (cells.value, cells.error, cells.floor) if whole else (running.value, running.error, running.floor)
    ledger = Ledger(task.pieces.count, nfev, sums)
    if whole:  # one cell each: those that have converged leave at once
        easy = largest(cells.error / allowed_error(task.tolerance, cells.value, cells.floor)) <= 1.0
        easy = easy & ~(to_scan(cells, cells.error) & somewhere(is_faint(cells.value, cells.error)))
        n_easy = int(easy.sum())
        if n_easy == n:
            ledger.settled.append(cells)
            return ledger.close()
        if n_easy:
            ledger.settled.append(cells.take(locate(easy, n_easy)))
            hard = locate(~easy, n - n_easy)
            running, cells, known = running.take(hard), cells.take(hard), known.index_select(1, hard)
            owner = torch.arange(n - n_easy, device=device)
    reopened = False
    while _refine(task, ledger, running, cells, known, owner, reopened):
        who, owner, cells = ledger.withdraw()
        known = torch.full_like(cells.error, torch.nan).expand(3, -1)
        count = total(torch.ones_like(owner), owner, len(who))
        running = _begin(who, count, ledger.nfev.index_select(0, who), cells)
        reopened = True
    return ledger.close()


def _refine(
    task: Task, ledger: Ledger, running: Running, cells: Cells, known: Tensor, owner: Tensor, reopened: bool
) -> bool:
    """Bisect until no integral runs any more; return whether some wait to be reopened."""
    waiting = False
    while True:
        sums = _sums(running, cells, owner)
        verdict = _judge(task, running, cells, owner, sums, reopened)
        move, parts, stays = verdict.move, verdict.parts, verdict.code == RUN
        n_over, n_wait, n_run, counts = _count(verdict.code, move, parts)
        waiting |= n_wait > 0
        if n_over:
            goes_on = stays.index_select(0, owner)
            move, parts = move * goes_on, parts.take(goes_on.index_select(0, parts.origin))
            *_, counts = _count(verdict.code, move, parts)
        n_gone, n_split = len(running) - n_run, counts.cells
        if n_gone:
            ledger.enter(running, verdict.code, locate(~stays, n_gone), sums)
        if n_split == 0:
            ledger.settled.append(cells)
            return waiting
        split = move > KEEP
        leaf = locate(~split, len(cells) - n_split)
        settled = cells.take(leaf)
        ledger.settled.append(settled)
        running = _settle(running, settled, owner.index_select(0, leaf), verdict)
        parent, start, stop, known, asked = refine(cells, known, move, parts, counts)
        owner, row = owner.index_select(0, parent), cells.row.index_select(0, parent)
        if n_gone:
            running = running.take(locate(stays, n_run))
            owner = (stays.cumsum(0) - 1).index_select(0, owner)
        cells, known = _evaluate_all(task, row, start, stop, known, counts.linear, asked)
        reopened = False


def _count(code: Tensor, move: Tensor, parts: Parts) -> tuple[int, int, int, Counts]:
    """Count integrals over budget, waiting and running, and the cells by their moves."""
    ends = (code == Status.MAX_NFEV, code == WAIT, code == RUN)
    moves = [move >= PART, *(move == kind for kind in (REVERT, TURN, CLOSER))]
    n_over, n_wait, n_run, parted, *others = torch.stack([t.sum() for t in (*ends, *moves)]).tolist()
    return n_over, n_wait, n_run, Counts(parted, len(parts.origin), *others)


def _evaluate_all(
    task: Task,
    row: Tensor,
    start: Tensor,
    stop: Tensor,
    known: Tensor,
    linear: int,
    asked: Tensor | None,
    edges: bool = False,
) -> tuple[Cells, Tensor]:
    """Apply the rule to new cells, the first ``linear`` with evenly spread nodes; see :func:`_evaluate`."""
    if linear == row.shape[0]:
        return _evaluate(task, row, start, stop, known, asked, edges=edges)
    ends = evaluate_ends(task, row[linear:], start[linear:], stop[linear:])
    beside = torch.cat((known[:, linear:], torch.full_like(known[:1, linear:], torch.nan)))
    if linear == 0:
        return ends, beside
    evenly = (row[:linear], start[:linear], stop[:linear], known[:, :linear])
    cells, known = _evaluate(task, *evenly, asked, edges=edges)
    return Cells.join([cells, ends]), torch.cat((known, beside), dim=1)


def _owner(task: Task, row: Tensor) -> Tensor:
    return row if task.pieces.count == 1 else row // task.pieces.count


def _evaluate(
    task: Task,
    row: Tensor,
    start: Tensor,
    stop: Tensor,
    known: Tensor | None = None,
    asked: Tensor | None = None,
    whole: bool = False,
    edges: bool = False,
) -> tuple[Cells, Tensor]:
    """Apply the rule to new cells, a block of nodes at a time; ``whole``: one cell for each integral.

    ``known`` ``(2, n)`` is the integrand at the cells' starts and stops, except between those ``asked`` for and the
    ones before, and with ``edges`` everywhere, where it is asked for here; returned with the cells is what is known
    at starts, stops and middles.
    """
    real = task.pieces.lower.dtype
    rule, gap = task.rule.tensors(real, row.device), task.rule.order_gap
    layout = frame(task.pieces, slice(None) if whole else row, start.to(real), stop.to(real))
    owner = _owner(task, row)
    n = row.shape[0]
    known = layout.scale.new_full((2, n), torch.nan) if known is None else known
    known = known if asked is None or len(asked) == 0 else _between(task, layout, owner, known, asked)
    step = max(1, task.block // (task.rule.nodes.size + BESIDE * edges))
    parts: list[tuple[Tensor, ...]] = []
    eps, blur, inside = task.tolerance.eps, node_blur(layout), edges_inside(start, stop)
    for first in range(0, max(1, n), step):
        part = slice(first, min(n, first + step))
        at_edges = known[:, part]
        if edges:
            y, slope, at_edges = call_with_edges(task, layout, inside, part, part if whole else owner[part])
        else:
            x, slope = layout.nodes(rule.nodes, part)
            y = task.integrand(x, owner[part]).detach()
        eps = noise(task)
        parts.append((*apply_rule(rule, y, slope, gap, eps, blur[part], at_edges), at_edges))
    *columns, middle, known = parts[0]
    if len(parts) > 1:
        *others, knowns = zip(*parts, strict=True)
        *columns, middle = (torch.cat(column) for column in others)
        known = torch.cat(knowns, dim=1)
    cells = linear_cells(task, row, start, stop, tuple(columns), layout, eps)
    return cells, torch.cat((known, middle[None]))


def node_blur(layout: Frame) -> Tensor:
    """Return how far rounding moves a node, as a part of its cell, shape ``(n,)``."""
    eps = torch.finfo(layout.scale.dtype).eps
    return (layout.reach / layout.scale).mul_(PLACE * eps).clamp_max_(1.0)


def linear_cells(
    task: Task, row: Tensor, start: Tensor, stop: Tensor, columns: tuple[Tensor, ...], layout: Frame, eps: float
) -> Cells:
    """Return cells with evenly spread nodes from value, error, size, variation, lean, pole and height.

    See :func:`quadgrad._core.estimates.null_rules.apply_rule`.
    """
    value, error, size, variation, lean, pole, height = columns
    info = torch.finfo(layout.scale.dtype)
    value, error, floor, improvable = scale_estimates(value, error, size, variation, layout, eps)
    floor = torch.where(layout.scale > 0, floor, info.tiny)  # an empty interval is no integrand without a value
    wide = (layout.scale > layout.reach * (4.0 * info.eps / task.rule.nodes[0])) & ((stop - start) > info.tiny**0.5)
    kind = torch.full_like(row, LINEAR, dtype=torch.int8)
    return Cells(row, start, stop, value, error, floor, somewhere(improvable & wide), lean, pole, height, kind)


def _between(task: Task, layout: Frame, owner: Tensor, known: Tensor, asked: Tensor) -> Tensor:
    """Call f between the cells ``asked`` for and the ones before them, and enter it into what is known."""
    x, slope = layout.nodes(layout.scale.new_zeros(1), asked)
    between = seen(task.integrand(x, owner[asked]).detach()[0], None if slope is None else slope[0])
    at_start, at_stop = known
    return torch.stack((at_start.index_copy(0, asked, between), at_stop.index_copy(0, asked - 1, between)))


def _begin(who: Tensor, count: Tensor, nfev: Tensor, cells: Cells) -> Running:
    zeros = cells.error.new_zeros(who.shape[0])
    value = cells.value.new_zeros((who.shape[0], *cells.value.shape[1:]))
    return Running(who, value, zeros, zeros, count, nfev, torch.zeros_like(who))


def _sums(running: Running, cells: Cells, owner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum value, error and floor of each integral over its settled cells and those at hand."""
    n = len(running)
    return (
        running.value + total(cells.value, owner, n),
        running.error + total(cells.error, owner, n),
        running.floor + total(cells.floor, owner, n),
    )


def _judge(
    task: Task, running: Running, cells: Cells, owner: Tensor, sums: tuple[Tensor, ...], reopened: bool
) -> Verdict:
    """Compare each integral with its tolerance and mark the cells to bisect."""
    value, error, floor = sums
    n = len(running)
    tolerance = allowed_error(task.tolerance, value, floor)
    met = largest(error / tolerance) <= 1.0
    # Where rounding alone exceeds the tolerance, stop near what rounding allows.
    tolerance = torch.maximum(tolerance, 2.0 * floor)
    done = largest(error / tolerance) <= 1.0
    bad = torch.where(largest(error).isinf(), running.bad + 1, 0)
    limit = tolerance * ((1.0 if reopened else SHARE) / running.count)
    limit = limit.masked_fill(done | (bad > PATIENCE), torch.inf)
    excess = somewhere(cells.error > limit.index_select(0, owner))
    faint = done & somewhere(is_faint(value, error))
    most = 0.5 * error.index_select(0, owner)
    split = (excess & cells.refinable) | (to_scan(cells, most) & faint.index_select(0, owner))
    move = plan_moves(cells, split)
    shape = ellipse(task.tolerance.rtol, task.rule.nodes.size)
    for costly in (True, False):
        parts = plan_parts(cells, move, shape)
        wanted, beside = (total(number, owner, n) for number in count_children(move, parts))
        nfev = running.nfev + task.rule.nodes.size * wanted + beside
        over = nfev > task.max_nfev
        if not (costly and bool(over.any())):
            break
        move = torch.where((move == PART) & over.index_select(0, owner), HALVE, move)  # halves cost less
    done = done & (wanted == 0)
    code = torch.where(wanted > 0, RUN, _stuck(task, value, error) if reopened else WAIT)
    code = code.masked_fill(over, int(Status.MAX_NFEV))
    code = code.masked_fill(bad > PATIENCE, int(Status.NONFINITE))
    code = torch.where(done, torch.where(met, int(Status.CONVERGED), int(Status.ROUNDOFF)), code)
    return Verdict(move, parts, wanted, code, nfev, bad)


def _stuck(task: Task, value: Tensor, error: Tensor) -> Tensor:
    """Say why an integral that has not converged has no cell left to bisect.

    Its cells are as narrow as the nodes can resolve: rounding, unless the error left is large.
    """
    large = task.tolerance.eps**0.5 * largest_component(value.abs())
    return torch.where(largest(error - large) > 0.0, int(Status.DIVERGENT), int(Status.ROUNDOFF))


def allowed_error(tolerance: Tolerance, value: Tensor, floor: Tensor) -> Tensor:
    """Return the largest error each integral may have.

    The floor is 10 eps times the integral of abs(f); a value below 50 eps times it is zero to rounding.
    """
    size = largest_component(value.abs())
    allowed = (tolerance.rtol * size).clamp_min(tolerance.atol)
    zero = 5.0 * floor
    allowed = torch.where(size <= zero, torch.maximum(allowed, zero), allowed)
    return allowed.clamp_min(torch.finfo(allowed.dtype).tiny)


def _settle(running: Running, settled: Cells, owner: Tensor, verdict: Verdict) -> Running:
    """Add the cells that are not bisected to their integrals' settled sums."""
    value, error, floor = _sums(running, settled, owner)
    return Running(running.who, value, error, floor, verdict.wanted, verdict.nfev, verdict.bad)
