"""Compare a derivative that was given with differences, and say what else is odd about a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from quadgrad.bridge.contract import Array
from quadgrad.bridge.linearization import Counter, Linearization
from quadgrad.bridge.wrap import Wrapped, wrap

__all__ = ["CheckReport", "Entry", "check"]

SHOWN = 10
DECISIVE = 1e-3
"""Differences decide only if their error is at most this share of the largest entry: else a wrong derivative would
do."""
CLEAR = 10.0
"""A derivative is called wrong if it is off by so many errors: once in a thousand times an error is larger than
said."""
SOLVED = 1e-6
"""So little of the largest product may be what a solver leaves, whose steps depend on its input."""


@dataclass(frozen=True)
class Entry:
    """One product of the derivative with a random vector, both ways.

    Attributes
    ----------
    product : str
        ``"vjp"`` or ``"jvp"``.
    place : str
        Which input (vjp) or output (jvp), and which element of it.
    given : complex, float or None
        From the derivative that was given; None if none was.
    differences : complex or float
    error : float
        How wrong the differences may be.
    decided : bool
        Whether the differences are good enough to tell a right derivative from a wrong one.
    """

    product: str
    place: str
    given: complex | float | None
    differences: complex | float
    error: float
    decided: bool = True

    @property
    def gap(self) -> float:
        """How far the two are apart, in units of the error; 0 if there is nothing to compare."""
        if self.given is None:
            return 0.0
        return float(abs(self.given - self.differences) / max(self.error, float(np.finfo(np.float64).tiny)))


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found; prints as a table, worst entry first.

    Attributes
    ----------
    name : str
    entries : tuple of Entry
        Sorted, worst first.
    noise : float
        The relative noise level of the function.
    nfev : int
    notes : tuple of str
        What is odd about the function, though harmless.
    """

    name: str
    entries: tuple[Entry, ...]
    noise: float
    nfev: int
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``"right"``, ``"wrong"``, ``"undecided"`` where differences cannot tell, or ``"none given"``."""
        if all(entry.given is None for entry in self.entries):
            return "none given"
        if any(entry.gap > CLEAR for entry in self.entries):
            return "wrong"
        return "right" if all(entry.gap <= 1.0 and entry.decided for entry in self.entries) else "undecided"

    @property
    def passed(self) -> bool:
        """Whether every entry of the given derivative agrees with differences that are accurate enough to tell."""
        return self.verdict in ("right", "none given")

    def __str__(self) -> str:
        verdict = {
            "right": "the derivative is right",
            "wrong": "the derivative is WRONG",
            "undecided": "the differences are too inaccurate to tell whether the derivative is right",
            "none given": "no derivative given",
        }[self.verdict]
        lines = [f"{self.name}: {verdict} ({self.nfev} evaluations, relative noise {self.noise:.1e})"]
        lines.append(f"{'':4} {'of':24} {'given':>24} {'differences':>24} {'error':>9} {'apart':>9}")
        for e in self.entries[:SHOWN]:
            given = "" if e.given is None else f"{e.given:.10g}"
            apart = "" if e.given is None else f"{abs(e.given - e.differences):.1e}"
            lines.append(
                f"{e.product:4} {e.place:24} {given:>24} {e.differences:>24.10g} {e.error:9.1e} {apart:>9}"
            )
        if len(self.entries) > SHOWN:
            lines.append(f"... and {len(self.entries) - SHOWN} more")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def check(fn: Callable[..., Any], *inputs: Any, vectors: int = 4, seed: int = 0, **options: Any) -> CheckReport:
    """Check a function and the derivative given for it against differences.

    Products with random cotangents (and tangents) are compared, never with ones: a vjp that ignores what comes in
    passes a check made with ones.

    Parameters
    ----------
    fn : Wrapped or callable
        A wrapped function, or a plain one with ``**options`` of :func:`quadgrad.bridge.wrap`.
    *inputs : tensor, array or number
        Where to check.
    vectors : int
        How many random vectors.
    seed : int
        For these.

    Returns
    -------
    CheckReport
        ``print`` it: products with the given derivative beside those from Richardson differences with their
        errors, worst first; ``.passed`` says whether all agree, ``.verdict`` tells "wrong" from "undecided": of a
        noisy function, at a kink or beside a jump, differences can neither confirm a derivative nor refute it.

    Examples
    --------
    >>> import numpy as np, quadgrad as qg
    >>> report = qg.bridge.check(np.sin, np.array([0.5, 1.0]), derivative=np.sin)
    >>> report.passed
    False
    >>> print(report)  # doctest: +ELLIPSIS
    sin: the derivative is WRONG (...)
    ...
    """
    wrapped: Wrapped = fn if isinstance(fn, Wrapped) else wrap(fn, **options)
    tensors, statics = wrapped.sorted_arguments(inputs)
    point = wrapped.linearization(tensors, statics)
    plain = replace(point.options, derivative=None, jacobian=None, vjp=None, jvp=None, method="richardson")
    reference = replace(point, options=plain, counter=Counter())
    generator = np.random.default_rng(seed)
    cotangents = _random(generator, vectors, point.value)
    tangents = _random(generator, vectors, point.x)
    entries = _entries(point, reference, cotangents, "vjp")
    if point.options.given not in (None, "vjp") or point.options.jvp is not None:
        entries += _entries(point, reference, tangents, "jvp")
    entries.sort(key=lambda entry: (-entry.gap, -entry.error))
    noise, nfev = reference.problem.roughness, reference.counter.nfev
    notes = _notes(point) + (() if point.options.noise else _as_of_a_solver(entries))
    return CheckReport(point.callee.name, tuple(entries), noise, nfev, notes)


def _as_of_a_solver(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Tell that what is apart may be the function's own error, if it is no more than a solver's."""
    largest = {e.product: 0.0 for e in entries}
    for e in entries:
        largest[e.product] = max(largest[e.product], abs(e.differences))
    wrong = [(e.given, e) for e in entries if e.given is not None and e.gap > CLEAR]
    apart = max((abs(given - e.differences) / largest[e.product] for given, e in wrong), default=0.0)
    if not 0.0 < apart <= SOLVED:
        return ()
    return (
        f"apart by {apart:.1e} of the largest at most, as a right derivative is from that of a solver's steps: if "
        "the function ends at a tolerance, declare it, noise=(10 * rtol, 10 * atol) of solve_ivp",
    )


def _random(generator: np.random.Generator, count: int, like: Array) -> Array:
    found = generator.normal(size=(count, like.size))
    return found + 1j * generator.normal(size=found.shape) if np.iscomplexobj(like) else found


def _entries(point: Linearization, reference: Linearization, vectors: Array, product: str) -> list[Entry]:
    """Compare products; for each element keep the worst of all vectors."""
    jacobian = reference.jacobian
    pulled = product == "vjp"
    expected = jacobian.pull(vectors) if pulled else jacobian.push(vectors)
    error = jacobian.pull_error(vectors) if pulled else np.abs(vectors) @ _dense_error(reference)
    assert error is not None
    # Even an exact derivative is rounded.
    error = error + 1e3 * reference.problem.precision * np.abs(expected).max(axis=1, keepdims=True)
    given: Array | None = None
    if point.options.given is not None:
        given = point.pull(vectors) if pulled else point.push(vectors)
        look = reference.problem.look
        if look is not None:  # of outputs that stand still at x, in steps, 0 is right, whatever their trend
            still = (look.slope == 0.0) & np.isfinite(look.error)
            trend = jacobian.pull(np.where(still, vectors, 0.0)) if pulled else np.where(still, expected, 0.0)
            error = np.where(given == 0.0, np.maximum(error, np.abs(trend)), error)
    arrays = [point.inputs[i] for i in point.wanted] if pulled else list(point.outputs)
    labels = _labels("input" if pulled else "output", arrays)
    size = np.abs(expected) if given is None else np.fmax(np.abs(expected), np.abs(given))
    largest = size.max(axis=1, keepdims=True)
    largest = np.where(largest > 0.0, largest, np.abs(point.value).max())
    decided = error <= DECISIVE * largest
    with np.errstate(invalid="ignore"):
        apart = np.zeros(error.shape) if given is None else np.nan_to_num(np.abs(given - expected) / error)
    rows = np.argmax(np.where(decided | (apart > CLEAR), apart, np.inf), axis=0)
    return [
        Entry(
            product,
            label,
            None if given is None else given[r, j],
            expected[r, j],
            float(error[r, j]),
            bool(decided[r, j]),
        )
        for j, (label, r) in enumerate(zip(labels, rows, strict=True))
    ]


def _dense_error(reference: Linearization) -> Array:
    """Return the error of each entry, ``(n, m)``."""
    structure, error = reference.structure, reference.jacobian.output_error()
    assert error is not None
    return np.broadcast_to(error, (structure.colour.size, error.size))


def _labels(what: str, arrays: Sequence[Array]) -> list[str]:
    return [
        f"{what} {i}{list(map(int, index)) or ''}" for i, a in enumerate(arrays) for index in np.ndindex(a.shape)
    ]


def _notes(point: Linearization) -> tuple[str, ...]:
    """Look for habits of a function that its caller might not know of."""
    notes: list[str] = []
    if point.callee.scalars:
        return ()
    handed = [np.array(x) for x in point.inputs]
    first = point.callee.raw(handed if not point.callee.tensors else [torch.from_numpy(x) for x in handed])
    for i, (now, before) in enumerate(zip(handed, point.inputs, strict=True)):
        if not np.array_equal(now, before, equal_nan=True):
            notes.append(f"the function changes its input {i} in place: harmless here, it gets a copy")
    parts = [p for p in (first if isinstance(first, tuple) else (first,)) if isinstance(p, np.ndarray)]
    for i, x in enumerate(handed):
        if any(np.may_share_memory(p, x) for p in parts):
            notes.append(f"the function returns a view of its input {i}: harmless here, the output is copied")
    again = point.callee.one(point.inputs)
    if any(a.tobytes() != b.tobytes() for a, b in zip(again, point.outputs, strict=True)):
        notes.append("the function is not deterministic: called twice it gave two results")
    return tuple(notes)
