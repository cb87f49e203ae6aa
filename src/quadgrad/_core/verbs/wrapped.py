"""Modules that talk to other ranks when they are called: an integrand that ranks share may not call them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from quadgrad._core.errors import IntegrandError
from quadgrad._core.gradient.parameters import closure_of

__all__ = ["refuse_wrapped"]

DEPTH = 6
"""How many objects deep a module is looked for in what f closes over."""

SHARDED = (("torch.distributed.fsdp", "FullyShardedDataParallel"), ("torch.distributed.fsdp", "FSDPModule"))
"""Where none of these was imported, there is none."""


@contextmanager
def refuse_wrapped(*functions: Callable[..., Any] | None) -> Generator[None]:
    """Raise if inside one of these functions calls a DDP or FSDP module.

    Each rank calls f at other points, and not equally often, where such a module waits for all ranks: with buffers
    (of batch norm) it would hang until the group's time-out. That f closes over one says nothing, since
    ``ddp.module`` is reached through it: what is refused is the call.

    Raises
    ------
    IntegrandError
        Saying what to call instead.
    """
    with ExitStack() as stack:
        modules: dict[int, Module] = {}
        for f in functions:
            modules |= {id(module): module for module in _modules(f, DEPTH, set())}
        for module in modules.values():
            if isinstance(module, DistributedDataParallel):
                stack.callback(module.register_forward_pre_hook(_refuse_ddp, prepend=True).remove)
            elif isinstance(module, _sharded_types()):
                stack.callback(module.register_forward_pre_hook(_refuse_fsdp, prepend=True).remove)
        yield


def _refuse_ddp(module: Module, inputs: Any) -> None:
    raise IntegrandError(
        "f calls a DistributedDataParallel module, which waits for all ranks, while each rank of the group calls f "
        "at points of its own: it would hang. Call the module inside it: ddp.module(x). Every rank gets the whole "
        "gradient, which DDP's mean over the ranks leaves as it is"
    )


def _refuse_fsdp(module: Module, inputs: Any) -> None:
    raise IntegrandError(
        "f calls an FSDP module, which fetches its weights from all ranks, while each rank of the group calls f at "
        "points of its own: it would hang. Integrate without group, every rank on the same points, or call a "
        "module that is not sharded"
    )


def _sharded_types() -> tuple[type, ...]:
    loaded = [(sys.modules[path], name) for path, name in SHARDED if path in sys.modules]
    return tuple(getattr(module, name) for module, name in loaded if hasattr(module, name))


def _modules(value: Any, depth: int, seen: set[int]) -> Iterator[Module]:
    """Find the modules that a function closes over, those inside others too."""
    if depth < 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Module):
        yield from value.modules()
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _modules(each, depth - 1, seen)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _modules(each, depth - 1, seen)
    elif _is_object(value):
        for _, each in closure_of(value):
            yield from _modules(each, depth - 1, seen)


def _is_object(value: Any) -> bool:
    """Whether to look into something: not into numbers, classes and what Python and torch consist of."""
    if inspect.isclass(value) or inspect.ismodule(value) or inspect.isbuiltin(value):
        return False
    return callable(value) or hasattr(value, "__dict__")
