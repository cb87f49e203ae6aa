"""Expectations over torch's distributions, differentiable by their parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from quadgrad._core._torch import carries_derivative
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.distributions.support import limits_of, support_moves
from quadgrad._core.distributions.transport import is_discrete, refuse_no_transport
from quadgrad._core.eager import left_eager
from quadgrad._core.errors import SeveredGradientWarning, UnmarkedJumpWarning, warn
from quadgrad._core.gradient import GradientMode, Reuse
from quadgrad._core.keywords import names_ours
from quadgrad._core.lanes import plain
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.ranks import Ranks
from quadgrad._core.rehearsal import current_rehearsal, decided
from quadgrad._core.result import Result
from quadgrad._core.status import Status
from quadgrad._core.tolerance import make_tolerance, real_dtype, returned_dtype
from quadgrad._core.verbs.expected.agreement import estimators_agree
from quadgrad._core.verbs.expected.line import integrate_line
from quadgrad._core.verbs.expected.options import Options
from quadgrad._core.verbs.expected.question import Question, ask
from quadgrad._core.verbs.expected.reach import Reach, look, warn_of_severed
from quadgrad._core.verbs.expected.samples import Estimator, sample_question
from quadgrad._core.verbs.expected.sums import can_be_summed, sum_nodes, sum_question
from quadgrad._core.verbs.inputs import check_options
from quadgrad._core.verbs.report import report

__all__ = ["expectation"]

Method = Literal["auto", "exact", "quad", "qmc", "iid", "antithetic", "gauss"]

_INSTEAD = "estimator='pathwise', or method='quad' in one dimension"

_NEITHER = (
    "method='quad' in one dimension, or detach the parameters: f's values do not depend on draws through torch, "
    "so that estimator='pathwise' gives nothing either"
)

_FLAT = (
    "estimator='pathwise': f's values do not depend on the draws through torch, so that the derivatives by the "
    "parameters of {} are lost. Use estimator='score'"
)

_RULE = (
    "method='gauss' differentiates its nodes, and f {}: what the parameters of {} change there is missing from the "
    "derivatives. Use method='auto' or method='qmc'"
)

_MISSED = (
    "estimator='pathwise' and estimator='score' disagree on the derivatives by the parameters of {}: f jumps, and "
    "how the parameters move draws across the jump is missing from the pathwise ones. Use estimator='score'"
)

_JUMPS = (
    "f jumps, and something that it depends on, other than the distribution, requires grad: if that moves the "
    "jump, its movement is missing from the gradient. Derivatives by the distribution's parameters are right. "
    "Where the jump does not move, pass what f depends on detached, or take this warning for noted"
)


@names_ours
@left_eager
def expectation(
    f: Callable[..., Any],
    distribution: torch.distributions.Distribution | Callable[..., torch.distributions.Distribution],
    args: Any = (),
    *,
    params: Any = (),
    weight: Callable[..., Any] | None = None,
    method: Method = "auto",
    estimator: Literal["auto", "pathwise", "score"] = "auto",
    n: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    replicates: int = 16,
    confidence: float = 0.99,
    seed: int | None = None,
    construction: Literal["cholesky", "pca"] = "cholesky",
    gradient: GradientMode = Reuse(),
    plan: Plan | None = None,
    chunk_size: int | None = None,
    group: Any = None,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Result:
    """Take the mean of f over a distribution, differentiable by its parameters, for each element of a batch.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` with x as ``distribution.sample((k,))`` gives it: of shape ``(k, *event)`` for one
        distribution. Of a batch, the expectations that are still worked on stand along one dimension, ``(k, m,
        *event)``, and arguments arrive broadcastable against ``(k, m)``; only sums over states keep the batch's
        shape. Returns one value for each draw, optionally followed by an event of its own.
    distribution : Distribution or callable
        Of ``torch.distributions``, or a function of ``params`` that returns one.
    args : tuple
        Further arguments of f; tensors broadcast with the distribution's batch. Mark one that carries a vector or
        matrix for each element with :func:`quadgrad.element`.
    params : tuple
        What ``distribution`` is called with, if it is a function.
    weight : callable, optional
        ``weight(x, *args)``, one number for each draw: the answer is then the quotient of the means of
        ``f * weight`` and of ``weight``, taken on the same points, and ``error`` that of the quotient. With a prior
        as the distribution and the likelihood as weight it is a posterior mean. Where
        the likelihood is much narrower than the prior, few draws count: take a distribution near the posterior, and
        prior times likelihood over its density as weight. A constant factor cancels: choose it so that the weight
        does not underflow.
    method : {"auto", "exact", "quad", "qmc", "iid", "antithetic", "gauss"}
        ``"exact"`` sums over the states of a discrete distribution, up to 2^16 of them, or over a window of 0, 1, 2
        ... that is doubled until two additions are below the tolerance. ``"quad"`` integrates f times the density,
        in one dimension. ``"qmc"`` puts scrambled Sobol points through inverse distribution functions; ``"iid"``
        does so with pseudo-random numbers, ``"antithetic"`` with pairs that mirror each other. ``"gauss"`` is a
        Gauss-Hermite rule for what is made of normal numbers. ``"auto"`` takes the first of exact and quad that can
        be had, and qmc where neither can, where n is given, or where quad would need more than 1,000 nodes.
    estimator : {"auto", "pathwise", "score"}
        How parameters are differentiated where draws are taken: through the draws, or through their probability.
        ``"auto"`` is pathwise if f's values depend on the draws through torch, and the draws on the parameters;
        the message says which it took. Sums over states and quad need neither: there the parameters sit in the
        density.
    n : int, optional
        The most draws for one expectation, or nodes of ``"gauss"``; what was drawn before to choose how, which the
        message tells of, comes on top (a plan remembers how). Without a tolerance it is a fixed sample: the status
        is ``SAMPLED``.
    rtol, atol : float, optional
        Converged means ``error <= max(atol, rtol * abs(value))``. ``rtol`` is 1e-3 unless n or a tolerance is
        given.
    replicates, confidence, seed
        Of the points, as for :func:`quadgrad.qmc`.
    construction : {"cholesky", "pca"}
        How independent numbers become a multivariate normal draw.
    gradient : GradientMode
        :class:`quadgrad.Reuse` or :class:`quadgrad.Resolve`.
    plan : Plan, optional
        Of an earlier result; it decides the method too.
    chunk_size : int, optional
        Values of f computed at a time.
    group : torch.distributed.ProcessGroup, optional
        Of ranks that make the same call and share the work where draws are taken.
    on_failure : {"warn", "raise", "ignore"}
        What to do when an expectation does not converge.

    Returns
    -------
    Result
        ``value`` of shape ``batch + f's event``; ``error``, ``status`` and ``nfev`` of shape ``batch``. ``plan`` is
        None where a sum was taken. The message says which method and estimator were used.

    Raises
    ------
    ValueError
        Shapes that do not broadcast, unusable options, a method that the distribution does not allow: no way from
        uniform numbers to it, no density, a pathwise estimator for discrete draws, a score where parameters move
        the support; more dimensions than the sequence has.
    TypeError
        What is no distribution, or cannot be built again from its parameters.
    IntegrandError
        f breaks the calling contract.
    IntegrationError
        An expectation did not converge and ``on_failure="raise"``.

    Warns
    -----
    IntegrationWarning
        An expectation did not converge.
    SeveredGradientWarning
        Something that f uses requires grad, but its values do not depend on it: no estimator gives its gradient.

    Notes
    -----
    The parameters of the distribution, found by its ``arg_constraints``, are arguments of what is integrated, so
    that derivatives of every order and all transforms work. Mixtures are summed over their components exactly.
    Where a support moves with parameters its ends are live limits.

    Errors of samples are those of :func:`quadgrad.qmc`. A decision, of which no derivative by the draws is there
    and that takes few values, also has an error where all draws agree: ``log(1 / (1 - confidence)) / n`` times its
    value, or times 1 where it was 0.

    With ``"quad"`` the density is integrated on the same points as f times the density. What its integral lacks of
    1 is made part of the error.

    Examples
    --------
    Expected improvement over the best value so far, far out in the tail, and its derivative:

    >>> import torch, quadgrad as qg
    >>> mean = torch.tensor(-6.0, dtype=torch.float64, requires_grad=True)
    >>> normal = torch.distributions.Normal(mean, torch.tensor(1.0, dtype=torch.float64))
    >>> value, error = qg.expectation(torch.relu, normal, rtol=1e-8)
    >>> value.backward()
    >>> Phi = torch.special.ndtr(mean.detach())
    >>> exact = torch.exp(-0.5 * mean.detach() ** 2) / (2 * torch.pi) ** 0.5 + mean.detach() * Phi
    >>> torch.allclose(value, exact, rtol=1e-7), torch.allclose(mean.grad, Phi, rtol=1e-7)
    (True, True)

    How often a hard decision is taken in four dimensions; its derivative comes through the probability of draws:

    >>> loc = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    >>> cloud = torch.distributions.MultivariateNormal(loc, torch.eye(4, dtype=torch.float64))
    >>> result = qg.expectation(lambda x: (x.sum(-1) > 1.0).double(), cloud, rtol=1e-2)
    >>> "score" in result.message
    True
    """
    check_options(on_failure, chunk_size, gradient)
    for name, given, known in (
        ("method", method, get_args(Method)),
        ("estimator", estimator, ("auto", "pathwise", "score")),
        ("construction", construction, ("cholesky", "pca")),
    ):
        if given not in known:
            raise ValueError(f"{name}={given!r} is not one of {', '.join(map(repr, known))}")
    make_tolerance(1.0 if rtol is None else rtol, atol or float(rtol == 0.0 and n is not None), 1e-16)
    outer = current_record()
    # Ranks come first: what has a record open is an integrand, inside of which nothing can be shared.
    with Ranks(group) as ranks, InnerRecord(kept_by_a_verb=True) as record, WithoutAutocast() as unaided:
        options = Options(
            n, replicates, confidence, seed, plan, rtol, atol, gradient, construction, chunk_size, ranks
        )
        weight = None if weight is None else unaided.restore(weight)
        ranks.refuse_differences({"method": method, "estimator": estimator} | options.compared())
        question = ask(unaided.restore(f), distribution, args, params, weight)
        reach, question.event = decided(lambda: (look(question), question.event))
        warn_of_severed(reach)
        if current_rehearsal() is None:  # else by whom it is severed is asked
            question = question.without_gradient(reach.severed)
        result = _narrow(_answer(question, options, record, reach, method, estimator), question)
    if record.jump and reach.own:
        warn(_JUMPS, UnmarkedJumpWarning)
    record.jump = ""
    status = plain(result.status)
    failed = (status != int(Status.CONVERGED)) & (status != int(Status.SAMPLED))
    said = record.failures or outer is not None or result.derivative is not None
    if current_rehearsal() is None and (said or bool(failed.any())):
        told = {name: plain(getattr(result, name)) for name in ("value", "error", "nfev")}
        report(replace(result, status=status, **told), record, outer, on_failure)
    return result


def _narrow(result: Result, question: Question) -> Result:
    """Return a result in the dtype of what the caller passed: places and densities have a wider one."""
    dtype = returned_dtype(question.dtype, torch.float32)
    value = result.value
    value = value.to(dtype.to_complex() if value.is_complex() else dtype)
    return replace(result, value=value, error=result.error.to(real_dtype(dtype)))


def _answer(
    question: Question, options: Options, record: InnerRecord, reach: Reach, method: Method, estimator: str
) -> Result:
    """Choose a method, and return what it finds."""
    tried = ""
    fallback = method == "auto"
    if method == "auto":
        method = _choose(question, options, reach, estimator)
    if method == "exact":
        if not can_be_summed(question):
            raise ValueError(
                f"method='exact': the values of {_name(question)} cannot be gone through, or are more than 2^16; "
                "method='auto' chooses for it"
            )
        return _say(sum_question(question, options), " A sum over states; the probabilities are differentiated.")
    if method == "gauss":
        _warn_of_nodes(question, reach)
        return _say(sum_nodes(question, options), " A Gauss-Hermite rule; the nodes are differentiated.")
    if method == "quad":
        few = fallback and options.plan is None and _has_transport(question)
        _refuse_quad(question, reach)
        result = integrate_line(question, options, record, few)
        if not few or decided(lambda: bool(plain(result.converged).all())):
            return _say(result, " Integrated over the density, in which the parameters are differentiated.")
        record.jump, spent = "", result.nfev
        tried, method = " Tried by quad with 1,000 nodes first.", "qmc"
        result = _sample(question, options, record, reach, method, estimator, tried)
        return replace(result, nfev=result.nfev + spent)
    return _sample(question, options, record, reach, method, estimator, tried)


def _sample(
    question: Question, options: Options, record: InnerRecord, reach: Reach, method: str, estimator: str,
    tried: str,
) -> Result:  # fmt: skip
    refuse_no_transport(question.still())
    chosen, why = _choose_estimator(question, reach, estimator)
    if reach.own and _jumps(question, reach, options, why):
        record.jump = "f jumps"
    if chosen == "pathwise" and not reach.by_draws:  # which was told
        question = question.with_still_parameters()
    if options.plan is not None and not isinstance(options.plan, PointsPlan):
        raise TypeError(f"method={method!r} takes a plan of points, not {type(options.plan).__name__}")
    result = sample_question(question, options, record, method, chosen, reach.steps)
    name = {"qmc": "Scrambled points", "iid": "Pseudo-random draws", "antithetic": "Antithetic draws"}[method]
    return _say(result, f" {name}; the estimator of derivatives is {chosen}{why}.{tried}")


def _say(result: Result, sentence: str) -> Result:
    return replace(result, detail=result.detail + sentence)


def _name(question: Question) -> str:
    return type(question.distribution).__name__


def _choose(question: Question, options: Options, reach: Reach, estimator: str) -> Method:
    """Return the method for a question: that of the plan, or the most exact one that can be had."""
    if isinstance(options.plan, PointsPlan):
        return "qmc"
    if isinstance(options.plan, IntervalPlan):
        return "quad"
    if estimator != "auto":
        return "qmc"
    if is_discrete(question.distribution):
        return "exact" if can_be_summed(question) else "qmc"
    if options.n is not None:
        return "qmc"
    try:
        _refuse_quad(question, reach)
    except ValueError:
        return "qmc"
    return "quad"


def _refuse_quad(question: Question, reach: Reach) -> None:
    if question.distribution.event_shape != () or is_discrete(question.distribution):
        raise ValueError(f"method='quad' is for numbers, and {_name(question)} is not continuous in one dimension")
    if not reach.density:
        raise ValueError(f"method='quad' needs a density, and {_name(question)} has no log_prob: use method='qmc'")
    limits_of(question.distribution)


def _has_transport(question: Question) -> bool:
    try:
        refuse_no_transport(question.still())
    except ValueError:
        return False
    return True


def _choose_estimator(question: Question, reach: Reach, estimator: str) -> tuple[Estimator, str]:
    """Return how the parameters are differentiated and why, or say why they cannot be."""
    discrete = is_discrete(question.distribution)
    if estimator == "pathwise" and discrete:
        raise ValueError(_no_path(question))
    if not any(carries_derivative(t.tensor) for t in question.parts.tensors):
        return ("score" if estimator == "score" else "pathwise"), ""
    moves, name = support_moves(question.distribution), _name(question)
    lacking = "it has no log_prob" if not reach.density else "parameters move its support" if moves else ""
    path = reach.by_draws and not discrete
    if estimator == "score" or (estimator == "auto" and not path):
        if lacking:
            raise ValueError(
                f"estimator='score' weighs draws by their density, and of {name} {lacking}: it cannot tell how "
                f"expectations change. Use {_INSTEAD if path else _NEITHER}"
            )
        return "score", "" if path else ", as f's values do not depend on the draws through torch" * (not discrete)
    if not path:
        warn(_FLAT.format(name), SeveredGradientWarning)
        return "pathwise", ""
    if lacking or estimators_agree(question):
        return "pathwise", ""
    if estimator == "auto":
        return "score", ", as the pathwise one gives something else: f jumps"
    warn(_MISSED.format(name), SeveredGradientWarning)
    return "pathwise", ""


def _jumps(question: Question, reach: Reach, options: Options, why: str) -> bool:
    """Tell, where it can be told, whether f jumps between draws."""
    if is_discrete(question.distribution):
        return False
    if not reach.by_draws:
        return reach.varies
    if any(carries_derivative(t.tensor) for t in question.parts.tensors):
        return "f jumps" in why
    if options.plan is not None or not reach.density or support_moves(question.distribution):
        return False  # who keeps a plan was told when it was made
    return not estimators_agree(question)


def _warn_of_nodes(question: Question, reach: Reach) -> None:
    """Warn of what derivatives of a rule's nodes do not see."""
    if not any(carries_derivative(t.tensor) for t in question.parts.tensors):
        return
    if not reach.by_draws:
        warn(_RULE.format("does not depend on them through torch", _name(question)), SeveredGradientWarning)
    elif reach.density and not support_moves(question.distribution) and not estimators_agree(question):
        warn(_RULE.format("jumps", _name(question)), SeveredGradientWarning)


def _no_path(question: Question) -> str:
    return (
        f"estimator='pathwise' needs draws that move with the parameters, and those of {_name(question)} do not "
        "(it has no rsample): use estimator='score', or method='exact' where its values can be gone through"
    )
