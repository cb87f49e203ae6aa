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

EVENLY, LOGARITHMIC = 350, 755
"""Most operations of a round, views among them, without and with cells that have logarithmic nodes."""


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
def looks() -> list[int]:
    """Return how often the host waited in the looks between rounds, for each round, once these are counted."""
    return []


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch, looks: list[int]) -> list[tuple[Counter[str], bool]]:
    """Return the operations of each round of a search of 2,000 peaks, and whether it had logarithmic nodes."""
    counted, seen, evaluate, decide = Operations(), [], TensorBodies.evaluate, TensorBodies.decide
    hosts, started, after = [0], list[TensorBodies[Any]](), [Counter[str]()]

    def whole_round(self: TensorBodies[Any]) -> Any:
        before, logarithmic = counted.counts.copy(), any(new.logarithmic for new in self.new)
        looks.append(hosts[0] + sum((before - after[0])[name] for name in WAITS))
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


def test_looks_between_rounds_ask_the_host_seldom(
    rounds: list[tuple[Counter[str], bool]], looks: list[int]
) -> None:
    """Most find nothing to close in on; of a zoom each step asks once. Masks that pick entries are not counted."""
    assert len(looks) >= len(rounds) and sorted(looks)[len(looks) // 2] <= 4
    assert sum(looks) <= 44  # four of them whether a tenth of the budget is spent
