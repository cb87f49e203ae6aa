"""Time quadgrad and its peers in turn, with the accuracy of each beside its time."""

from __future__ import annotations

import time
import warnings

import torch

from benchmarks.findings import Figure, Findings, Sheet, Target, show_time
from benchmarks.peers.integrators import LIMIT, MOST_NODES, PEERS, Answer, Peer, Prepared
from benchmarks.peers.jobs import RTOL, Job, make_jobs
from benchmarks.timing import Seconds, Task, interleave

__all__ = ["measure"]

REPEATS = 5
PAUSE = 0.05
QUICK = 0.1
"""Seconds below which a task is timed the second time it runs."""
OURS = PEERS[0]
HEADINGS = (
    "a run", "per\nintegral", "over\nquad", "best\nruns", "nodes per\nintegral",
    "worst true\nerror", "not con-\nverged", "true >\nreported",
)  # fmt: skip


def measure(scale: float = 1.0) -> Findings:
    """Time all that are installed on every job."""
    sheets: list[Sheet] = []
    figures: list[Figure] = []
    notes: list[str] = []
    # What they warn about (rounding, deprecations, failure to converge) is counted in the tables.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for job in make_jobs(scale):
            sheet, found, failures = run_job(job)
            sheets.append(sheet)
            figures.append(found)
            notes += failures
    return Findings(
        "Beside other integrators",
        f"rtol {RTOL:g}, atol 0, float64. A run: how many integrals are timed, of a larger batch a random sample. "
        "Over quad: time per integral over quad's, from medians and from the best runs. True > reported: reported "
        "as converged, with an error below the true one. "
        f"SciPy quad: limit={LIMIT}, an integrand of Python floats. quadax: quadgk, compiled beforehand, on "
        "as many threads as it likes; no epsilon: without its extrapolation. padaquad: gk21. torchquad and xitorch "
        "have no tolerance: Gauss-Legendre with as many nodes as quad spends in the mean, at most "
        f"{MOST_NODES:,}. Errors are relative to the exact value.",
        sheets,
        figures,
        notes,
    )


def run_job(job: Job) -> tuple[Sheet, Figure, list[str]]:
    """Time a job; return the table, how often quad lied, and what failed."""
    prepared: dict[str, Prepared] = {}
    samples: dict[str, Job] = {}
    answers: dict[str, Answer | None] = {}
    failed: dict[str, str] = {}
    nodes = 0
    for peer in PEERS:
        if not peer.installed():
            failed[peer.label] = "not installed"
            continue
        sample = samples[peer.label] = job.sample(peer.most)
        # A peer that cannot do an integral is a line in the table, not the end of the run.
        try:
            ready = peer.prepare(sample, nodes)
            answers[peer.label] = answer = ready.read(ready.task())
        except Exception as error:
            if peer is OURS:
                raise
            failed[peer.label] = f"{type(error).__name__}: {str(error).splitlines()[0]:.80}"
            continue
        prepared[peer.label] = ready
        nodes = nodes or min(MOST_NODES, round(answer.nodes))
    tasks = {label: twice_if_quick(ready.task) for label, ready in prepared.items()}
    seconds = interleave(tasks, REPEATS, warm_up=0, pause=PAUSE)
    seconds = {label: times.scaled(1 / samples[label].size) for label, times in seconds.items()}
    rows = [
        describe(peer, samples[peer.label], seconds[peer.label], seconds[OURS.label], answers[peer.label])
        if peer.label in seconds
        else (peer.label, failed[peer.label].split(":")[0], *[""] * (len(HEADINGS) - 1))
        for peer in PEERS
    ]
    dishonest = count_dishonest(answers[OURS.label], samples[OURS.label])
    figure = Figure(f"{job.label}: quad wrong by more than reported", dishonest or 0, target=Target(0), unit="")
    notes = [f"{job.label}: {label}: {why}" for label, why in failed.items()]
    return Sheet((job.label, *HEADINGS), rows), figure, notes


def twice_if_quick(task: Task) -> Task:
    """Return the task timing itself; a quick one runs untimed first, as it would in a loop, not after a pause."""

    def run() -> float:
        seconds = time_once(task)
        return time_once(task) if seconds < QUICK else seconds

    return run


def time_once(task: Task) -> float:
    """Return how long a task takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def describe(peer: Peer, sample: Job, seconds: Seconds, ours: Seconds, answer: Answer | None) -> tuple[str, ...]:
    """Return the row of one integrator."""
    row = (
        peer.label,
        f"{sample.size:,}",
        show_time(seconds.median),
        f"{seconds.median / ours.median:.3g} x",
        f"{seconds.best / ours.best:.3g} x",
    )
    if answer is None:
        return (*row, "", "", "", "")
    worst = ((answer.value - sample.exact) / sample.exact).abs().max().item()
    dishonest = count_dishonest(answer, sample)
    return (
        *row,
        "" if answer.nodes is None else f"{answer.nodes:,.0f}",
        f"{worst:.1e}",
        "no claim" if answer.converged is None else f"{int((~answer.converged).sum()):,}",
        "" if dishonest is None else f"{dishonest:,}",
    )


def count_dishonest(answer: Answer | None, sample: Job) -> int | None:
    """Return how many are reported as converged with an error below the true one; None without errors."""
    if answer is None or answer.error is None or answer.converged is None:
        return None
    true = (answer.value - sample.exact).abs()
    return int((answer.converged & ~(true <= answer.error)).sum())
