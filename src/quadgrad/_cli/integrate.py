"""What ``quadgrad integrate`` does: words become limits and parameters, the integral a table, JSON or a picture.

Called by the command line, which does the printing; knows nothing of it. All numbers are float64 on the CPU.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quadgrad._cli.expression import (
    Expression,
    ExpressionError,
    check_name,
    physical_value,
)
from quadgrad._cli.vocabulary import PHYSICAL, nearest
from quadgrad._core.errors import IntegrationWarning
from quadgrad._core.regions.nested import Nested
from quadgrad._core.result import Result
from quadgrad._core.status import Status
from quadgrad._core.verbs.cubature import cubature
from quadgrad._core.verbs.quad import quad
from quadgrad._plots import plot_boxes, plot_plan

__all__ = ["Answer", "Problem", "as_json", "as_table", "draw", "read", "solve"]

LIMITS = ("lower", "upper")


@dataclass(frozen=True)
class Problem:
    """An integral as it was typed, understood; ``sources`` is what can be differentiated, by name."""

    expression: Expression
    arguments: tuple[Tensor, ...]
    lower: Tensor
    upper: Tensor
    points: Tensor | None
    region: Nested | None
    sources: Mapping[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """An integral, the derivatives asked for, and what there is to say about them."""

    result: Result
    gradient: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def status(self) -> Status:
        """How it ended."""
        return Status(int(self.result.status))

    @property
    def converged(self) -> bool:
        """Whether the reported error meets the tolerance."""
        return self.status is Status.CONVERGED

    @property
    def message(self) -> str:
        """The status in a sentence."""
        return self.result.message.replace(" (integral 0)", "")


def read(
    text: str, over: Sequence[tuple[str, ...]], settings: Sequence[str] = (), grad: str = "", points: str = ""
) -> Problem:
    """Understand the words of a command.

    Parameters
    ----------
    text : str
        The integrand.
    over : sequence of tuples of str
        Each variable and its limits, the outermost first; limits may name the variables before.
    settings : sequence of str
        Parameters, each as ``name=value``.
    grad, points : str
        Names to differentiate by, and breakpoints, separated by commas.

    Raises
    ------
    ValueError
        If one of them makes no sense; the text says which and why.
    """
    if len(over) > 1:
        return _read_several(text, over, settings, grad, points)
    variable = _name(over[0][0], "--over")
    parameters = _parameters(settings, [variable])
    wanted = _wanted(grad, parameters, [variable])
    parameters = {name: value.requires_grad_(name in wanted) for name, value in parameters.items()}
    used = _expression(text, [variable, *parameters]).used
    formula = Expression(text, [variable, *(name for name in parameters if name in used)])
    # Copies, so that a limit can be told from the parameter that it is.
    limits = {
        side: _value(word, parameters, "--over").clone() for side, word in zip(LIMITS, over[0][1:], strict=True)
    }
    for side in wanted & limits.keys():
        if limits[side].isinf():
            raise ValueError(f"--grad: the {side} limit is infinite, there is no derivative by it")
        limits[side].requires_grad_()
    words = points.split(",") if points.strip() else []
    marks = [_value(word, parameters, "--points", finite=True) for word in words]
    marked = {name for word in words for name in Expression(word, parameters).used}
    notes = _told([formula, *(Expression(word, parameters) for word in (*over[0][1:], *words))])
    notes += tuple(
        f"the integrand jumps at a place that {name} moves: d/d{name} counts the jump only if --points names it"
        for name in parameters if name in wanted & formula.stepped - marked
    )  # fmt: skip
    sources = {**parameters, **limits}
    return Problem(
        formula,
        tuple(parameters[name] for name in formula.names[1:]),
        limits["lower"],
        limits["upper"],
        torch.stack(marks) if marks else None,
        None,
        {name: sources[name] for name in sources if name in wanted},
        notes,
    )


def _read_several(
    text: str, over: Sequence[tuple[str, ...]], settings: Sequence[str], grad: str, points: str
) -> Problem:
    """Understand an integral over several variables, the outermost first."""
    if points.strip():
        raise ValueError(
            "--points: breakpoints are for one variable. A place where the integrand jumps can be a limit: split "
            "the integral there"
        )
    if short := [words for words in over if len(words) < 3]:
        raise ValueError(f"--over: {' '.join(short[0])} should be a name and two limits, as in x 0 1")
    variables = [_name(words[0], "--over") for words in over]
    if twice := [name for name in variables if variables.count(name) > 1]:
        raise ValueError(f"--over: {twice[0]} is integrated over twice")
    parameters = _parameters(settings, variables)
    wanted = _wanted(grad, parameters, variables)
    if sides := sorted(wanted & set(LIMITS)):
        raise ValueError(
            f"--grad: there are {len(over)} {sides[0]} limits: make the one that is meant a parameter, and "
            "differentiate by that"
        )
    parameters = {name: value.requires_grad_(name in wanted) for name, value in parameters.items()}
    formula = _expression(text, [*variables, *parameters])
    limits = [[_limit(word, variables, k, parameters) for word in words[1:]] for k, words in enumerate(over)]
    known = [formula, *(end.expression for pair in limits for end in pair if isinstance(end, _Limit))]
    known += [Expression(word, [*variables, *parameters]) for words in over for word in words[1:]]
    notes = _told(known) + tuple(
        f"the integrand jumps at a place that {name} moves: d/d{name} counts the jump only if it is a limit"
        for name in parameters if name in wanted & formula.stepped
    )  # fmt: skip
    region = Nested([(lower, upper) for lower, upper in limits])
    zero = torch.zeros((), dtype=torch.float64)
    sources = {name: value for name, value in parameters.items() if name in wanted}
    return Problem(formula, tuple(parameters.values()), zero, zero, None, region, sources, notes)


@dataclass(frozen=True)
class _Limit:
    """A limit that names outer variables, as :class:`quadgrad.Nested` calls it."""

    expression: Expression

    def __call__(self, x: Tensor, *args: Tensor) -> Tensor:
        """Return the limit at outer coordinates ``(..., k)``."""
        return self.expression(*x.unbind(-1), *args)


def _limit(word: str, variables: Sequence[str], number: int, parameters: Mapping[str, Tensor]) -> Tensor | _Limit:
    """Return a limit of the variable of this number, which may name those before it."""
    outer = variables[:number]
    later = [
        name for name in variables[number:] if name in _expression(word, [*variables, *parameters], "--over").used
    ]
    if later:
        raise ExpressionError(
            f"--over: a limit of {variables[number]} cannot name {later[0]}, which is no outer variable: name the "
            "outermost first", word, 0
        )  # fmt: skip
    formula = _expression(word, [*outer, *parameters], "--over")
    return _Limit(formula) if formula.used & set(outer) else _value(word, parameters, "--over")


def _told(known: Sequence[Expression]) -> tuple[str, ...]:
    """Return what is said of the constants of nature in formulas."""
    return tuple(
        f"{name} is {PHYSICAL[name][1]}, {physical_value(name):.9g}; --param {name}=2 would make it a parameter"
        for name in sorted({name for one in known for name in one.physical})
    )


def _integrate(p: Problem, rule: str | None, **options: Any) -> Result:
    if p.region is None:
        rule = "gk21" if rule is None else rule
        return quad(p.expression, p.lower, p.upper, p.arguments, points=p.points, rule=rule, **options)
    integrand = lambda x, *args: p.expression(*x.unbind(-1), *args)
    return cubature(integrand, args=p.arguments, region=p.region, rule="auto" if rule is None else rule, **options)


def solve(problem: Problem, rule: str | None = None, **options: Any) -> Answer:
    """Integrate, and differentiate by what was asked for.

    ``options`` are those of :func:`quadgrad.quad`, of several variables those of :func:`quadgrad.cubature`.
    """
    p = problem
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = _integrate(p, rule, on_failure="ignore", **options)
        gradient = [torch.zeros_like(source) for source in p.sources.values()]
        if gradient and result.value.requires_grad:
            sources = tuple(p.sources.values())
            gradient = torch.autograd.grad(result.value, sources, allow_unused=True, materialize_grads=True)
    warned = [str(warning.message) for warning in caught if issubclass(warning.category, IntegrationWarning)]
    notes = [*p.notes, *(re.sub(r"\blimit ([ab])\b", _side, _in_formulas(text)) for text in warned)]
    if "where(" in p.expression.text and result.value.isfinite() and any(part.isnan() for part in gradient):
        notes.append(
            "a derivative is not a number: where(c, a, b) computes both a and b, and must find both differentiable"
        )
    return Answer(result, {name: part.item() for name, part in zip(p.sources, gradient, strict=True)}, tuple(notes))


def as_table(answer: Answer) -> str:
    """Return lines for people: names on the left, numbers to 15 digits on the right, what to do if it failed."""
    result = answer.result
    rows = [
        ("value", f"{result.value.item(): .15g}"),
        ("error", f"{result.error.item(): .2g}"),
        ("evaluations", f" {int(result.nfev)}"),
        ("status", f" {answer.status.name}"),
        *((f"d/d{name}", f"{number: .15g}") for name, number in answer.gradient.items()),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}} {number}" for name, number in rows]
    return "\n".join(lines if answer.converged else [*lines, answer.message])


def as_json(answer: Answer) -> str:
    """Return one line for machines; what JSON has no number for is the string ``inf``, ``-inf`` or ``nan``."""
    result = answer.result
    fields = {
        "value": _number(result.value.item()),
        "error": _number(result.error.item()),
        "evaluations": int(result.nfev),
        "status": answer.status.name,
        "message": answer.message,
        "gradient": {name: _number(number) for name, number in answer.gradient.items()},
    }
    return json.dumps(fields, allow_nan=False)


def draw(problem: Problem, answer: Answer, path: Path) -> None:
    """Write a picture of the integrand and its cells; the format is the ending of the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    p, text = problem, problem.expression.text
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    if p.region is None:
        plot_plan(answer.result.plan, p.expression, p.lower, p.upper, p.arguments, points=p.points, ax=ax)
    else:
        integrand = lambda x, *args: p.expression(*x.unbind(-1), *args)
        plot_boxes(answer.result.plan, integrand, args=p.arguments, region=p.region, ax=ax)
        ax.set_ylabel(p.expression.names[1], parse_math=False)
    ax.set_xlabel(p.expression.names[0], parse_math=False)
    figure.suptitle(text if len(text) <= 80 else text[:77] + "...", parse_math=False)
    figure.savefig(path)


def _in_formulas(text: str) -> str:
    """Say in functions of formulas what a warning says in torch's."""
    return text.replace("torch.clamp what goes into exp", "minimum(u, 700) for u in exp").replace("torch.", "")


def _side(match: re.Match[str]) -> str:
    """Say lower limit for quad's ``limit a``: here ``a`` may be a parameter."""
    return f"the {LIMITS['ab'.index(match[1])]} limit"


def _number(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _name(name: str, option: str) -> str:
    try:
        return check_name(name.strip())
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _parameters(settings: Sequence[str], variables: Sequence[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for setting in settings:
        name, equals, word = setting.partition("=")
        if not equals:
            raise ValueError(f"--param: {ascii(setting)} should be written name=value, as in a=2")
        name = _name(name, "--param")
        if name in variables or name in found or name in LIMITS:
            reason = "is integrated over" if name in variables else "has a value already"
            raise ValueError(f"--param: {name} " + ("means the limit" if name in LIMITS else reason))
        if "," in word and "=" in word:
            raise ValueError(f"--param: give one for each, --param {name}=... --param ...")
        found[name] = _value(word, {}, "--param", finite=True)
    return found


def _wanted(grad: str, parameters: Mapping[str, Tensor], variables: Sequence[str]) -> set[str]:
    words = {word.strip() for word in grad.split(",")} if grad.strip() else set[str]()
    known = [*parameters, *LIMITS]
    for word in sorted(words - set(known)):
        if word in variables:
            raise ValueError(f"--grad: {word} is integrated over, there is no derivative by it")
        raise ValueError(f"--grad: there is no parameter {ascii(word)[1:-1]}{nearest(word, known)}")
    return words


def _value(word: str, values: Mapping[str, Tensor], option: str, finite: bool = False) -> Tensor:
    """Return what a constant expression amounts to, differentiable in the parameters it names."""
    value = _expression(word, values, option)(*values.values())
    if value.isnan() or (finite and value.isinf()):
        reason = "this is not a number" if value.isnan() else "this must be finite"
        raise ExpressionError(f"{option}: {reason}", word, 0)
    return value


def _expression(text: str, names: Iterable[str], option: str = "") -> Expression:
    """Parse; an error says which option it was in, and how a name gets a value."""
    try:
        return Expression(text, names)
    except ExpressionError as error:
        reason = f"{option}: {error.reason}" if option else error.reason
        if match := re.fullmatch(r"unknown name (\w+)", error.reason):
            give = f"give it a value, as in --param {match[1]}=2"
            reason = f"{reason}: {'a parameter is a number' if option == '--param' else give}"
        raise ExpressionError(reason, error.text, error.position) from None
