"""Ways of calling: each integrates a sample and yields what was claimed about it.

The choices within a way (rule, tolerance, chunks) are drawn for a call as a whole, never for one of its integrals:
a part of the sample is called as the whole was.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.fuzz.claims import Claims, value_claims
from benchmarks.fuzz.sample import Sample, join
from quadgrad._core.search.kernel import opening

__all__ = ["WAYS", "Call", "DisagreementError", "call", "lanes", "suits"]

RULES = ("gk15", "gk21", "gk31", "gk41", "gk51", "gk61", "cc15", "cc33", "cc63")
DRIFT, STEPS = 0.01, 6
"""How far a kept plan's parameters go in a step, of the way to those of another integral, and steps."""


class DisagreementError(AssertionError):
    """Two ways of calling that must give the same do not."""


class Call:
    """One sample, another with the same limits, and the choices of the call."""

    def __init__(self, sample: Sample, other: Sample | None, seed: float) -> None:
        self.sample, self.other = sample, other
        self.random = random.Random(seed)

    def tolerance(self, low: float = -12.0, high: float = -3.0) -> float:
        """Draw rtol, no finer than the family allows."""
        return max(self.sample.finest, 10 ** self.random.uniform(low, high))

    def rule(self) -> str:
        """Draw a rule, the default half the time."""
        return "gk21" if self.random.random() < 0.5 else self.random.choice(RULES)


Way = Callable[[Call], Iterator[Claims]]


def call(sample: Sample, *, needs: bool = False, verb: Any = qg.quad, **options: Any) -> qg.Result:
    """Integrate; ``needs``: with what is claimed to be differentiable requiring grad."""
    args, a, b = sample.args, sample.a, sample.b
    if needs:
        args, a, b = leaves(sample)
    if options.get("log"):
        sample = sample.logarithm()
    fixed = {} if isinstance(verb, qg.Integrator) else {"on_failure": "ignore"}
    with torch.set_grad_enabled(needs):
        return verb(sample.f, a, b, args, **{"points": sample.marks(args)} | fixed | options)


def leaves(sample: Sample) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Return parameters and limits, those that are differentiated as leaves."""
    args = tuple(
        arg.clone().requires_grad_() if i in sample.variables else arg for i, arg in enumerate(sample.args)
    )
    a, b = (t.clone().requires_grad_() if sample.ends else t for t in (sample.a, sample.b))
    return args, a, b


def with_rules(this: Call) -> Iterator[Claims]:
    """Any rule and tolerance."""
    rtol = this.tolerance()
    yield value_claims(this.sample, call(this.sample, rtol=rtol, rule=this.rule()), rtol)


def by_default(this: Call) -> Iterator[Claims]:
    """No option at all."""
    rtol = torch.finfo(torch.float64).eps ** 0.5
    if this.sample.finest > rtol:
        return
    yield value_claims(this.sample, call(this.sample), rtol)


def to_1e_10(this: Call) -> Iterator[Claims]:
    """The default rule to 1e-8 and to 1e-10, in one of three with an absolute tolerance of that much too."""
    exact = this.sample.exact()
    for rtol in (max(tolerance, this.sample.finest) for tolerance in (1e-8, 1e-10)):
        atol = this.random.choice((0.0, 0.0, rtol))
        yield value_claims(this.sample, call(this.sample, rtol=rtol, atol=atol), rtol, atol, exact=exact)


def in_chunks(this: Call) -> Iterator[Claims]:
    """With chunk_size."""
    rtol = this.tolerance()
    yield value_claims(
        this.sample, call(this.sample, rtol=rtol, chunk_size=this.random.choice((37, 500, 4000))), rtol
    )


def reversed_limits(this: Call) -> Iterator[Claims]:
    """From b to a."""
    sample, rtol = this.sample.reversed(), this.tolerance()
    yield value_claims(sample, call(sample, rtol=rtol, rule=this.rule()), rtol)


def in_single(this: Call) -> Iterator[Claims]:
    """float32."""
    sample, rtol = this.sample.to(torch.float32), this.tolerance(-5.5, -2)
    yield value_claims(sample, call(sample, rtol=rtol, rule=this.rule()), rtol)


def as_events(this: Call) -> Iterator[Claims]:
    """Two integrals as events of one."""
    sample, rtol = join(this.sample, this.other, as_complex=False), this.tolerance()  # type: ignore
    yield value_claims(sample, call(sample, rtol=rtol, rule=this.rule()), rtol)


def as_complex(this: Call) -> Iterator[Claims]:
    """Two integrals as real and imaginary part."""
    sample, rtol = join(this.sample, this.other, as_complex=True), this.tolerance()  # type: ignore
    yield value_claims(sample, call(sample, rtol=rtol, rule=this.rule()), rtol)


def warm(this: Call) -> Iterator[Claims]:
    """From the plan of other parameters, near or far, without and with a gradient."""
    rtol, rule = this.tolerance(), this.rule()
    share = this.random.choice((0.003, 0.1, 1.0))
    plan = call(this.sample.towards(this.other, share), rtol=rtol, rule=rule).plan  # type: ignore
    exact = this.sample.exact()
    for needs in (False, True):
        result = call(this.sample, needs=needs, rtol=rtol, rule=rule, plan=plan)
        yield value_claims(this.sample, result, rtol, exact=exact, what="value, replayed" if needs else "value")


def kept(this: Call) -> Iterator[Claims]:
    """A kept plan with parameters that drift."""
    yield from drifting(this, STEPS, compare=False)


def kept_long(this: Call) -> Iterator[Claims]:
    """The same of three integrals for 50 calls, beside fresh ones."""
    yield from drifting(this, 50, compare=True)


def drifting(this: Call, steps: int, compare: bool) -> Iterator[Claims]:
    """Integrate again and again with one plan; with fresh ones beside it, tell how many evaluations it took."""
    rtol, rule = this.tolerance(-10), this.rule()
    verb = qg.Integrator(qg.quad, rtol=rtol, rule=rule, on_failure="ignore")
    needs = this.random.random() < 0.5
    fresh: list[int] = []
    for step in range(steps):
        sample = this.sample.towards(this.other, DRIFT * step * STEPS / steps)  # type: ignore
        result = call(sample, needs=needs, verb=verb)
        share = None
        if compare:
            once = call(sample, rtol=rtol, rule=rule)
            fresh.append(int(once.nfev.sum()))
            if step == steps - 1 and sum(fresh) >= 20 * result.plan.tau.shape[0] * sample.count * steps:
                share = verb.nfev / sum(fresh)
        yield replace(value_claims(sample, result, rtol, what=f"value, step {step}"), share=share)


def kept_shuffled(this: Call) -> Iterator[Claims]:
    """A kept plan for minibatches, halves of all integrals drawn afresh, one of which is NaN throughout."""
    rtol, sample = this.tolerance(-10), this.sample
    verb = qg.Integrator(qg.quad, rtol=rtol, on_failure="ignore")
    numbers = torch.Generator().manual_seed(this.random.randrange(2**31))
    for step in range(STEPS):
        chosen = torch.randperm(sample.count, generator=numbers)[: -(-sample.count // 2)]
        batch = sample.part(chosen)
        if step == STEPS // 2:
            with torch.no_grad():
                verb(lambda x, *args: x * torch.nan, batch.a, batch.b, batch.args, points=batch.marks())
        yield replace(value_claims(batch, call(batch, verb=verb), rtol, what=f"value, step {step}"), chosen=chosen)


def logarithms(this: Call) -> Iterator[Claims]:
    """log=True."""
    rtol = this.tolerance(-10)
    yield value_claims(this.sample, call(this.sample, rtol=rtol, rule=this.rule(), log=True), rtol, log=True)


def with_idle_points(this: Call) -> Iterator[Claims]:
    """Breakpoints where nothing happens."""
    sample, rtol = this.sample, this.tolerance()
    low, high = sample.a.clamp_min(-1e3), sample.b.clamp_max(1e3)
    shares = [this.random.uniform(0.05, 0.95) for _ in range(this.random.randint(1, 3))]
    idle = torch.stack([low + share * (high - low) for share in shares], dim=-1)
    marks = sample.marks()
    points = idle if marks is None else torch.cat([marks, idle], dim=-1)
    yield value_claims(sample, call(sample, rtol=rtol, rule=this.rule(), points=points), rtol)


def with_jumps(this: Call) -> Iterator[Claims]:
    """The jump found from ``jumps``; then its derivatives, too."""
    rtol = this.tolerance(-10)
    yield from differentiated(this.sample, rtol, jumps=this.sample.jumps)


def with_gradient_error(this: Call) -> Iterator[Claims]:
    """Values, and derivatives with the errors that gradient_error gives."""
    yield from differentiated(this.sample, this.tolerance(-10), rule=this.rule())


def gradient_in_single(this: Call) -> Iterator[Claims]:
    """The same in float32."""
    yield from differentiated(this.sample.to(torch.float32), this.tolerance(-5, -2))


def gradient_of_logarithms(this: Call) -> Iterator[Claims]:
    """The same of logarithms."""
    yield from differentiated(this.sample, this.tolerance(-10), log=True)


def gradient_of_complex(this: Call) -> Iterator[Claims]:
    """The same of complex values: of the sum of their real parts."""
    yield from differentiated(join(this.sample, this.other, as_complex=True), this.tolerance(-10))  # type: ignore


def gradient_of_events(this: Call) -> Iterator[Claims]:
    """The same of the sum over events."""
    yield from differentiated(join(this.sample, this.other, as_complex=False), this.tolerance(-10))  # type: ignore


def gradient_reversed(this: Call) -> Iterator[Claims]:
    """The same from b to a."""
    yield from differentiated(this.sample.reversed(), this.tolerance(-10))


def differentiated(sample: Sample, rtol: float, **options: Any) -> Iterator[Claims]:
    """Yield the claims about values and, by gradient_error, about derivatives."""
    log, args = bool(options.get("log")), leaves(sample)
    integrand = sample.logarithm() if log else sample
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        parameters, a, b = args
        points = sample.marks(parameters)
        result = qg.quad(integrand.f, a, b, parameters, points=points, rtol=rtol, on_failure="ignore", **options)
        yield value_claims(sample, result, rtol, log=log)
        places = [i for i, end in enumerate((a, b)) if sample.ends and bool(end.isfinite().any())]
        places += [2 + i for i in sample.variables]
        wrt = [(a, b, *parameters)[place] for place in places]
        if not wrt or not result.value.requires_grad:
            return
        value = result.value
        used = torch.autograd.grad(value, wrt, torch.ones_like(value), retain_graph=True, allow_unused=True)
        places, wrt, slopes = zip(
            *(p for p in zip(places, wrt, used, strict=True) if p[2] is not None), strict=True
        )
        errors = qg.gradient_error(result, wrt)
    warned = bool(heard)
    for place, slope, error in zip(places, slopes, errors, strict=True):
        exact = total_slope(sample, place, log)
        yield Claims(
            f"d/d {name(place)}", slope.double(), exact, error.double(), rtol * exact.abs(),
            result.converged & error.isfinite(), place=place, warned=warned, log=log,
            rtol=rtol, eps=torch.finfo(slope.dtype).eps, slack=rtol, ended=result.converged,
        )  # fmt: skip


def total_slope(sample: Sample, place: int, log: bool = False) -> Tensor:
    """Return the exact derivative of the sum of the (real parts of the) events."""
    exact = sample.slope(place, log)
    exact = exact.real if exact.is_complex() else exact
    exact = exact.sum(-1) if exact.ndim > 1 else exact
    # Infinite limits have none.
    end = (sample.a, sample.b)[place] if place < 2 else None
    return exact if end is None else torch.where(end.isfinite(), exact, 0.0)


def name(place: int) -> str:
    return ("a", "b")[place] if place < 2 else f"args[{place - 2}]"


def resolved(this: Call) -> Iterator[Claims]:
    """Resolve, with a tolerance of its own."""
    rtol, own = this.tolerance(-9), this.tolerance(-9)
    sample = this.sample
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        parameters, a, b = leaves(sample)
        result = qg.quad(
            sample.f, a.detach(), b.detach(), parameters, points=_still(sample.marks(parameters)), rtol=rtol,
            gradient=qg.Resolve(rtol=own), on_failure="ignore",
        )  # fmt: skip
        yield value_claims(sample, result, rtol)
        derivative = result.derivative
        # Breakpoints held still: what moves with them is not a derivative of f at x.
        still = [i for i in sample.variables if sample.points is None or not moves(sample, i)]
        if derivative is None or not result.value.requires_grad or not still:
            return
        wrt = [parameters[i] for i in still]
        value = result.value
        slopes = torch.autograd.grad(value, wrt, torch.ones_like(value), allow_unused=True)
    for i, slope in zip(still, slopes, strict=True):
        column = f"args[{i}]"
        if slope is None or column not in derivative.names:
            continue
        exact = total_slope(sample, 2 + i)
        yield Claims(
            f"d/d {column}, resolved", slope, exact, derivative.error[..., derivative.names.index(column)],
            own * exact.abs(), derivative.converged & result.converged, derivative.nfev, 2 + i, warned=bool(heard),
            rtol=min(rtol, own),
        )  # fmt: skip


def moves(sample: Sample, i: int) -> bool:
    """Whether a parameter is a breakpoint too."""
    args = [arg.clone().requires_grad_(j == i) for j, arg in enumerate(sample.args)]
    marks = sample.marks(args)
    return marks is not None and marks.requires_grad


def _still(points: Tensor | None) -> Tensor | None:
    return None if points is None else points.detach()


def without_kernel(this: Call) -> Iterator[Claims]:
    """Tensor operations in place of the kernel: the same statuses and values, and counts but for rounding."""
    rtol, rule = this.tolerance(-9), this.rule()
    compiled = call(this.sample, rtol=rtol, rule=rule)
    with patch.object(opening, "load", lambda: None):
        plain = call(this.sample, rtol=rtol, rule=rule)
    yield value_claims(this.sample, plain, rtol)
    _same(this.sample, compiled, plain, "kernel and tensors", rtol, counts=False)


def alone(this: Call) -> Iterator[Claims]:
    """Integrals called one by one are those of the batch."""
    rtol, rule = this.tolerance(), this.rule()
    few = this.sample
    batch = call(few, rtol=rtol, rule=rule)
    yield value_claims(few, batch, rtol)
    for i in range(few.count):
        one = few.part(i)
        _same(one, call(one, rtol=rtol, rule=rule), _take(batch, i), f"batch and single, {i}", rtol)


def not_vectorized(this: Call) -> Iterator[Claims]:
    """One number at a time."""
    few, rtol = this.sample, this.tolerance(-8)
    f = few.f
    one = lambda x, *args: f(
        torch.tensor(x, dtype=torch.float64), *(torch.tensor(p, dtype=torch.float64) for p in args)
    )
    result = qg.quad(
        lambda x, *args: one(x, *args).item(), few.a, few.b, few.args, points=few.marks(), rtol=rtol,
        vectorized=False, on_failure="ignore", max_nfev=3000,
    )  # fmt: skip
    yield value_claims(few, result, rtol, budget=3000)


def under_vmap(this: Call) -> Iterator[Claims]:
    """torch.func.vmap over all integrals."""
    sample, rtol = this.sample, this.tolerance(-9)

    def one(a: Tensor, b: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
        points = None if sample.points is None else sample.points(*args)
        r = qg.quad(sample.f, a, b, args, points=points, rtol=rtol, on_failure="ignore")
        return r.value, r.error, r.status, r.nfev

    result = qg.Result(*torch.func.vmap(one)(sample.a, sample.b, *sample.args), plan=None)
    yield value_claims(sample, result, rtol)


def lanes(this: Call) -> Iterator[Claims]:
    """What :func:`under_vmap` asks for without it: f can be listened to there, and its nodes are the same."""
    rtol = this.tolerance(-9)
    yield value_claims(this.sample, call(this.sample, rtol=rtol), rtol)


def small_budget(this: Call) -> Iterator[Claims]:
    """A small max_nfev."""
    rtol, budget, marks = this.tolerance(-9), this.random.choice((100, 400, 1500)), this.sample.marks()
    # A first round has to be within it, or the call is refused.
    budget = max(budget, 31 * (1 if marks is None else marks.shape[-1] + 1))
    yield value_claims(this.sample, call(this.sample, rtol=rtol, max_nfev=budget), rtol, budget=budget)


def _take(result: qg.Result, i: int) -> qg.Result:
    return qg.Result(result.value[i], result.error[i], result.status[i], result.nfev[i], None)


def _same(sample: Sample, one: qg.Result, other: qg.Result, what: str, rtol: float, counts: bool = True) -> None:
    """Refuse two results that differ by more than their errors and rounding, or in status or count."""
    errors = one.error + other.error if not counts else 0.1 * other.error
    events = lambda t: t.reshape(*other.error.shape, -1)
    far = events((one.value - other.value).abs()) > (errors + 1e-300)[..., None] + 1e-14 * events(other.value.abs())
    apart = (one.status != other.status) | (far.any(-1) & other.error.isfinite())
    if counts:
        apart = apart | (one.nfev != other.nfev)
    if bool(apart.any()):
        where = apart.reshape(-1).nonzero().flatten().tolist()
        i = where[0]
        shown = [
            f"{r.value.reshape(apart.numel(), -1)[i].tolist()}, status {r.status.reshape(-1)[i]}, "
            f"error {r.error.reshape(-1)[i]:.2e}, nfev {r.nfev.reshape(-1)[i]}" for r in (one, other)
        ]  # fmt: skip
        raise DisagreementError(
            f"{what}: {len(where)} of {apart.numel()}, rtol {rtol:.3g}, first {i}: {' against '.join(shown)}"
        )


WAYS: dict[str, Way] = {
    "rules": with_rules,
    "default": by_default,
    "1e-10": to_1e_10,
    "chunks": in_chunks,
    "reversed": reversed_limits,
    "float32": in_single,
    "events": as_events,
    "complex": as_complex,
    "warm": warm,
    "kept": kept,
    "kept, 50 calls": kept_long,
    "kept, shuffled": kept_shuffled,
    "log": logarithms,
    "idle points": with_idle_points,
    "jumps": with_jumps,
    "budget": small_budget,
    "gradient": with_gradient_error,
    "gradient, float32": gradient_in_single,
    "gradient, log": gradient_of_logarithms,
    "gradient, complex": gradient_of_complex,
    "gradient, events": gradient_of_events,
    "gradient, reversed": gradient_reversed,
    "Resolve": resolved,
    "tensors": without_kernel,
    "alone": alone,
    "not vectorized": not_vectorized,
    "vmap": under_vmap,
}

SMALL = {
    "kept": 0.3, "kept, 50 calls": 0.015, "kept, shuffled": 0.3, "warm": 0.5, "tensors": 0.3, "vmap": 0.3,
    "chunks": 0.3, "gradient": 0.5, "gradient, float32": 0.3, "gradient, log": 0.3, "gradient, complex": 0.3,
    "gradient, events": 0.3, "gradient, reversed": 0.3, "Resolve": 0.5, "alone": 0.06, "not vectorized": 0.015,
}  # fmt: skip
"""Share of a family's integrals that a dear way takes."""


def suits(way: str, sample: Sample, paired: bool, skip: tuple[str, ...]) -> bool:
    """Whether a way of calling makes sense for a family."""
    logs = way in ("log", "gradient, log")
    needs = {
        "events": paired, "complex": paired, "warm": paired, "kept": paired, "kept, 50 calls": paired,
        "jumps": sample.jumps is not None,
    }  # fmt: skip
    way_of = "kept" if way.startswith("kept") else way.removeprefix("gradient, ")
    if way in skip or way_of in skip or ("not log" in skip and not logs):
        return False
    if logs and sample.log_f is None:
        return False
    if way_of == "float32" and not sample.single:
        return False
    return needs.get(way_of, True)
