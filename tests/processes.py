"""Processes of a group, for tests: started from one that has imported torch already, on gloo, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

LOST = "did not come back"


@dataclass
class Outcome:
    """What a rank returned, or what it raised, and how long its call took."""

    value: Any = None
    error: str = ""
    text: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Group:
    """Processes that were started, and the folder in which each leaves what it did."""

    folder: Path
    workers: list[Any]

    def outcomes(self, timeout: float = 60.0) -> list[Outcome]:
        """Wait for the processes, end those that hang, and return what each did."""
        ends = time.monotonic() + timeout
        for worker in self.workers:
            worker.join(max(0.0, ends - time.monotonic()))
            if worker.is_alive():
                worker.kill()
                worker.join()
        paths = [self.folder / f"{rank}.pickle" for rank in range(len(self.workers))]
        return [pickle.loads(p.read_bytes()) if p.exists() else Outcome(error=LOST) for p in paths]


def start(folder: Path, world: int, target: Callable[..., Any], *args: Any) -> Group:
    """Start ``target(rank, world, *args)`` on each rank of a fresh group."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(["rank_scenarios", "rank_failures"])
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONPATH")}
    # The server does not hear of our path in another way, and would import nothing beforehand.
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    try:
        workers = [
            context.Process(target=_work, args=(folder, rank, world, target, args), daemon=True)
            for rank in range(world)
        ]
        for worker in workers:
            worker.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    return Group(folder, workers)


def _work(folder: Path, rank: int, world: int, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world,
        timeout=timedelta(seconds=30),
    )  # fmt: skip
    began, outcome = time.monotonic(), Outcome()
    try:
        outcome.value = target(rank, world, *args)
    except Exception as error:
        outcome.error, outcome.text = type(error).__name__, str(error)
        outcome.notes = list(getattr(error, "__notes__", ()))
    outcome.seconds = time.monotonic() - began
    scratch = folder / f"{rank}.part"
    scratch.write_bytes(pickle.dumps(outcome))
    scratch.rename(folder / f"{rank}.pickle")
    if not outcome.error:
        distributed.destroy_process_group()
    os._exit(0)  # threads of a group that has lost a rank may not end
