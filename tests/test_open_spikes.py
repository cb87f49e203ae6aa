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
from quadgrad._core.search.looks.gaps import find_gaps
from quadgrad._core.search.looks.open_spikes import find_open
from quadgrad._core.search.looks.spikes_native import find_gaps_native, find_open_native
from quadgrad._core.status import Status

BATCH = 40


def random_plan(generator: torch.Generator, count: int, halvings: int) -> IntervalPlan:
    """Return cells of pieces halved at random, in the order of their generations; some are logarithmic."""
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


@pytest.mark.parametrize("event", ((), (3,)))
@pytest.mark.parametrize("kind", (torch.float64, torch.complex128))
@pytest.mark.parametrize("n", (1, 7, 300))
def test_both_see_the_same_gaps(n: int, kind: torch.dtype, event: tuple[int, ...]) -> None:
    """Of values that are smooth, or not, or not finite, at places between nodes and on them."""
    if load() is None:
        pytest.skip("the package was installed without its compiled kernel")
    generator, rule, k = torch.Generator().manual_seed(n), get_rule("gk15"), 9
    nodes = torch.as_tensor(rule.nodes)
    tau = torch.rand((k, n), generator=generator, dtype=torch.float64)
    tau[0] = nodes[torch.randint(0, len(nodes), (n,), generator=generator)]
    inside = torch.rand((k, n), generator=generator) < 0.8
    x = torch.cat((nodes[:, None].expand(-1, n), tau))
    rate = torch.rand(n, generator=generator, dtype=torch.float64) * 3.0
    y = torch.exp(rate * x)[..., *(None,) * len(event)] * (torch.rand(event, generator=generator) + 0.5).to(kind)
    rough = torch.rand((n, *event), generator=generator) < 0.5
    y = y + 1e-6 * rough * torch.randn(y.shape, generator=generator, dtype=kind)
    y = torch.where(torch.rand(y.shape, generator=generator) < 0.002, torch.inf, y)
    y = torch.where(torch.rand(y.shape, generator=generator) < 0.002, torch.nan, y)
    for factor in (x.exp(), x[:1].exp()):
        compiled, plain = (find(rule, y, factor, tau, inside, 1e-13) for find in (find_gaps_native, find_gaps))
        for one, other in zip(compiled, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)
