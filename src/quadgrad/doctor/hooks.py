"""What no mode sees, made visible while a program runs: parameters, custom functions, modules, optimisers.

All of it is undone when the run is over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from quadgrad._core._torch import belongs_to_transform, flatten_tree, without_modes
from quadgrad._core.closure import uncompiled
from quadgrad._core.errors import SeveredGradientWarning, Site, speaker
from quadgrad.doctor import values
from quadgrad.doctor.implicit import IMPLICIT
from quadgrad.doctor.marks import why_intended
from quadgrad.doctor.numbers import listener
from quadgrad.doctor.places import place_of
from quadgrad.doctor.trace import Call, Event
from quadgrad.doctor.watch import Watch, carries

__all__ = ["watching"]


@contextmanager
def watching(
    watch: Watch, see_module: Callable[[torch.nn.Module], None], see_optimiser: Callable[[Optimizer], None]
) -> Generator[None]:
    """Return a context in which all that a program does is seen."""
    with ExitStack() as stack:
        stack.enter_context(uncompiled)
        stack.enter_context(_speechless())
        stack.enter_context(_parameters(watch))
        stack.enter_context(_functions(watch))
        heard = listener.set(watch.heard)
        stack.callback(listener.reset, heard)
        modules = register_module_forward_pre_hook(lambda module, args: see_module(module))
        stack.callback(modules.remove)
        optimisers = register_optimizer_step_pre_hook(lambda optimiser, args, kwargs: see_optimiser(optimiser))
        stack.callback(optimisers.remove)
        stack.enter_context(watch)
        yield


@contextmanager
def _speechless() -> Generator[None]:
    """Return a context in which no integral says that a gradient is severed: the report does."""
    outer = speaker.get()

    def speak(message: str, category: type[Warning]) -> tuple[str, Site | None] | None:
        if issubclass(category, SeveredGradientWarning):
            return None
        return (message, None) if outer is None else outer(message, category)

    token = speaker.set(speak)
    try:
        yield
    finally:
        speaker.reset(token)


@contextmanager
def _parameters(watch: Watch) -> Generator[None]:
    """Return a context in which a parameter made of something that carries a derivative is seen."""
    original = torch.nn.Parameter.__new__

    def new(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        parameter = original(cls, data, requires_grad)
        if watch.idle:
            return parameter
        watch.made(parameter)
        if not isinstance(data, Tensor) or not carries(data):
            return parameter
        with without_modes():
            place, event = place_of(), None
            if place.owner not in ("engine", "optimiser"):
                event = Event(place, "nn.Parameter", values.hold(parameter), reason=why_intended())
                parameter = watch.severed(event, parameter)
                watch.made(parameter)
        return parameter

    torch.nn.Parameter.__new__ = new
    try:
        yield
    finally:
        torch.nn.Parameter.__new__ = original


@contextmanager
def _functions(watch: Watch) -> Generator[None]:
    """Return a context in which each custom function is one operation, whose backward pass is looked at."""
    base = torch.autograd.Function
    original = base.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if watch.idle:
            return original.__get__(None, cls)(*args, **kwargs)
        if cls.__name__ == "CheckpointFunction":  # a reentrant checkpoint runs without gradient: nothing is seen
            return args[0](*args[2:])
        watch.read((args, kwargs))
        watch.inside += 1
        try:
            result = original.__get__(None, cls)(*args, **kwargs)
        finally:
            watch.inside -= 1
        with without_modes():
            result = _applied(watch, cls, args, result)
            watch.record(cls.__name__, result)
            return result

    base.apply = classmethod(apply)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        base.apply = original


def _applied(watch: Watch, cls: Any, args: Any, result: Any) -> Any:
    """Note a call of a custom function: as one that severs, or one whose backward pass is to be checked."""
    watch.trace.count(cls.__name__)
    for tensor in values.tensors_in(args):
        if tensor.requires_grad:
            watch.notice(tensor)
    ins = [a for a in args if isinstance(a, Tensor) and carries(a)]
    outs = [o for o in flatten_tree(result)[0] if isinstance(o, Tensor) and carries(o)]
    if cls.__name__ in IMPLICIT and ins and outs:
        return watch.sampled(cls.__name__, ins[0], result)
    if not ins and not outs:
        return result
    place = place_of()
    if not outs:
        if place.owner in ("engine", "optimiser"):
            return result
        event = Event(place, cls.__name__, values.hold(result), reason=why_intended(), detail="function")
        return watch.severed(event, result)
    if outs[0].grad_fn is None or any(belongs_to_transform(t) for t in (*ins, *outs)):
        return result
    call = Call(place, cls.__name__, values.hold(ins), values.hold(outs), reason=why_intended())
    call.bridged = cls.__module__.startswith("quadgrad")
    watch.trace.calls.append(call)
    if watch.order.gradient:
        _follow(watch, call, outs)
    return result


def _follow(watch: Watch, call: Call, outs: list[Tensor]) -> None:
    """Keep the cotangents that go into and come out of the backward pass of a custom function."""
    node = outs[0].grad_fn
    assert node is not None
    wanted = [before is not None for before, _ in node.next_functions]
    places = [out.output_nr for out in outs]

    def look(gradients_in: Any, gradients_out: Any) -> None:
        if not watch.collecting:
            return
        copy = lambda g: None if g is None else g.detach().clone()
        call.cotangents_out = [copy(gradients_out[k]) for k in places]
        call.cotangents_in = [copy(g) for g, want in zip(gradients_in, wanted, strict=True) if want]

    node.register_hook(look)
