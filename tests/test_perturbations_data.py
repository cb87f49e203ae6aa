"""The perturbed data set: the same numbers in any number of workers, however started, and in any order."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Laplace, Normal, Poisson
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset, TensorDataset

import quadgrad as qg

ITEMS = 13
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # as many as asked for, on any machine
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def started_by(context: str) -> str:
    if context not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {context} here")
    return context


class Ragged(Dataset[Any]):
    """Items of different lengths, with more than a target."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return torch.full((index + 1,), float(index)), index, "more"


def make(distribution: Any = None, n: int = 3, seed: int = 0) -> qg.Perturbed:
    x = torch.rand(ITEMS, 5, generator=torch.Generator().manual_seed(0))
    return qg.Perturbed(TensorDataset(x, torch.arange(ITEMS)), distribution or Normal(0.0, 0.25), n=n, seed=seed)


def collected(loader: Any) -> Tensor:
    """Return the copies of all items, by their numbers."""
    copies = torch.full((ITEMS, 3, 5), torch.nan)
    for x, perturbed, y in loader:
        assert perturbed.shape == (len(y), 3, 5)
        assert not torch.equal(perturbed[:, 0], x)
        copies[y] = perturbed
    return copies


def expected(data: qg.Perturbed) -> Tensor:
    return torch.stack([data[i][1] for i in range(len(data))])


# ---------------------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_any_number_of_forked_workers_gives_the_same_numbers(workers: int, shuffle: bool) -> None:
    """Row 73: with a generator inside the data set, all workers draw the same numbers in every epoch."""
    data = make()
    context = started_by("fork") if workers else None
    loader = DataLoader(data, batch_size=4, shuffle=shuffle, num_workers=workers, multiprocessing_context=context)
    found = collected(loader)
    assert torch.equal(found, expected(make()))
    noise = found - torch.stack([data[i][0] for i in range(ITEMS)])[:, None]
    assert len(noise.flatten().unique()) > 0.99 * noise.numel()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_epoch_reaches_persistent_workers(context: str) -> None:
    data = make()
    loader = DataLoader(
        data, batch_size=5, num_workers=2, multiprocessing_context=started_by(context), persistent_workers=True
    )
    epochs = []
    for epoch in (0, 1, 5, 0):
        data.set_epoch(epoch)
        epochs.append(collected(loader))
        assert torch.equal(epochs[-1], expected(data))
    assert torch.equal(epochs[0], epochs[3])
    assert (epochs[0] != epochs[1]).all()
    assert (epochs[1] != epochs[2]).all()


def test_ranks_of_a_distributed_sampler() -> None:
    data = make()
    whole = torch.full((ITEMS, 3, 5), torch.nan)
    for rank in range(3):
        sampler = DistributedSampler(data, num_replicas=3, rank=rank, shuffle=True, seed=7)
        found = collected(DataLoader(make(), batch_size=2, sampler=sampler))
        whole = torch.where(found.isnan(), whole, found)
    assert torch.equal(whole, expected(data))


def test_no_global_generator_is_used() -> None:
    state = torch.get_rng_state()
    expected(make())
    assert torch.equal(state, torch.get_rng_state())


# ----------------------------------------------------------------------------------------------------- numbers


def test_numbers_are_a_function_of_seed_epoch_and_index() -> None:
    data, other = make(seed=1), make(seed=2)
    first = expected(data)
    assert torch.equal(first, expected(make(seed=1)))
    assert (first != expected(other)).all()
    data.set_epoch(1)
    assert data.epoch == 1
    assert (first != expected(data)).all()
    assert (expected(data) != expected(other)).all()  # seed 1, epoch 1 is not seed 2, epoch 0
    data.set_epoch(2**70)
    assert torch.isfinite(expected(data)).all()


@pytest.mark.parametrize("size", [1, 3, 7, 16, 33])
def test_the_size_of_a_batch_does_not_change_a_bit(size: int) -> None:
    data = qg.Perturbed(TensorDataset(torch.zeros(40, size)), Laplace(0.0, 1.0), n=5)
    batch = data.__getitems__(list(range(40)))
    assert all(torch.equal(batch[i][1], data[i][1]) for i in range(40))


def test_copies_are_the_item_and_evenly_spread_noise() -> None:
    data = qg.Perturbed(TensorDataset(torch.full((6, 2), 10.0), torch.arange(6)), Normal(0.0, 1.0), n=16)
    x, copies, y = data[-1]
    assert int(y) == 5
    assert torch.equal(copies, data[5][1])
    levels = torch.special.ndtr(copies - x) * 16
    assert torch.equal(levels.long().sort(0).values, torch.arange(16)[:, None].expand(16, 2))


def test_subsets_samples_of_other_kinds_and_items_of_other_shapes() -> None:
    data = make()
    assert torch.equal(Subset(data, [4, 2])[1][1], data[2][1])
    alone = qg.Perturbed([torch.zeros(2)], Independent(Normal(torch.zeros(2), 1.0), 1), n=4)
    assert [t.shape for t in alone[0]] == [(2,), (4, 2)]
    ragged = qg.Perturbed(Ragged(), Normal(0.0, 1.0), n=2)
    samples = ragged.__getitems__([0, 3, 1])
    assert [tuple(s[1].shape) for s in samples] == [(2, 1), (2, 4), (2, 2)]
    assert samples[1][2:] == (3, "more")


def test_no_gradient_enters() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    assert not qg.Perturbed([torch.zeros(2)], Normal(0.0, scale), n=4)[0][1].requires_grad


def test_copies_of_the_data_set_have_epochs_of_their_own() -> None:
    data = make()
    data.set_epoch(3)
    file = io.BytesIO()
    torch.save(data, file)
    file.seek(0)
    others = [copy.deepcopy(data), pickle.loads(pickle.dumps(data)), torch.load(file, weights_only=False)]
    data.set_epoch(4)
    for other in others:
        assert other.epoch == 3
        other.set_epoch(4)
        assert torch.equal(expected(other), expected(data))


# --------------------------------------------------------------------------------------------------- bad input


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(2)


def test_it_prints_what_it_holds() -> None:
    noisy = qg.Perturbed(TensorDataset(torch.zeros(3, 2)), Normal(0.0, 0.25), n=4, seed=7)
    noisy.set_epoch(2)
    lines = repr(noisy).splitlines()
    assert lines[0] == "Data set with 4 perturbed copies of each item"
    told = dict(line.strip().split(": ", 1) for line in lines[1:])
    assert told == {"items": "3 of TensorDataset", "noise": "Normal(loc: 0.0, scale: 0.25)", "seed": "7, epoch 2"}


def test_bad_input_is_refused_by_name() -> None:
    data, noise = TensorDataset(torch.zeros(3, 2)), Normal(0.0, 1.0)
    with pytest.raises(TypeError, match="Stream without __len__"):
        qg.Perturbed(Stream(), noise, n=2)
    with pytest.raises(ValueError, match="n=0"):
        qg.Perturbed(data, noise, n=0)
    with pytest.raises(TypeError, match="seed"):
        qg.Perturbed(data, noise, n=2, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Normal"):
        qg.Perturbed(data, 0.25, n=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="its values are counted"):
        qg.Perturbed(data, Poisson(1.0), n=2)[0]
    with pytest.raises(TypeError, match=r"item 1 of the data set is a torch\.uint8"):
        qg.Perturbed(TensorDataset(torch.zeros(3, 2, dtype=torch.uint8)), noise, n=2)[1]
    with pytest.raises(TypeError, match="ToTensor"):
        qg.Perturbed(["picture"], noise, n=2)[0]
    with pytest.raises(IndexError, match="index 3"):
        qg.Perturbed(data, noise, n=2)[3]
    with pytest.raises(ValueError, match="expand"):
        qg.Perturbed(data, Normal(torch.zeros(3), 1.0), n=2)[0]
