"""Functions that autograd cannot see, each beside the same function in torch, whose derivatives are exact."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.integrate
import scipy.linalg
import scipy.special
import torch
from torch import Tensor

from helpers import t64

libm = ctypes.CDLL(ctypes.util.find_library("m"))
libm.erf.restype, libm.erf.argtypes = ctypes.c_double, [ctypes.c_double]

WEIGHTS = np.random.default_rng(7).normal(size=(3, 4))
START = 0.1


def logistic(growth: np.ndarray) -> np.ndarray:
    """Solve y' = r y (1 - y) to t = 1, 2, 3."""
    solution = scipy.integrate.solve_ivp(
        lambda t, y: growth[0] * y * (1 - y / growth[1]), (0.0, 3.0), [START], t_eval=[1.0, 2.0, 3.0], rtol=1e-12,
        atol=1e-14, method="DOP853",
    )  # fmt: skip
    return solution.y[0]


def exact_logistic(growth: Tensor) -> Tensor:
    t = t64([1.0, 2.0, 3.0])
    return growth[1] / (1 + (growth[1] / START - 1) * torch.exp(-growth[0] * t))


def white(x: np.ndarray) -> np.ndarray:
    """Return numbers in [-1, 1] that look random but are the same for the same x (its bits, mixed)."""
    bits = np.ascontiguousarray(x).view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (bits ^ (bits >> np.uint64(31))).astype(np.float64) / 2.0**63 - 1.0


def bounded(x: np.ndarray) -> np.ndarray:
    if np.any(x < 0):
        raise ValueError("outside the domain")
    return np.log1p(x) * (1 + x)


@dataclass(frozen=True, eq=False)
class Case:
    """A function, its double in torch, and an input.

    ``smooth`` says whether extrapolation and the complex step can reach full precision, ``analytic`` whether the
    complex step applies.
    """

    name: str
    fn: Callable[..., Any]
    twin: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)
    analytic: bool = True
    smooth: bool = True


def matrix(n: int, seed: int) -> Tensor:
    return t64(np.random.default_rng(seed).normal(size=(n, n)) / n + np.eye(n))


ELEMENTWISE = {"sparsity": "elementwise"}
CASES = [
    Case(
        "elementwise",
        lambda x: np.exp(np.sin(x)) * x,
        lambda x: torch.exp(torch.sin(x)) * x,
        (torch.linspace(-3.0, 9.0, 13, dtype=torch.float64),),
        ELEMENTWISE,
    ),
    Case(
        "to a number",
        lambda x: np.log(np.sum(np.exp(x))) + np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2),
        lambda x: torch.logsumexp(x, 0) + (100 * (x[1:] - x[:-1] ** 2) ** 2).sum(),
        (t64([-1.2, 1.0, 0.7, -0.3, 2.1]),),
    ),
    Case(
        "from a number",
        lambda s: np.stack([np.sin(40 * s), np.cos(2 * s), np.exp(-s), s**3 - s]),
        lambda s: torch.stack([torch.sin(40 * s), torch.cos(2 * s), torch.exp(-s), s**3 - s]),
        (t64(0.8),),
    ),
    Case(
        "vector to vector",
        lambda x: np.tanh(WEIGHTS @ x) * x[0],
        lambda x: torch.tanh(t64(WEIGHTS) @ x) * x[0],
        (t64([0.3, -1.1, 0.8, 250.0]) / t64([1.0, 1.0, 1.0, 300.0]),),
    ),
    Case("matrix in", lambda a: np.trace(a @ a @ a), lambda a: (a @ a @ a).trace(), (matrix(4, 1),)),
    Case("matrix out", np.linalg.inv, torch.linalg.inv, (matrix(3, 2),)),
    Case(
        "several inputs",
        lambda x, y, p: (x * np.exp(-p * y), np.sum(x) * p),
        lambda x, y, p: (x * torch.exp(-p * y), x.sum() * p),
        (t64([1.0, 2.0, 1e-3]), t64([[0.5], [1.5]]), t64(0.7)),
    ),
    Case(
        "complex output",
        lambda k: np.exp(1j * k * np.arange(4)) / (1 + k),
        lambda k: torch.exp(1j * k * torch.arange(4)) / (1 + k),
        (t64(0.9),),
        analytic=False,
    ),
    Case(
        "batched",
        lambda x: np.stack([np.sin(x), np.cos(x)], -1),
        lambda x: torch.stack([torch.sin(x), torch.cos(x)], -1),
        (t64([0.1, 1.0, 2.0, 3.0, 4.0]),),
        ELEMENTWISE | {"vectorized": True},
    ),
    Case(
        "float32 box",
        lambda x: np.exp(np.sin(x.astype(np.float32))).astype(np.float64) * 3,
        lambda x: torch.exp(torch.sin(x)) * 3,
        (t64([0.3, 1.1, 2.0, -0.7, 5.0]),),
        ELEMENTWISE,
        analytic=False,
        smooth=False,
    ),
    Case(
        "noisy",
        lambda x: np.exp(-x) * (2 + np.sin(3 * x)) * (1 + 1e-6 * white(x)),
        lambda x: torch.exp(-x) * (2 + torch.sin(3 * x)),
        (torch.linspace(0.2, 2.0, 9, dtype=torch.float64),),
        ELEMENTWISE,
        analytic=False,
        smooth=False,
    ),
    Case(
        "bounded domain",
        bounded,
        lambda x: torch.log1p(x) * (1 + x),
        (t64([0.0, 1e-9, 1e-3, 0.5, 7.0]),),
        ELEMENTWISE | {"bounds": (0.0, np.inf)},
        analytic=False,
    ),
    Case(
        "scipy.special",
        scipy.special.gammaln,
        torch.lgamma,
        (t64([0.1, 0.5, 1.7, 12.0, 250.0]),),
        analytic=False,
    ),
    Case("scipy.linalg", scipy.linalg.expm, torch.linalg.matrix_exp, (matrix(3, 3),)),
    # A solver's own error is smooth: no table of differences sees it, so the user has to say how large it is.
    Case("an ODE", logistic, exact_logistic, (t64([1.5, 2.0]),), {"noise": 1e-12}, analytic=False, smooth=False),
    Case(
        "libm through ctypes",
        libm.erf,
        torch.erf,
        (t64([-1.5, -0.1, 0.0, 0.4, 2.2]),),
        {"scalars": True},
        analytic=False,
    ),
]
