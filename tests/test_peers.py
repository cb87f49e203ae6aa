"""The page of peers on a few integrals: what is not installed, or fails, is a line of the table."""

from __future__ import annotations

import pytest

from benchmarks.peers import page
from benchmarks.peers.integrators import PEERS, Peer
from benchmarks.peers.jobs import Job, make_jobs
from benchmarks.peers.page import run_job

SMALL = make_jobs(1e-3)


def fail(job: Job, nodes: int):
    raise ArithmeticError("cannot do this")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "REPEATS", 1)
    monkeypatch.setattr(page, "PAUSE", 0.0)
    own = tuple(peer for peer in PEERS if peer.package == "quadgrad")
    monkeypatch.setattr(page, "PEERS", (*own, Peer("absent", fail, "no_such_package"), Peer("broken", fail)))


@pytest.mark.parametrize("job", SMALL, ids=lambda job: job.label)
@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_job_is_a_table_and_quad_is_right(job: Job) -> None:
    sheet, figure, notes = run_job(job)
    rows = {label: cells for label, *cells in sheet.rows}
    assert all(len(row) == len(sheet.headings) for row in sheet.rows)
    assert rows["absent"][0] == "not installed"
    assert rows["broken"][0] == "ArithmeticError"
    assert notes[1:] == [f"{job.label}: broken: ArithmeticError: cannot do this"]
    *_, worst, failed, dishonest = rows["quad"]
    assert float(worst) <= 1e-8
    assert (failed, dishonest) == ("0", "0")
    assert figure.measured == 0


@pytest.mark.parametrize("job", SMALL, ids=lambda job: job.label)
def test_exact_values_against_scipy(job: Job) -> None:
    scipy = next(peer for peer in PEERS if peer.label == "SciPy quad loop")
    sample = job.sample(20)
    ready = scipy.prepare(sample, 0)
    answer = ready.read(ready.task())
    assert answer is not None
    right = (answer.value / sample.exact - 1).abs() <= 1e-8
    assert right.double().mean() >= 0.95  # SciPy misses a peak now and then
