"""What search leaves behind: `Result` unpacks, `Plan` is frozen, saved, replayed and passed in again."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickletools
import subprocess
import sys
import zipfile
from math import inf
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import quadgrad as qg
from helpers import Recorder, cells_of, leaf, naive_sum, relative_error, same_plan, t64


def peak(x: Tensor, e: Tensor) -> Tensor:
    return e / ((x - 0.3) ** 2 + e**2)


WIDTHS = t64([1.0, 1e-2, 1e-4])
ZERO, ONE = t64(0.0), t64(1.0)
ZEROS, ONES = ZERO.expand(3), ONE.expand(3)


def solve(widths: Tensor = WIDTHS, a: Tensor = ZERO, b: Tensor = ONE, **options) -> qg.Result:
    options.setdefault("rtol", 1e-9)
    return qg.quad(peak, a, b, (widths,), **options)


def area(widths: Tensor) -> Tensor:
    return torch.atan(0.7 / widths) + torch.atan(0.3 / widths)


# -- Result ------------------------------------------------------------------------------------------


def test_result_unpacks_to_value_and_error() -> None:
    result = solve()
    value, error = result
    assert value is result.value and error is result.error


def test_result_is_a_pytree_of_four_leaves() -> None:
    result = solve()
    leaves, spec = tree_flatten(result)
    assert all(
        one is other
        for one, other in zip(leaves, (result.value, result.error, result.status, result.nfev), strict=True)
    )
    assert tree_unflatten(leaves, spec).plan is result.plan
    assert torch.equal(tree_map(lambda t: t[1], result).value, result.value[1])


def test_result_passes_through_vmap() -> None:
    result = torch.func.vmap(solve)(WIDTHS)
    assert isinstance(result, qg.Result)
    assert ((result.value - area(WIDTHS)).abs() <= result.error).all()


# -- Plan --------------------------------------------------------------------------------------------


def test_plan_is_frozen_and_without_gradient() -> None:
    plan = solve(leaf([1.0, 1e-2])).plan
    tensors = (plan.owner, plan.piece, plan.start, plan.stop, plan.error)
    assert not any(t.requires_grad for t in tensors)
    assert {t.shape for t in tensors} == {plan.owner.shape}
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.rule = "gk15"


def test_cells_are_sorted_by_owner_and_tile_every_piece() -> None:
    result = solve(points=t64([0.25, 0.5]))
    plan = result.plan
    assert (plan.owner.diff() >= 0).all()
    assert plan.owner.unique().tolist() == [0, 1, 2]
    # A fraction below 0 is measured from the upper end: f + 1 from the lower one.
    low, high = (torch.where(end < 0, 1 + end, end) for end in (plan.start, plan.stop))
    high = torch.where((plan.start < 0) & (plan.stop == 0), torch.ones_like(high), high)
    for owner in range(3):
        for piece in range(3):
            mine = (plan.owner == owner) & (plan.piece == piece)
            start, order = low[mine].sort()
            assert torch.equal(start[1:], high[mine][order][:-1])
            assert start[0] == 0 and high[mine].max() == 1


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 0.0), (-inf, 0.5), (0.5, inf), (-inf, inf)])
def test_nodes_and_weights_are_those_of_the_value(a: float, b: float) -> None:
    f = lambda x, p: torch.exp(-p * x**2)
    p = t64([[1.0], [2.0]])
    a, b = t64(a).expand(2, 1), t64(b).expand(2, 1)
    result = qg.quad(f, a, b, (p,), rtol=1e-10)
    nodes, weights = result.plan.nodes(a, b), result.plan.weights(a, b)
    assert nodes.shape == weights.shape == (21, result.plan.owner.numel())
    assert (weights > 0).all()
    assert (nodes > torch.minimum(a, b).max()).all() and (nodes < torch.maximum(a, b).min()).all()
    assert relative_error(naive_sum(f, result.plan, a, b, (p,)), result.value) <= 1e-13


def test_errors_of_the_cells_belong_to_the_error() -> None:
    result = solve()
    summed = torch.zeros(3, dtype=torch.float64).index_add(0, result.plan.owner, result.plan.error)
    assert (result.plan.error >= 0).all()
    assert (result.error >= summed * (1 - 1e-12)).all()


def saved(plan: qg.Plan, path: Path) -> Path:
    torch.save(plan, path)
    return path


def plans_of_every_kind() -> dict[str, qg.Plan]:
    singular = lambda x, s: x ** (s - 1.0)
    return {
        "finite": solve().plan,
        "breakpoints": solve(points=t64([0.25, 0.5])).plan,
        "singular": qg.quad(singular, ZERO, ONE, (t64([0.3, 0.5]),)).plan,
        "infinite": qg.quad(lambda x, p: torch.exp(-p * x**2), -inf, inf, (t64(2.0),)).plan,
        "empty": qg.quad(torch.sin, t64([]), ONE).plan,
    }


@pytest.mark.parametrize("name", plans_of_every_kind())
def test_plan_is_saved_and_loaded_without_pickled_code(name: str, tmp_path: Path) -> None:
    plan = plans_of_every_kind()[name]
    loaded = torch.load(saved(plan, tmp_path / "plan.pt"), weights_only=True)
    assert type(loaded) is type(plan) and same_plan(loaded, plan)
    for field in dataclasses.fields(plan):
        one, other = getattr(loaded, field.name), getattr(plan, field.name)
        assert torch.equal(one, other) if isinstance(other, Tensor) else one == other


def test_saved_plan_is_loaded_by_a_process_that_only_imports_the_package(tmp_path: Path) -> None:
    plan = solve().plan
    path = saved(plan, tmp_path / "plan.pt")
    code = f"""
import torch, quadgrad
plan = torch.load({str(path)!r}, weights_only=True)
e = torch.tensor({WIDTHS.tolist()}, dtype=torch.float64)
print(quadgrad.replay(lambda x, e: e / ((x - 0.3) ** 2 + e**2), plan, 0.0, 1.0, (e,)).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == qg.replay(peak, plan, 0.0, 1.0, (WIDTHS,)).tolist()


def test_saved_plan_names_no_module_below_the_package(tmp_path: Path) -> None:
    path = saved(plans_of_every_kind()["singular"], tmp_path / "plan.pt")
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    # Protocol 2, which torch.save writes: a global is one instruction.
    names = {argument for code, argument, _ in pickletools.genops(pickled) if code.name == "GLOBAL"}
    ours = {name for name in names if name.startswith("quadgrad")}
    assert ours == {"quadgrad _restore_plan"}
    assert all(name.split()[0].split(".")[0] in ("torch", "collections") for name in names - ours)


@pytest.mark.parametrize(
    ("version", "geometry", "message"),
    (
        (99, "interval", "newer version of quadgrad .*format 99.*: update quadgrad"),
        (0, "interval", "older version of quadgrad .*format 0.*: make the plan anew"),
        (1, "spherical", "newer version of quadgrad .*spherical.*: update quadgrad"),
    ),
)
def test_saved_plan_of_another_version_is_refused_with_what_to_do(
    version: int, geometry: str, message: str, tmp_path: Path
) -> None:
    restore, (_, _, contents) = solve().plan.__reduce__()

    class Other:
        def __reduce__(self) -> tuple[object, ...]:
            return restore, (version, geometry, contents)

    torch.save(Other(), tmp_path / "plan.pt")
    with pytest.raises(ValueError, match=message):
        torch.load(tmp_path / "plan.pt", weights_only=True)


def test_copies_of_a_plan_hold_the_same_cells_but_are_other_plans() -> None:
    plan = solve().plan
    for copied in (copy.copy(plan), copy.deepcopy(plan)):
        assert same_plan(copied, plan) and copied != plan
    assert plan == plan and len({plan, copy.copy(plan)}) == 2


@pytest.mark.parametrize("name", plans_of_every_kind())
def test_a_plan_is_printed_in_a_few_lines(name: str) -> None:
    plan = plans_of_every_kind()[name]
    assert repr(plan).startswith(f"Plan of {len(plan)} cell")
    assert len(repr(plan).splitlines()) <= 10 and "tensor" not in repr(plan)
    assert plan._repr_html_().count("<tr>") == len(repr(plan).splitlines()) - 1


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 0.0), (-inf, 0.5), (0.5, inf), (-inf, inf)])
def test_cells_tile_the_interval_in_x(a: float, b: float) -> None:
    plan = qg.quad(lambda x, p: torch.exp(-p * x**2), a, b, (t64([1.0, 20.0]),), rtol=1e-10).plan
    cells, x = plan.cells(a, b), plan.nodes(a, b)
    assert cells.shape == (len(plan), 2)
    assert (cells[:, 0] < x.amin(0)).all() and (x.amax(0) < cells[:, 1]).all()
    for owner in range(2):
        mine = cells[plan.owner == owner]
        mine = mine[mine[:, 0].argsort()]
        assert mine[0, 0] == min(a, b) and mine[-1, 1] == max(a, b)
        torch.testing.assert_close(mine[1:, 0], mine[:-1, 1], rtol=1e-14, atol=0.0)


def test_plan_moves_to_a_device() -> None:
    plan = solve().plan
    assert same_plan(plan.to("cpu"), plan)
    assert plan.to(torch.device("meta")).owner.device.type == "meta"


@pytest.mark.parametrize("points", (None, t64([0.25, 0.5])))
def test_element_of_a_batch_has_the_plan_of_its_single_call(points: Tensor | None) -> None:
    # Symmetric peaks make ties: the same cell must be split whatever the neighbours are.
    f = lambda x, c, e: e / ((x - c) ** 2 + e**2)
    centre, width = t64([0.5, 0.5, 0.25, 0.75, 0.3]), t64([1e-2, 1e-5, 1e-3, 1e-3, 1e-4])
    batch = qg.quad(f, ZERO, ONE, (centre, width), rtol=1e-9, points=points)
    for i in range(5):
        single = qg.quad(f, ZERO, ONE, (centre[i], width[i]), rtol=1e-9, points=points)
        assert torch.equal(cells_of(batch.plan, i), cells_of(single.plan, 0))
        assert relative_error(batch.value[i], single.value) <= 1e-13


# -- replay ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", (None, t64([0.25, 0.5])))
def test_replay_gives_the_value_and_its_gradient(points: Tensor | None) -> None:
    widths, b = leaf([1.0, 1e-2, 1e-4]), leaf(1.0)
    result = solve(widths, b=b, points=points)
    replayed = qg.replay(peak, result.plan, ZERO, b, (widths,), points=points)
    assert relative_error(replayed, result.value) <= 1e-14
    ours, theirs = (torch.autograd.grad(v.sum(), (widths, b)) for v in (replayed, result.value))
    assert all(relative_error(one, other) <= 1e-13 for one, other in zip(ours, theirs, strict=True))


def test_replay_does_not_search() -> None:
    f, plan = Recorder(peak), solve().plan
    qg.replay(f, plan, ZERO, ONE, (WIDTHS,))
    assert f.nodes.numel() <= 21 * plan.owner.numel() + 1 + 3


def test_replay_moves_the_cells_with_the_limits() -> None:
    plan = qg.quad(torch.exp, ZERO, ONE, rtol=1e-10).plan
    a, b = t64(-1.0), t64([2.0, 3.0])
    for i in range(2):
        value = qg.replay(torch.exp, plan, a, b[i])
        assert relative_error(value, torch.exp(b[i]) - torch.exp(a)) <= 1e-12


# -- warm start --------------------------------------------------------------------------------------


def test_warm_start_costs_one_pass_over_the_cells() -> None:
    cold = solve()
    warm = solve(plan=cold.plan)
    cells = torch.bincount(cold.plan.owner, minlength=3)
    between = (WIDTHS < 1.0).long()  # an argument between the limits is where f is called, too
    assert torch.equal(warm.nfev, 23 * cells + 3 * (cells == 1) + between)  # a whole piece has looks
    assert (warm.nfev[1:] < cold.nfev[1:]).all()
    assert same_plan(warm.plan, cold.plan)
    assert relative_error(warm.value, cold.value) <= 1e-14


def test_passed_plan_is_not_trusted() -> None:
    easy = solve(t64([1.0, 1.0, 1.0])).plan
    hard = solve(plan=easy)
    assert hard.converged.all()
    assert ((hard.value - area(WIDTHS)).abs() <= hard.error).all()
    assert relative_error(hard.value, area(WIDTHS)) <= 1e-9


def test_plan_of_one_integral_starts_a_batch() -> None:
    single = solve(WIDTHS[2]).plan
    batch = solve(plan=single)
    assert batch.converged.all()
    assert relative_error(batch.value, area(WIDTHS)) <= 1e-9
    assert int(batch.nfev[2]) == 23 * single.owner.numel() + 1  # the width is a number between the limits


def test_warm_start_with_other_limits_and_gradient() -> None:
    plan, b, widths = solve().plan, leaf(0.8), WIDTHS.clone().requires_grad_()
    value = solve(widths, b=b, plan=plan).value
    exact = torch.atan((b - 0.3) / widths) + torch.atan(0.3 / widths)
    ours, theirs = (torch.autograd.grad(v.sum(), (widths, b)) for v in (value, exact))
    assert relative_error(value, exact) <= 1e-9
    assert relative_error(ours[1], theirs[1]) <= 1e-12
    assert relative_error(ours[0], theirs[0]) <= 1e-6


MISFITS = {
    "rule": ({"rule": "gk15"}, "gk15.*gk21|gk21.*gk15"),
    "kind of limits": ({"b": t64(inf)}, "limits|infinite"),
    "batch": ({"widths": WIDTHS[:2]}, "batch"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_plan_that_does_not_fit_is_refused(misfit: str) -> None:
    options, message = MISFITS[misfit]
    with pytest.raises(ValueError, match=message):
        solve(plan=solve().plan, **options)
