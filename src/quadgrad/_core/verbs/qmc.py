"""Quasi-Monte Carlo integration in any dimension, with an error from independent randomisations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from quadgrad._core.eager import left_eager
from quadgrad._core.gradient import GradientMode, Reuse
from quadgrad._core.keywords import names_ours
from quadgrad._core.plans.base import Plan
from quadgrad._core.progress import show_progress
from quadgrad._core.ranks import Ranks
from quadgrad._core.regions.guide import find_guide
from quadgrad._core.regions.where import Boundary, Where
from quadgrad._core.result import Result
from quadgrad._core.verbs.door import open_ranks
from quadgrad._core.verbs.inputs import check_options, prepare_box
from quadgrad._core.verbs.regions import open_cut, open_region
from quadgrad._core.verbs.sample import Guide, integrate_samples, make_sample, refuse_log

__all__ = ["qmc"]

LINES = 2**18
"""Coordinates of points at a time from which lines go out, of which each is looked at in several places."""


@names_ours
@left_eager
def qmc(
    f: Callable[..., Any],
    a: Any = None,
    b: Any = None,
    args: Any = (),
    *,
    region: Any = None,
    sequence: Literal["sobol", "lattice", "random"] = "sobol",
    n: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
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
    """Integrate f over boxes in d dimensions by randomised quasi-Monte Carlo, for each element of a batch.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` with x of shape ``(..., d)``; each argument arrives broadcastable against
        ``x.shape[:-1]``, as ``c[..., None]`` against x. Returns a tensor of that shape, optionally followed by
        *event* dimensions: an f that is elementwise in x has an event of d values. Tensors that are the same for
        the whole batch, such as a network, may be closed over and get their gradient too.
    a, b : Tensor or sequence of float, shape ``(*batch, d)`` (broadcast)
        Corners of the boxes, all lower limits in a and all upper ones in b, not a pair for each coordinate;
        infinite sides are allowed. A single number stands for all coordinates. Left out with a region that is none
        of a box.
    args : tuple
        Further arguments of f; tensors broadcast with the batch. Mark one that carries a vector or
        matrix for each element with :func:`quadgrad.element`.
    region : Ball, Sphere, Simplex, Nested, Where or Boundary, optional
        Where to integrate; x is in the region, and its parameters get gradients. The first four stand in the place
        of a box; :class:`quadgrad.Where` and :class:`quadgrad.Boundary` are parts of the box between a and b, which
        has to be finite. There a point stands for d lines through the region, of which each costs about 20 calls of
        the functions that cut, and one or two of f.
    sequence : {"sobol", "lattice", "random"}
        Scrambled Sobol points, a randomly shifted rank-1 lattice, or pseudo-random points (plain Monte Carlo).
    n : int, optional
        The most points for one integral, in all replicates together, 2^22 unless given. It is rounded up to what
        the sequence needs, which the message says. Without a tolerance it is a fixed sample: the status is
        ``SAMPLED``.
    rtol, atol : float, optional
        Converged means ``error <= max(atol, rtol * abs(value))`` in two rounds in a row. ``rtol`` is 1e-3 unless n
        or a tolerance is given.
    replicates : int
        Independent randomisations of the points, at least 2; the error is estimated from their scatter.
    confidence : float
        Of the interval whose half-width ``error`` is.
    seed : int, optional
        Of the randomisation: the same seed gives the same points (common random numbers), whatever the device, the
        ranks and ``chunk_size``. 0, or the plan's, unless given.
    gradient : GradientMode
        :class:`quadgrad.Reuse` differentiates the sample; :class:`quadgrad.Resolve` doubles it until the
        derivative's own error meets a tolerance.
    plan : Plan, optional
        Of an earlier result: its sequence, seed and number of points to begin with.
    vectorized : bool
        False if f accepts one point at a time, as a list of d Python floats.
    log : bool
        What :func:`quadgrad.quad` has and points do not: True is refused, with what to do instead.
    chunk_size : int, optional
        Values of f computed at a time. Memory does not depend on n, neither forward nor backward, in any case.
    group : torch.distributed.ProcessGroup, optional
        Of ranks that all make this call with the same arguments, and share its work: all get the same bits.
    progress : bool
        Whether to show a bar on standard error, if that is a terminal; it goes away. It needs rich.
    on_failure : {"warn", "raise", "ignore"}
        What to do when an integral does not converge.

    Returns
    -------
    Result
        ``value`` of shape ``batch + event``; ``error``, ``status`` and ``nfev`` of shape ``batch``; ``error`` is
        the half-width of a Student-t interval, of the event's worst component. ``plan`` holds no points: its size
        does not depend on n.

    Raises
    ------
    ValueError
        Limits that are NaN, shapes that do not broadcast, unusable options, more dimensions than the sequence has;
        arguments that differ between the ranks of a group.
    TypeError
        Complex limits.
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
    The number of points doubles until the error meets the tolerance in two successive rounds, and until the
    effective number of samples ``(sum |f|)^2 / sum f^2`` is at least 400: a small scatter proves nothing where all
    replicates may have missed the same peak. What no sample saw does not converge.

    Student's interval is widened where the replicates are more skewed than normal ones are by chance (Johnson,
    *J. Am. Stat. Assoc.* 73, 1978). Where f takes two values, of which one is 0 or minus the other, their distance
    times ``log(1 / (1 - confidence)) / n`` comes on top: what so many points may all have missed.

    Over :class:`quadgrad.Where` the lines along all axes through a point are cut where the region ends. Derivatives
    are those of the integral over the boundary: the lines that cross it at a place share it by the fourth power of
    their slopes there (areas: by the sixth), so that first and second derivatives have a finite variance. Points go
    through a map that is led to the region beforehand, but for every 32nd. What no line has met, a second part of
    the region that is small, is not in the error; ``lipschitz`` is not used.

    Derivatives with respect to the limits move the points with them. Where f jumps, arguments that move the jump
    have no derivative here; see :func:`quadgrad.quad` with ``jumps``, or integrate over the density of a
    distribution.

    Examples
    --------
    A Gaussian in six dimensions, and how its integral changes with its width:

    >>> import torch, quadgrad as qg
    >>> s = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    >>> f = lambda x, s: torch.exp(-(x**2).sum(-1) / s**2)
    >>> result = qg.qmc(f, [-1.0] * 6, 1.0, args=(s,))
    >>> side = torch.pi**0.5 * s * torch.erf(1 / s)
    >>> bool(result.converged), bool((result.value - side**6).abs() <= result.error)
    (True, True)
    >>> (slope,) = torch.autograd.grad(result.value, s, retain_graph=True)
    >>> (exact,) = torch.autograd.grad(side**6, s)
    >>> bool((slope - exact).abs() <= qg.gradient_error(result, s))
    True

    The probability that eight uniform numbers add up to less than t, and its derivative:

    >>> t = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    >>> below = qg.Where(lambda x, t: t - x.sum(-1))
    >>> result = qg.qmc(lambda x, t: torch.ones_like(x[..., 0]), [0.0] * 8, 1.0, (t,), region=below, n=4096)
    >>> (density,) = torch.autograd.grad(result.value, t)
    >>> bool((result.value - 0.5).abs() <= result.error), bool((density - 151 / 315).abs() < 0.02)
    (True, True)
    """
    check_options(on_failure, chunk_size, gradient)
    refuse_log(log)
    tolerances = (rtol, atol)
    guide: Guide | None = None
    if isinstance(region, Where | Boundary):
        through, args = open_cut(f, a, b, args, region, vectorized)
        guide = partial(find_guide, through=through)
        f, a, b, vectorized = through, [0.0] * through.dims, 1.0, True
        chunk_size = LINES // (through.d * through.dims) if chunk_size is None else max(1, chunk_size // through.d)
    else:
        f, a, b, args, vectorized = open_region("qmc", f, a, b, args, region, vectorized)
    with Ranks(group) as ranks:
        problem = prepare_box(f, a, b, args, vectorized, tolerances, chunk_size=chunk_size)
        open_ranks(
            ranks, problem, sequence=sequence, n=n, rtol=rtol, atol=atol, replicates=replicates,
            confidence=confidence, seed=seed, gradient=gradient, plan=plan, chunk_size=chunk_size,
        )  # fmt: skip
        sample, said = make_sample(problem, sequence, n, tolerances, replicates, confidence, seed, plan, ranks)
        most = sample.most * sample.plan.replicates * problem.batch
        with show_progress(progress and ranks.rank == 0, most) as advance:
            return integrate_samples(
                problem, gradient, replace(sample, advance=advance), said, on_failure, guide=guide
            )
