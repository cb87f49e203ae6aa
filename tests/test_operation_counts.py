"""What a round of the search in tensors costs on a fast device: operations, and how often the host looks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import quadgrad as qg
from quadgrad._core.search.kernel import opening
from quadgrad._core.search.tensors import TensorBodies

EVENLY, LOGARITHMIC, LOOKS = 352, 770, 2_066
"""Most operations of a round, views among them, without and with cells that have logarithmic nodes; of looks.

Four of the 770 tell where rounding is as large as all that is there (766 before)."""

WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "repeat_interleave")
"""Operations that wait for the device."""


class Operations(TorchDispatchMode):
    """Count operations by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def looks() -> list[tuple[int, int]]:
    """Return how often the host waited in the look before each round, and its operations, once counted."""
    return []


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch, looks: list[tuple[int, int]]) -> list[tuple[Counter[str], bool]]:
    """Return the operations of each round of a search of 2,000 peaks, and whether it had logarithmic nodes."""
    counted, seen, evaluate, decide = Operations(), [], TensorBodies.evaluate, TensorBodies.decide
    hosts, started, after = [0], list[TensorBodies[Any]](), [Counter[str]()]

    def whole_round(self: TensorBodies[Any]) -> Any:
        before, logarithmic = counted.counts.copy(), any(new.logarithmic for new in self.new)
        look = before - after[0]
        looks.append((hosts[0] + sum(look[name] for name in WAITS), sum(look.values())))
        hosts[0] = 0
        tally = decide(self)
        if tally.running:
            logarithmic |= any(new.logarithmic for new in self.new)
            evaluate(self)
            operations = counted.counts - before
            operations["tolist"] = hosts[0]
            seen.append((operations, logarithmic))
        after[0], hosts[0] = counted.counts.copy(), 0
        return tally

    def first(self: TensorBodies[Any]) -> None:
        if self not in started:  # later rounds evaluate above
            started.append(self)
            evaluate(self)

    def to_list(self: torch.Tensor) -> Any:
        hosts[0] += 1
        return lists(self)

    lists = torch.Tensor.tolist
    monkeypatch.setattr(opening, "load", lambda: None)
    monkeypatch.setattr(TensorBodies, "decide", whole_round)
    monkeypatch.setattr(TensorBodies, "evaluate", first)
    monkeypatch.setattr(torch.Tensor, "tolist", to_list)
    generator = torch.Generator().manual_seed(0)
    c, decades = torch.rand((2, 2_000), generator=generator, dtype=torch.float64)
    peak = lambda x, c, w: w / ((x - c) ** 2 + w * w)
    with counted:
        assert qg.quad(peak, 0.0, 1.0, (c, 10 ** (3 * decades - 4)), rtol=1e-8, chunk_size=2**20).converged.all()
    return seen


def test_a_round_asks_the_host_twice(rounds: list[tuple[Counter[str], bool]]) -> None:
    assert len(rounds) > 5
    for operations, _ in rounds:
        assert operations["tolist"] + operations["_local_scalar_dense"] + operations["item"] <= 2
        # These wait for the device, to learn how much they have found.
        assert not {"nonzero", "masked_select", "unique", "_unique2", "repeat_interleave"} & set(operations)


def test_a_round_has_few_operations(rounds: list[tuple[Counter[str], bool]]) -> None:
    for operations, logarithmic in rounds:
        assert sum(operations.values()) <= (LOGARITHMIC if logarithmic else EVENLY)


def test_looks_between_rounds_cost_little(
    rounds: list[tuple[Counter[str], bool]], looks: list[tuple[int, int]]
) -> None:
    """Most find nothing to close in on; of a zoom each step asks once. Masks that pick entries are not counted."""
    waits, operations = zip(*looks, strict=True)
    assert len(looks) >= len(rounds) and sorted(waits)[len(waits) // 2] <= 3
    assert sum(waits) <= 35
    assert sum(operations) <= LOOKS
