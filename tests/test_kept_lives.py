"""What a kept plan goes through in a training: drift, minibatches, bad steps, checkpoints, files."""

from __future__ import annotations

import copy
import io
import math
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core.search.kernel import opening


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return e / ((x - c) ** 2 + e**2)


def area(c: Tensor, e: Tensor) -> Tensor:
    return torch.atan((1 - c) / e) + torch.atan(c / e)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def honest(result: qg.Result, exact: Tensor) -> bool:
    return bool(((result.value - exact).abs() <= result.error).all())


# ------------------------------------------------------------------------ budgets, and what cannot converge


CENTRES, WIDTHS = draw(12, seed=1), 10 ** (-1 - 3 * draw(12, seed=2))


def many_peaks(x: Tensor, shift: Tensor) -> Tensor:
    return peak(x[..., None], CENTRES + shift[..., None], WIDTHS).sum(-1)


def noisy(x: Tensor, shift: Tensor) -> Tensor:
    return many_peaks(x, shift) + 1e-6 * torch.sin(1e9 * x)


def oscillating(x: Tensor, shift: Tensor) -> Tensor:
    return torch.sin((1 + shift) * 3e5 * x**2)


def diverging(x: Tensor, shift: Tensor) -> Tensor:
    return (x + 1e-300) ** (-1.5 - shift)


KINDS = [
    (f, 2_500, engine) for f in (many_peaks, noisy, oscillating, diverging) for engine in ("kernel", "tensors")
]


@pytest.mark.parametrize("gradient", (True, False, "resolve"))
@pytest.mark.parametrize(("f", "budget", "engine"), [(many_peaks, None, "kernel"), *KINDS])
def test_nodes_never_exceed_the_budget(
    f: Any, gradient: Any, budget: int | None, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    mode = {"gradient": qg.Resolve(rtol=1e-3)} if gradient == "resolve" else {}
    options: dict[str, Any] = {"rtol": 1e-12, "max_nfev": budget} | mode
    kept, most = qg.Integrator(qg.quad, on_failure="ignore", **options), budget or 30_000
    needed: list[int] = []
    for step in range(8):
        shift = t64(1e-4 * step).requires_grad_(bool(gradient))
        result = kept(f, t64(0.0), 1.0, (shift,))
        needed.append(int(result.nfev))
        assert int(result.nfev) <= most
    fresh = qg.quad(f, t64(0.0), 1.0, (shift,), on_failure="ignore", **options)
    # Where nothing can be gained nothing is spent on it; and it ends as it ended before.
    assert max(needed[1:]) <= 1.25 * int(fresh.nfev) + 23
    assert result.status == fresh.status or qg.Status.CONVERGED in (int(result.status), int(fresh.status))


def test_what_has_stalled_is_tried_again() -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-10, max_nfev=1_000, on_failure="ignore")
    statuses = []
    for step in range(60):  # too narrow for the budget at first
        e = leaf(1e-7 if step < 20 else 0.1)
        result = kept(lambda x, e: peak(x[..., None], CENTRES, e[..., None]).sum(-1), t64(0.0), 1.0, (e,))
        statuses.append(int(result.status))
    assert statuses[0] == qg.Status.MAX_NFEV and statuses[-1] == qg.Status.CONVERGED


# -------------------------------------------------------------------------------------------- minibatches


def test_a_plan_shrinks_as_fast_as_it_grew() -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-8)
    needed = []
    for step in range(14):
        e = leaf(1e-4 if step < 5 else 0.5)
        result = kept(peak, t64(0.0), 1.0, (t64(0.3), e))
        assert honest(result, area(t64(0.3), e))
        needed.append(int(result.nfev))
    fresh = int(qg.quad(peak, t64(0.0), 1.0, (t64(0.3), e), rtol=1e-8).nfev)
    assert needed[5] > 4 * fresh and max(needed[8:]) <= fresh


@pytest.mark.parametrize("keyed", (True, False))
@pytest.mark.parametrize("gradient", (True, False))
def test_shuffled_minibatches(keyed: bool, gradient: bool) -> None:
    c, e = draw(300, seed=3), 10 ** (-4 * draw(300, seed=4))
    kept = qg.Integrator(qg.quad, rtol=1e-8)
    spent, fresh, shuffle = [], [], torch.Generator().manual_seed(5)
    for _ in range(4):
        for batch in torch.randperm(300, generator=shuffle).split(64):  # the last one is short
            width = (1.05 * e[batch]).requires_grad_(gradient)
            key = {"key": batch} if keyed else {}
            result = kept(peak, t64(0.0), 1.0, (c[batch], width), **key)
            assert result.converged.all() and honest(result, area(c[batch], width))
            spent.append(int(result.nfev.sum()))
            fresh.append(int(qg.quad(peak, t64(0.0), 1.0, (c[batch], width), rtol=1e-8).nfev.sum()))
    if keyed:
        assert len(kept.kept) == 300 and sum(spent[5:]) <= 0.95 * sum(fresh[5:])
    else:
        assert sum(spent) <= 1.3 * sum(fresh) and max(spent) <= 2.5 * max(fresh)


def test_what_is_kept_for_keys_is_bounded_and_the_last_ones_stay() -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-8, max_cells=400)
    for low in (*range(0, 300, 20), 280):
        batch = torch.arange(low, low + 20)
        e = 10 ** (-4 * draw(300, seed=4)[batch])
        result = kept(peak, t64(0.0), 1.0, (draw(300, seed=3)[batch], e), key=batch)
        assert len(kept.kept.columns["row"]) <= 2 * 400
    plan, _ = kept.kept.take(torch.arange(280, 300))
    assert plan is not None and len(plan) <= len(result.plan)
    assert kept.kept.take(torch.arange(20))[0] is None


def test_one_datum_twice_in_a_batch_and_keys_of_a_batch_with_two_dimensions() -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-8)
    keys = torch.tensor([[7, 7, -3], [2**40, 5, 5]])
    e = torch.tensor([[1e-3, 1e-3, 0.1], [1e-2, 1e-4, 1e-4]], dtype=torch.float64)
    for _ in range(3):
        width = leaf(e)
        result = kept(peak, t64(0.0), 1.0, (t64(0.3), width), key=keys)
        assert honest(result, area(t64(0.3), width))
    assert len(kept.kept) == 4 and kept.refined == 0


def test_keys_that_cannot_be_meant_are_refused() -> None:
    kept = qg.Integrator()
    with pytest.raises(TypeError, match="whole number for each integral"):
        kept(peak, 0.0, 1.0, (0.3, t64([0.1, 0.2])), key=t64([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"key has shape \(3,\), and the batch is \(2,\)"):
        kept(peak, 0.0, 1.0, (0.3, t64([0.1, 0.2])), key=[1, 2, 3])
    with pytest.raises(TypeError, match="qmc keeps no cells"):
        qg.Integrator(qg.qmc, rtol=1e-2)(lambda x: x.sum(-1), [0.0, 0.0], 1.0, key=[1])


def test_keys_may_be_given_once_for_all_and_follow_other_pieces() -> None:
    kept, e = qg.Integrator(qg.quad, key=[3, 4]), t64([0.1, 0.01])
    for points in (None, None, [0.3], [0.31]):
        assert honest(kept(peak, 0.0, 1.0, (t64(0.3), e), points=points), area(t64(0.3), e))
    assert kept.started == 2


def test_a_short_last_batch_starts_from_what_the_others_have_in_common() -> None:
    kept, e = qg.Integrator(qg.quad, rtol=1e-8), 1e-4 * (1 + draw(40))
    kept(peak, t64(0.0), 1.0, (t64(0.3), leaf(e)))
    few = leaf(e[:7])
    result = kept(peak, t64(0.0), 1.0, (t64(0.3), few))
    fresh = qg.quad(peak, t64(0.0), 1.0, (t64(0.3), few), rtol=1e-8)
    assert honest(result, area(t64(0.3), few)) and kept.started == 1
    # The values that the check needs serve the gradient, too; a fresh call computes those anew.
    assert int(result.nfev.sum()) <= 0.75 * (int(fresh.nfev.sum()) + 21 * len(fresh.plan))


def test_cells_in_common_cover_each_piece_once() -> None:
    plan = qg.quad(peak, t64(0.0), 1.0, (draw(30), 10 ** (-2 * draw(30, seed=1))), points=[0.4]).plan
    common = plan.common()
    assert common is not None and common.batch_shape == () and common.size < plan.size / 10
    assert abs(float(common.weights(0.0, 1.0, [0.4]).sum()) - 1) <= 1e-15
    assert qg.quad(lambda x: torch.ones_like(x), t64([0.0]), 1.0).plan.common() is None


# ---------------------------------------------------------------------------------------------- bad steps


@pytest.mark.parametrize("keyed", (True, False))
@pytest.mark.parametrize("gradient", (True, False))
@pytest.mark.parametrize("bad", (slice(None), slice(1, 2)), ids=["all", "one"])
def test_a_step_with_nan_leaves_the_cells_as_they_were(keyed: bool, gradient: bool, bad: slice) -> None:
    kept, key = qg.Integrator(qg.quad, rtol=1e-8, on_failure="ignore"), {"key": [4, 9, 2]} if keyed else {}
    widths = t64([1e-2, 1e-4, 1e-1])
    sizes = []
    for step in range(3):
        e = widths.clone()
        if step == 1:
            e[bad] = math.nan
        e.requires_grad_(gradient)
        result = kept(peak, t64(0.0), 1.0, (t64(0.3), e), **key)
        assert torch.equal(result.value.isnan(), e.isnan())
        assert torch.equal(result.status == qg.Status.NONFINITE, e.isnan())
        sizes.append(int(result.nfev.sum()))
    assert honest(result, area(t64(0.3), e)) and result.converged.all()
    assert sizes[2] < sizes[0] and kept.started == 1 and kept.refined == 0


# -------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("reentrant", (False, True))
@pytest.mark.parametrize("keyed", (False, True))
@pytest.mark.parametrize("chunk_size", (None, 63))
def test_inside_a_checkpoint(reentrant: bool, keyed: bool, chunk_size: int | None) -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-9, chunk_size=chunk_size)
    key = {"key": [0, 1]} if keyed else {}

    def layer(c: Tensor, e: Tensor) -> Tensor:
        return 2 * kept(peak, t64(0.0), 1.0, (c, e), **key).value

    for step in range(6):
        c, e = leaf([0.3, 0.6]), leaf(t64([1e-3, 1e-1]) * 0.5**step)
        once = checkpoint(layer, c, e, use_reentrant=reentrant)
        # Its input is the first one's output: backward comes in the opposite order.
        twice = checkpoint(layer, c + 0 * once, 1.5 * e, use_reentrant=reentrant)
        ours = torch.autograd.grad((once + twice).sum(), (c, e)) if not reentrant else None
        if reentrant:
            (once + twice).sum().backward()
            ours = (c.grad, e.grad)
        theirs = torch.autograd.grad(2 * (area(c, e) + area(c, 1.5 * e)).sum(), (c, e))
        for one, other in zip(ours, theirs, strict=True):
            assert ((one - other).abs() <= 1e-6 * other.abs() + 1e-6).all()
    assert kept.calls == 12  # what was made again does not count


def test_a_checkpoint_that_raises_in_the_backward_pass_leaves_nothing_behind() -> None:
    kept, e = qg.Integrator(qg.quad, rtol=1e-9), leaf(1e-2)
    for _ in range(3):
        value = checkpoint(lambda e: kept(peak, t64(0.0), 1.0, (t64(0.3), e)).value, e, use_reentrant=False)
        value.backward()
    again = kept(peak, t64(0.0), 1.0, (t64(0.3), e))
    assert honest(again, area(t64(0.3), e)) and kept.calls == 4 and kept.started == 1


# -------------------------------------------------------------------------------------------------- files


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(t64([1e-3, 1e-2]))
        self.integrate = qg.Integrator(qg.quad, rtol=1e-8)

    def forward(self, key: Any = None) -> qg.Result:
        return self.integrate(peak, t64(0.0), 1.0, (t64(0.3), self.width), key=key)


def round_trip(obj: Any) -> Any:
    file = io.BytesIO()
    torch.save(obj, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("key", (None, [5, 6]))
def test_in_the_state_of_a_module(key: Any) -> None:
    model, other = Model(), Model()
    assert [name for name, _ in model.named_parameters()] == ["width"]
    for _ in range(2):
        model(key)
    other.load_state_dict(round_trip(model.state_dict()))
    assert other.integrate.calls == 2 and other.integrate.started == 1
    assert torch.equal(other(key).value, model(key).value)
    assert other.integrate.started == 1
    without = {name: value for name, value in model.state_dict().items() if "extra" not in name}
    fresh = Model()
    fresh.load_state_dict(without)
    assert fresh.integrate.calls == 0


def test_saved_whole_copied_and_moved() -> None:
    kept, e = qg.Integrator(qg.quad, rtol=1e-8), leaf([1e-3, 1e-2])
    for _ in range(2):
        kept(peak, t64(0.0), 1.0, (t64(0.3), e))
    copies = [round_trip(kept), copy.deepcopy(kept)]
    for one in copies:
        assert isinstance(one, qg.Integrator) and one.options == kept.options and one.plan.same(kept.plan)
    value = kept(peak, t64(0.0), 1.0, (t64(0.3), e)).value
    for one in copies:
        assert torch.equal(one(peak, t64(0.0), 1.0, (t64(0.3), e)).value, value) and one.started == 1
    kept.to("meta")
    assert kept.plan.row.device.type == "meta"


def test_reset_forgets_all() -> None:
    kept, e = qg.Integrator(qg.quad, rtol=1e-8), t64([1e-3, 1e-2])
    kept(peak, t64(0.0), 1.0, (t64(0.3), e), key=[1, 2])
    kept(peak, t64(0.0), 1.0, (t64(0.3), e))
    kept.reset()
    assert (kept.calls, kept.started, kept.nfev, kept.plan, len(kept.kept)) == (0, 0, 0, None, 0)
    kept(peak, t64(0.0), 1.0, (t64(0.3), e))
    assert kept.started == 1


def test_one_warning_for_a_training_that_fails_in_every_step() -> None:
    kept = qg.Integrator(qg.quad, rtol=1e-12, max_nfev=300)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for step in range(30):
            kept(peak, t64(0.0), 1.0, (t64(0.3), leaf(1e-5 * (1 + step))))
    assert len(caught) == 1


def test_roots_at_places_of_their_own_are_followed() -> None:
    c = t64([0.3, 0.5, 0.6])
    f = lambda x, c: (x - c).abs() ** -0.3
    kept, fresh = qg.Integrator(on_failure="ignore"), 0
    for step in range(12):
        moved = c + 1e-3 * step
        result = kept(f, t64(0.0), 1.0, (moved,))
        exact = (moved**0.7 + (1 - moved) ** 0.7) / 0.7
        assert ((result.value - exact).abs() <= result.error).all()
        fresh += int(qg.quad(f, t64(0.0), 1.0, (moved,), on_failure="ignore").nfev.sum())
    assert kept.started == 1 and kept.nfev <= 0.5 * fresh


# ------------------------------------------------------------- places of their own, other precisions and threads

PLACES = 0.1 + 0.8 * draw(12, seed=3)


def step(x: Tensor, c: Tensor) -> Tensor:
    return torch.where(x < c, 2.0, 1.0) * torch.exp(-x)


def below(c: Tensor) -> Tensor:
    return 2 - torch.exp(-c) - math.exp(-1.0)


def near(result: qg.Result, exact: Tensor) -> bool:
    return bool(((result.value - exact).abs() <= result.error + 4e-16).all() and result.converged.all())


def test_batches_of_other_shapes_whose_integrals_have_places() -> None:
    kept = qg.Integrator(rtol=1e-8)
    for c in (PLACES, PLACES, PLACES[:5], PLACES[:1], PLACES.view(3, 4), PLACES[0], PLACES[:0], PLACES):
        assert near(kept(step, t64(0.0), 1.0, (c,)), below(c))


def test_keys_keep_the_places_of_each_datum() -> None:
    kept, spent, shuffle = qg.Integrator(rtol=1e-8), [0], torch.Generator().manual_seed(0)
    height = (torch.arange(12) % 3 > 0).double()  # some have none
    for epoch in range(3):
        for keys in torch.randperm(12, generator=shuffle).split(5):
            c, h = PLACES[keys] + 1e-4 * epoch, height[keys]
            result = kept(lambda x, c, h: torch.exp(x) + h * (x < c), t64(0.0), 1.0, (c, h), key=keys)
            assert near(result, math.e - 1 + h * c)
        spent.append(kept.nfev)
    assert len(kept.kept) == 12 and kept.started == 3
    assert spent[2] - spent[1] <= 0.6 * spent[1] and spent[3] - spent[2] <= 0.6 * spent[1]
    copied = qg.Integrator(rtol=1e-8)
    copied.load_state_dict(kept.state_dict())
    result = copied(step, t64(0.0), 1.0, (PLACES,), key=torch.arange(12))
    assert near(result, below(PLACES)) and copied.started == 3


def test_keys_from_several_threads() -> None:
    kept, failed = qg.Integrator(rtol=1e-8), list[BaseException]()

    def work(seed: int) -> None:
        shuffle = torch.Generator().manual_seed(seed)
        try:
            for _ in range(10):
                keys = torch.randperm(12, generator=shuffle)[:4]
                assert near(kept(step, t64(0.0), 1.0, (PLACES[keys],), key=keys), below(PLACES[keys]))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(kept.kept) == 12


def test_what_stalls_in_single_precision_is_searched_in_double() -> None:
    c, e = PLACES, 10 ** (-3 * draw(12, seed=4))
    kept = qg.Integrator(rtol=1e-8, on_failure="ignore")
    for _ in range(2):
        assert not kept(peak, torch.tensor(0.0), 1.0, (c.float(), e.float())).converged.any()
    assert near(kept(peak, t64(0.0), 1.0, (c, e)), area(c, e))


def test_moved_where_tensors_have_no_values_it_begins_anew() -> None:
    for key in (None, torch.arange(12)):
        kept = qg.Integrator(rtol=1e-8, key=key)
        kept(step, t64(0.0), 1.0, (PLACES,))
        assert near(kept.to("meta")(step, t64(0.0), 1.0, (PLACES,)), below(PLACES)) and kept.started == 2


@pytest.mark.parametrize("gradient", (True, False))
def test_what_is_not_finite_call_after_call_is_not_searched_in_each(gradient: bool) -> None:
    kept = qg.Integrator(rtol=1e-8, on_failure="ignore")
    f, needed = lambda x, k: torch.exp(k * x), list[int]()
    for call in range(8):
        k = t64([1.0, 2e3 if call < 6 else 2.0]).requires_grad_(gradient)
        result = kept(f, t64(0.0), 1.0, (k,))
        needed.append(int(result.nfev[1]))
        assert result.status.tolist() == [0, int(qg.Status.NONFINITE) if call < 6 else 0]
    assert max(needed[1:6]) <= 30 < needed[0]
    assert near(result, torch.expm1(k) / k)


def test_after_steps_with_nan_the_places_are_where_they_were() -> None:
    for key in (None, torch.arange(12)):
        kept = qg.Integrator(rtol=1e-8, on_failure="ignore", key=key)
        fresh = int(kept(step, t64(0.0), 1.0, (PLACES,)).nfev.sum())
        for _ in range(3):
            kept(lambda x, c: step(x, c) * torch.nan, t64(0.0), 1.0, (PLACES,))
        result = kept(step, t64(0.0), 1.0, (PLACES,))
        assert near(result, below(PLACES)) and int(result.nfev.sum()) <= 0.3 * fresh
