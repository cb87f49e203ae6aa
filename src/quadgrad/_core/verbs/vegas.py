"""Monte Carlo integration of peaks: points go through a map that is learnt first and then frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from quadgrad._core.eager import left_eager
from quadgrad._core.gradient import GradientMode, Reuse
from quadgrad._core.keywords import names_ours
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.importance import ImportancePlan
from quadgrad._core.points.sequence import whole_number
from quadgrad._core.progress import show_progress
from quadgrad._core.ranks import Ranks
from quadgrad._core.result import Result
from quadgrad._core.search.samples.importance import Training
from quadgrad._core.verbs.door import open_ranks
from quadgrad._core.verbs.inputs import check_options, prepare_box
from quadgrad._core.verbs.sample import integrate_samples, make_sample, refuse_log

__all__ = ["vegas"]

FEWEST, USUAL, LARGEST = 2**11, 2**13, 2**17
"""Points of one iteration of the training, in all replicates together."""


def training_size(n: int | None, replicates: int) -> int:
    """Return how many points of each replicate an iteration has: few beside n, as far as maps can be learnt so."""
    wanted = USUAL if n is None else min(max(n // 64, min(USUAL, max(FEWEST, n // 8))), LARGEST)
    return 2 ** (max(1, wanted // replicates) - 1).bit_length()


@names_ours
@left_eager
def vegas(
    f: Callable[..., Any],
    a: Any,
    b: Any,
    args: Any = (),
    *,
    n: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    iterations: int = 10,
    bins: int = 200,
    replicates: int = 16,
    confidence: float = 0.99,
    seed: int | None = None,
    gradient: GradientMode = Reuse(),
    plan: Plan | None = None,
    vectorized: bool = True,
    log: bool = False,
    chunk_size: int | None = None,
    group: Any = None,
    progress: bool = False,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Result:
    """Integrate f over boxes in d dimensions by adaptive importance sampling (VEGAS), for each element of a batch.

    For each integral a map of the unit cube onto itself is learnt that puts points where f is large. It is frozen,
    and the integral is then sampled through it as :func:`quadgrad.qmc` samples, with that function's error.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` with x of shape ``(..., d)``; each argument arrives broadcastable against ``x.shape[:-1]``,
        as ``c[..., None]`` against x. Returns a tensor of that shape, optionally followed by *event* dimensions,
        which share a map: an f that is elementwise in x has an event of d values. Tensors that are the same for
        the whole batch, such as a network, may be closed over and get their gradient too.
    a, b : Tensor or sequence of float, shape ``(*batch, d)`` (broadcast)
        Corners of the boxes, all lower limits in a and all upper ones in b, not a pair for each coordinate;
        infinite sides are allowed. A single number stands for all coordinates.
    args : tuple
        Further arguments of f; tensors broadcast with the batch. Mark one that carries a vector or
        matrix for each element with :func:`quadgrad.element`.
    n : int, optional
        The most points for one integral once its map is frozen, in all replicates together, 2^22 unless given. It
        is rounded up to a power of two for each replicate, which the message says. Without a tolerance it is a
        fixed sample: the status is ``SAMPLED``.
    rtol, atol : float, optional
        Converged means ``error <= max(atol, rtol * abs(value))`` in two rounds in a row. ``rtol`` is 1e-3 unless n
        or a tolerance is given.
    iterations : int
        Of the training, at most: an integral whose map has settled takes no further part. Each has about 8,192
        points, fewer (from 2,048) if n is below 65,536, and up to 131,072 if a sixty-fourth of n is more. ``nfev``
        counts them.
    bins : int
        Of the map, along each axis.
    replicates : int
        Independent randomisations of the points, at least 2; the error is estimated from their scatter.
    confidence : float
        Of the interval whose half-width ``error`` is.
    seed : int, optional
        Of the randomisation: the same seed gives the same points (common random numbers), whatever the device, the
        ranks and ``chunk_size``. 0, or the plan's, unless given.
    gradient : GradientMode
        :class:`quadgrad.Reuse` differentiates the sample, :class:`quadgrad.Resolve` doubles it until the
        derivative's own error meets a tolerance. Either goes through f alone: the map is a constant.
    plan : Plan, optional
        Of an earlier result: its maps, seed and number of points. One iteration shows whether a map still does as
        well as it did; it is used as it is then, and refined otherwise.
    vectorized : bool
        False if f accepts one point at a time, as a list of d Python floats.
    log : bool
        What :func:`quadgrad.quad` has and points do not: True is refused, with what to do instead.
    chunk_size : int, optional
        Values of f computed at a time. Memory does not depend on n, neither forward nor backward, in any case.
    group : torch.distributed.ProcessGroup, optional
        Of ranks that all make this call with the same arguments, and share its work: all get the same bits.
    progress : bool
        Show a progress bar of the sample, where output goes to a terminal.
    on_failure : {"warn", "raise", "ignore"}
        What to do when an integral does not converge.

    Returns
    -------
    Result
        ``value`` of shape ``batch + event``; ``error``, ``status`` and ``nfev`` of shape ``batch``; ``error`` is
        the half-width of a Student-t interval, of the event's worst component. ``message`` tells the effective
        share of samples. ``plan`` holds the maps: ``plan.log`` prints what each iteration saw, ``plan.sample(n)``
        draws weighted points.

    Raises
    ------
    ValueError
        Limits that are NaN, shapes that do not broadcast, unusable options; arguments that differ between the ranks
        of a group.
    TypeError
        Complex limits, a plan that is not of points.
    IntegrandError
        f breaks the calling contract or is not deterministic.
    IntegrationError
        An integral did not converge and ``on_failure="raise"``.

    Warns
    -----
    IntegrationWarning
        An integral did not converge.
    SeveredGradientWarning
        An argument requires grad but f's output does not depend on it through torch.

    Notes
    -----
    The map is Lepage's (*J. Comput. Phys.* 27, 1978; 439, 2021): a grid along each axis, so it learns peaks that
    are near a product, and ridges along axes. One point in 32 is not mapped, and all are weighed by the
    density of the mixture (Owen and Zhou, 2000): what the training did not see is met as often as by
    :func:`quadgrad.qmc` with so many points. Events are mapped for the sum of their components' moduli, each
    divided by its mean.

    Not converged is also what would meet its tolerance through a map that had not settled: less than 100 effective
    samples in the last iteration, or an effective share that still changed by half.

    Examples
    --------
    A narrow peak in five dimensions, and how its integral changes with its place:

    >>> import torch, quadgrad as qg
    >>> centre = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    >>> f = lambda x, c: torch.exp(-625 * ((x - c[..., None]) ** 2).sum(-1))
    >>> result = qg.vegas(f, [0.0] * 5, 1.0, args=(centre,), rtol=1e-3)
    >>> side = torch.pi**0.5 / 50 * (1 + torch.erf(25 * centre))
    >>> bool(result.converged), bool((result.value - side**5).abs() <= result.error)
    (True, True)
    >>> (slope,) = torch.autograd.grad(result.value, centre, retain_graph=True)
    >>> (exact,) = torch.autograd.grad(side**5, centre)
    >>> bool((slope - exact).abs() <= qg.gradient_error(result, centre))
    True
    """
    check_options(on_failure, chunk_size, gradient)
    refuse_log(log)
    iterations, bins = whole_number("iterations", iterations), whole_number("bins", bins, 2)
    tolerances = (rtol, atol)
    with Ranks(group) as ranks:
        problem = prepare_box(f, a, b, args, vectorized, tolerances, chunk_size=chunk_size)
        open_ranks(
            ranks, problem, n=n, rtol=rtol, atol=atol, iterations=iterations, bins=bins, replicates=replicates,
            confidence=confidence, seed=seed, gradient=gradient, plan=plan, chunk_size=chunk_size,
        )  # fmt: skip
        sample, said = make_sample(problem, "sobol", n, tolerances, replicates, confidence, seed, plan, ranks)
        kept = plan.share if isinstance(plan, ImportancePlan) else None
        training = Training(training_size(n, sample.plan.replicates), iterations, bins, kept)
        most = sample.most * sample.plan.replicates * problem.batch
        with show_progress(progress and ranks.rank == 0, most) as advance:
            sample = replace(sample, advance=advance)
            return integrate_samples(problem, gradient, sample, said, on_failure, training)
