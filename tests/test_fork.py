"""A forked process may integrate, although the threads that its parent searched with are gone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import faulthandler, os, sys
import torch
import quadgrad as qg

torch.set_num_threads(2)  # CI may allow fewer: what is tested is that there are threads
c = torch.linspace(0, 1, 2_000, dtype=torch.float64)

def peaks(c):
    c = c.clone().requires_grad_()
    value = qg.quad(lambda x, c: torch.exp(-(((x - c) / 1e-2) ** 2)), 0.0, 1.0, args=(c,)).value
    return value.detach(), *torch.autograd.grad(value.sum(), c)

before = peaks(c)
torch.ones(10**5).exp().sum()
if sys.argv[1] == "fork":
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(60, exit=True)
        os._exit(not all(map(torch.allclose, before, peaks(c))))
    _, status = os.waitpid(child, 0)
    assert status == 0, status
else:
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for after in pool.map_async(peaks, [c[:700], c]).get(timeout=60):
            assert all(map(torch.allclose, (t[: len(after[0])] for t in before), after))
assert all(map(torch.allclose, before, peaks(c)))  # the parent's threads are made anew
assert torch.get_num_threads() == 2
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("how", ["fork", "pool"])
def test_a_process_forked_after_a_threaded_search_may_integrate(how: str) -> None:
    run = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(PROGRAM), how]
    passive = os.environ | {"OMP_WAIT_POLICY": "passive"}  # threads that wait leave the cores to other tests
    done = subprocess.run(run, env=passive, capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
