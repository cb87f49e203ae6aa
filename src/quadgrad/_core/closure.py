"""What a function closes over: tensors that it was not given, replaced wherever torch meets them.

A torch function shows all its tensors to a ``TorchFunctionMode``; what requires grad and was there before the call
is closed over. What goes by unseen (a tensor handed right to an ``autograd.Function``) is noticed afterwards: the
graph then ends in a leaf that nobody knows.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, get_default_nowrap_functions

from quadgrad._core._torch import belongs_to_transform, leaves_behind, made_since, nodes_made, outside_transforms
from quadgrad._core.errors import IntegrandError

__all__ = ["Closure", "Unchanged", "stand_in", "uncompiled", "with_no_share_of"]

_ATTRIBUTES = get_default_nowrap_functions()
"""What reads a tensor's own gradient or base."""

_MAKE_A_LEAF = {Tensor.requires_grad_, Tensor.requires_grad.__set__}  # pyright: ignore


def stand_in(tensor: Tensor, connected: bool) -> Tensor:
    """Return a tensor of the same values to differentiate with respect to; ``connected``: in the tensor's graph.

    It is no leaf, and newer than any function call that goes on: a surrounding :class:`Closure` leaves it alone.
    """
    source = tensor if connected else tensor.detach().requires_grad_()
    return source.view_as(source)


def with_no_share_of(result: Tensor, value: Tensor) -> Tensor:
    """Return the value, whose gradient is zero by all leaves that a result depends on.

    Not by way of the result: its own derivative may be infinite, and infinity times 0 is NaN.
    """
    if not (result.requires_grad and torch.is_grad_enabled()):
        return value
    for leaf in leaves_behind(result):
        value = value + leaf.flatten()[:0].sum().real.to(value.device, value.dtype)
    return value


class _Uncompiled:
    """While it is open, in any thread, functions that were compiled run as they are written.

    Compiled code shows a closure nothing; the compiler would trace the closure's own code, again and again.
    """

    def __init__(self) -> None:
        self._lock, self._open = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._open += 1
            if self._open == 1:
                # Where the compiler was never loaded, which takes a second, nothing is compiled.
                self._stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else None

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0 and self._stance is not None:
                self._stance.__exit__(None, None, None)


uncompiled = _Uncompiled()


class Closure(TorchFunctionMode):
    """Puts stand-ins in the place of the tensors that a function closes over.

    Parameters
    ----------
    stand_ins : iterable of pairs of Tensor, optional
        Tensors and what stands in for them. If it is None, they are found, and get one that is not connected.
    """

    def __init__(self, stand_ins: Iterable[tuple[Tensor, Tensor]] | None = None) -> None:
        super().__init__()
        self._finds = stand_ins is None
        self._pairs = {id(tensor): (tensor, other) for tensor, other in stand_ins or ()}
        self._leaves: dict[int, Tensor] = {}
        self._start = nodes_made()
        self._inseparable = False

    @property
    def tensors(self) -> list[Tensor]:
        """What the function closes over, in the order in which it was met."""
        return [tensor for tensor, _ in self._pairs.values()]

    @property
    def stand_ins(self) -> list[Tensor]:
        """What it sees in their place, in the same order."""
        return [other for _, other in self._pairs.values()]

    @property
    def separable(self) -> bool:
        """Whether stand-ins leave the function as it is: it took no derivative by what it closes over."""
        return not self._inseparable

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, which sees the stand-ins."""

        @functools.wraps(function, updated=())
        def call(*args: Any) -> Any:
            with self:
                return function(*args)

        return call

    def explains(self, result: Tensor, others: Iterable[Tensor]) -> bool:
        """Whether all that a result depends on is a stand-in, one of these or of others, or the function's own."""
        return not self.foreign(result, others) and self.separable

    def foreign(self, result: Tensor, others: Iterable[Tensor]) -> list[Tensor]:
        """Return the leaves that a result depends on past the stand-ins: what torch functions did not show.

        Raises
        ------
        IntegrandError
            If a reentrant checkpoint hides them.
        """
        leaves = leaves_behind(result, [*others, *self.stand_ins], self._refuse)
        unknown = [leaf for leaf in leaves if id(leaf) not in self._leaves]
        self._leaves.clear()
        return unknown

    @staticmethod
    def _refuse(node: Any) -> None:
        """Refuse a node that hides parameters: they get gradients in ``backward()`` only, and elsewhere none."""
        if node.name() == "CheckpointFunctionBackward":
            raise IntegrandError(
                "torch.utils.checkpoint with use_reentrant=True hides from torch.autograd.grad what it evaluates "
                "again, and gradients of its weights would be missing: pass use_reentrant=False"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a torch function with the stand-ins."""
        kwargs = kwargs or {}
        if func in _ATTRIBUTES:
            return func(*args, **kwargs)
        if func is torch.autograd.grad and self._finds and self._meets_one(args):
            self._inseparable = True  # the derivative along all paths is asked for, of which a stand-in cuts some
        result = func(*self._replace(args), **(self._replace(kwargs) if kwargs else kwargs))
        if func in _MAKE_A_LEAF or kwargs.get("requires_grad"):
            leaf = args[0] if result is None else result
            self._leaves[id(leaf)] = leaf  # the function's own
        return result

    def _replace(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._stand_in(value)
        if type(value) is tuple or type(value) is list:
            return type(value)(map(self._replace, value))
        if type(value) is dict:
            return {name: self._replace(each) for name, each in value.items()}
        return value

    def _stand_in(self, tensor: Tensor) -> Tensor:
        pair = self._pairs.get(id(tensor))
        if pair is not None:
            return pair[1]
        if not self._finds or not tensor.requires_grad or made_since(tensor, self._start):
            return tensor
        if id(tensor) in self._leaves or belongs_to_transform(tensor):
            return tensor
        with outside_transforms(), torch.enable_grad():
            other = stand_in(tensor, connected=False)
        self._pairs[id(tensor)] = tensor, other
        return other

    def _meets_one(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return self._stand_in(value) is not value
        return isinstance(value, tuple | list) and any(map(self._meets_one, value))


class Unchanged:
    """Tensors that a function was given, and that a backward pass which calls it again needs as they were.

    Torch itself looks after those that are differentiated with respect to.
    """

    def __init__(self, tensors: Iterable[Any]) -> None:
        each = [t for t in tensors if isinstance(t, Tensor) and not t.is_inference()]
        self._versions = [(tensor, tensor._version) for tensor in each]

    def check(self) -> None:
        """Raise if one of them was changed in place.

        Raises
        ------
        RuntimeError
            As torch raises one for what it keeps.
        """
        for tensor, version in self._versions:
            if tensor._version != version:
                raise RuntimeError(
                    f"a limit or argument of shape {tuple(tensor.shape)} was modified by an inplace operation "
                    "after it was integrated with, and the backward pass calls the integrand again: pass a clone "
                    "of it, or go backward before it is changed"
                )
