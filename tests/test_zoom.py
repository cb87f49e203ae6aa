"""Closing in on the greatest bend of f: the kernel finds what the tensor operations find, from the same nodes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers import t64
from quadgrad._core.search.kernel.library import load
from quadgrad._core.search.kernel.zoom import zoom_native
from quadgrad._core.search.piles.zoom import zoom
from quadgrad._core.verbs.inputs import prepare

pytestmark = pytest.mark.skipif(load() is None, reason="the package was installed without its compiled kernel")

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "step": lambda x, c: (x > c).to(x.dtype) + x,
    "kink": lambda x, c: (x - c).abs() + torch.cos(x),
    "root": lambda x, c: (x - c).abs().sqrt(),
    "pole": lambda x, c: (x - c).abs() ** -0.5,
    "bump": lambda x, c: 1.0 / ((x - c) ** 2 + 1e-4),
    "smooth": lambda x, c: torch.exp(c * x),
    "constant": lambda x, c: torch.ones_like(x),
    "zero": lambda x, c: 0.0 * x,
    "noise": lambda x, c: 1.0 + 1e-6 * torch.frac(1e6 * torch.sin(1e9 * x)),
    "nowhere finite": lambda x, c: torch.where(x > c, torch.nan, torch.inf),
    "infinite beyond": lambda x, c: torch.where(x > c, torch.inf, x),
    "complex": lambda x, c: torch.complex((x - c).abs(), torch.cos(x)),
    "events": lambda x, c: torch.stack(((x > c).to(x.dtype), 0.0 * x, (x - c).abs(), torch.exp(x)), -1),
}


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_both_find_the_same(name: str, dtype: torch.dtype) -> None:
    batch, generator = 50, torch.Generator().manual_seed(len(name))
    c = 1e3 ** torch.rand(batch, generator=generator, dtype=torch.float64) - 2.0
    c[:10], ends = (
        torch.arange(10) / 8.0,
        (torch.full((batch,), -10.0).to(dtype), torch.full((batch,), 1e3).to(dtype)),
    )
    seen: list[list[Tensor]] = []

    def f(x: Tensor, c: Tensor) -> Tensor:
        seen[-1].append(x.clone())
        return FUNCTIONS[name](x, c)

    seen.append([])
    problem = prepare(f, *ends, (c.to(dtype),), None, tolerances=(1e-8, 0.0))
    problem.integrand, _ = problem.integrand.probe(torch.full((1,), 0.4375, dtype=torch.float64))
    owner = torch.randint(0, batch, (120,), generator=generator).sort().values
    width = 2.0 ** -torch.randint(0, 9, (120,), generator=generator).double()
    low = c[owner] - width * torch.randint(-1, 9, (120,), generator=generator) / 8.0
    found: list[tuple[Tensor, ...]] = []
    for body in (zoom_native, zoom):
        seen.append([])
        found.append(body(problem, owner, low, low + width))
    compiled, plain = found
    for one, other in zip(seen[-2], seen[-1], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(compiled, plain, strict=True):
        assert torch.equal(one, other)
    if name in ("step", "kink", "root", "pole"):
        within = (low < c[owner]) & (c[owner] < low + width) & (owner < 10)
        assert bool(within.any()) and bool(plain[1][within].all())
        off = (plain[0] - c[owner])[within].abs()
        assert float(off.max()) <= (1e-13 if dtype == torch.float64 else 1e-5)


def test_values_that_are_lazily_conjugated() -> None:
    f = lambda x: torch.conj(torch.complex(x.abs(), torch.cos(x)) * (1.0 + 0.5j))
    problem = prepare(f, t64(-1.0), t64(2.0), (), None, tolerances=(1e-8, 0.0))
    problem.integrand, _ = problem.integrand.probe(torch.full((1,), 0.4375, dtype=torch.float64))
    owner, low, high = torch.zeros(1, dtype=torch.int64), t64([-0.3]), t64([0.4])
    compiled, plain = (body(problem, owner, low, high) for body in (zoom_native, zoom))
    assert all(map(torch.equal, compiled, plain))
    assert bool(plain[1]) and abs(float(plain[0])) < 1e-15
