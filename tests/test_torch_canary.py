"""Canaries: what quadgrad relies on in torch without torch having promised it.

One of them dying after an upgrade of torch says which assumption broke, before a wrong gradient does. The names
themselves live in `quadgrad._core._torch`; `quadgrad._core.lanes` relies on how custom functions behave under
transforms.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core._torch import (
    belongs_to_transform,
    carries_derivative,
    dispatch_mode_open,
    forward_mode_open,
    in_differentiation,
    in_transform,
    leaves_before,
    leaves_behind,
    made_since,
    nodes_made,
    outside_transforms,
    register_pytree,
    tangent_of,
)
from quadgrad._core.lanes import export, largest, somewhere

Function = Callable[[Tensor], Tensor]
X = t64([1.0, 2.0, 3.0])


def seen_inside(transform: Callable[[Function], object], look: Callable[[Tensor], object]) -> list[object]:
    """Run a transform over x -> sum x^2 and return what ``look`` saw inside."""
    seen: list[object] = []

    def f(x: Tensor) -> Tensor:
        seen.append(look(x))
        return (x**2).sum()

    transform(f)
    return seen


TRANSFORMS = {
    "grad": lambda f: grad(f)(X),
    "vjp": lambda f: vjp(f, X),
    "jvp": lambda f: jvp(f, (X,), (X,)),
    "jacrev": lambda f: jacrev(f)(X),
    "jacfwd": lambda f: jacfwd(f)(X),
    "hessian": lambda f: hessian(f)(X),
    "vmap": lambda f: vmap(f)(X[:, None]),
    "vmap of grad": lambda f: vmap(grad(f))(X[:, None]),
    "grad of vmap": lambda f: grad(lambda x: vmap(f)(x[:, None]).sum())(X),
    "vmap of hessian": lambda f: vmap(hessian(f))(X[:, None]),
    "vmap without grad mode": lambda f: torch.no_grad()(vmap(f))(X[:, None]),
}
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


# ---------------------------------------------------------------------- whether derivatives flow to a tensor

DIFFERENTIATING = {name: t for name, t in TRANSFORMS.items() if name not in ("vmap", "vmap without grad mode")}


@pytest.mark.parametrize("transform", DIFFERENTIATING.values(), ids=DIFFERENTIATING)
def test_a_differentiated_tensor_is_told_at_every_level(transform: Callable[[Function], object]) -> None:
    assert all(seen_inside(transform, carries_derivative))
    assert all(seen_inside(transform, lambda x: carries_derivative(2 * x)))
    assert not any(seen_inside(transform, lambda x: carries_derivative(x.detach())))
    assert not any(seen_inside(transform, lambda x: carries_derivative(2 * torch.ones(3).expand(2, 3))))


def test_a_tensor_that_is_only_vectorised_carries_none() -> None:
    assert not any(seen_inside(TRANSFORMS["vmap"], carries_derivative))
    assert all(seen_inside(lambda f: vmap(f)(leaf(X)[:, None]), carries_derivative))


def test_outside_of_transforms_gradient_and_tangent_tell() -> None:
    assert carries_derivative(leaf(X))
    assert not carries_derivative(X)
    with torch.no_grad(), forward_ad.dual_level():
        assert carries_derivative(forward_ad.make_dual(X, X))
        assert not carries_derivative(X)


def test_the_leaves_of_a_graph_are_found() -> None:
    p, q = leaf(1.0), leaf([2.0, 3.0])
    assert {id(t) for t in leaves_behind((p * q[0] + p).exp())} == {id(p), id(q)}
    assert leaves_behind(p) == [p]
    assert leaves_behind(X) == []


# ------------------------------------------------------------------------------- whether a transform is open


def test_no_transform_is_open_outside_one() -> None:
    assert not in_transform()
    assert not in_transform(), "asking changes nothing"


@transforms
def test_every_transform_is_seen_and_closed_again(transform: Callable[[Function], object]) -> None:
    seen = seen_inside(transform, lambda _: in_transform())
    assert seen
    assert all(seen)
    assert not in_transform()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_vmap_alone_is_told_from_transforms_that_differentiate(name: str) -> None:
    seen = seen_inside(TRANSFORMS[name], lambda _: in_differentiation())
    assert set(seen) == {name not in ("vmap", "vmap without grad mode")}
    assert not in_differentiation()


def test_a_transform_that_raises_is_closed_too() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        grad(fail)(X)
    assert not in_transform()


@pytest.mark.parametrize(
    "run",
    [
        lambda f: f(leaf([1.0])).backward(),
        lambda f: torch.no_grad()(f)(X),
        lambda f: torch.inference_mode()(f)(X),
        lambda f: functional_call(torch.nn.Identity(), {}, (f(X),)),
        lambda f: torch.autograd.functional.jacobian(f, X),
    ],
    ids=["autograd", "no_grad", "inference_mode", "functional_call", "autograd.functional"],
)
def test_what_is_no_transform_is_not_taken_for_one(run: Callable[[Function], object]) -> None:
    assert seen_inside(run, lambda _: in_transform()) == [False]


# ------------------------------------------------------------------------------------------- forward mode


def test_the_forward_mode_level_is_negative_until_one_is_opened() -> None:
    assert not forward_mode_open()
    with forward_ad.dual_level():
        assert forward_mode_open()
    assert not forward_mode_open()


@pytest.mark.parametrize("name", ["jvp", "jacfwd", "hessian"])
def test_forward_transforms_open_a_level(name: str) -> None:
    assert all(seen_inside(TRANSFORMS[name], lambda _: forward_mode_open()))


def test_tangents_flow_where_gradients_are_off_and_nothing_else_tells() -> None:
    with forward_ad.dual_level(), torch.no_grad():
        x = forward_ad.make_dual(X, 2.0 * X)
        y = x**2
        assert not y.requires_grad
        torch.testing.assert_close(tangent_of(y), 4.0 * X**2)
        assert tangent_of(X) is None


def test_detach_drops_the_tangent() -> None:
    with forward_ad.dual_level():
        assert tangent_of(forward_ad.make_dual(X, X).detach()) is None


# ------------------------------------------------------------------------------------------------ pytrees


@dataclass(frozen=True)
class Pair:
    first: Tensor
    second: Tensor
    note: str


register_pytree(Pair, lambda p: ([p.first, p.second], p.note), lambda leaves, note: Pair(*leaves, note))


def test_a_registered_class_makes_the_round_trip() -> None:
    leaves, spec = _pytree.tree_flatten(Pair(X, 2.0 * X, "note"))
    assert len(leaves) == 2
    back = _pytree.tree_unflatten(leaves, spec)
    assert isinstance(back, Pair)
    assert back.note == "note"
    assert back.first is X


def test_transforms_take_a_registered_class_in_and_hand_it_out() -> None:
    def swap(pair: Pair) -> Pair:
        return replace(pair, first=pair.second**2, second=pair.first)

    out = vmap(swap)(Pair(X, 2.0 * X, "note"))
    torch.testing.assert_close(out.first, 4.0 * X**2)
    assert out.note == "note"
    slope = grad(lambda pair: (pair.first * pair.second).sum())(Pair(X, 2.0 * X, "note"))
    torch.testing.assert_close(slope.first, 2.0 * X)


def test_results_leave_a_transform_with_lanes_on_the_leaves_only() -> None:
    result = vmap(lambda p: qg.quad(lambda x, p: torch.exp(-p * x), 0.0, 1.0, (p,)))(X)
    assert result.value.shape == result.error.shape == (3,)
    assert result.plan.batch_shape == ()


# ----------------------------------------------------------- decisions under vmap: functions with a vmap rule


def plain(tensor: Tensor) -> bool:
    """Whether no lanes hide in a tensor."""
    return not is_batchedtensor(tensor)


def test_outside_transforms_the_maximum_is_the_tensor_itself() -> None:
    assert largest(X) is X


@pytest.mark.parametrize("in_dim", [0, 1, -1])
def test_the_maximum_goes_over_the_lanes_and_can_be_decided_on(in_dim: int) -> None:
    lanes = t64([[1.0, 5.0], [4.0, 2.0], [3.0, 3.0]])
    rows = lanes if in_dim == 0 else lanes.T
    seen: list[tuple[bool, list[float], list[list[int]]]] = []

    def f(x: Tensor) -> Tensor:
        top = largest(x)
        big = top > 4.5
        seen.append((plain(top), top.tolist(), big.nonzero().tolist()))
        return x.sum() if bool(big.any()) else x.sum() * torch.nan

    total = vmap(f, in_dims=in_dim)(rows)
    torch.testing.assert_close(total, lanes.sum(1))
    assert seen == [(True, [4.0, 5.0], [[1]])], "the function must run once, for all lanes"


def test_without_lanes_of_its_own_a_tensor_passes_unchanged() -> None:
    def f(x: Tensor) -> Tensor:
        top = largest(X)
        assert plain(top)
        assert top.tolist() == X.tolist()
        return x

    vmap(f)(X)


def test_nested_lanes_are_all_gone() -> None:
    grid = torch.arange(6.0).reshape(2, 3)
    seen: list[float] = []

    def f(x: Tensor) -> Tensor:
        seen.append(float(largest(x)))
        return x

    vmap(vmap(f))(grid)
    assert seen == [5.0]


def test_not_a_number_in_one_lane_wins() -> None:
    seen: list[float] = []

    def f(x: Tensor) -> Tensor:
        seen.append(float(largest(x)))
        return x

    vmap(f)(t64([1.0, torch.nan, 3.0]))
    assert math.isnan(*seen)


def test_a_mask_holds_where_it_holds_in_any_lane() -> None:
    seen: list[list[bool]] = []

    def f(x: Tensor) -> Tensor:
        seen.append(somewhere(x > 2.5).tolist())
        return x

    vmap(f)(t64([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0]]))
    assert seen == [[True, True, False]]


@transforms
def test_every_transform_may_decide_and_its_answer_stays(transform: Callable[[Function], object]) -> None:
    def answer(f: Function) -> list[Tensor]:
        return [t for t in _pytree.tree_leaves(transform(f)) if isinstance(t, Tensor)]

    def deciding(x: Tensor) -> Tensor:
        return (x**2).sum() if bool((largest(x) > 0.0).all()) else x.sum() * torch.nan

    for got, expected in zip(answer(deciding), answer(lambda x: (x**2).sum()), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_maximum_carries_no_derivative() -> None:
    torch.testing.assert_close(grad(lambda x: (largest(x) * x).sum())(X), X)
    torch.testing.assert_close(jvp(lambda x: largest(x) * x, (X,), (X,))[1], X**2)
    torch.testing.assert_close(vmap(grad(lambda x: largest(x) * x))(X), torch.full_like(X, 3.0))


def test_the_maximum_of_a_captured_tensor_carries_no_derivative() -> None:
    """A closure brings lanes and tangents in by the back door."""
    slope = grad(lambda s: vmap(lambda x: largest(s * x) * x)(X).sum())(t64(2.0))
    assert slope == 0.0


# ------------------------------------------------------------- tensors that outlive the transform they came from


@transforms
def test_an_exported_tensor_is_plain_when_the_transform_has_ended(transform: Callable[[Function], object]) -> None:
    seen = seen_inside(transform, lambda x: export(largest(x)))
    for tensor in seen:
        assert isinstance(tensor, Tensor)
        assert not is_functorch_wrapped_tensor(tensor)
        assert not tensor.requires_grad
        assert tensor.max() <= 3.0
        torch.save(tensor, io.BytesIO())


def test_a_tensor_made_in_inference_mode_may_take_part_in_a_gradient() -> None:
    with torch.inference_mode():
        made = export(X * 2.0)
    p = leaf([1.0, 1.0, 1.0])
    (p * made).sum().backward()
    torch.testing.assert_close(p.grad, 2.0 * X)


def test_transforms_still_refuse_the_hooks_that_checkpointing_needs() -> None:
    """If this stops raising, chunks inside transforms may be checkpointed too."""
    from torch.utils.checkpoint import checkpoint

    with pytest.raises(RuntimeError, match="saved tensor hooks"):
        grad(lambda x: checkpoint(lambda x: (x**2).sum(), x, use_reentrant=False))(X)


# -------------------------------------------------------------------------------------- what a function closes over


def test_nodes_are_numbered_in_the_order_in_which_a_thread_makes_them() -> None:
    p = leaf(X)
    before = 2 * p
    count = nodes_made()
    assert nodes_made() == count  # asking makes none
    after = 3 * before
    assert (made_since(p, count), made_since(before, count), made_since(after, count)) == (False, False, True)


def test_a_walk_through_a_graph_ends_at_known_tensors() -> None:
    p, q = leaf(X), leaf(X)
    known = p.view_as(p)
    result = (known * 2 + q).sum()
    assert [t is q for t in leaves_before(result, [known])] == [True]
    assert {id(t) for t in leaves_behind(result)} == {id(p), id(q)}


def test_transforms_can_be_left_for_a_moment() -> None:
    p, seen = leaf(X), []

    def f(x: Tensor) -> Tensor:
        with outside_transforms():
            made = p.detach().requires_grad_().view_as(p)
            assert not in_transform()
        seen.append((belongs_to_transform(x), belongs_to_transform(made), in_transform()))
        return (made * x).sum()

    vmap(grad(f))(torch.stack((X, X)))
    assert seen == [(True, False, True)]


class Names(TorchFunctionMode):
    """Notes the names of the functions it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_function_mode_sees_what_a_closure_needs() -> None:
    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

    p = leaf(X)
    with Names() as mode:
        torch.sin(p)
        Tensor.requires_grad_(X.clone())
        torch.autograd.grad((p * 2).sum(), p)
    for name in ("sin", "requires_grad_", "grad"):
        assert name in mode.seen
    with Names() as mode:
        Identity.apply(p)
    assert mode.seen == ["clone"]  # if it sees `apply`, tensors handed to a Function can be replaced too


# --------------------------------------------------------------------------------- operators of wrapped functions


def test_a_dispatch_mode_is_seen_while_it_is_open() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[bool] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    assert not dispatch_mode_open()
    with Mode():
        seen.append(dispatch_mode_open())
    make_fx(lambda x: (seen.append(dispatch_mode_open()), 2 * x)[1])(X)
    assert seen == [True, True]
    assert not dispatch_mode_open()


def test_batched_gradients_still_cannot_loop_over_lists_of_tensors() -> None:
    """If this stops raising, the bridge needs only one operator for any number of tensors."""

    @torch.library.custom_op("quadgrad_canary::double", mutates_args=())
    def double(tensors: list[Tensor]) -> list[Tensor]:
        return [2 * t for t in tensors]

    x = leaf([1.0, 2.0])
    y = x * 1.0
    y.register_hook(lambda g: double([g])[0])
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.autograd.grad(y, x, torch.eye(2, dtype=torch.float64), is_grads_batched=True)


def test_operators_still_have_no_forward_mode_of_their_own() -> None:
    """Their tangents are lost without a word: the reason why eager calls go through functions."""

    @torch.library.custom_op("quadgrad_canary::triple", mutates_args=())
    def triple(x: Tensor) -> Tensor:
        return 3 * x

    triple.register_autograd(lambda ctx, g: 3 * g)
    assert jvp(triple, (X,), (X,))[1].abs().max() == 0.0
