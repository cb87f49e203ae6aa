"""How VEGAS learns its maps: iterations that move the ends of bins to where the integrand's square is.

What they see is used for nothing else. A map is frozen before the integral is sampled, from other points: estimates
of iterations that were combined by their own variances would be biased, since those with small values have small
variances, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.estimates.replicates import ReplicateSums, half_width
from quadgrad._core.mesh.grid import even_grid, level_mass
from quadgrad._core.plans.importance import ImportancePlan
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.points.hashing import fold_seed, hash_numbers
from quadgrad._core.problem import Problem
from quadgrad._core.search.samples.placing import place_points
from quadgrad._core.search.samples.sampling import Sample, block_width, blocks, cut, tile_size
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status

__all__ = ["Training", "adapt_grid", "judge_maps", "train_maps"]

TRAINED = 0x5452_4149
"""Key of the points of the training, so that none is one of the integral's."""

DAMPING = 0.75
"""Power of a bin's importance (Lepage's alpha): smaller ones learn more slowly, larger ones follow what few points
say. Of 0.5, 0.75 and 1 the one with which none of eight integrands was far from its best (see ADR 27)."""

GRADING = 2.0
"""A bin beside one that is r times as narrow is cut into log(1 + 2 r) / 2 at least. Otherwise the last bin before a
tail reaches far into it, and what f does at its inner end is a spike among points: up to 8 times the error."""

SETTLED = 0.1
"""A map has settled if its effective share changes by no more than this, relatively, in two iterations in a row."""

FALLEN = 0.2
"""A kept map is refined where its effective share has fallen by more than this, relatively."""

STEADY = 0.5
"""A map has not learnt if its effective share still changes by more than this in the last iteration."""

FIRST_LOOK = 64
"""Points of each replicate from which components get their first scale."""

FITTED, STEEPEST = 10, 1.3
"""Bins at the end of an axis through which a power law is put, and the power of the square from which on a map is
of no use; it comes out .1 to .3 too large. x^-.45 has .9 and is fine, x^-.7 was wrong in a tenth of the cases that
seemed to converge."""

SEEN = 100.0
"""Effective samples, of one iteration, below which a map says little of the integrand."""


@dataclass(frozen=True)
class Training:
    """How maps are learnt: ``size`` points of each replicate in an iteration, at most ``iterations`` of them.

    ``kept`` ``(batch or 1,)`` are the effective shares of the maps that the sample's plan has already, which are
    used as they are where they still do as well.
    """

    size: int
    iterations: int
    bins: int
    kept: Tensor | None = None


def train_maps(problem: Problem, sample: Sample, training: Training) -> Sample:
    """Return how to sample a problem through maps that were learnt for it; it is outside of all transforms."""
    plan = sample.plan
    bins = training.bins if plan.grid is None else plan.grid.shape[2] - 1
    size = tile_size(problem, replace(plan, grid=even_grid(1, plan.d, bins, problem.limits.a)))
    parts = [(low, min(problem.batch, low + size)) for low in range(0, problem.batch, size)] or [(0, 0)]
    each: list[ImportancePlan] = []
    for low, high in parts:
        part = problem if len(parts) == 1 else problem.part(low, high)
        owner = slice(low, high)
        kept = training.kept
        kept = kept if kept is None or kept.shape[0] == 1 else kept[owner]
        each.append(_Training(part, replace(sample, plan=plan.take(owner)), replace(training, kept=kept)).run())
    rows = max(len(one.log) for one in each)

    def join(name: str) -> Tensor:
        return torch.cat([getattr(one, name) for one in each])

    def stack(name: str) -> Tensor:
        return torch.cat([_with_rows(getattr(one, name), rows) for one in each], dim=1)

    logs = {name: stack(name) for name in ("values", "errors", "shares")}
    joined = replace(
        each[0], batch_shape=problem.batch_shape, n=sample.plan.n, grid=join("grid"), share=join("share"),
        learnt=join("learnt"), **logs,
    )  # fmt: skip
    return replace(sample, plan=joined)


def judge_maps(found: Found, training: Training, empty: Tensor) -> tuple[Found, str]:
    """Enter how well the maps did; return a sentence on it. What has not learnt its map has not converged.

    ``empty`` ``(batch or 1,)`` tells which boxes have no volume.
    """
    plan: ImportancePlan = found.plan
    assert found.effective is not None
    share = (found.effective / found.nfev.clamp_min(1)).nan_to_num(0.0)
    took_part = (~plan.shares.isnan()).sum(0)
    spent = found.nfev + took_part * (training.size * plan.replicates)
    found = replace(found, plan=replace(plan, share=share), nfev=spent)
    low, high = (f"{100.0 * float(end):.2g} %" for end in torch.aminmax(share)) if share.numel() else ("", "")
    said = f" The effective share of samples is {low if low == high else f'{low} to {high}'}." if low else ""
    # A sample that is worse than the last iteration has met what that one did not. In an empty box is nothing.
    unlearnt = (~plan.learnt | (share < (1.0 - FALLEN) * plan.share)) & ~empty
    found.plan = replace(found.plan, learnt=~unlearnt)
    if bool(unlearnt.any()):
        first = int(unlearnt.nonzero()[0])
        said += (
            f" {int(unlearnt.sum())} of {plan.batch} maps had not settled (integral {first}: effective share "
            f"{100.0 * float(share[first]):.2g} %): raise iterations or n, or choose coordinates along which the "
            "integrand is a product and its square has an integral."
        )
        failed = unlearnt & (found.status == int(Status.CONVERGED))
        found.status = found.status.masked_fill(failed, int(Status.MAX_NFEV))
    return found, said


def _with_rows(log: Tensor, rows: int) -> Tensor:
    """Return a log with more rows, of NaN."""
    return torch.cat((log, log.new_full((rows - log.shape[0], *log.shape[1:]), torch.nan)))


def adapt_grid(grid: Tensor, moments: Tensor, damping: float = DAMPING) -> Tensor:
    """Return grids whose bins are narrower where the integrand's square is.

    Parameters
    ----------
    grid : Tensor, shape (batch, d, bins + 1)
    moments : Tensor, shape (batch, d, bins)
        Each bin's part of the second moment of weighted values. Where all are zero, a grid stays as it is.
    damping : float
        0 learns nothing, 1 all at once.

    Notes
    -----
    Smoothing, damping and new ends are Lepage's (*J. Comput. Phys.* 439, 110386, 2021, equations 17 to 21). Widths
    are graded besides, as those of meshes are.
    """
    bins = moments.shape[-1]
    total = moments.sum(-1, keepdim=True)
    known = (total > 0.0) & total.isfinite()
    share = torch.where(known, moments / torch.where(known, total, 1.0), 1.0 / bins)
    smooth = torch.cat((share[..., :1], share, share[..., -1:]), dim=-1)
    smooth = 0.125 * (smooth[..., :-2] + 6.0 * smooth[..., 1:-1] + smooth[..., 2:])
    smooth = smooth.clamp(1e-30, 1.0 - 1e-12)
    importance = ((smooth - 1.0) / smooth.log()) ** damping
    importance = torch.maximum(importance / importance.mean(-1, keepdim=True), _graded(grid))
    return torch.where(known, level_mass(grid, importance), grid)


def _graded(grid: Tensor) -> Tensor:
    """Return into how many bins each is to be cut, at least, so that widths change gradually."""
    width = grid.diff(dim=-1)
    beside = torch.cat((width[..., :1], width, width[..., -1:]), dim=-1)
    narrower = torch.minimum(beside[..., :-2], beside[..., 2:])
    return torch.log1p(GRADING * width / narrower.clamp_min(torch.finfo(width.dtype).tiny)) / GRADING


def _is_singular(grid: Tensor, moments: Tensor) -> Tensor:
    """Tell of which integrals the square grows so at an end of an axis that it has no integral, ``(batch,)``.

    A straight line through the logarithms of the square, over the first bins and the last: no map of bins makes the
    variance finite then, and replicates that have all missed the same spike agree.
    """
    steep = torch.zeros(grid.shape[0], dtype=torch.bool, device=grid.device)
    if moments.shape[-1] < 2 * FITTED:
        return steep
    width = grid.diff(dim=-1)
    for ends, m, w in ((grid, moments, width), (1.0 - grid.flip(-1), moments.flip(-1), width.flip(-1))):
        square = (m / w.square())[..., :FITTED].log()
        place = (0.5 * (ends[..., 1:] + ends[..., :-1]))[..., :FITTED].log()
        place = place - place.mean(-1, keepdim=True)
        slope = (place * square).sum(-1) / place.square().sum(-1)
        steep |= (slope <= -STEEPEST).any(-1)
    return steep


@dataclass(slots=True)
class _Seen:
    """What one iteration saw of some integrals: values divided by ``scale`` ``(batch, *event)``."""

    sums: ReplicateSums
    moments: Tensor
    scale: Tensor
    n: int

    def share(self) -> Tensor:
        """Return the effective share of samples, of the sum of all components' moduli."""
        square = self.moments[:, 0].sum(-1)
        size = self.sums.size.flatten(1).sum(1) if self.sums.size.ndim > 1 else self.sums.size
        share = size.square() / (square * (self.n * self.sums.first.shape[0]))
        return torch.where(square > 0.0, share, 0.0).nan_to_num(0.0)

    def next_scale(self) -> Tensor:
        """Return the mean modulus of each component, by which to divide next time."""
        return _usable(self.sums.size * self.scale / (self.n * self.sums.first.shape[0]), self.scale)


def _usable(mean: Tensor, scale: Tensor) -> Tensor:
    """Return mean moduli by which to divide, or the scale where they say nothing."""
    return torch.where((mean > 0.0) & mean.isfinite(), mean, scale)


@dataclass(slots=True)
class _Block:
    """Values of f ``(replicates * m, batch, *event)`` at a block of points, the weights, and the bins."""

    y: Tensor
    weight: Tensor
    bin: Tensor

    def first(self, count: int, replicates: int) -> ReplicateSums:
        """Return the sums over the first so many points of each replicate."""
        y, weight = (t.unflatten(0, (replicates, -1))[:, :count].flatten(0, 1) for t in (self.y, self.weight))
        return ReplicateSums.of(y, weight, replicates)

    def add_moments(self, moments: Tensor) -> None:
        """Add to the second moments of all bins."""
        size = self.y.abs()
        size = (size.flatten(2).sum(2) if size.ndim > 2 else size) * self.weight
        square = size.square_().T.reshape(-1)
        for bin in self.bin:  # one axis after another: no copy of the squares for each
            where = bin.reshape(-1).long()
            if moments.is_cpu:
                moments.scatter_add_(0, where, square)
            else:  # in the order of the points, whatever the device's scheduling
                moments.index_put_((where,), square, accumulate=True)


class _Training:
    """The iterations of some integrals: maps that have settled cost nothing more."""

    def __init__(self, problem: Problem, sample: Sample, training: Training) -> None:
        self.problem, self.sample, self.training = problem, sample, training
        plan, batch = sample.plan, problem.batch
        like = problem.limits.a
        grid = even_grid(batch, plan.d, training.bins, like) if plan.grid is None else plan.grid
        self.grid = grid.clone() if grid.shape[0] == batch else grid.repeat(batch, 1, 1)
        self.bins = self.grid.shape[2] - 1
        seed = hash_numbers(fold_seed(plan.seed), TRAINED)
        self.plan = PointsPlan(
            batch_shape=(batch,), sequence=plan.sequence, d=plan.d, seed=seed, replicates=plan.replicates, n=plan.n
        )
        self.learnt, self.calm = (torch.zeros(batch, dtype=torch.bool, device=like.device) for _ in range(2))
        self.share = torch.full((batch,), torch.nan, dtype=like.dtype, device=like.device)
        self.values: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.shares: list[Tensor] = []

    def run(self) -> ImportancePlan:
        """Iterate until every map has settled."""
        active = torch.arange(self.problem.batch, device=self.grid.device)
        scale: Tensor | None = None
        for iteration in range(self.training.iterations):
            if not active.numel():
                break
            seen = self._iterate(active, iteration * self.training.size, scale)
            settled = self._enter(active, seen, iteration)
            scale = seen.next_scale()[~settled]
            moments, active = seen.moments[~settled], active[~settled]
            self.grid[active] = adapt_grid(self.grid[active], moments)
        plan = self.sample.plan
        shape, event = (len(self.values), self.problem.batch), self.problem.integrand.event or ()
        dtype = self.problem.integrand.output_dtype or self.problem.integrand.sum_dtype
        return ImportancePlan(
            batch_shape=(self.problem.batch,), sequence=plan.sequence, d=plan.d, seed=plan.seed,
            replicates=plan.replicates, n=plan.n, grid=self.grid, share=self.share, learnt=self.learnt,
            values=torch.stack(self.values) if self.values else plan.n.new_zeros((*shape, *event), dtype=dtype),
            errors=torch.stack(self.errors) if self.errors else self.grid.new_zeros(shape),
            shares=torch.stack(self.shares) if self.shares else self.grid.new_zeros(shape),
        )  # fmt: skip

    def _enter(self, active: Tensor, seen: _Seen, iteration: int) -> Tensor:
        """Enter what an iteration saw; return which maps have settled, and stay as they are."""
        share, before = seen.share(), self.share[active]
        means = seen.sums.first / seen.n * seen.scale
        value = self._full(seen.scale.shape[1:], means.dtype).index_copy_(0, active, means.mean(0))
        error = largest_component(half_width(means, self.sample.confidence))
        self.values.append(value)
        self.errors.append(self._full((), error.dtype).index_copy_(0, active, error))
        self.shares.append(self._full((), share.dtype).index_copy_(0, active, share))
        enough = share * (seen.n * self.plan.replicates) >= SEEN
        change = (share - before).abs() / torch.maximum(share, before)
        calm = enough & (change <= SETTLED)
        # One change that is small is luck too often: shares of tails jump.
        settled = calm & self.calm[active]
        self.calm[active] = calm
        learnt = enough & (change <= STEADY)
        if iteration == 0 and self.training.kept is not None:
            kept = self.training.kept.expand(self.problem.batch)[active]
            learnt = settled = enough & (share >= (1.0 - FALLEN) * kept)
        last = settled if iteration + 1 < self.training.iterations else torch.ones_like(settled)
        owner = active[last]
        self.learnt[owner] = learnt[last] & ~_is_singular(self.grid[owner], seen.moments[last])
        self.share[active] = share
        return settled

    def _full(self, event: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.full((self.problem.batch, *event), torch.nan, dtype=dtype, device=self.grid.device)

    def _iterate(self, active: Tensor, start: int, scale: Tensor | None) -> _Seen:
        """Evaluate the points of one iteration."""
        everyone = active.numel() == self.problem.batch
        owner = slice(0, self.problem.batch) if everyone else active
        box = self.problem.pieces if everyone else self.problem.pieces.take(active)
        plan = replace(self.plan.take(owner), grid=self.grid[owner])
        width = block_width(self.problem, plan, active.numel())
        parts = cut(list(blocks(start, start + self.training.size, width)))
        ranks, batch = self.sample.ranks, active.numel()
        looked: list[_Block] = []

        def evaluate(low: int, count: int) -> _Block:
            x, weight, bin = place_points(plan, box, low, count, with_bins=True)
            assert bin is not None
            return _Block(self.problem.integrand(x, owner), weight, bin)

        def look(_: int) -> list[Tensor]:
            looked.append(evaluate(*parts[0][0]))
            return [looked[0].first(FIRST_LOOK, plan.count).size]

        if scale is None:
            # Components of very different sizes, and squares that would leave the range, ask for a first look. What
            # f has returned is kept: the first part of the sum begins with it.
            (size,) = ranks.fold(1, look, lambda: [self._nothing(batch).size])
            scale = _usable(size / (min(parts[0][0][1], FIRST_LOOK) * plan.count), torch.ones_like(size))
        by = scale

        def compute(part: int) -> list[Tensor]:
            whole, moments = self._nothing(batch), self._no_moments(batch)
            for low, count in parts[part]:
                block = looked.pop() if looked else evaluate(low, count)
                block.y = block.y / by
                block.add_moments(moments)
                whole.add(ReplicateSums.of(block.y, block.weight, plan.count).tensors())
            return [*whole.tensors(), moments]

        nothing = lambda: [*self._nothing(batch).tensors(), self._no_moments(batch)]
        *sums, moments = ranks.fold(len(parts), compute, nothing)
        shaped = moments.reshape(plan.d, batch, self.bins).transpose(0, 1)
        return _Seen(ReplicateSums(*sums), shaped, scale, self.training.size)

    def _nothing(self, batch: int) -> ReplicateSums:
        integrand = self.problem.integrand
        dtype = integrand.output_dtype or integrand.sum_dtype
        return ReplicateSums.none(self.plan.replicates, (batch, *(integrand.event or ())), dtype, self.grid.device)

    def _no_moments(self, batch: int) -> Tensor:
        return self.grid.new_zeros(self.plan.d * batch * self.bins)
