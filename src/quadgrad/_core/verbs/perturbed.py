"""A data set that perturbs the items of another: the same numbers in whatever process and order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import Dataset

from quadgrad._core.perturbations.noise import Noise
from quadgrad._core.perturbations.transport import Transport
from quadgrad._core.points.hashing import fold_seed, hash_numbers
from quadgrad._core.points.sequence import whole_number
from quadgrad._core.printing import Printed

__all__ = ["Perturbed"]

EPOCH = 0x45504F43
"""Key of the seeds of epochs."""


class Perturbed(Printed, Dataset[tuple[Any, ...]]):
    """The items of a data set, each with perturbed copies: ``[i]`` is ``(x, copies, y)``, copies ``(n, *item)``.

    The perturbations are a function of seed, epoch and the item's number, spread as those of
    :func:`quadgrad.perturbation_loss` are. Workers of a DataLoader, however many and however started, shuffling and
    distributed samplers do not change them. No generator is used.

    Parameters
    ----------
    dataset : map-style data set
        ``dataset[i]`` is ``(x, y)`` with x a floating tensor, or ``(x, *more)``, or x alone; it has a length.
    distribution : torch.distributions.Distribution
        Of the perturbations, as for :func:`quadgrad.perturbation_loss`. It gets no gradient.
    n : int
        Copies of each item.
    seed : int
        Others give independent perturbations.

    Raises
    ------
    TypeError
        The data set has no length or no items by number, x is no floating tensor, or the distribution is
        none that :func:`quadgrad.perturbation_loss` takes.
    ValueError
        n is below 1, or the distribution's shape is not the end of an item's.

    Notes
    -----
    Call :meth:`set_epoch` before every epoch, as for a ``DistributedSampler``: the epoch lies in shared memory, so
    that persistent workers see it. Workers fetch ahead within an epoch only.

    Numbers are the positions in ``dataset``: ``Subset(Perturbed(data, ...), chosen)`` keeps those of the whole.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = TensorDataset(torch.zeros(6, 2), torch.arange(6))
    >>> noisy = qg.Perturbed(data, torch.distributions.Normal(0.0, 0.25), n=4, seed=1)
    >>> noisy.set_epoch(1)
    >>> x, copies, y = next(iter(DataLoader(noisy, batch_size=3)))
    >>> x.shape, copies.shape, y
    (torch.Size([3, 2]), torch.Size([3, 4, 2]), tensor([0, 1, 2]))
    >>> bool((copies[1] == noisy[1][1]).all())
    True
    """

    def __init__(self, dataset: Any, distribution: Distribution, n: int, seed: int = 0) -> None:
        for method in ("__getitem__", "__len__"):
            if not hasattr(dataset, method):
                raise TypeError(
                    f"dataset is a {type(dataset).__name__} without {method}: perturbations are those of an item's "
                    "number, so that a map-style data set is needed"
                )
        if not isinstance(distribution, Distribution):
            Transport.of(distribution, torch.Size())
        self.dataset, self.distribution = dataset, distribution
        self.n, self.seed = whole_number("n", n), fold_seed(seed)
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()
        self._kept: tuple[Any, Transport, Noise] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the perturbations, 0 at first."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Let perturbations be those of an epoch, in running workers too."""
        self._epoch.fill_(fold_seed(epoch))

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed."""
        heading = f"Data set with {self.n} perturbed cop{'y' if self.n == 1 else 'ies'} of each item"
        items = f"{len(self):,} of {type(self.dataset).__name__}"
        return heading, {
            "items": items,
            "noise": repr(self.distribution),
            "seed": f"{self.seed}, epoch {self.epoch}",
        }

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.dataset)

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        """Return ``(x, copies, *more)`` of an item."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return the same of several items; a DataLoader asks for a batch at once."""
        numbers = [self._number(index) for index in indices]
        many = getattr(self.dataset, "__getitems__", None)
        samples = many(numbers) if many is not None else [self.dataset[i] for i in numbers]
        epoch = self.epoch
        result: list[tuple[Any, ...]] = []
        for number, sample in zip(numbers, samples, strict=True):
            x, *more = sample if isinstance(sample, tuple | list) else (sample,)
            result.append((x, self._copies(x, number, epoch), *more))
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process or a file needs."""
        return self.__dict__ | {"_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it; what comes from a file or a copy has an epoch of its own."""
        vars(self).update(state)
        self._epoch.share_memory_()

    def _number(self, index: Any) -> int:
        number, count = operator.index(index), len(self)
        if not -count <= number < count:
            raise IndexError(f"index {number} is not one of the {count} items")
        return number % count

    def _copies(self, x: Any, number: int, epoch: int) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = f"a {x.dtype} tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(
                f"item {number} of the data set is {what}, to which no noise can be added: it must be a floating "
                "tensor. Convert it in the data set, for example by transform=torchvision.transforms.ToTensor()"
            )
        with torch.no_grad():
            transport, noise = self._noise(x, epoch)
            points = noise.points(noise.shifts(torch.tensor([number], device=x.device)), 0, self.n)[:, 0]
            return x + transport.perturbations(points).to(x.dtype)

    def _noise(self, x: Tensor, epoch: int) -> tuple[Transport, Noise]:
        """Return what the items of a shape have in common in an epoch."""
        key = epoch, x.shape, x.dtype, x.device
        if self._kept is None or self._kept[0] != key:
            transport = Transport.of(self.distribution, x.shape)
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            noise = Noise(transport.d, self.n, hash_numbers(self.seed, EPOCH, epoch), dtype, x.device)
            self._kept = key, transport, noise
        return self._kept[1:]
