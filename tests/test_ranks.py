"""Calls that the processes of a group share: the same bits for any number of them, and errors that reach all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

import rank_failures
import rank_scenarios
from processes import LOST, Outcome, start

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="torch was built without gloo"
)

WORLDS = (1, 2, 3, 4)
NAMES = [scenario.__name__ for scenario in rank_scenarios.SAME]
BY_ROUNDING = {"quad_kinds": (4,), "quad_everything": (9, 14)}
"""What rounding decides: the errors of derivatives that were met far below their tolerance, and the derivatives by
breakpoints at which f does not jump, differences of sums that are 10^16 times as large."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, list[Tensor]]]]:
    """Run all scenarios that have one answer with each number of ranks."""
    folder = tmp_path_factory.mktemp("worlds")
    found: dict[int, list[dict[str, list[Tensor]]]] = {}
    groups = {world: start(folder / str(world), world, rank_scenarios.all_the_same) for world in WORLDS}
    for world, group in groups.items():
        outcomes = group.outcomes(120.0)
        assert not any(outcome.error for outcome in outcomes), outcomes
        found[world] = [outcome.value for outcome in outcomes]
    return found


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, str, str, float]]]:
    """Let three ranks fail in all ways that leave the group usable."""
    outcomes = start(tmp_path_factory.mktemp("failing"), 3, rank_failures.failing).outcomes()
    assert not any(outcome.error for outcome in outcomes), outcomes
    return [outcome.value for outcome in outcomes]


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_the_same_bits_for_any_number_of_ranks(shared: Any, name: str) -> None:
    first = shared[1][0][name]
    assert first
    for world in WORLDS:
        for rank in range(world):
            for one, other in zip(first, shared[world][rank][name], strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_those_of_one_process_without_a_group(shared: Any, name: str) -> None:
    alone = getattr(rank_scenarios, name)(0, 0)
    for i, (one, other) in enumerate(zip(alone, shared[2][1][name], strict=True)):
        if i in BY_ROUNDING.get(name, ()):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=0.0)
        else:
            coarse = {torch.float32: 1e-5, torch.complex64: 1e-5, torch.bfloat16: 1e-2}.get(one.dtype)
            torch.testing.assert_close(other, one, rtol=coarse or 1e-11, atol=1e-9 if coarse else 1e-15)


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("search", "LookupError", "a missing table"),
        ("first_call", "LookupError", "a missing table"),
        ("slow", "BufferError", "after a while"),
        ("backward", "OSError", "no such table"),
        ("dealt", "ZeroDivisionError", "in a part"),
        ("dealt_backward", "KeyError", "a part"),
        ("limit", "ValueError", "limit a is NaN at index (0,)"),
    ],
)
def test_what_is_raised_on_one_rank_is_raised_on_all_within_five_seconds(
    failed: Any, name: str, kind: str, text: str
) -> None:
    for rank in range(3):
        raised, said, notes, seconds = failed[rank][name]
        assert (raised, said.strip("'")) == (kind, text)
        assert seconds < (6.0 if name == "slow" else 5.0)  # it raises after one second
        assert (rank == 1) != ("raised on rank 1 of the group:\nTraceback" in notes)
        assert (name == "limit") != ("raised by the integrand" in notes)


def test_an_error_that_cannot_be_sent_is_told_by_its_text(failed: Any) -> None:
    assert failed[1]["unusual"][:2] == ("Unusual", "cannot be sent")
    for rank in (0, 2):
        assert failed[rank]["unusual"][:2] == ("RuntimeError", "Unusual: cannot be sent")
        assert "in bad" in failed[rank]["unusual"][2]  # the function that raised it there


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("value", "args[0] differs between the ranks of the group ((2,) of float64 on rank 0, other values on"),
        ("number", "args[1] differs between the ranks of the group (3.0 on rank 0, 4.0 on rank 1)"),
        ("shape", "args[0] differs between the ranks of the group ((2,) of float64 on rank 0, (3,) of float64"),
        ("more", "args[2] differs between the ranks of the group (nothing on rank 0, 4.0 on rank 1)"),
        ("dimension", "a differs between the ranks of the group ((1, 2) of float64 on rank 0, (1, 3) of"),
        ("grad", "args[0] differs between the ranks of the group ((2,) of float64 on rank 0, (2,) of float64, wh"),
        ("option", "n differs between the ranks of the group (1024 on rank 0, 2048 on rank 1)"),
        ("draws", "seed differs between the ranks of the group (0 on rank 0, 1 on rank 1)"),
        ("map", "plan.grid differs between the ranks of the group ((1, 2, 201) of float64 on rank 0, other values"),
        ("dtype", "args[0] differs between the ranks of the group ((2,) of float64 on rank 0, (2,) of float32"),
        ("network", "f differs between the ranks of the group: at the same point ranks [1] got another value"),
    ],
)  # fmt: skip
def test_ranks_that_do_not_share_an_integral_all_say_what_differs(failed: Any, name: str, named: str) -> None:
    for rank in range(3):
        kind, text, _, seconds = failed[rank][name]
        assert kind == "ValueError"
        assert text.startswith(named)
        assert seconds < 5.0


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("backend", "ValueError", "its backend is nccl for cuda, and the integral is on cpu"),
        ("type", "TypeError", "a process group of torch.distributed, such as"),
        ("inside", "ValueError", "an integral inside an integrand is each rank's own"),
        ("transform", "ValueError", "under torch.func transforms"),
        ("ddp", "IntegrandError", "Call the module inside it: ddp.module(x)"),
        ("fsdp", "IntegrandError", "f calls an FSDP module"),
        ("uncertain", "IntegrationError", "1 of 1 integrals did not converge"),
        ("unmatched", "RuntimeError", "the ranks of the group are not in the same call"),
    ],
)
def test_what_cannot_be_shared_is_refused_on_all(failed: Any, name: str, kind: str, text: str) -> None:
    for rank in range(3):
        assert failed[rank][name][0] == kind
        assert text in failed[rank][name][1]


def test_a_process_outside_of_the_group_is_told(failed: Any) -> None:
    assert failed[0]["outside"][0] == ""
    for rank in (1, 2):
        assert failed[rank]["outside"][0] == "ValueError"
        assert "this process is not one of its ranks" in failed[rank]["outside"][1]


def test_after_an_error_the_group_works_again(failed: Any) -> None:
    assert all(ends["works_again"][0] == "" for ends in failed)


@pytest.mark.parametrize("when", ["exit", "killed", "backward"])
def test_a_lost_rank_is_an_error_on_the_others(tmp_path: Path, when: str) -> None:
    lost: list[Outcome] = start(tmp_path, 3, rank_failures.killed, when).outcomes(30.0)
    assert lost[1].error == LOST
    for rank in (0, 2):
        assert lost[rank].error == "RuntimeError"
        assert "the ranks of the group have lost each other" in lost[rank].text


def test_the_example_runs_with_torchrun() -> None:
    given = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / "many_processes.py")], env=given, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "2 processes hold the same weights, to the last bit"
