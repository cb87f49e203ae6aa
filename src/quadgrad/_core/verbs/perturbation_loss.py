"""The mean of a loss over random perturbations of every item of a batch: an integral inside a training loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from quadgrad._core.eager import left_eager
from quadgrad._core.keywords import names_ours
from quadgrad._core.perturbations.averaged import PerturbedMean
from quadgrad._core.perturbations.noise import Noise, make_keys
from quadgrad._core.perturbations.transport import Transport
from quadgrad._core.points.sequence import whole_number

__all__ = ["perturbation_loss"]

FEWEST, MOST, SHARE = 128, 256, 3 / 16
"""Perturbed items in one call of the loss: a share of all, within bounds, unless the batch is larger.

Of 64 images with 16 perturbations each, calls of 256 kept .255 of the naive step's tensors and took .63 to 1.09 of
its time (memory had to be got, or was at hand), of 192 .193 and .67 to 1.14, of 128 .131 and .74 to 1.28.
"""


def usual_size(total: int, batch: int) -> int:
    """Return how many perturbed items of so many to evaluate in one call."""
    return max(batch, min(MOST, max(FEWEST, int(SHARE * total))))


@names_ours
@left_eager
def perturbation_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    distribution: Distribution,
    *,
    n: int = 16,
    seed: int = 0,
    index: Any = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Average a loss over items and over random perturbations of each, in the memory of a few perturbations.

    The value is ``mean over b of E[loss(x[b] + delta, target[b])]``, the expectation over delta taken by n points
    of a scrambled Sobol set that is shifted anew for every item. Call it once a step of the optimiser, with
    ``seed=step``.

    Parameters
    ----------
    loss : callable
        ``loss(xs, targets)`` with xs of shape ``(k * B, *item)``: k perturbations of the whole batch, one after the
        other. Returns ``(k * B,)``, one number for each. It closes over the model, which gets its gradient and
        whose mode is left alone.
    x : Tensor, shape ``(B, *item)``
        The items; floating.
    target : Tensor, shape ``(B, ...)``
        What belongs to each item.
    distribution : torch.distributions.Distribution
        Of delta. Its shape is () or the end of an item's, in front of which coordinates are independent. It has an
        inverse distribution function (Normal, Uniform, Laplace, Cauchy ...; Gamma, Beta and StudentT have
        SciPy's), or is an ``Independent``, a ``TransformedDistribution`` or a multivariate normal. Its parameters
        get their gradient.
    n : int
        Perturbations of each item. Powers of two are spread most evenly.
    seed : int
        Others give independent perturbations.
    index : Tensor of int, shape ``(B,)``, optional
        The number of each item in the data set: its perturbations depend on that and on the seed, whatever else
        is in the batch, and on any number of machines. Its position in the batch unless given, so that processes
        that share a batch must give it. Equal numbers get equal perturbations.
    chunk_size : int, optional
        Perturbed items in one call of ``loss``, at most: those of whole batches if one fits, otherwise of parts of
        it. Unless given, 3/16 of all, but 128 to 256, or B if that is more. Memory is that of one call.

    Returns
    -------
    Tensor, shape ()
        In the dtype that loss returns.

    Raises
    ------
    TypeError
        x is not floating, a distribution of counted values, a mixture, or one to which no way is known from uniform
        numbers; ``index`` that is no integers.
    ValueError
        Shapes that do not fit, no items, n or ``chunk_size`` below 1.
    IntegrandError
        loss does not return one real number for each of xs. When the gradient is differentiated: it is another
        function than it was.

    Warns
    -----
    SeveredGradientWarning
        x requires grad but the loss does not depend on it through torch.

    Notes
    -----
    The gradient is summed up chunk by chunk *during the call*; ``backward`` multiplies it. Each chunk is
    evaluated once: dropout draws, and batch normalisation counts, what they would in a loop over the same chunks,
    statistics being those of a chunk. A backward pass with ``create_graph=True`` evaluates all of it again, with
    the same random numbers and without counting twice, and holds the graph of all chunks, as do calls under
    ``torch.func`` transforms and forward mode. A model that was compiled runs as it is written. One in
    ``DistributedDataParallel`` reduces once, in ``backward``; it needs ``static_graph=True`` in place of
    ``find_unused_parameters=True``. To evaluate alone, call it under ``torch.no_grad()``.

    The points have the leading 23 digits in float32, so that normal perturbations stay within 5.3 standard
    deviations. Half precision is perturbed in float32 and rounded. Above 4,096 coordinates, the Sobol
    tables' limit, sets of 4,096 are matched at random (Owen, *ACM Trans. Model. Comput. Simul.* 8, 1998).

    A decision (argmax, >) has no gradient here: perturb a margin, a probability or a cross-entropy.

    Examples
    --------
    The smoothed hinge of a linear classifier, for which the expectation is known:

    >>> import torch, quadgrad as qg
    >>> w = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    >>> x = torch.tensor([[0.2, 0.1, 0.3], [-0.3, 0.2, 0.1]])
    >>> y = torch.tensor([1.0, -1.0])
    >>> hinge = lambda xs, ys: torch.relu(1 - ys * (xs @ w))
    >>> noise = torch.distributions.Normal(0.0, 0.25)
    >>> value = qg.perturbation_loss(hinge, x, y, noise, n=1024)
    >>> value.backward()
    >>> margin, width = 1 - y * (x @ w), 0.25 * w.norm()
    >>> density = torch.exp(-((margin / width) ** 2) / 2) / (2 * torch.pi) ** 0.5
    >>> exact = (margin * torch.special.ndtr(margin / width) + width * density).mean()
    >>> bool((value - exact).abs() < 1e-3), w.grad.shape
    (True, torch.Size([3]))
    """
    _check(loss, x, target)
    n, count = whole_number("n", n), x.shape[0]
    size = usual_size(n * count, count) if chunk_size is None else whole_number("chunk_size", chunk_size)
    transport = Transport.of(distribution, x.shape[1:])
    keys = make_keys(index, count, x.device)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    noise = Noise(transport.d, n, seed, dtype, x.device)
    return PerturbedMean(loss, x, target, transport, noise, noise.shifts(keys), n, size).value()


def _check(loss: Any, x: Any, target: Any) -> None:
    if not callable(loss):
        raise TypeError(f"loss={loss!r:.80} is not callable: pass a function of (xs, targets)")
    for name, value in (("x", x), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}: pass a tensor, (B, ...)")
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}, to which no noise can be added: pass floating numbers, x.float()")
    if x.ndim == 0 or target.ndim == 0 or x.shape[0] != target.shape[0]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, target {tuple(target.shape)}: the first dimension of both must be that "
            "of the items"
        )
    if x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: there is nothing to average over")
