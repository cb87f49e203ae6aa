"""A call of the engine: search in torch on a TensorFlow function, and the hand-over to a replay in TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.errors import SeveredGradientWarning, Site, speaker
from quadgrad._core.gradient import Differentiated, GradientMode, Primal
from quadgrad._core.gradient.written import Written, write_out
from quadgrad._core.problem import Problem
from quadgrad._core.result import Result as TorchResult
from quadgrad._core.verbs.inputs import prepare
from quadgrad._core.verbs.integrate import integrate
from quadgrad.tensorflow._call import Inputs, Leaves
from quadgrad.tensorflow._integrand import Function, View

__all__ = ["HandOver", "Options", "Searched", "in_its_words", "search", "speaking"]


@dataclass(frozen=True)
class Options:
    """Those of :func:`quadgrad.tensorflow.quad` that the engine understands as they are."""

    rtol: float | None
    atol: float
    rule: str
    max_nfev: int | None
    plan: Any
    limit_gradient: Any
    log: bool
    chunk_size: int | None
    on_failure: Any


@dataclass
class Searched:
    """What a replay needs beside the call: the plan written out, the zeros of ``jumps``, the scale of logarithms.

    ``direction`` ``(r, batch, *event)`` is f's sign at readings whose derivative is infinite: f itself may have an
    infinite derivative there and is not read again. ``place`` ``(batch, k)`` are the zeros, ``component`` and
    ``sound`` as in :class:`quadgrad._core.problem.Problem`; ``shift`` ``(batch, *event)`` is what is subtracted
    from the logarithm of f.
    """

    written: Written
    batch_shape: tuple[int, ...]
    direction: Tensor
    place: Tensor
    component: Tensor
    sound: Tensor
    shift: Tensor | None


class HandOver(GradientMode):
    """The gradient mode of a replay elsewhere: it is given what search has found, and returns the integrals."""

    def __init__(self, replay: Callable[[Searched], Tensor | None]) -> None:
        self.replay = replay

    def apply(self, primal: Primal) -> Differentiated:
        """Write the call out and hand it over; see :class:`quadgrad._core.gradient.GradientMode`."""
        problem = primal.problem
        written = write_out(primal.plan, problem.limits, primal.treatment)
        written, direction = _read_endless(problem, written)
        place = component = written.x.new_zeros((problem.batch, 0))
        sound = place > 0.0
        if problem.zeros is not None and problem.limits.points is not None:
            component, sound = problem.zeros
            place = problem.limits.points.detach()[:, : component.shape[1]]
        shift = None if primal.scaled is None else problem.integrand.arguments[-1].value
        value = self.replay(
            Searched(written, problem.batch_shape, direction, place, component.to(torch.int64), sound, shift)
        )
        return Differentiated(primal.value if value is None else value)


@torch.no_grad()
def _read_endless(problem: Problem, written: Written) -> tuple[Written, Tensor]:
    """Return f's sign where a derivative is infinite, and let it be read at some harmless place instead."""
    event, endless = problem.integrand.event or (), written.endless
    if not bool(endless.any()):
        shape, dtype = (*written.start.shape, *event), problem.integrand.output_dtype
        return written, written.start.new_zeros(shape, dtype=dtype)
    direction = torch.sgn(problem.integrand(written.start, slice(0, problem.batch)).nan_to_num())
    inner = problem.limits.detach().inner_points(problem.batch)
    return replace(written, start=torch.where(endless, inner, written.start)), direction


def search(
    function: Function, jumps: Function | None, inputs: Inputs, leaves: Leaves, captured: Sequence[Any], recorded:
    bool, always: bool, options: Options, mode: GradientMode,
) -> TorchResult:  # fmt: skip
    """Search integrals of a TensorFlow function; return the engine's result.

    Parameters
    ----------
    function, jumps : Function
    inputs : Inputs
        Eager.
    leaves : Leaves
        The same in torch.
    captured : sequence
        Tensors and variables that f closes over, where they are known.
    recorded : bool
        Whether derivatives may be asked for.
    always : bool
        Whether they count as asked for, whatever f depends on.
    options : Options
    mode : GradientMode
    """
    view = View(
        function, [*leaves.sources, *captured], [*leaves.tensors, *map(_no_leaf, captured)], recorded, always
    )
    with torch.enable_grad():
        problem = prepare(
            view, leaves.of(inputs.a), leaves.of(inputs.b), tuple(map(leaves.of, inputs.args)),
            leaves.of(inputs.points), True, options.rule,
            (options.rtol, options.atol), budget=options.max_nfev, chunk_size=options.chunk_size,
            limit_gradient=options.limit_gradient,
        )  # fmt: skip
        if not inputs.tensors():  # TensorFlow's default, whatever torch's is
            problem.integrand.call_dtype = problem.limits.x_dtype = torch.float32
        other = None if jumps is None else View(jumps, view.sources, view.leaves, recorded, always)
        return integrate(
            problem, (options.rtol, options.atol), mode, plan=options.plan, jumps=other, log=options.log,
            on_failure=options.on_failure,
        )  # fmt: skip


def _no_leaf(_: Any) -> Tensor:
    return torch.zeros(())


_WORDS = {
    " requires grad, but the integrand's output does not": " is watched by a tape, but f's output is not",
    " require grad, but the integrand's output does not": " are watched by a tape, but f's output is not",
    "leaves torch (.item(), float(), .detach(), NumPy)": "leaves TensorFlow (.numpy(), float(), NumPy), stops the "
    "gradient (tf.stop_gradient)",
    "what leaves torch": "what leaves TensorFlow",
    "quadgrad.bridge.wrap": "quadgrad.tensorflow.wrap",
    "pass it detached": "pass tf.stop_gradient of it",
    "a tensor that requires grad": "a tensor that the tape watches",
    "without detach() or float()": "without tf.stop_gradient or float()",
    "(detach it if that is not wanted)": "(tf.stop_gradient it if that is not wanted)",
    "or is too strong to be followed": "or is too strong to be followed. Where an argument moves with the limit "
    "pass both as one tensor or variable (two slices theta[0] are two tensors), or take limit_gradient='pathwise'",
    "or compute in float64": "or compute in float64 (a limit as tf.constant(0.0, tf.float64))",
    "torch.tensor(0.0, dtype=torch.float64)": "tf.constant(0.0, tf.float64)",
}
"""What the engine says in terms of torch, and how it is called here."""


def in_its_words(message: str) -> str:
    """Return a message of the engine as TensorFlow's users read it."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message


@contextmanager
def speaking(site: Site | None = None, symbolic: bool = False, still: Sequence[str] = ()) -> Generator[None]:
    """Put warnings in TensorFlow's words, naming the line ``site`` if it is given.

    Where the call is ``symbolic``, nobody can tell whether an argument is differentiated, or that this was lost.
    Limits that stand ``still`` are constants, of which it is unlikely: an infinite derivative by them is given, not
    told.
    """

    def speak(message: str, category: type[Warning]) -> tuple[str, Site | None] | None:
        if symbolic and category is SeveredGradientWarning:
            return None
        begin, _, rest = message.partition("the derivative with respect to ")
        if not begin and rest.partition(" is infinite")[0] in still:
            return None
        return in_its_words(message), site

    token = speaker.set(speak)
    try:
        yield
    finally:
        speaker.reset(token)
