"""Canaries: what quadgrad relies on in torch without torch having promised it.

One of them dying after an upgrade of torch says which assumption broke, before a wrong gradient does. The names
themselves live in `quadgrad._core._torch`; `quadgrad._core.lanes` relies on how custom functions behave under
transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core._torch import (
    StopRecomputation,
    belongs_to_transform,
    carries_derivative,
    constant_for_compilers,
    derivative_of_dirichlet,
    derivative_of_gamma,
    dispatch_mode_open,
    flatten_tree,
    forward_mode_open,
    in_differentiation,
    in_transform,
    is_batched,
    leaves_behind,
    made_since,
    nodes_made,
    outside_transforms,
    register_pytree,
    tangent_of,
    unflatten_tree,
    unwrap,
    within_transforms,
    without_derivatives,
    without_modes,
)
from quadgrad._core.lanes import Lanes, plain

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
    assert result.plan.batch_shape == (3,)


# ------------------------------------------------------------------- the border of lanes: lift and lower


def across(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call a function of tensors whose lanes are their first dimension, in one piece for all lanes."""
    lanes = Lanes.of(tensors)
    if lanes is None:
        return function(*tensors)
    return lanes.lower(function(*(lanes.lift(t) for t in tensors)))


Y = t64([0.5, 1.5, 2.5, 3.5])
PAIR = lambda x, y: torch.sin(x) * y**2
CROSSINGS = {
    "vmap": lambda f: vmap(lambda x: f(x, Y[0]))(X),
    "vmap of vmap": lambda f: vmap(lambda x: vmap(lambda y: f(x, y))(Y))(X),
    "vmap of vmap, the other way": lambda f: vmap(lambda y: vmap(lambda x: f(x, y))(X), out_dims=1)(Y),
    "vmap of grad": lambda f: vmap(grad(lambda x: f(x, Y[0])))(X),
    "grad of vmap": lambda f: grad(lambda x: vmap(lambda one: f(one, Y[0]))(x).sum())(X),
    "vmap of hessian": lambda f: vmap(hessian(lambda p: f(p[0], p[1])))(torch.outer(X, X)[:, :2]),
    "hessian of vmap": lambda f: hessian(lambda x: vmap(lambda one: f(one, Y[0]))(x).sum())(X),
    "jacrev of vmap": lambda f: jacrev(lambda x: vmap(lambda one: f(one, Y[0]))(x))(X),
    "jacfwd of vmap": lambda f: jacfwd(lambda x: vmap(lambda one: f(one, Y[0]))(x))(X),
    "vmap of jvp": lambda f: vmap(lambda x: jvp(lambda x: f(x, Y[0]), (x,), (x,))[1])(X),
    "vmap of vmap of grad": lambda f: vmap(lambda x: vmap(lambda y: grad(f)(x, y))(Y))(X),
    "vmap of jacrev of jacrev": lambda f: vmap(jacrev(jacrev(lambda p: f(p[0], p[1]))))(torch.outer(X, X)[:, :2]),
}


@pytest.mark.parametrize("crossing", CROSSINGS.values(), ids=CROSSINGS)
def test_derivatives_cross_the_border_of_lanes_in_both_directions(crossing: Callable[..., Tensor]) -> None:
    torch.testing.assert_close(crossing(lambda x, y: across(PAIR, x, y)), crossing(PAIR), rtol=1e-14, atol=0)


def test_backward_through_lanes() -> None:
    x = leaf([1.0, 2.0, 3.0])
    vmap(lambda one: across(PAIR, one, Y[0]))(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.cos(X) * 0.25)


@pytest.mark.parametrize("in_dim", [0, 1, -1])
def test_lanes_are_in_front_of_what_is_unwrapped_in_the_order_of_their_levels(in_dim: int) -> None:
    seen = []
    x = torch.arange(24.0).reshape(2, 3, 4)

    def look(one: Tensor) -> Tensor:
        plainly, lanes = unwrap(one)
        assert not belongs_to_transform(plainly)
        seen.append((plainly, list(lanes.values())))
        return one

    vmap(vmap(grad(lambda one: look(one).sum()), in_dims=in_dim), in_dims=in_dim)(x)
    outer = x.movedim(in_dim, 0)
    inner = outer.movedim(1 + in_dim % 2 if in_dim >= 0 else -1, 1)
    assert torch.equal(seen[0][0], inner)
    assert sorted(seen[0][1]) == sorted(inner.shape[:2])


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_what_is_plain_may_be_decided_on_and_outlives_the_transform(
    transform: Callable[[Function], object],
) -> None:
    seen = seen_inside(transform, plain)
    assert not any(belongs_to_transform(t) or t.requires_grad for t in seen)
    assert all(bool((t > 0.0).all()) for t in seen)


def test_a_tensor_made_in_inference_mode_may_take_part_in_a_gradient() -> None:
    with torch.inference_mode():
        made = plain(X * 2.0)
    x = leaf([1.0, 2.0, 3.0])
    (made * x).sum().backward()
    torch.testing.assert_close(x.grad, 2.0 * X)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_can_be_left_and_entered_again(transform: Callable[[Function], object]) -> None:
    def look(x: Tensor) -> Tensor:
        with outside_transforms() as stack:
            assert not in_transform()
            with within_transforms(stack):
                inside = torch.sin(x)
            assert not in_transform()
        return inside

    seen, again = (transform(lambda x, f=f: (f(x) * x).sum()) for f in (look, torch.sin))
    torch.testing.assert_close(*(found[0] if isinstance(found, tuple) else found for found in (seen, again)))


def test_without_derivatives_there_are_no_tangents_either() -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X)
        with without_derivatives():
            assert tangent_of(dual * 2.0) is None
        assert tangent_of(dual * 2.0) is not None


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
    assert [t is q for t in leaves_behind(result, [known])] == [True]
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


def test_tensors_that_are_batches_in_disguise_are_told() -> None:
    seen: list[bool] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            seen.append(is_batched(gradient))
            return 2 * gradient

    x = leaf([1.0, 2.0])
    y = Watched.apply(x)
    rows = torch.eye(2, dtype=torch.float64)
    torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
    assert all(seen) and seen, "by is_grads_batched, where no transform is seen to be open"
    seen.clear()
    torch.autograd.grad(y, x, rows[0])
    assert seen == [False]
    assert all(seen_inside(TRANSFORMS["vmap"], is_batched))
    assert not is_batched(X)
    assert not is_batched(leaf(X) * 2)


def test_operators_still_have_no_forward_mode_of_their_own() -> None:
    """Their tangents are lost without a word: the reason why eager calls go through functions."""

    @torch.library.custom_op("quadgrad_canary::triple", mutates_args=())
    def triple(x: Tensor) -> Tensor:
        return 3 * x

    triple.register_autograd(lambda ctx, g: 3 * g)
    assert jvp(triple, (X,), (X,))[1].abs().max() == 0.0


def test_functions_are_hidden_from_modes_and_nests_are_taken_apart() -> None:
    seen: list[object] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: object, types: object, args: tuple = (), kwargs: object = None
        ) -> object:
            seen.append(func)
            return func(*args, **(kwargs or {}))  # pyright: ignore

    with Mode():
        with without_modes():
            X.sin()
        assert not seen
        X.cos()
    assert len(seen) == 1
    leaves, form = flatten_tree({"a": [X, 2.0], "b": (None, X.max(0))})
    assert len(leaves) in (5, 6) and unflatten_tree(leaves, form)["a"][1] == 2.0


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_ends_a_recomputation_by_an_exception_of_its_own() -> None:
    raised: list[BaseException] = []

    def f(x: Tensor) -> Tensor:
        try:
            return x.sin().exp()
        except BaseException as error:
            raised.append(error)
            raise

    torch.utils.checkpoint.checkpoint(f, leaf(0.5), use_reentrant=False).backward()
    assert [type(error) for error in raised] == [StopRecomputation]


def test_derivatives_of_samples_are_those_of_the_backward_passes():
    concentration, weights = leaf([0.7, 1.5, 3.0]), t64([1.0, -2.0, 0.5])
    torch.manual_seed(0)
    sample = torch._standard_gamma(concentration)
    (slope,) = torch.autograd.grad(sample.sum(), concentration)
    assert torch.equal(derivative_of_gamma(concentration, sample).detach(), slope)
    sample = torch.distributions.Dirichlet(concentration).rsample()
    (slope,) = torch.autograd.grad(sample @ weights, concentration)
    parts = derivative_of_dirichlet(sample, concentration).detach()
    torch.testing.assert_close(parts * (weights - sample @ weights), slope)


# --------------------------------------------------------------------------------------------------- compilers


def test_what_is_constant_for_compilers_is_marked_as_torch_marks_it():
    mark = vars(torch.compiler.assume_constant_result(lambda: 1.0))
    assert vars(constant_for_compilers(lambda: 1.0)) == mark != {}
