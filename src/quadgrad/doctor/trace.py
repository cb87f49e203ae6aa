"""What one run of a program showed, and what a run is told to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from quadgrad.doctor.places import Place
from quadgrad.doctor.prints import Print
from quadgrad.doctor.values import Held

__all__ = ["Call", "Decision", "Event", "Met", "Order", "Problem", "Trace"]


@dataclass(eq=False)
class Event:
    """An operation on something that carries a derivative, whose result carries none.

    ``out`` is what it returned, ``before`` what stood where it wrote, of an operation in place. ``visible`` tells
    that what it wrote over still counts for autograd as what it was: a ``.data`` edit. ``reason`` says why it is no
    finding, if it is none. ``linked`` tells that its result is written to later, and shares memory with its input.
    """

    place: Place
    op: str
    out: Held
    before: Held | None = None
    visible: bool = False
    reason: str = ""
    detail: str = ""
    linked: bool = False
    random_state: Tensor | None = None

    @property
    def key(self) -> Any:
        """What is the same in every run."""
        return self.place.key, self.op


@dataclass(eq=False)
class Decision:
    """A comparison, a rounding, an argmax, a draw: a result that moves in steps.

    ``quantity`` are the numbers that decide, ``levels`` where they do: ``"zero"``, ``"integers"``, ``"halves"``; of
    numbers in rows what counts is their ``"order"``, which has a rank (``"rank0"``) or which are the largest
    (``"top3"``); ``"draw"`` where chance decides, ``"outcome"`` where nothing else is known. ``gaps`` are how far
    apart the values are between which the outcome chooses, for each operation that took it; ``read`` tells that
    others took it, too, ``flows`` that a derivative flows to what it decides on.
    """

    place: Place
    op: str
    out: Held
    quantity: Any = None
    levels: str = "zero"
    reason: str = ""
    gaps: list[Tensor] = field(default_factory=lambda: [])
    read: bool = False
    flows: bool = False

    @property
    def key(self) -> Any:
        """What is the same in every run."""
        return self.place.key, self.op


@dataclass(eq=False)
class Call:
    """A call of a custom ``autograd.Function``, and the cotangents of its last backward pass."""

    place: Place
    name: str
    ins: Held
    outs: Held
    cotangents_out: list[Tensor | None] | None = None
    cotangents_in: list[Tensor | None] | None = None
    reason: str = ""
    bridged: bool = False


class Met(NamedTuple):
    """A tensor that a program met and was not given, with what it and its ``.grad`` held then."""

    tensor: Tensor
    value: Tensor
    gradient: Tensor | None
    kept: Tensor | None

    @staticmethod
    def now(tensor: Tensor) -> Met:
        """Return a tensor as it stands."""
        gradient = tensor.grad if tensor.is_leaf else None
        kept = None if gradient is None else gradient.detach().clone()
        return Met(tensor, tensor.detach().clone(), gradient, kept)


@dataclass(eq=False)
class Problem:
    """What torch refused to do, or what stands in the way, at a place."""

    place: Place
    op: str
    text: str


@dataclass(eq=False)
class Order:
    """What a run is told to do.

    ``frozen`` results are those of ``"intended"`` events or of ``"all"``, and of ``only`` those numbers; ``shifts``
    are added to the results of events, ``outcomes`` replace those of decisions. ``margins`` asks for the quantities
    of decisions, ``record`` for a number of each operation's result.
    """

    base: Trace | None = None
    frozen: str = "intended"
    only: frozenset[int] = frozenset()
    measure: bool = False
    shifts: dict[int, Held] = field(default_factory=lambda: {})
    outcomes: dict[int, Held] = field(default_factory=lambda: {})
    margins: bool = False
    wide: bool = False
    gradient: bool = False
    anomaly: bool = False
    record: bool = False


@dataclass(eq=False)
class Trace:
    """What a run showed."""

    events: list[Event] = field(default_factory=lambda: [])
    decisions: list[Decision] = field(default_factory=lambda: [])
    calls: list[Call] = field(default_factory=lambda: [])
    moved: dict[int, Held | None] = field(default_factory=lambda: {})
    leaves: dict[int, Met] = field(default_factory=lambda: {})
    outer: dict[int, Met] = field(default_factory=lambda: {})
    suspects: dict[str, Place] = field(default_factory=lambda: {})
    problems: list[Problem] = field(default_factory=lambda: [])
    objectives: list[Any] = field(default_factory=lambda: [])
    samples: list[tuple[Tensor, Tensor]] = field(default_factory=lambda: [])
    generators: list[Any] = field(default_factory=lambda: [])
    rewrapped: list[Place] = field(default_factory=lambda: [])
    prints: list[Print] = field(default_factory=lambda: [])
    aliases: dict[int, Tensor] = field(default_factory=lambda: {})
    first_nan: tuple[Place, str] | None = None
    operations: int = 0
    signature: int = 0
    parted: str = ""
    flipped: set[int] = field(default_factory=lambda: set())
    random: bool = False
    _numbers: dict[Any, list[int]] = field(default_factory=lambda: {})

    def number_of(self, key: Any, occurrence: int) -> int | None:
        """Return the number of an event by its key, and how often there was one before; the last one for more.

        A loop may take another number of turns in another run: a solver's does.
        """
        if not self._numbers:
            for k, event in enumerate(self.events):
                self._numbers.setdefault(event.key, []).append(k)
        numbers = self._numbers.get(key)
        return None if numbers is None else numbers[min(occurrence, len(numbers) - 1)]

    def missing(self, other: Trace) -> str:
        """Return a place at which this run severed and another one did not."""
        there = {event.key for event in other.events}
        return next((str(event.place) for event in self.events if event.key not in there), "")

    def count(self, name: str) -> None:
        """Note that an operation was done."""
        self.operations += 1
        self.signature = hash((self.signature, name))
