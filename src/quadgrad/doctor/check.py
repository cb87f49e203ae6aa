"""The doctor's door: run a function, examine it, report."""

from __future__ import annotations

import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import flatten_tree
from quadgrad.doctor import values
from quadgrad.doctor.crossings import find_jumps
from quadgrad.doctor.elsewhere import find_elsewhere
from quadgrad.doctor.examine import ALONE, KINK, Examination
from quadgrad.doctor.judge import judge, make_row
from quadgrad.doctor.places import Place
from quadgrad.doctor.program import BackwardFailed, Program, Run
from quadgrad.doctor.remedies import RAISED
from quadgrad.doctor.report import Report
from quadgrad.doctor.rows import Verdict
from quadgrad.doctor.trace import Met, Order, Trace
from quadgrad.doctor.untold import find_untold
from quadgrad.doctor.wide import NARROW

__all__ = ["JITTER", "check"]

JITTER = 1e-4
"""How far beside a kink a program is examined again, in sizes of what is varied."""

_ROUNDS = 4

_SINGLE = 1e-2
"""How much of the derivative a gradient in single precision may be off."""


def check(
    fn: Callable[..., Any],
    *inputs: Any,
    modules: Sequence[torch.nn.Module] = (),
    directions: int = 4,
    seed: int = 0,
) -> Report:
    """Find where a gradient is severed or wrong: which line, how much of the derivative, and what to write instead.

    The function is run some twenty times with inputs moved a little. Every operation of which an input requires
    grad and no output does is noted with its line. With those results *frozen* the derivative is the one that
    autograd should see; with one line's result *shifted* it is what that line takes away. The ledger closes: the
    true directional derivative is autograd's, plus the lines', plus what backward passes of custom functions are
    off.

    Parameters
    ----------
    fn : callable
        Called as ``fn(*inputs)``; returns tensors in any nest, of any shape, or goes ``backward()`` itself.
    *inputs
        Whatever ``fn`` takes. Tensors that require grad are varied, and so are leaves that require grad which the
        function meets and was not given.
    modules : sequence of torch.nn.Module, optional
        Modules whose parameters are varied whether the function meets them or not. Buffers, optimisers and
        generators of random numbers are found, and put back after each run.
    directions : int
        In so many random directions the true derivative is compared with autograd's.
    seed : int
        Of directions and cotangents.

    Returns
    -------
    Report
        ``report.ok``, or ``assert report``; print it, or ``report.save("report.html")``.

    Raises
    ------
    TypeError, ValueError
        If ``fn`` is no function, or nothing requires grad.
    Exception
        Whatever ``fn`` raises, unless it is what torch says of a gradient: then the verdict is RAISES.

    Notes
    -----
    Programs in single precision are run in double precision where they can be. An integral of this library
    keeps the cells that its first run found. Where the program has a kink at the very point, it is examined beside
    it. Comparisons, roundings and choices that reach the output are followed along the first direction to where
    they next change; if the output jumps there, the verdict is STEP.

    Central differences at three steps are extrapolated after Richardson; how they agree is the error bar. The
    verdict is OK only if every gap is within three times its bar, and the bar at most 1e-6 of the derivative.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> def loss(x):
    ...     weights = torch.softmax(x, 0).detach()
    ...     return (weights * x**2).sum()
    >>> report = qg.doctor.check(loss, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True))
    >>> report.ok, report.rows[0].verdict.value, report.rows[0].operation
    (False, 'SEVERED', 'detach')
    """
    if not callable(fn):
        raise TypeError(f"check: the first argument is the function; this is a {type(fn).__name__}")
    if directions < 1:
        raise ValueError(f"check: directions={directions} must be at least 1")
    began = time.perf_counter()
    progress = _Progress()
    program = Program(fn, inputs, modules, seed, progress.told)
    try:
        report = _Examiner(program, directions, progress).report()
    finally:
        program.state.close()
        progress.close()
    return replace(report, runs=program.runs, seconds=time.perf_counter() - began, one_run=progress.one_run)


class _Progress:
    """A line on a terminal, for examinations that take long."""

    def __init__(self) -> None:
        self.runs, self.shown, self.began, self.one_run = 0, False, time.perf_counter(), 0.0

    def told(self) -> None:
        """Take note that a run begins."""
        elapsed = time.perf_counter() - self.began
        if self.runs == 1:
            self.one_run = elapsed
        self.runs += 1
        if elapsed > 2.0 and sys.stderr.isatty():
            self.shown = True
            sys.stderr.write(
                f"\rquadgrad doctor: run {self.runs}, {elapsed:.0f} s; a run takes {self.one_run:.1f} s "
            )
            sys.stderr.flush()

    def close(self) -> None:
        """Take the line away."""
        if self.runs == 1:
            self.one_run = time.perf_counter() - self.began
        if self.shown:
            sys.stderr.write("\r" + " " * 70 + "\r")


class _Examiner:
    """One examination, from the first run to the report."""

    def __init__(self, program: Program, count: int, progress: _Progress) -> None:
        self.program, self.count, self.progress = program, count, progress
        self.notes: list[str] = []
        self.single: Run | None = None
        self.steady = self.settled = False

    def report(self) -> Report:
        """Return what is found."""
        try:
            first = self._first_run()
            if isinstance(first, Report):
                return first
            if first.narrow or any(t.dtype in NARROW for t in self.program.sources):
                first = self._in_double_precision(first)
            report = self._examine(first)
            if report.verdict in (Verdict.UNLOCATED, Verdict.INCONCLUSIVE) and self.steady and not self.settled:
                report = self._beside(report)
        except BackwardFailed as failed:
            report = _raised(failed.error, failed.trace, True)
        return replace(report, notes=[*self._notes(), *report.notes])

    # ------------------------------------------------------------------------------------- the first runs

    def _first_run(self) -> Run | Report:
        """Run until no new leaf is met; return the last run, with its gradient, or why that is the end."""
        program, met = self.program, dict[int, Met]()
        for _ in range(_ROUNDS):
            try:
                run = program.run(Order(gradient=True))
            except BackwardFailed:
                raise
            except Exception as error:
                return _raised(error, program.last, False)
            new = {k: t for k, t in run.trace.leaves.items() if not any(t.tensor is s for s in program.sources)}
            outer = {k: t for k, t in run.trace.outer.items() if not any(t.tensor is s for s in program.sources)}
            if not new and not outer:
                break
            met |= new | outer
            for each in new.values():
                program.state.add_source(each)
            if any(program.depends(each.tensor) or each.tensor.dtype in NARROW for each in outer.values()):
                return Report(Verdict.INCONCLUSIVE, cause=_OUTER)
            for each in outer.values():
                program.state.add_source(each)
        else:
            return Report(
                Verdict.INCONCLUSIVE, cause="Every run meets new leaves that require grad: are they kept?"
            )
        if met:
            shapes = ", ".join(str(tuple(each.tensor.shape)) for each in list(met.values())[:6])
            self.notes.append(f"varied as well, though not among the inputs: {len(met)} tensors of shapes {shapes}")
        if not program.sources:
            raise ValueError(_nothing(program.inputs))
        return run

    def _in_double_precision(self, single: Run) -> Run:
        """Return a run in double precision, or the one in single precision where the program cannot be run so."""
        program = self.program
        program.widen()
        try:
            double = program.run(Order(gradient=True))
        except Exception:
            double = None
        size = max(single.size, abs(single.value))
        far = double is None or not math.isfinite(double.value) or (
            not single.trace.random and abs(double.value - single.value) > 0.02 * size
        )  # fmt: skip
        if double is None or far:
            program.narrow()
            self.notes.append("run in single precision, with its error bars: in double it does not run, or differs")
            return program.run(Order(gradient=True))
        self.notes.append("run in double precision")
        if not single.trace.random:
            self.single = single
        return double

    # ------------------------------------------------------------------------------------- at one point

    def _examine(self, first: Run) -> Report:
        """Return the report on the point at which the sources stand."""
        program, second = self.program, None
        if not self.steady:
            second = program.run(Order(base=first.trace, margins=True, record=True))
            if cause := disagreement(first, second):
                return Report(Verdict.INCONCLUSIVE, cause=cause)
        if first.trace.problems:
            return self._refused(first.trace)
        if not math.isfinite(first.value):
            return Report(Verdict.INCONCLUSIVE, cause=f"The output itself is {first.value}.")
        if any(g is not None and not bool(g.isfinite().all()) for g in first.gradient or ()):
            return self._not_finite()
        x = Examination(program, first, first.trace, self.count, stop_at_kink=not self.steady)
        self.steady, x.at_point = True, second
        x.compare_single(self.single)
        x.measure_truth()
        if x.border:
            self.settled = x.border == ALONE  # beside the point there is nothing to see of it
            return Report(Verdict.UNLOCATED, cause=x.border)
        x.measure_losses()
        jumps = find_jumps(x)
        report = judge(x, jumps)
        if report.verdict in (Verdict.OK, Verdict.ZERO):
            if untold := find_untold(x):
                report, self.settled = judge(x, [untold]), True
            else:
                report = replace(report, notes=[*report.notes, *find_elsewhere(x)])
        off = x.off_in_single()
        if report.ok and off > _SINGLE:
            cause = (
                f"In double precision all is well; in single precision, as the program is written, the gradient is "
                f"{off:.1%} off: differences of large numbers, or steps too small for its digits."
            )
            self.settled = True  # in double: there is nothing more to see beside the point
            report = replace(report, verdict=Verdict.UNLOCATED, cause=cause)
        return report

    def _beside(self, report: Report) -> Report:
        """Examine the program a little beside the point, where a kink or a border at the point is no more."""
        program, bases = self.program, self.program.state.bases
        steps = program.direction(99)
        program.state.bases = [base + JITTER * step for base, step in zip(bases, steps, strict=True)]
        single, self.single = self.single, None
        try:
            base = program.run(Order(gradient=True))
            if (
                report.verdict == Verdict.UNLOCATED
                and report.cause != KINK
                and Examination(program, base, base.trace, 1).is_off_at_once()
            ):
                return report
            again = self._examine(base)
        finally:
            program.state.bases, self.single = bases, single
        if again.verdict in (Verdict.UNLOCATED, Verdict.INCONCLUSIVE, Verdict.ZERO) and report.cause != KINK:
            return report
        note = "at the very point there is a kink, or a border; examined beside it, 1e-4 of the inputs' size away"
        return replace(again, notes=[note, *again.notes])

    def _refused(self, trace: Trace) -> Report:
        problem = trace.problems[0]
        row = make_row(problem.place, problem.op, Verdict.RAISES, next(iter(RAISED.values()))[1])
        return Report(Verdict.RAISES, [row], cause=problem.text)

    def _not_finite(self) -> Report:
        """Name the operation whose backward pass makes infinity or NaN of finite numbers."""
        run = self.program.run(Order(gradient=True, anomaly=True))
        if run.trace.first_nan is None:
            return Report(Verdict.NAN, cause="The operation whose backward pass it is could not be located.")
        place, name = run.trace.first_nan
        remedy = (
            f"the derivative of {name} is infinite or NaN at what it is given: keep away from there before it, "
            "torch.where(bad, 1.0, x) and then the function; a mask after it comes too late, since 0 * inf is NaN"
        )
        return Report(Verdict.NAN, [make_row(place, name, Verdict.NAN, remedy)])

    def _notes(self) -> list[str]:
        notes = list(self.notes)
        if self.program.excluded:
            notes.append(
                f"not examined: outputs that are numbers beside those that carry a gradient "
                f"({', '.join(self.program.excluded)})"
            )
        return notes


_OUTER = (
    "The function uses a tensor that was computed from what is varied before it was called, and that no run "
    "computes anew: compute it inside the function."
)


def _nothing(inputs: Sequence[Any]) -> str:
    tensors = [t for t in flatten_tree(list(inputs))[0] if isinstance(t, Tensor)]
    if not tensors:
        return "check: nothing that the function uses requires grad; pass its tensors, or modules=[...]"
    return "check: no input requires grad, and the function meets no parameter that does: pass x.requires_grad_()"


def disagreement(first: Run, second: Run) -> str:
    """Say why two runs with the same inputs differ, or nothing."""
    a, b = first.trace, second.trace
    if b.parted or len(a.events) != len(b.events) or len(a.decisions) != len(b.decisions):
        where = f" at {b.parted}" if b.parted else ""
        return (
            f"The second run did something else than the first{where}, with the same inputs: a cache (lru_cache, a "
            "value kept between calls), an iterator that went on, or a counter."
        )
    if first.value != second.value and not (first.value != first.value and second.value != second.value):
        close = abs(first.value - second.value) <= 1e-10 * max(first.size, 1e-300)
        if close:
            return (
                "Two runs with the same inputs differ in the last digits: sums in an order that changes (threads), "
                "or something that changes as little from run to run, like the time."
            )
        return (
            "Two runs with the same inputs differ: random numbers from a source that could not be put back (pass "
            "its generator as an input), the time, an iterator, or state kept between calls."
        )
    for one, other in zip(a.events, b.events, strict=True):
        if not values.same(one.out, other.out) and not one.linked:
            return f"What {one.op} gives at {one.place} differs between two runs with the same inputs."
    return ""


def _raised(error: Exception, trace: Trace | None, backward: bool) -> Report:
    """Return a report on what torch says of a gradient; raise what is none of that."""
    text = str(error)
    said = next((said for pattern, said in RAISED.items() if re.search(pattern, text)), None)
    if said is None and not backward:
        raise error
    operation, remedy = said or ("backward", "the backward pass itself raises: see the message")
    place = _place_of(error, trace if backward else None)
    return Report(
        Verdict.RAISES,
        [make_row(place, operation, Verdict.RAISES, remedy)],
        cause=f"{type(error).__name__}: {text}",
    )


def _place_of(error: Exception, trace: Trace | None) -> Place:
    """Return the user's line at which an exception was raised."""
    skip = ("/torch/", "/quadgrad/", "/numpy/", "/scipy/", "/contextlib.py")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in skip):
            columns = (frame.colno or 0, frame.end_colno or 0) if frame.lineno == frame.end_lineno else (0, 0)
            return Place(frame.filename, frame.lineno or 0, columns, "", "user")
    if trace is not None and trace.calls:
        return trace.calls[-1].place
    return Place("?", 0, (0, 0), "", "user")
