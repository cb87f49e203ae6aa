"""Which spikes are open: the kernel says what the tensor operations say, of random ones, ties among them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers import t64
from quadgrad._core.mesh.cells import bisect
from quadgrad._core.mesh.interval import EXTRAPOLATED, LINEAR, LOGARITHMIC, Pieces
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.rules import get_rule
from quadgrad._core.search.kernel.library import load
from quadgrad._core.search.kernel.spikes import find_open_native
from quadgrad._core.search.open_spikes import find_open
from quadgrad._core.status import Status

BATCH = 40


def random_plan(generator: torch.Generator, count: int, halvings: int) -> IntervalPlan:
    """Return cells of pieces that were halved at random, in the order of their generations; some are logarithmic."""
    row = torch.arange(BATCH * count)
    start, stop = torch.zeros(len(row), dtype=torch.float64), torch.ones(len(row), dtype=torch.float64)
    settled: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(halvings):
        halved = torch.rand(len(row), generator=generator) < 0.6
        settled.append((row[~halved], start[~halved], stop[~halved]))
        start, stop = bisect(start[halved], stop[halved])
        row = row[halved].repeat_interleave(2)
    row, start, stop = (torch.cat(columns) for columns in zip(*settled, (row, start, stop), strict=True))
    row, order = row.sort(stable=True)
    start, stop = start[order], stop[order]
    kept = torch.rand(len(row), generator=generator) < 0.97  # of some a part is a series
    row, start, stop = row[kept], start[kept], stop[kept]
    touches = (start == 0.0) | (stop == 0.0)
    chosen = torch.rand(len(row), generator=generator) < 0.3
    kind = torch.where(touches, EXTRAPOLATED, LOGARITHMIC).masked_fill(~chosen | (stop - start > 0.5), LINEAR)
    pieces = Pieces(t64([0.0]), t64([1.0]), count, False)
    return IntervalPlan.of(get_rule("gk21"), pieces, (BATCH,), row, start, stop, kind=kind.to(torch.int8))


def random_spikes(generator: torch.Generator, plan: IntervalPlan, n: int) -> Tensor:
    """Return spikes: some at ends of cells, some twice, some as far apart as a cell is wide."""
    cell = torch.randint(0, len(plan), (n,), generator=generator)
    start, stop = plan.start[cell], plan.stop[cell]
    share = torch.randint(0, 5, (n,), generator=generator).double() / 4.0
    place = start + (stop - start) * share
    place = torch.where((start < 0.0) & (place >= 0.0), -1e-9, place)
    apart = (stop - start) * 2.0 ** torch.randint(-4, 3, (n,), generator=generator).double()
    spikes = torch.stack((plan.row[cell].double(), place, apart), 1)
    return torch.cat((spikes, spikes[: n // 4]))[torch.randperm(n + n // 4, generator=generator)]


@pytest.mark.parametrize("n", (1, 30, 600, 4_000))
@pytest.mark.parametrize("count", (1, 3))
@pytest.mark.parametrize("seed", range(5))
def test_both_find_the_same(seed: int, count: int, n: int) -> None:
    if load() is None:
        pytest.skip("the package was installed without its compiled kernel")
    generator = torch.Generator().manual_seed(seed)
    plan = random_plan(generator, count, 3 + 2 * seed)
    spikes = random_spikes(generator, plan, n)
    ends = t64([int(Status.CONVERGED), int(Status.MAX_NFEV)]).long()
    status = ends[(torch.rand(BATCH, generator=generator) < 0.2).long()]
    compiled = find_open_native(plan, spikes, status)
    plain = find_open(plan, spikes, status == int(Status.CONVERGED))
    assert (compiled is None) == (plain is None)
    assert plain is not None or n == 1
    if compiled is not None and plain is not None:
        for name in ("cell", "place", "apart"):
            assert torch.equal(getattr(compiled, name), getattr(plain, name)), name
