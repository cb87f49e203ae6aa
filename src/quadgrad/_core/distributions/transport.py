"""From uniform numbers to a distribution: inverse distribution functions, and what is made of them.

A transport keeps evenly spread points evenly spread, and is differentiable by the parameters wherever the
distribution is continuous.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import scipy  # which imports scipy.stats, a third of the start, when it is used
import torch
from torch import Tensor, distributions
from torch.distributions import Independent, MixtureSameFamily, TransformedDistribution

from quadgrad._core.distributions.quantiles import elementwise, log_quantile

__all__ = ["component_weights", "draw", "is_discrete", "refuse_no_transport", "standard_normal", "uniforms"]


def uniforms(distribution: Any) -> int:
    """Return how many uniform numbers one draw takes; of a mixture, one draw of each component.

    Raises
    ------
    ValueError
        If no way is known from uniform numbers to the distribution.
    """
    if isinstance(distribution, Independent):
        base, count = distribution.base_dist, distribution.reinterpreted_batch_ndims
        if isinstance(base, MixtureSameFamily):
            raise ValueError(_no_transport(base, " inside of Independent"))
        return uniforms(base) * math.prod(base.batch_shape[len(base.batch_shape) - count :])
    if isinstance(distribution, MixtureSameFamily):
        return uniforms(distribution.component_distribution)
    if _find(_JOINT, distribution) is not None:
        return math.prod(distribution.event_shape)
    if isinstance(distribution, TransformedDistribution):
        return uniforms(distribution.base_dist)
    if _find(_SINGLE, distribution) is not None or _find(_DISCRETE, distribution) is not None:
        return 1
    own = type(distribution).icdf is not distributions.Distribution.icdf
    if own and distribution.event_shape == ():
        return 1
    raise ValueError(_no_transport(distribution))


def refuse_no_transport(distribution: Any) -> None:
    """Raise ``ValueError`` if no way is known from uniform numbers to the distribution."""
    uniforms(distribution)


def _no_transport(distribution: Any, where: str = "") -> str:
    return (
        f"no way is known from uniform numbers to {type(distribution).__name__}{where}: give its class the method "
        "icdf (in one dimension), pass a TransformedDistribution of something simpler, or, in one dimension, "
        "method='quad', which needs log_prob alone"
    )


def standard_normal(u: Tensor) -> Tensor:
    """Return normal quantiles of uniform numbers.

    Exact in the tails too: a point of a sequence is the middle of an interval, ``2 u - 1`` has no rounding error,
    and none is 0 or 1 (``Normal.icdf(1e-17)`` is minus infinity). ``ndtri`` is no better there and takes four times
    as long.
    """
    return torch.erfinv(2.0 * u - 1.0) * math.sqrt(2.0)


def draw(distribution: Any, u: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return what the distribution makes of uniform numbers.

    Parameters
    ----------
    distribution : Distribution
        In the dtype of u.
    u : Tensor, shape (*lead, d)
        Within (0, 1), d of :func:`uniforms`; ``lead`` ends with the distribution's batch.
    rotation : Tensor, optional
        Orthogonal matrices for multivariate normals, applied to the normal numbers first.

    Returns
    -------
    x : Tensor, shape (*lead, *event), or (components, *lead, *event) of a mixture
    weights : Tensor, shape (components, ...), or None
        The probabilities of a mixture's components.
    """
    if isinstance(distribution, MixtureSameFamily):
        component = distribution.component_distribution
        spread = u.unsqueeze(-2).expand(*u.shape[:-1], component.batch_shape[-1], u.shape[-1])
        return draw(component, spread)[0].movedim(u.ndim - 1, 0), component_weights(distribution)
    if isinstance(distribution, Independent):
        base, count = distribution.base_dist, distribution.reinterpreted_batch_ndims
        own = base.batch_shape[len(base.batch_shape) - count :]
        return draw(base, u.reshape(*u.shape[:-1], *own, u.shape[-1] // max(1, math.prod(own))), rotation)
    joint = _find(_JOINT, distribution)
    if joint is not None:
        return joint(distribution, u, rotation), None
    if isinstance(distribution, TransformedDistribution):
        x, weights = draw(distribution.base_dist, u, rotation)
        for transform in distribution.transforms:
            x = cast(Tensor, transform(x))
        return x, weights
    single = _find(_SINGLE, distribution) or _find(_DISCRETE, distribution)
    number = u[..., 0]
    return (distribution.icdf(number) if single is None else single(distribution, number)), None


def component_weights(distribution: Any) -> Tensor | None:
    """Return the probabilities of a mixture's components, ``(components, *batch)``; None if it is no mixture."""
    if isinstance(distribution, MixtureSameFamily):
        return distribution.mixture_distribution.probs.movedim(-1, 0)
    return component_weights(distribution.base_dist) if isinstance(distribution, TransformedDistribution) else None


def is_discrete(distribution: Any) -> bool:
    """Whether its values are counted; derivatives then cannot pass through them."""
    if isinstance(distribution, Independent | TransformedDistribution):
        return is_discrete(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        return is_discrete(distribution.component_distribution)
    try:
        return bool(distribution.support.is_discrete)
    except NotImplementedError:
        return False


def _find(table: dict[type, Callable[..., Tensor]], distribution: Any) -> Callable[..., Tensor] | None:
    # A subclass may be anything that its parent is not, unless it is one of torch's.
    for kind in type(distribution).__mro__:
        if kind in table:
            return table[kind]
        if not kind.__module__.startswith("torch."):
            return None
    return None


def _normal(p: Any, u: Tensor) -> Tensor:
    return p.loc + p.scale * standard_normal(u)  # addcmul takes five times as long where dimensions are strided


def _student(p: Any, u: Tensor) -> Tensor:
    size = torch.exp(log_quantile("student", u, p.df))
    return p.loc + p.scale * size * torch.sign(u - 0.5)


def _beta(p: Any, u: Tensor) -> Tensor:
    x = torch.exp(log_quantile("beta", u, p.concentration1, p.concentration0))
    eps = torch.finfo(x.dtype).eps
    return x.clamp(torch.finfo(x.dtype).tiny, 1.0 - 0.5 * eps)


def _fisher(p: Any, u: Tensor) -> Tensor:
    log = log_quantile("beta", u, 0.5 * p.df1, 0.5 * p.df2)
    return torch.exp(log - torch.log(-torch.expm1(log))) * p.df2 / p.df1


def _relaxed_bernoulli(p: Any, u: Tensor) -> Tensor:
    return (torch.logit(u) + p.logits) / p.temperature


_SINGLE: dict[type, Callable[..., Tensor]] = {
    distributions.Normal: _normal,
    distributions.Gamma: lambda p, u: torch.exp(log_quantile("gamma", u, p.concentration)) / p.rate,
    distributions.Beta: _beta,
    distributions.StudentT: _student,
    distributions.FisherSnedecor: _fisher,
    distributions.relaxed_bernoulli.LogitRelaxedBernoulli: _relaxed_bernoulli,
}


def _multivariate(p: Any, u: Tensor, rotation: Tensor | None) -> Tensor:
    factor = p.scale_tril
    z = standard_normal(u).to(factor.dtype)
    factor = factor if rotation is None else factor @ rotation
    # Points stand along the last dimension, as they do in memory: that is one product for each matrix.
    return p.loc + (factor @ z.movedim(0, -1)).movedim(-1, 0)


def _dirichlet(p: Any, u: Tensor, rotation: Tensor | None) -> Tensor:
    return torch.softmax(log_quantile("gamma", u, p.concentration), dim=-1)


def _relaxed_one_hot(p: Any, u: Tensor, rotation: Tensor | None) -> Tensor:
    return torch.log_softmax((p.logits - torch.log(-torch.log(u))) / p.temperature, dim=-1)


_JOINT: dict[type, Callable[..., Tensor]] = {
    distributions.MultivariateNormal: _multivariate,
    distributions.LowRankMultivariateNormal: _multivariate,
    distributions.Dirichlet: _dirichlet,
    distributions.relaxed_categorical.ExpRelaxedCategorical: _relaxed_one_hot,
}


def _category(p: Any, u: Tensor) -> Tensor:
    ends = p.probs.detach().cumsum(-1)[..., :-1]
    if ends.numel() == ends.shape[-1]:
        return torch.searchsorted(ends.flatten(), u.contiguous(), right=True)
    return (u[..., None] >= ends).sum(-1)


def _one_hot(p: Any, u: Tensor) -> Tensor:
    number = _category(p._categorical, u)
    return torch.nn.functional.one_hot(number, p.event_shape[0]).to(p.probs.dtype)


def _by_scipy(kind: str, *names: str, complement: bool = False) -> Callable[..., Tensor]:
    """Return the quantiles of one of SciPy's discrete distributions."""

    def quantile(p: Any, u: Tensor) -> Tensor:
        values = [getattr(p, n) for n in names]
        if complement:
            values[-1] = 1.0 - values[-1]
        return elementwise(getattr(scipy.stats, kind).ppf, u, *values).to(u.dtype)

    return quantile


_DISCRETE: dict[type, Callable[..., Tensor]] = {
    distributions.Bernoulli: lambda p, u: (u > 1.0 - p.probs.detach()).to(u.dtype),
    distributions.Categorical: _category,
    distributions.OneHotCategorical: _one_hot,
    distributions.Poisson: _by_scipy("poisson", "rate"),
    distributions.Binomial: _by_scipy("binom", "total_count", "probs"),
    distributions.NegativeBinomial: _by_scipy("nbinom", "total_count", "probs", complement=True),
    distributions.Geometric: lambda p, u: torch.floor(torch.log1p(-u) / torch.log1p(-p.probs.detach())),
}
