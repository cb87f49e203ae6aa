"""The mode under which a program runs: it sees every torch function, freezes and shifts what severs.

An operation that takes something which carries a derivative, and returns nothing that does, *severs*. Its result is
noted; in another run it is what it was (*frozen*), or moved by a given step (*shifted*).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from quadgrad._core._torch import (
    add_lanes,
    belongs_to_transform,
    carries_derivative,
    flatten_tree,
    in_transform,
    made_since,
    nodes_made,
    unflatten_tree,
)
from quadgrad._core.rehearsal import current_rehearsal
from quadgrad.doctor import values
from quadgrad.doctor.decisions import is_decision, quantity_of
from quadgrad.doctor.grids import NEAREST, round_grid
from quadgrad.doctor.implicit import IMPLICIT, moved_sample
from quadgrad.doctor.kinks import gap_between
from quadgrad.doctor.marks import why_intended
from quadgrad.doctor.names import (
    COMPARISONS,
    DRAWS,
    ESCAPES,
    MAKES_A_LEAF,
    NO_DERIVATIVE,
    RANDOM,
    READS,
    ROUNDINGS,
    SHAPED,
    STATE,
    STEPPING,
    is_in_place,
    name_of,
)  # fmt: skip
from quadgrad.doctor.numbers import numbers_in
from quadgrad.doctor.places import place_of
from quadgrad.doctor.prints import Print, print_of
from quadgrad.doctor.trace import Decision, Event, Met, Order, Problem, Trace
from quadgrad.doctor.wide import widen

__all__ = ["Watch", "carries"]

_OPTIMISER = "what an optimiser does"
_BARE = ("data", "detach")
_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")


def carries(tensor: Tensor) -> bool:
    """Whether derivatives flow to a tensor, in whatever transform."""
    return tensor.requires_grad or (in_transform() and carries_derivative(tensor))


class Watch(TorchFunctionMode):
    """One run's eyes and hands.

    Parameters
    ----------
    order : Order
        What to freeze and shift.
    sources : iterable of Tensor
        What is varied; other leaves that require grad are noted.
    """

    def __init__(self, order: Order, sources: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.order, self.trace = order, Trace()
        self.inside = 0  # custom functions, each of which is one operation
        self._sources = {id(t): t for t in sources}
        self._made: dict[int, Tensor] = {}
        self._bare: dict[int, Tensor] = {}
        self._edited: set[int] = set()
        self._occurrences: dict[Any, int] = {}
        self._outcomes: dict[int, tuple[Tensor, Decision]] = {}  # tensors, so that no other one gets their id
        self._start, self._thread = nodes_made(), threading.get_ident()

    # ------------------------------------------------------------------------------------- what torch calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what a torch function does, and note it."""
        kwargs = kwargs or {}
        if self.idle:
            return func(*args, **kwargs)
        name = name_of(func)
        result = self._do(func, name, args, kwargs)
        if name not in STATE:
            self.record(name, args[0] if result is None and args else result)
        return result

    def record(self, name: str, result: Any) -> None:
        """Note a number of what an operation gave, if the order asks for it."""
        if self.order.record:
            self.trace.prints.append(Print(name, place_of(), print_of(result)))

    def _do(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if self._outcomes and (name not in STATE or name in READS):
            self.read((args, kwargs), name, args, kwargs)
        if name in STATE or name in MAKES_A_LEAF:
            return self._state(func, name, args, kwargs)
        if name == "backward":
            return self._backward(func, args, kwargs)
        self.trace.count(name)
        tensors = values.tensors_in((args, kwargs))
        for tensor in tensors:
            if tensor.requires_grad:
                self.notice(tensor)
        if straight := name == "gumbel_softmax" and kwargs.get("hard"):
            kwargs = {**kwargs, "hard": False}
        call = self._prepare(func, name, args, kwargs, tensors)
        if straight:
            return self._straight_through(call(), kwargs.get("dim", -1))
        if is_in_place(name) and args:
            return self._in_place(call, name, args, tensors)
        return self._operation(call, name, args, kwargs, tensors)

    def _prepare(self, func: Any, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> Callable[[], Any]:
        """Return the operation with its arguments, in double precision if the order wants it."""
        if name == "grid_sample" and any(carries(t) for t in tensors[1:]):
            args, kwargs = round_grid(args, kwargs, lambda x, n: self._decide(NEAREST, (x,), {}, n, True))
        return lambda: widen(func, name, args, kwargs) if self.order.wide else func(*args, **kwargs)

    @property
    def idle(self) -> bool:
        """Whether what is done now is nobody's to see: inside a custom function, a search, another thread."""
        if self.inside or threading.get_ident() != self._thread:
            return True
        run = current_rehearsal(thinking=True)
        return run is not None and run.thinks > 0

    def _state(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if name in MAKES_A_LEAF:
            leaf = args[0] if result is None else result
            if id(leaf) not in self._sources and leaf.is_leaf:
                self.made(leaf)
        elif name in _HOOKS:
            self.trace.suspects.setdefault("a hook", place_of())
        return result

    def read(self, value: Any, name: str = "", args: Any = (), kwargs: Any = None) -> None:
        """Note that the program uses outcomes of decisions: to choose between two values, or as it likes."""
        for tensor in values.tensors_in(value):
            held, decision = self._outcomes.get(id(tensor), (None, None))
            if held is None or decision is None:
                continue
            gap = gap_between(name, args, kwargs, held)
            if gap is None:
                decision.read = True
            else:
                decision.gaps.append(gap)

    def made(self, leaf: Tensor) -> None:
        """Note a leaf that the program itself makes."""
        self._made[id(leaf)] = leaf

    def notice(self, tensor: Tensor) -> None:
        """Note a tensor that requires grad and was there before the program ran."""
        key = id(tensor)
        if key in self._sources or key in self._made or key in self.trace.leaves or belongs_to_transform(tensor):
            return
        base = tensor._base
        if base is not None and base.requires_grad and tensor.is_leaf:
            return  # a view made under no_grad passes for a leaf
        if tensor.is_leaf:
            self.trace.leaves[key] = Met.now(tensor)
        elif not tensor.is_cuda and not made_since(tensor, self._start):
            self.trace.outer.setdefault(key, Met.now(tensor))

    # ------------------------------------------------------------------------------------------- operations

    def _operation(self, call: Callable[[], Any], name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        flows = any(carries(t) for t in tensors)
        state = self._random_state(name, kwargs) if name in RANDOM else None
        result = call()
        if name in IMPLICIT and isinstance(result, Tensor) and carries(result):
            return self.sampled(name, args[0], result)
        if self.order.anomaly:
            self._guard(name, result)
        if kwargs.get("requires_grad") and isinstance(result, Tensor):
            self.made(result)
            self.trace.rewrapped.append(place_of())
        if is_decision(name, args, result, flows):
            return self._decide(name, args, kwargs, result, flows)
        outs = flatten_tree(result)[0] if not isinstance(result, Tensor) else [result]
        if name in _BARE and not flows and isinstance(result, Tensor):
            self._bare[id(result)] = result  # what is written to it autograd connects with this object only
        if not flows or (name not in NO_DERIVATIVE and any(isinstance(o, Tensor) and carries(o) for o in outs)):
            return result
        if name in SHAPED or not any(values.is_continuous(o) for o in outs):
            return result
        place = place_of()
        if place.owner in ("engine", "optimiser"):
            return result
        result = numbers_in(result) if name in ESCAPES else result
        event = Event(place, name, values.hold(result), reason=why_intended(), detail=_detail(args, kwargs, result))
        shared = self._shares_memory(tensors, outs) if name in ("detach", "data", "grad", "view", "numpy") else None
        result = self.severed(event, result, state)
        if shared is not None:
            self.trace.aliases[len(self.trace.events) - 1] = shared
        return result

    def sampled(self, name: str, concentration: Tensor, sample: Tensor) -> Tensor:
        """Return a sample with an implicit derivative: that of the first run, moved as torch believes."""
        if belongs_to_transform(sample) or belongs_to_transform(concentration):
            return sample
        number, base = len(self.trace.samples), self.order.base
        self.trace.samples.append((sample.detach().clone(), concentration.detach().clone()))
        if base is None or number >= len(base.samples) or base.samples[number][0].shape != sample.shape:
            return sample
        return moved_sample(name, *base.samples[number], concentration)

    def _straight_through(self, soft: Tensor, dim: int) -> Tensor:
        """Return the hard sample of a soft one, as torch does unseen: what it adds is a constant to autograd."""
        place, plain = place_of(), soft.detach()
        rest = torch.zeros_like(plain).scatter(dim, plain.argmax(dim, keepdim=True), 1.0) - plain
        if carries(soft):
            op = "gumbel_softmax(hard=True)"
            rest = self.severed(Event(place, op, values.hold(rest), reason=why_intended()), rest)
        return rest + soft

    @staticmethod
    def _shares_memory(tensors: list[Tensor], outs: list[Any]) -> Tensor | None:
        out = outs[0]
        if not isinstance(out, Tensor) or belongs_to_transform(out) or belongs_to_transform(tensors[0]):
            return None
        return out if out.numel() and out.data_ptr() == tensors[0].data_ptr() else None

    def _random_state(self, name: str, kwargs: Any) -> Any:
        self.trace.random = True
        generator = kwargs.get("generator")
        if generator is not None and not any(generator is g for g, _ in self.trace.generators):
            self.trace.generators.append((generator, generator.get_state()))
        return generator if generator is not None else torch.default_generator

    def severed(self, event: Event, result: Any, generator: Any = None) -> Any:
        """Note what severs, and return what the order wants in its place."""
        order = self.order
        self.trace.events.append(event)
        if generator is not None:
            event.random_state = generator.get_state()
        number, known = self._known(event)
        if known is None:
            return result
        if order.measure:
            self.trace.moved[number] = values.difference(event.out, known.out)
        if generator is not None and known.random_state is not None:
            generator.set_state(known.random_state)  # a draw by rejection takes as many numbers as it likes
        event.linked = known.linked
        if known.linked:
            return result
        if number in order.shifts:
            return values.add(result, order.shifts[number])
        if self._freezes(number, known):
            return values.restore(known.out, result)
        return result

    def _known(self, event: Event) -> tuple[int, Event | None]:
        """Return the event of the first run, and its number; None where there is none, or the runs have parted."""
        base = self.order.base
        if base is None or self.trace.parted:
            return -1, None
        occurrence = self._occurrences[event.key] = self._occurrences.get(event.key, -1) + 1
        number = base.number_of(event.key, occurrence)
        if number is None:
            self.trace.parted = str(event.place)
            return -1, None
        return number, base.events[number]

    def _freezes(self, number: int, known: Event) -> bool:
        order = self.order
        return order.frozen == "all" or (order.frozen == "intended" and bool(known.reason)) or number in order.only

    # ------------------------------------------------------------------------------------ decisions

    def _decide(self, name: str, args: Any, kwargs: Any, result: Any, flows: bool) -> Any:
        place = place_of()
        checks = name in COMPARISONS or name not in STEPPING  # torch checks what it is given
        if place.owner in ("engine", "optimiser") or (place.owner == "library" and checks):
            return result
        quantity, levels = quantity_of(name, args, kwargs, result) if self.order.margins else (None, "")
        decision = Decision(place, name, values.hold(result), quantity, levels, why_intended(), flows=flows)
        if self.order.margins:
            steps = [o for o in values.tensors_in(result) if not o.is_floating_point()]
            self._outcomes.update({id(o): (o, decision) for o in steps})
            decision.read = not steps  # whoever takes a rounded number may differentiate it: it is not followed
        return self.decided(decision, result)

    def decided(self, decision: Decision, result: Any) -> Any:
        """Note a decision, and return what the order wants in its place."""
        number, base = len(self.trace.decisions), self.order.base
        self.trace.decisions.append(decision)
        if number in self.order.outcomes:
            return _joined(self.order.outcomes[number], result)
        if base is not None and not self.trace.parted:
            known = base.decisions[number] if number < len(base.decisions) else None
            if known is None or known.key != decision.key or not values.same_outcome(known.out, decision.out):
                self.trace.flipped.add(number)
        return result

    def heard(self, op: str, quantity: float, levels: str, value: Any) -> Any:
        """Note what Python decided by a number that came out of a tensor."""
        if self.idle:
            return value
        place = place_of()
        if place.owner != "user":
            return value
        decision = Decision(place, op, values.hold(value), quantity, levels, why_intended(), read=True)
        return self.decided(decision, value)

    # ------------------------------------------------------------------------------------ what is written in place

    def _in_place(self, call: Callable[[], Any], name: str, args: Any, tensors: list[Tensor]) -> Any:
        if name in DRAWS or name in ROUNDINGS:
            quantity, levels = quantity_of(name, args, {}, None) if self.order.margins else (None, "")
            result, place = call(), place_of()
            if place.owner in ("engine", "optimiser"):
                return result
            decision = Decision(place, name, values.hold(result), quantity, levels, why_intended(), read=True)
            outcome = self.decided(decision, result)
            if outcome is not result:
                result.data.copy_(outcome)
            return result
        if name in RANDOM:
            self.trace.random = True
        targets = [t for t in values.tensors_in(args[0]) if not belongs_to_transform(t)]
        flows = any(carries(t) for t in tensors)
        visible = any(t.requires_grad or self._is_alias(t) for t in targets)
        if name.endswith("detach_"):
            visible = False
        tracked = torch.is_grad_enabled() and name != "data="
        bare = any(id(t) in self._bare for t in targets)
        unseen = [t for t in targets if bare or not (tracked and t.requires_grad)]
        if not unseen or not (flows or visible) or (name in RANDOM and name not in DRAWS and not visible):
            return call()
        before = values.hold(targets)
        result = call()
        if tracked and not bare and not name.endswith("detach_") and all(carries(t) for t in targets):
            return result  # autograd has taken it over
        place = place_of()
        if place.owner == "engine":
            return result
        reason = _OPTIMISER if place.owner == "optimiser" else why_intended()
        event = Event(place, name, values.hold(targets), before, visible, reason, _detail(args, {}, result))
        for target in targets:
            self._edited.update(k for k, alias in self.trace.aliases.items() if _overlap(alias, target))
        self._write(event, targets)
        return result

    def _is_alias(self, target: Tensor) -> bool:
        return any(_overlap(alias, target) for alias in self.trace.aliases.values())

    def _write(self, event: Event, targets: list[Tensor]) -> None:
        """Note what was written unseen by autograd, and put what the order wants in its place."""
        self.trace.events.append(event)
        number, known = self._known(event)
        if known is None or event.before is None or known.before is None:
            return
        wrote, was = values.difference(event.out, known.out), values.difference(event.before, known.before)
        if wrote is None or was is None:
            self.trace.parted = str(event.place)
            return
        if self.order.measure:
            leaves = zip(wrote.leaves, was.leaves, strict=True)
            parts = tuple(a if b is None or a is None or not known.visible else a - b for a, b in leaves)
            self.trace.moved[number] = wrote._replace(leaves=parts)
        step = self.order.shifts.get(number)
        with torch.no_grad():
            for i, target in enumerate(targets):
                if step is not None and step.leaves[i] is not None:
                    target.data.add_(step.leaves[i])
                elif self._freezes(number, known):
                    target.data.copy_(known.out.leaves[i])
                    if known.visible and was.leaves[i] is not None:
                        target.data.add_(was.leaves[i])

    # ------------------------------------------------------------------------------------ backward, in the program

    def _backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Take what the program goes backward from for what is examined."""
        output = args[0]
        gradient = args[1] if len(args) > 1 else kwargs.get("gradient")
        if place_of().owner == "optimiser" or not isinstance(output, Tensor):
            return func(*args, **kwargs)
        if output.numel() != 1 and gradient is None:
            self.trace.problems.append(
                Problem(place_of(), "backward", "backward() of a tensor that is no scalar: of which number?")
            )
            self.trace.objectives.append((output.detach().double().clone(), None))
            return None
        self.trace.objectives.append((output.detach().clone(), None if gradient is None else gradient.detach()))
        if not output.requires_grad:
            return None
        if self.order.gradient:
            self._differentiate(output, gradient)
        return func(*args, **kwargs)

    def _differentiate(self, output: Tensor, gradient: Tensor | None) -> None:
        sources = list(self._sources.values())
        if not sources:
            return
        self.collecting = True
        try:
            slopes = torch.autograd.grad(output, sources, gradient, retain_graph=True, allow_unused=True)
        finally:
            self.collecting = False
        self.slopes = [_sum(a, b) for a, b in zip(self.slopes or [None] * len(slopes), slopes, strict=True)]

    collecting = False
    slopes: list[Tensor | None] | None = None

    def _guard(self, name: str, result: Any) -> None:
        """Look whether the backward pass of an operation is where a gradient stops to be finite."""
        outs = values.tensors_in(result)
        node = outs[0].grad_fn if outs and not belongs_to_transform(outs[0]) else None
        if node is None:
            return
        place, trace = place_of(), self.trace

        def look(into: Any, out_of: Any) -> None:
            if trace.first_nan is None and _is_finite(out_of) and not _is_finite(into):
                trace.first_nan = place, name

        node.register_hook(look)

    # ------------------------------------------------------------------------------------ when the run is over

    def close(self) -> None:
        """Note which results were written to later: they cannot be frozen."""
        for number, alias in self.trace.aliases.items():
            event = self.trace.events[number]
            event.linked = event.linked or number in self._edited
            if not event.linked and not values.same(values.hold(alias), _first(event.out)):
                event.linked, event.detail = True, "edited"
        self.trace.aliases.clear()


def _first(held: values.Held) -> values.Held:
    return values.hold(add_lanes(held.leaves[0], held.levels[0]))


def _is_finite(gradients: Any) -> bool:
    return all(g is None or bool(g.isfinite().all()) for g in gradients)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors share memory."""
    if belongs_to_transform(a) or belongs_to_transform(b) or a.layout != torch.strided or b.layout != torch.strided:
        return False
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() > 0


def _detail(args: Any, kwargs: Any, result: Any) -> str:
    """Say what an operation did that its name does not tell."""
    if not torch.is_grad_enabled():
        return "no_grad"
    kinds = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
    if kinds or (isinstance(result, Tensor) and not (result.is_floating_point() or result.is_complex())):
        return "integer"
    return ""


def _joined(outcome: values.Held, result: Any) -> Any:
    """Return a result with the outcome of another run, which keeps what carries a derivative."""
    leaves, form = flatten_tree(result)
    others = flatten_tree(values.restore(outcome))[0]
    kept = [
        mine if len(leaves) > 1 and isinstance(mine, Tensor) and mine.is_floating_point() else other
        for mine, other in zip(leaves, others, strict=True)
    ]
    return unflatten_tree(kept, form)
