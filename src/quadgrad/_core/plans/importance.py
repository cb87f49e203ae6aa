"""What VEGAS decided: points through a map for each integral, and how the map was learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.lanes import plain
from quadgrad._core.mesh.box import Box
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.points.hashing import fold_seed, hash_numbers
from quadgrad._core.points.sequence import is_whole
from quadgrad._core.printing import Printed, counted, show_numbers

__all__ = ["ImportancePlan", "IterationLog"]

DRAWN = 0x4452_4157
"""Key of the points of :meth:`ImportancePlan.sample`, so that they are not those of the integral."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ImportancePlan(PointsPlan, geometry="importance"):
    """The points of :func:`quadgrad.vegas` and the maps they go through; see :class:`quadgrad.Plan`.

    Pass it to a later call, whose integrand differs a little, and the maps are kept. It can be saved as every plan.

    Attributes
    ----------
    share : Tensor, shape (batch,)
        The effective share of samples, ``(sum |f|)^2 / sum f^2 / n`` of weighted values: 1 where the map leaves
        nothing to do.
    learnt : Tensor of bool, shape (batch,)
        Whether the map had settled on enough samples when it was frozen.
    values : Tensor, shape (iterations, batch, *event)
    errors, shares : Tensor, shape (iterations, batch)
        What each iteration of the training saw; NaN where an integral took no part in it. See :attr:`log`.
    """

    share: Tensor
    learnt: Tensor
    values: Tensor
    errors: Tensor
    shares: Tensor

    def take(self, owner: Tensor | slice) -> ImportancePlan:
        """Return the plan of some integrals."""
        part = super().take(owner)
        if self.share.shape[0] != self.batch:  # a plan without a batch, that a batch uses
            return replace(self, n=part.n, batch_shape=part.batch_shape)
        logs = {name: getattr(self, name)[:, owner] for name in ("values", "errors", "shares")}
        return replace(
            self, n=part.n, grid=part.grid, batch_shape=part.batch_shape, share=self.share[owner],
            learnt=self.learnt[owner], **logs,
        )  # fmt: skip

    @property
    def log(self) -> IterationLog:
        """The iterations of the training, one a line; it prints as a table."""
        return IterationLog(self.values, self.errors, self.shares)

    def sample(self, n: int, a: Any = 0.0, b: Any = 1.0, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Draw weighted points: dense where the integrand is large, with weights that make up for it.

        Parameters
        ----------
        n : int
            How many for each integral. They are scrambled Sobol points: a power of two is most evenly spread.
        a, b : float or Tensor, shape ``(*batch, d)`` (broadcast)
            Corners of the boxes; infinite sides are allowed.
        seed : int, optional
            Of the points, which are not those of the integral; the plan's unless given.

        Returns
        -------
        x : Tensor, shape ``(n, *batch, d)``
        weight : Tensor, shape ``(n, *batch)``
            Their sum times values of f is the integral of f over the box.

        Raises
        ------
        ValueError
            If n is no positive number, or the corners do not fit the plan.

        Examples
        --------
        >>> import torch, quadgrad as qg
        >>> f = lambda x: torch.exp(-100 * ((x - 0.3) ** 2).sum(-1))
        >>> x, weight = qg.vegas(f, [0.0] * 3, 1.0, n=2**16).plan.sample(4096)
        >>> mean = (weight * f(x) * x[:, 0]).sum() / (weight * f(x)).sum()
        >>> x.shape, round(mean.item(), 3)
        (torch.Size([4096, 3]), 0.3)
        """
        if not is_whole(n) or n < 1:
            raise ValueError(f"n={n!r} must be a positive whole number of points")
        like = self.share
        ends: list[Tensor] = []
        for name, end in (("a", a), ("b", b)):
            end = torch.as_tensor(end, device=like.device).to(like.dtype)
            try:
                whole = end.expand(*self.batch_shape, self.d).reshape(-1, self.d)
            except RuntimeError:
                raise ValueError(
                    f"{name} of shape {tuple(end.shape)} does not fit the plan, whose boxes have corners of shape "
                    f"{(*self.batch_shape, self.d)}"
                ) from None
            if bool(plain(whole.isnan()).any()):
                raise ValueError(f"limit {name} is NaN")
            ends.append(whole)
        seed = hash_numbers(fold_seed(self.seed if seed is None else seed), DRAWN)
        drawn = PointsPlan(
            batch_shape=self.batch_shape, sequence=self.sequence, d=self.d, seed=seed, replicates=1, n=self.n,
            grid=self.grid,
        )  # fmt: skip
        infinite = any(bool(plain(end.isinf()).any()) for end in ends)
        x, weight = drawn.place(Box(ends[0], ends[1], infinite, like.dtype), 0, int(n))
        x, weight = x.expand(-1, self.batch, -1), weight.expand(int(n), self.batch) / n
        return x.reshape(-1, *self.batch_shape, self.d), weight.reshape(-1, *self.batch_shape)

    def _facts(self) -> tuple[str, dict[str, str]]:
        heading, facts = super()._facts()
        facts["map"] += f", learnt in {counted(self.shares.shape[0], 'iteration')}"
        unlearnt = 0 if self.learnt.is_meta else int((~self.learnt).sum())
        if unlearnt:
            facts["map"] += " (not settled" + (")" if self.batch == 1 else f" for {unlearnt:,} of {self.batch:,})")
        if self.share.is_meta:
            return heading, facts
        share = plain(self.share).reshape(self.batch_shape if self.share.shape[0] == self.batch else ())
        facts["effective"] = f"{show_numbers(share, 2)} of the samples"
        return heading, facts


@dataclass(frozen=True, eq=False, repr=False)
class IterationLog(Printed):
    """The iterations in which maps were learnt; rows are iterations, NaN where an integral took no part.

    Attributes
    ----------
    values : Tensor, shape (iterations, batch, *event)
    errors : Tensor, shape (iterations, batch)
        Half-widths of the interval at the call's confidence. The values take no part in the result: they and the
        maps come from the same points.
    shares : Tensor, shape (iterations, batch)
        The effective share of samples.
    """

    values: Tensor
    errors: Tensor
    shares: Tensor

    def __len__(self) -> int:
        return self.shares.shape[0]

    def _facts(self) -> tuple[str, dict[str, str]]:
        batch, rows = self.shares.shape[1], len(self)
        heading = f"Training of {counted(batch, 'map')}"
        if batch != 1:
            heading += ": of each iteration how many took part, medians of error and effective share"
        facts: dict[str, str] = {}
        for i in range(rows):
            took = ~self.shares[i].isnan()
            error, share = (
                t[i][took].median() if bool(took.any()) else torch.nan for t in (self.errors, self.shares)
            )
            first = show_numbers(self.values[i, 0], 6) if batch == 1 else f"{int(took.sum()):,}"
            facts[str(i + 1)] = f"{first:>12}  +- {float(error):<8.2g} {100.0 * float(share):6.2f} %"
        return heading, facts
