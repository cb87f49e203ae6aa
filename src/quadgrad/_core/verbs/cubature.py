"""Adaptive integration over boxes in several dimensions, many integrals at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from quadgrad._core.eager import left_eager
from quadgrad._core.gradient import GradientMode, Reuse
from quadgrad._core.keywords import names_ours
from quadgrad._core.plans.base import Plan
from quadgrad._core.ranks import Ranks
from quadgrad._core.regions.where import Boundary, Where
from quadgrad._core.result import Result
from quadgrad._core.verbs.boxes import integrate_boxes, prepare_boxes
from quadgrad._core.verbs.cut import integrate_cut
from quadgrad._core.verbs.door import open_ranks
from quadgrad._core.verbs.inputs import check_options
from quadgrad._core.verbs.quad import quad
from quadgrad._core.verbs.regions import open_region
from quadgrad._core.verbs.sample import refuse_log

__all__ = ["cubature"]


@names_ours
@left_eager
def cubature(
    f: Callable[..., Any],
    a: Any = None,
    b: Any = None,
    args: Any = (),
    *,
    region: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    rule: str = "auto",
    max_nfev: int | None = None,
    max_cells: int | None = None,
    gradient: GradientMode = Reuse(),
    plan: Plan | None = None,
    vectorized: bool = True,
    log: bool = False,
    chunk_size: int | None = None,
    group: Any = None,
    progress: bool = False,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Result:
    """Integrate f over boxes in up to 12 dimensions, adaptively and differentiably, for each element of a batch.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` with x of shape ``(..., d)``; each argument arrives broadcastable against
        ``x.shape[:-1]``, as ``c[..., None]`` against x. Returns a tensor of that shape, optionally followed by
        *event* dimensions, whose components share their cells. Tensors that are the same for the whole batch, such
        as a network, may be closed over and get their gradient too.
    a, b : Tensor or sequence of float, shape ``(*batch, d)`` (broadcast)
        Corners of the boxes, all lower limits in a and all upper ones in b, not a pair for each coordinate;
        infinite sides are allowed, descending and equal limits too. A single number stands for all coordinates.
    args : tuple
        Further arguments of f; tensors broadcast with the batch. Mark one that carries a vector or
        matrix for each element with :func:`quadgrad.element`.
    region : Ball, Sphere, Simplex, Nested, Where or Boundary, optional
        Where to integrate. :class:`quadgrad.Ball`, :class:`quadgrad.Sphere`, :class:`quadgrad.Simplex` and
        :class:`quadgrad.Nested` stand in the place of a and b; :class:`quadgrad.Where` and
        :class:`quadgrad.Boundary` are parts of the box between them. What a region depends on gets its derivatives.
    rtol, atol : float, optional
        Converged means ``error <= max(atol, rtol * abs(value))``. ``rtol`` is the square root of the
        dtype's eps unless given.
    rule : str
        ``"gm7"``, ``"gm9"`` or ``"gm11"``: fully symmetric rules of that degree (Genz and Malik). In two and three
        dimensions also ``"gk15"`` to ``"gk61"``, products of Gauss-Kronrod rules. ``"auto"`` chooses by dimension
        and tolerance. With Where and Boundary ``"gk7"``, ``"gk11"`` or ``"gk15"``.
    max_nfev : int, optional
        Most nodes to spend on one integral, 5 million unless given. Memory grows with the cells, of about 300
        bytes each, not with the nodes.
    max_cells : int, optional
        Most cells of one integral that are looked at in each round, at least 2: those with the smallest errors
        retire, with value and error, until no others are left to be halved, or the tolerance seems to be met.
    gradient : GradientMode
        How the value is differentiated, see :class:`quadgrad.Reuse` and :class:`quadgrad.Resolve`.
    plan : Plan, optional
        Cells to start from, of an earlier result: their errors are estimated anew, and they are refined where
        needed. See :class:`quadgrad.Integrator`.
    vectorized : bool
        False if f accepts one point at a time, as a list of d Python floats.
    log : bool
        What :func:`quadgrad.quad` has and boxes do not: True is refused beyond one dimension.
    chunk_size : int, optional
        Nodes evaluated at a time, in the backward pass too; bounds memory.
    group : torch.distributed.ProcessGroup, optional
        Of ranks that all make this call with the same arguments, and share its batch: all get the same bits.
    progress : bool
        Whether to show a bar on standard error, if that is a terminal; it goes away. It needs rich.
    on_failure : {"warn", "raise", "ignore"}
        What to do when an integral does not converge.

    Returns
    -------
    Result
        ``value`` of shape ``batch + event``; ``error``, ``status`` and ``nfev`` of shape ``batch``; ``plan``, the
        boxes. In one dimension it is what :func:`quadgrad.quad` returns, its plan included.

    Raises
    ------
    ValueError
        Limits that are NaN, shapes that do not broadcast, unusable tolerances or options; more than 12 dimensions:
        see :func:`quadgrad.qmc` and :func:`quadgrad.vegas`.
    TypeError
        Complex limits.
    IntegrandError
        f breaks the calling contract or is not deterministic.
    IntegrationError
        An integral did not converge and ``on_failure="raise"``.

    Warns
    -----
    IntegrationWarning
        An integral did not converge, or one over a face, which is the derivative by a side.
    SeveredGradientWarning
        An argument requires grad but f's output does not depend on it through torch.

    Notes
    -----
    The cells with the largest errors are halved, along the axis where f is roughest, those of all integrals
    together, until the summed error meets the tolerance (van Dooren and de Ridder's strategy, *J. Comput. Appl.
    Math.* 2, 1976). Errors come from null rules (Berntsen, Espelid and Genz, *ACM TOMS* 17, 1991), and from how far
    children were off their parents. f is called at 512 points anywhere (256 in the plane), too, and compared there,
    and at the nodes of cells, with polynomials through the nodes around: what shows as the foot of a narrow bump is
    climbed, and cells around it are halved. Where next to nothing was seen, and where a peak that was seen is no
    longer at any node, f is called at 4,096 points, and points climb from the highest. In the end it is called at a
    point anywhere for each 32 nodes, and cells that were blind to it are halved. What is so narrow that none of
    them sees it is missed: a bump whose integral just matters is seen the less, the more digits are asked for and
    the more dimensions there are. A second ridge or sheet, narrower than a hundredth of the box, beside one that
    is resolved, is often missed, or a part of it: give each a call of its own.

    Derivatives with respect to the sides are integrals over the faces, searched by themselves; mixed ones by two
    sides of different axes are integrals over edges (in two and three dimensions those by three sides, too). Where
    f is not finite on a face the nodes move instead. ``nfev`` is without the faces.

    Examples
    --------
    The peak of a Gaussian in three dimensions, and how its integral changes with its width and with the box:

    >>> import torch, quadgrad as qg
    >>> k = torch.tensor([25.0, 625.0], dtype=torch.float64, requires_grad=True)
    >>> b = torch.ones(3, dtype=torch.float64, requires_grad=True)
    >>> f = lambda x, k: torch.exp(-k * ((x - 0.5) ** 2).sum(-1))
    >>> result = qg.cubature(f, torch.zeros(3), b, (k,), rtol=1e-6)
    >>> exact = ((torch.pi / k).sqrt() * torch.erf(0.5 * k.sqrt())) ** 3
    >>> bool(result.converged.all()), torch.allclose(result.value, exact, rtol=1e-6)
    (True, True)
    >>> slopes = torch.autograd.grad(result.value.sum(), (k, b))
    >>> torch.allclose(slopes[0], torch.autograd.grad(exact.sum(), k)[0], rtol=1e-4)
    True
    """
    check_options(on_failure, chunk_size, gradient)
    if max_cells is not None and (not isinstance(max_cells, int) or max_cells < 2):
        raise ValueError(f"max_cells={max_cells!r} must be a whole number of cells, at least 2")
    tolerances = (rtol, atol)
    if isinstance(region, Where | Boundary):
        refuse_log(log)
        if group is not None:
            raise ValueError(f"group is not for {type(region).__name__}: every rank integrates it by itself")
        return integrate_cut(
            f, a, b, args, region, tolerances, rule=rule, max_nfev=max_nfev, gradient=gradient, plan=plan,
            vectorized=vectorized, chunk_size=chunk_size, on_failure=on_failure,
        )  # fmt: skip
    f, a, b, args, vectorized = open_region("cubature", f, a, b, args, region, vectorized)
    with Ranks(group) as ranks:
        problem = prepare_boxes(f, a, b, args, vectorized, tolerances, rule, max_nfev, chunk_size, max_cells)
        if problem is None:
            return quad(
                OneCoordinate(f, vectorized), _only(a), _only(b), args, rtol=rtol, atol=atol,
                rule="gk21" if rule == "auto" else rule, max_nfev=max_nfev, gradient=gradient, plan=plan,
                vectorized=vectorized, log=log, chunk_size=chunk_size, group=group, on_failure=on_failure,
            )  # fmt: skip
        refuse_log(log)
        open_ranks(
            ranks, problem, rtol=rtol, atol=atol, rule=rule, max_nfev=max_nfev, max_cells=max_cells,
            gradient=gradient, plan=plan, vectorized=vectorized, chunk_size=chunk_size,
        )  # fmt: skip
        return integrate_boxes(problem, tolerances, gradient, plan, on_failure, progress and ranks.rank == 0, ranks)


@dataclass(frozen=True)
class OneCoordinate:
    """A function of points that have one coordinate, as one of numbers."""

    f: Callable[..., Any]
    vectorized: bool

    def __call__(self, x: Any, *args: Any) -> Any:
        """Return f at numbers x."""
        return self.f(x.unsqueeze(-1), *args) if self.vectorized else self.f([x], *args)


def _only(corner: Any) -> Any:
    """Return the only coordinate of a corner."""
    if isinstance(corner, float | int):
        return corner
    if isinstance(corner, list | tuple) and isinstance(corner[0], float | int | torch.Tensor):
        return corner[0]
    corner = corner if isinstance(corner, torch.Tensor) else torch.as_tensor(corner, device="cpu")
    return corner[..., 0] if corner.ndim else corner
