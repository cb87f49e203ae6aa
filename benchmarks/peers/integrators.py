"""The integrators that are compared, each as a task to be timed and a reader of what it returned.

A package that is not installed is imported by nobody: `Peer.installed` asks first. Each gets the same integrals in
the way its documentation recommends for a batch; those without one loop.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import quad as scipy_quad
from scipy.integrate import tanhsinh
from torch import Tensor

import quadgrad as qg
from benchmarks.peers.jobs import RTOL, Job
from benchmarks.recording import Recorder

__all__ = ["LIMIT", "MOST_NODES", "PEERS", "Answer", "Peer", "Prepared"]

LIMIT = 200
"""The most cells of SciPy's quad."""
MOST_NODES = 1_000
"""Of rules without a tolerance: their nodes are eigenvalues, which take seconds to find if there are more."""


@dataclass(frozen=True)
class Answer:
    """What an integrator returned; None for what it does not say.

    Attributes
    ----------
    value : Tensor
        One number an integral.
    error : Tensor or None
        Reported errors.
    converged : Tensor or None
        Whether success was reported.
    nodes : float or None
        Nodes an integral, in the mean.
    """

    value: Tensor
    error: Tensor | None = None
    converged: Tensor | None = None
    nodes: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A task that integrates, and what makes an `Answer` of its result (None: nothing is integrated)."""

    task: Callable[[], Any]
    read: Callable[[Any], Answer | None]


@dataclass(frozen=True)
class Peer:
    """An integrator.

    Attributes
    ----------
    label : str
        Its name in the table.
    prepare : callable
        Takes a job and the mean number of nodes that quadgrad spends on it, for rules without a tolerance.
    package : str
        What has to be installed.
    most : int
        How many integrals of a batch it gets.
    """

    label: str
    prepare: Callable[[Job, int], Prepared]
    package: str = "quadgrad"
    most: int = 1_000_000

    def installed(self) -> bool:
        """Whether the package can be imported."""
        return importlib.util.find_spec(self.package) is not None


def squeeze(job: Job) -> tuple[Tensor, ...]:
    """Return upper limit and arguments; of a single integral as numbers."""
    tensors = (job.upper, *job.args)
    return tuple(t[0] for t in tensors) if job.size == 1 else tensors


def prepare_quadgrad(job: Job, nodes: int) -> Prepared:
    """One call of quad."""
    upper, *args = squeeze(job)
    f = lambda x, *args: job.f(x, torch, *args)

    def read(result: qg.Result) -> Answer:
        mean = result.nfev.double().mean().item()
        return Answer(*(t.reshape(-1) for t in (result.value, result.error, result.converged)), nodes=mean)

    return Prepared(lambda: qg.quad(f, 0.0, upper, args=tuple(args), rtol=RTOL, on_failure="ignore"), read)


def prepare_bare(job: Job, nodes: int) -> Prepared:
    """The integrand alone, on the blocks of nodes that quad asks for."""
    upper, *args = squeeze(job)
    recorder = Recorder(lambda x, *args: job.f(x, torch, *args))
    qg.quad(recorder, 0.0, upper, args=tuple(args), rtol=RTOL, on_failure="ignore")
    recorder.drop_probe()
    return Prepared(recorder.evaluate, lambda _: None)


def prepare_scipy(job: Job, nodes: int) -> Prepared:
    """A loop of ``scipy.integrate.quad`` with Python floats."""
    rows = list(zip(*(t.tolist() for t in (job.upper, *job.args)), strict=True))
    f = lambda x, *args: job.f(x, math, *args)

    def task() -> list[tuple[float, float, int, bool]]:
        found: list[tuple[float, float, int, bool]] = []
        for upper, *args in rows:
            value, error, info, *message = scipy_quad(
                f, 0.0, upper, tuple(args), epsrel=RTOL, epsabs=0.0, limit=LIMIT, full_output=1
            )
            found.append((value, error, info["neval"], not message))
        return found

    def read(found: list[tuple[float, float, int, bool]]) -> Answer:
        value, error, count, converged = torch.tensor(found, dtype=torch.float64).T
        return Answer(value, error, converged > 0, count.mean().item())

    return Prepared(task, read)


def prepare_tanhsinh(job: Job, nodes: int) -> Prepared:
    """One call of ``scipy.integrate.tanhsinh``, vectorized."""
    upper, *args = (t.numpy() for t in (job.upper, *job.args))
    f = lambda x, *args: job.f(x, np, *args)

    def read(result: Any) -> Answer:
        value, error, success = (torch.as_tensor(t) for t in (result.integral, result.error, result.success))
        return Answer(value, error, success, float(result.nfev.mean()))

    return Prepared(lambda: tanhsinh(f, 0.0, upper, args=tuple(args), rtol=RTOL, atol=0.0), read)


def prepare_quadax(job: Job, nodes: int, extrapolate: bool = True) -> Prepared:
    """``quadax.quadgk`` compiled, over a batch by vmap; compiling is not timed."""
    import jax
    import jax.numpy as jnp
    import quadax

    jax.config.update("jax_enable_x64", True)
    f = lambda x, *args: job.f(x, jnp, *args)

    def single(upper: Any, *args: Any) -> Any:
        interval = jnp.stack([jnp.zeros_like(upper), upper])
        return quadax.quadgk(f, interval, args=args, epsabs=0.0, epsrel=RTOL, extrapolate=extrapolate)

    compiled = jax.jit(single if job.size == 1 else jax.vmap(single))
    inputs = [jnp.asarray(t.numpy()) for t in squeeze(job)]

    def read(result: Any) -> Answer:
        value, info = result
        tensors = (torch.from_numpy(np.array(t)).reshape(-1) for t in (value, info.err, info.status, info.neval))
        value, error, status, count = tensors
        return Answer(value, error, status == 0, count.double().mean().item())

    return Prepared(lambda: jax.block_until_ready(compiled(*inputs)), read)


def prepare_padaquad(job: Job, nodes: int) -> Prepared:
    """A loop of ``padaquad.integrate``: one mesh a call."""
    import padaquad

    rows = list(zip(job.upper, *job.args, strict=True))
    zero = torch.zeros(1, dtype=torch.float64)

    def task() -> list[Any]:
        return [
            padaquad.integrate(
                lambda x, args=args: job.f(x, torch, *args), method="gk21", atol=0.0, rtol=RTOL, mesh_init=zero,
                mesh_final=upper[None], take_gradient=False, device="cpu", max_batch=100_000,
            )
            for upper, *args in rows
        ]  # fmt: skip

    def read(results: list[Any]) -> Answer:
        value, error = (torch.cat([getattr(r, name) for r in results]) for name in ("integral", "integral_error"))
        return Answer(value, error.abs(), torch.tensor([bool(r.converged) for r in results]))  # they are signed

    return Prepared(task, read)


def prepare_torchquad(job: Job, nodes: int) -> Prepared:
    """A Gauss-Legendre rule of torchquad with as many nodes as quadgrad spends in the mean."""
    from torchquad import GaussLegendre

    rule, domain = GaussLegendre(), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    f = lambda t: job.f(t * job.upper, torch, *job.args) * job.upper
    task = lambda: rule.integrate(f, dim=1, N=nodes, integration_domain=domain)
    return Prepared(task, lambda value: Answer(value.reshape(-1), nodes=nodes))


def prepare_xitorch(job: Job, nodes: int) -> Prepared:
    """xitorch's Gauss-Legendre rule with as many nodes as quadgrad spends in the mean."""
    from xitorch.integrate import quad

    f = lambda t, upper, *args: job.f(t * upper, torch, *args) * upper
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    task = lambda: quad(f, zero, one, params=(job.upper, *job.args), n=nodes)
    return Prepared(task, lambda value: Answer(value.reshape(-1), nodes=nodes))


PEERS: tuple[Peer, ...] = (
    Peer("quad", prepare_quadgrad),
    Peer("bare integrand", prepare_bare),
    Peer("SciPy quad loop", prepare_scipy, most=500),
    Peer("SciPy tanhsinh", prepare_tanhsinh, most=1_000),
    Peer("quadax jit vmap", prepare_quadax, "quadax", most=20_000),
    Peer("same, no epsilon", lambda job, n: prepare_quadax(job, n, extrapolate=False), "quadax", most=20_000),
    Peer("padaquad loop", prepare_padaquad, "padaquad", most=5),
    Peer("torchquad, fixed", prepare_torchquad, "torchquad", most=5_000),
    Peer("xitorch, fixed", prepare_xitorch, "xitorch", most=2_000),
)
