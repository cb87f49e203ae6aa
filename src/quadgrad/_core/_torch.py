"""Everything private to torch that quadgrad touches, in one place.

Each name has a canary in ``tests/test_torch_canary.py`` that fails when torch changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._functorch.pyfunctorch import (
    retrieve_current_functorch_interpreter,
    temporarily_clear_interpreter_stack,
    temporarily_restore_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.utils import _python_dispatch, _pytree, checkpoint

__all__ = [
    "StopRecomputation",
    "add_lanes",
    "belongs_to_transform",
    "carries_derivative",
    "constant_for_compilers",
    "derivatives_open",
    "derivative_of_dirichlet",
    "derivative_of_gamma",
    "differentiated_within",
    "differentiations",
    "dispatch_mode_open",
    "edges_to_before",
    "flatten_tree",
    "forward_mode_open",
    "hooks_saved_tensors",
    "in_backward",
    "in_differentiation",
    "in_transform",
    "is_batched",
    "leaves_behind",
    "made_since",
    "nodes_made",
    "outside_transforms",
    "pull_back",
    "register_pytree",
    "tangent_of",
    "unflatten_tree",
    "unwrap",
    "within_transforms",
    "without_derivatives",
    "without_modes",
]

Function = TypeVar("Function", bound=Callable[..., Any])

StopRecomputation = checkpoint._StopRecomputationError  # pyright: ignore[reportPrivateUsage]
"""By which a checkpoint ends a recomputation that it has seen enough of."""


def carries_derivative(tensor: Tensor) -> bool:
    """Whether derivatives flow to this tensor: backward or forward, at any level of nested transforms."""
    if tensor.requires_grad:
        return True
    inside = in_transform()
    interpreter = retrieve_current_functorch_interpreter() if inside else None
    vectorised = interpreter is not None and interpreter.key() == _functorch.TransformType.Vmap
    if forward_mode_open() and not vectorised and tangent_of(tensor) is not None:  # vmap cannot unpack
        return True
    if interpreter is None:
        return False
    if _functorch.is_functorch_wrapped_tensor(tensor) and _functorch.maybe_get_level(tensor) == interpreter.level():
        tensor = _functorch.get_unwrapped(tensor)
    with interpreter.lower():
        return carries_derivative(tensor)


def in_transform() -> bool:
    """Whether a ``torch.func`` transform (``grad``, ``vmap``, ``jvp`` ...) surrounds the caller."""
    return _functorch.peek_interpreter_stack() is not None


def in_differentiation() -> bool:
    """Whether one of the surrounding ``torch.func`` transforms differentiates: any but ``vmap``."""
    return differentiations() > 0


def differentiations() -> int:
    """Return how many of the surrounding ``torch.func`` transforms differentiate."""
    stack = _functorch.get_interpreter_stack() or ()
    return sum(one.key() != _functorch.TransformType.Vmap for one in stack)


def differentiated_within(tensor: Tensor, level: int) -> bool:
    """Whether a transform inside that of a level differentiates by this tensor, backward."""
    while _functorch.is_functorch_wrapped_tensor(tensor) and _functorch.maybe_get_level(tensor) > level:
        if tensor.requires_grad and _functorch.maybe_get_bdim(tensor) < 0:
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor is a batch in disguise: of ``vmap``, or of ``is_grads_batched``, which is no transform."""
    return _functorch.is_legacy_batchedtensor(tensor) or _functorch.is_functorch_wrapped_tensor(tensor)


def constant_for_compilers(fn: Function) -> Function:
    """Do what ``torch.compiler.assume_constant_result`` does, without loading the compiler: that takes seconds."""
    fn._dynamo_marked_constant = True  # pyright: ignore
    return fn


def forward_mode_open() -> bool:
    """Whether a forward-mode level is open, so that tangents may flow even where gradients are off."""
    return forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def in_backward() -> bool:
    """Whether a backward pass is what calls: as :func:`torch.utils.checkpoint.checkpoint` does, of either kind."""
    return torch._C._current_graph_task_id() >= 0  # pyright: ignore


def hooks_saved_tensors() -> bool:
    """Whether what autograd saves goes through hooks, as inside a checkpoint that may compute it again."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None  # pyright: ignore


def derivatives_open() -> bool:
    """Whether derivatives may flow to a tensor that does not require grad: in a transform, or forward mode."""
    return in_transform() or forward_mode_open()


def dispatch_mode_open() -> bool:
    """Whether operators are being recorded or replaced: a tracer, fake tensors, a ``TorchDispatchMode``."""
    mode = _python_dispatch._get_current_dispatch_mode()  # pyright: ignore[reportPrivateUsage]
    return mode is not None


def leaves_behind(
    tensor: Tensor, ends: Iterable[Tensor] = (), look_at: Callable[[Any], None] | None = None
) -> list[Tensor]:
    """Return the leaves of a tensor's autograd graph, the tensor itself if it is one.

    The graph is followed no further where it reaches one of ``ends``, which are no leaves. ``look_at`` is called
    with each node.
    """
    if tensor.grad_fn is None:
        return [tensor] if tensor.requires_grad else []
    leaves: list[Tensor] = []
    seen: set[Any] = {t.grad_fn for t in ends}
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if look_at is not None:
            look_at(node)
        if hasattr(node, "variable"):  # the node that accumulates into a leaf
            leaves.append(node.variable)
        waiting.extend(before for before, _ in node.next_functions)
    return leaves


def edges_to_before(
    tensor: Tensor, count: int, ends: Iterable[Tensor] = ()
) -> list[tuple[Any, list[tuple[int, Any]]]]:
    """Return where a tensor's autograd graph leaves the operations that this thread made after ``count`` others.

    For each operation with such an edge the edges' places, each with the leaf it leads to, or the older node. What
    is behind ``ends``, and these if they are leaves, is left out.
    """
    ends = list(ends)
    seen: set[Any] = {t.grad_fn for t in ends} | {None}
    left_out = {id(t) for t in ends if t.grad_fn is None}
    found: list[tuple[Any, list[tuple[int, Any]]]] = []
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        places: list[tuple[int, Any]] = []
        for place, (before, _) in enumerate(node.next_functions):
            if before in seen:
                continue
            if hasattr(before, "variable"):
                if id(before.variable) not in left_out:
                    places.append((place, before.variable))
            elif before._sequence_nr() < count:
                places.append((place, before))
            else:
                waiting.append(before)
        if places:
            found.append((node, places))
    return found


def nodes_made() -> int:
    """Return how many nodes of autograd's graph this thread has made so far."""
    return torch.autograd._get_sequence_nr()  # pyright: ignore


def made_since(tensor: Tensor, count: int) -> bool:
    """Whether an operation made this tensor after this thread had made so many nodes; False for a leaf."""
    node = tensor.grad_fn
    return node is not None and node._sequence_nr() >= count  # pyright: ignore


def belongs_to_transform(tensor: Tensor) -> bool:
    """Whether the tensor is one that a ``torch.func`` transform has wrapped."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def unwrap(tensor: Tensor) -> tuple[Tensor, dict[int, int]]:
    """Return what transforms have wrapped, with lanes in front, and how many lanes each ``vmap`` level has.

    Lanes stand in the order of the levels, the outermost first. No operation is seen by a transform.
    """
    own, lanes = list(range(tensor.ndim)), dict[int, int]()  # where dimensions and lanes are in what is wrapped
    while _functorch.is_functorch_wrapped_tensor(tensor):
        level, lane = _functorch.maybe_get_level(tensor), _functorch.maybe_get_bdim(tensor)
        tensor = _functorch.get_unwrapped(tensor)
        if lane >= 0:
            own = [place + (place >= lane) for place in own]
            lanes = {other: place + (place >= lane) for other, place in lanes.items()} | {level: lane}
    places = [lanes[level] for level in sorted(lanes)]
    sizes = {level: tensor.shape[place] for level, place in lanes.items()}
    with temporarily_clear_interpreter_stack():
        return tensor.detach().permute((*places, *own)), sizes


def derivative_of_gamma(concentration: Tensor, sample: Tensor) -> Tensor:
    """Return how a sample of the standard Gamma distribution moves with its concentration at a fixed quantile."""
    return torch._standard_gamma_grad(concentration, sample)  # pyright: ignore


def derivative_of_dirichlet(sample: Tensor, concentration: Tensor) -> Tensor:
    """Return the same of the entries of a Dirichlet sample, each with its own concentration."""
    total = concentration.sum(-1, keepdim=True).expand_as(concentration)
    return torch._dirichlet_grad(sample, concentration, total)  # pyright: ignore


def add_lanes(tensor: Tensor, levels: Iterable[int]) -> Tensor:
    """Return a plain tensor whose leading dimensions are the lanes of ``vmap`` levels, the outermost first."""
    for level in levels:
        tensor = _functorch._add_batch_dim(tensor, 0, level)
    return tensor


def pull_back(
    outputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return what ``torch.autograd.grad`` gives for these cotangents, None for tensors that nothing depends on.

    Given to it they would import SymPy, for half a second: the products are differentiated instead, to the same
    bits. Lanes of cotangents (``is_grads_batched``) only they carry.
    """
    if any(map(is_batched, cotangents)):
        return torch.autograd.grad(outputs, tensors, cotangents, retain_graph, create_graph, allow_unused=True)
    with torch.enable_grad():
        products = [(out * g.conj()).sum().real for out, g in zip(outputs, cotangents, strict=True)]
    return torch.autograd.grad(products, tensors, None, retain_graph, create_graph, allow_unused=True)


@contextmanager
def without_derivatives() -> Generator[None]:
    """Return a context in which no derivative is computed, neither backward nor forward.

    Tangents are what costs most: with them an operation under ``jvp`` takes ten times as long.
    """
    with torch.no_grad():
        if not forward_mode_open():
            yield
            return
        with forward_ad._set_fwd_grad_enabled(False):  # pyright: ignore[reportPrivateUsage]
            yield


def outside_transforms() -> AbstractContextManager[list[Any]]:
    """Return a context in which no ``torch.func`` transform surrounds what is done; it yields those that did."""
    return temporarily_clear_interpreter_stack()


def within_transforms(stack: list[Any]) -> AbstractContextManager[None]:
    """Return a context in which these transforms surround what is done again."""
    return temporarily_restore_interpreter_stack(stack)


def register_pytree(
    cls: type, flatten: Callable[[Any], tuple[list[Any], Any]], unflatten: Callable[[Any, Any], Any]
) -> None:
    """Make torch's transforms accept and return instances of ``cls``."""
    _pytree.register_pytree_node(
        cls, flatten, unflatten, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}"
    )


def tangent_of(tensor: Tensor) -> Tensor | None:
    """Return the tangent at the current forward-mode level, if it has one."""
    return forward_ad.unpack_dual(tensor).tangent


def flatten_tree(value: Any) -> tuple[list[Any], Any]:
    """Return what nested tuples, lists, dictionaries and registered classes hold, and how it is nested."""
    return _pytree.tree_flatten(value)


def unflatten_tree(leaves: Iterable[Any], form: Any) -> Any:
    """Nest again what :func:`flatten_tree` took apart."""
    return _pytree.tree_unflatten(leaves, form)


def without_modes() -> AbstractContextManager[Any]:
    """Return a context in which torch functions are shown to no ``TorchFunctionMode`` and no subclass."""
    return torch._C.DisableTorchFunction()  # pyright: ignore
