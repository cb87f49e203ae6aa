"""Whether a pathwise derivative is all there is: where f jumps, it is not, and no warning would come from torch.

Both estimators are taken from the same few draws in independent groups. Where f has no jump, the groups'
differences have mean 0.
"""

from __future__ import annotations

import math

import scipy  # which imports scipy.special when that is first used: a sixth of the start
import torch

from quadgrad._core._torch import in_transform
from quadgrad._core.closure import uncompiled
from quadgrad._core.distributions.transport import uniforms
from quadgrad._core.integrand import tensor_and_ndim
from quadgrad._core.points import make_sequence
from quadgrad._core.rehearsal import decided
from quadgrad._core.verbs.expected.question import Question
from quadgrad._core.verbs.expected.samples import Draws

__all__ = ["estimators_agree"]

GROUPS = 32

DRAWS = 256
"""In each group."""

FEWEST = 16
"""Below this nothing is compared."""

MOST_NUMBERS = 2**18
"""Numbers drawn at most, as a graph is kept for all of them: of large batches or draws groups have fewer."""

CHANCE = 1e-9
"""How often a smooth f is taken for one that jumps, were the groups' means normally distributed."""

ROUNDING = 1e-6
"""Means of groups that are smaller than this, relative to the largest difference, are taken for 0."""


def estimators_agree(question: Question) -> bool:
    """Return whether pathwise and score estimates of the derivatives by the parameters agree.

    True also where it cannot be told: under transforms, and where the groups would be too small.
    """
    return True if in_transform() else decided(lambda: _agree(question))


def _agree(question: Question) -> bool:
    rank, d = len(question.batch_shape), uniforms(question.still())
    draws = min(DRAWS, MOST_NUMBERS // (GROUPS * max(1, d * math.prod(question.batch_shape))))
    if draws < FEWEST:
        return True
    u = make_sequence("random", d, 0, GROUPS, question.device).points(0, draws)
    u = u.transpose(0, 1).to(question.wide).reshape(draws, GROUPS, *(1,) * rank, d)
    u = u.expand(draws, GROUPS, *question.batch_shape, d)
    args = [tensor_and_ndim(a)[0] for a in question.args]
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    with torch.enable_grad(), uncompiled:
        leaves = []
        for element in question.parts.tensors:
            tensor = element.tensor.detach()
            lead = tensor.shape[: tensor.ndim - element.ndim]
            shape = (GROUPS, *(1,) * (rank - len(lead)), *lead, *tensor.shape[tensor.ndim - element.ndim :])
            leaves.append(tensor.expand(shape).clone())
        moved = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
        y = Draws(question, "pathwise")(u, *args, *leaves)
        level = y.detach().mean(0).roll(1, 0)  # of another group: one's own would take a part of the score away
        weight = torch.linspace(1.0, 2.0, max(1, level[0].numel()), dtype=torch.float64, device=y.device)
        weight = weight.reshape(level.shape[1:]).to(y.dtype)
        score = Draws(question, "score")(u, *args, *leaves, level)
        slopes = [
            torch.autograd.grad((z.mean(0) * weight).sum().real, moved, allow_unused=True) for z in (y, score)
        ]
    differences = []
    for path, likely in zip(*slopes, strict=True):
        if likely is None:
            continue
        differences.append((likely if path is None else path - likely).reshape(GROUPS, -1))
    if not differences:
        return True
    gap = torch.cat([g.double() for g in differences], dim=1)
    limit = float(scipy.special.stdtrit(GROUPS - 1, 1.0 - 0.5 * CHANCE / gap.shape[1]))
    spread = gap.std(0) / math.sqrt(GROUPS)
    return not bool((gap.mean(0).abs() > limit * spread + ROUNDING * gap.abs().amax()).any())
