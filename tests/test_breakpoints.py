"""Breakpoints that require grad: any number, shared, per element or ragged, coming and going during a fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, relative_error, t64

MODES = {"Reuse": qg.Reuse(), "Resolve": qg.Resolve(rtol=1e-10)}
in_every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)

WAVE = lambda x: torch.exp(-x) * torch.cos(3 * x)
PRIMITIVE = lambda x: torch.exp(-x) * (3 * torch.sin(3 * x) - torch.cos(3 * x)) / 10


def steps(x: Tensor, heights: Tensor, places: Tensor) -> Tensor:
    """Multiply a wave by 1, plus the heights of all places that lie below x (NaN: none)."""
    jumps = torch.where(x[..., None] > places, heights, 0.0).sum(-1)
    return WAVE(x) * (1 + jumps)


def area(places: Tensor, heights: Tensor, a: Tensor, b: Tensor, mode: qg.GradientMode, **options) -> qg.Result:
    """Integrate it with all places marked; the last dimension of ``places`` enumerates them."""
    args = (qg.element(heights, 1), qg.element(places, 1))
    return qg.quad(steps, a, b, args, points=places, rtol=1e-11, gradient=mode, **options)


def exact_area(places: Tensor, heights: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Integrate in closed form; a place outside [a, b] counts as that limit."""
    inside = torch.maximum(torch.minimum(places.nan_to_num(torch.inf), b[..., None]), a[..., None])
    tails = PRIMITIVE(b)[..., None] - PRIMITIVE(inside)
    return PRIMITIVE(b) - PRIMITIVE(a) + (heights * tails).sum(-1)


def check(places: Tensor, heights: Tensor, a: Tensor, b: Tensor, mode: qg.GradientMode) -> None:
    """Compare the value and its gradient in everything with the closed form."""
    inputs = [leaf(t) for t in (places, heights, a, b)]
    result, exact = area(*inputs, mode), exact_area(*inputs)
    assert relative_error(result.value, exact) <= 1e-10
    ours = torch.autograd.grad(result.value.sum(), inputs)
    theirs = torch.autograd.grad(exact.sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        assert bool(one.isfinite().all())
        assert (one - other.nan_to_num()).abs().max() <= 1e-9 * other.nan_to_num().abs().max()


@in_every_mode
@pytest.mark.parametrize("count", (1, 3, 20))
def test_any_number_shared_by_the_batch(count: int, mode: qg.GradientMode) -> None:
    generator = torch.Generator().manual_seed(count)
    places = torch.rand(count, generator=generator, dtype=torch.float64)
    heights = torch.randn(count, generator=generator, dtype=torch.float64)
    check(places, heights, t64([-0.2, 0.1, -0.5]), t64([1.2, 1.0, 0.7]), mode)


@in_every_mode
def test_their_own_for_each_element(mode: qg.GradientMode) -> None:
    places = t64([[0.3, 0.7], [0.9, 0.1], [0.5, 1.4]])
    check(places, t64([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]]), t64([0.0, -0.3, 0.2]), t64([1.0, 1.1, 2.0]), mode)


@in_every_mode
def test_ragged_inside_outside_and_missing(mode: qg.GradientMode) -> None:
    nan = torch.nan
    places = t64([[0.3, 0.7, nan], [nan, nan, nan], [-4.0, 0.5, 9.0], [0.2, nan, 0.8]])
    heights = t64([[1.0, -2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [3.0, 1.0, -1.0]])
    check(places, heights, torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), mode)


@in_every_mode
def test_value_and_slope_while_a_breakpoint_crosses_the_interval(mode: qg.GradientMode) -> None:
    # In one batch: far outside, close to a limit on either side, at it, inside, at another breakpoint.
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    near = [ends[0], torch.nextafter(ends[0], ends[1]), ends[1], torch.nextafter(ends[1], ends[0])]
    near += [t64(v) for v in (-2.0, -1e-12, 1e-12, 1e-7, 0.2, 0.5 - 1e-13, 0.5, 0.5 + 1e-13, 1 - 1e-9, 1.0001, 7.0)]
    moving = torch.stack(near).sort().values
    places = leaf(torch.stack((moving, torch.full_like(moving, 0.5)), dim=-1))
    heights = t64([2.0, 0.0])
    zero, one = torch.zeros_like(moving), torch.ones_like(moving)
    result, exact = area(places, heights, zero, one, mode), exact_area(places, heights, zero, one)
    assert relative_error(result.value, exact) <= 1e-10
    (slope,) = torch.autograd.grad(result.value.sum(), places)
    inside = (moving > 0) & (moving < 1)
    off = (slope[:, 0] + torch.where(inside, 2 * WAVE(moving), 0.0)).abs()
    # One rounding unit inside a limit there is no room to read f on both sides: it counts as at the limit.
    room = torch.minimum(moving, 1 - moving).abs() > 4 * torch.finfo(torch.float64).eps
    assert off[room].max() <= 1e-6
    assert torch.where(inside & ~room, slope[:, 0], 0.0).abs().max() <= 1e-6
    assert slope[:, 1].abs().max() <= 1e-6


@in_every_mode
def test_steps_that_come_and_go_while_a_plan_is_kept(mode: qg.GradientMode) -> None:
    # Two steps travel through six intervals in opposite directions, cross, and leave at the other side.
    ends = torch.linspace(0.5, 3.0, 6, dtype=torch.float64)
    heights, zeros = t64([1.0, -0.7]), torch.zeros_like(ends)
    plan = None
    for time in torch.linspace(0.0, 1.0, 40, dtype=torch.float64):
        places = leaf(torch.stack((-0.5123 + 4 * time, 3.2071 - 3.6 * time)))
        result, exact = (
            area(places, heights, zeros, ends, mode, plan=plan),
            exact_area(places, heights, zeros, ends),
        )
        plan = result.plan
        assert relative_error(result.value, exact) <= 1e-9
        ours, theirs = (torch.autograd.grad(value.sum(), places)[0] for value in (result.value, exact))
        assert (ours - theirs).abs().max() <= 1e-8


@in_every_mode
def test_second_derivative_of_a_breakpoint_per_element(mode: qg.GradientMode) -> None:
    places = leaf([[0.3], [0.6]])
    value = area(places, t64([2.0]), torch.zeros(2, dtype=torch.float64), t64([0.8, 2.0]), mode).value
    (first,) = torch.autograd.grad(value.sum(), places, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), places)
    exact = leaf(places.detach())
    (slope,) = torch.autograd.grad(-2 * WAVE(exact).sum(), exact)
    assert relative_error(second, slope) <= 1e-8
