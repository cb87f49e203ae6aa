"""What a reader may add without touching the source: a geometry, a rule, a gradient mode. Each is short."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core.gradient import Differentiated, GradientMode, Primal
from quadgrad._core.integrand import Integrand, make_argument
from quadgrad._core.mesh.protocol import Cells, Domain, EvenMesh, EvenMoves
from quadgrad._core.plans.cells import CellPlan
from quadgrad._core.problem import Problem
from quadgrad._core.replay import replay_plan
from quadgrad._core.result import Result
from quadgrad._core.rules import RULES, Rule, get_rule
from quadgrad._core.search.rounds import search_rounds
from quadgrad._core.search.task import Found
from quadgrad._core.search.tensors import TensorBodies
from quadgrad._core.tolerance import make_tolerance
from quadgrad._core.verbs.door import lower, open_call
from quadgrad._core.verbs.results import make_result

# --------------------------------------------------------------------------------------- a geometry: triangles

NEAR, FAR = (6 - sqrt(15)) / 21, (6 + sqrt(15)) / 21
NODES = t64([[1 / 3] * 3, *(np.roll((1 - 2 * a, a, a), k).tolist() for a in (NEAR, FAR) for k in range(3))])
WEIGHTS = t64([9 / 40] + [(155 - sqrt(15)) / 1200] * 3 + [(155 + sqrt(15)) / 1200] * 3)
"""Radon's rule of degree 5 in barycentric coordinates; and one of degree 2 on four of its nodes."""
SPREAD = ((1 - 2 * NEAR) ** 2 + 2 * NEAR**2) / 3 - 1 / 9
LOWER = t64([1 - 1 / (18 * SPREAD)] + [1 / (54 * SPREAD)] * 3 + [0.0] * 3)

HALVES = 0.5 * t64([[2, 0, 0], [0, 2, 0], [0, 0, 2], [1, 1, 0], [0, 1, 1], [1, 0, 1]])
QUARTERS = torch.stack([HALVES[list(t)] for t in ((0, 3, 5), (3, 1, 4), (5, 4, 2), (4, 5, 3))])


@dataclass
class NewTriangles:
    """``corners`` ``(n, 3, 3)`` are barycentric coordinates in the triangles of the integrals ``whose``."""

    owner: Tensor
    whose: Tensor
    corners: Tensor
    rows: int = len(WEIGHTS)

    def __len__(self) -> int:
        return len(self.owner)

    def part(self, cells: slice) -> NewTriangles:
        return NewTriangles(self.owner[cells], self.whose[cells], self.corners[cells])


@dataclass
class Triangles(Domain, EvenMesh):
    """The domains of all integrals ``(batch, 3, 2)``: a geometry for search and for replay."""

    vertices: Tensor
    children, rows = 4, len(WEIGHTS)

    # What a problem asks of its domain.
    marks = property(lambda self: (self.vertices,))
    with_marks = lambda self, marks: Triangles(*marks)
    inner_points = lambda self, n, shift=0.0: torch.lerp(self.vertices.mean(1), self.vertices[:, 0], shift).expand(
        n, 2
    )

    # What replay asks of it, and search of its nodes.
    def lay_out(self, cells: TrianglePlan | NewTriangles) -> SimpleNamespace:
        whose = cells.owner if isinstance(cells, CellPlan) else cells.whose
        return SimpleNamespace(nodes=lambda tau, part: self.nodes(whose[part], cells.corners[part], tau))

    def nodes(self, whose: Tensor, corners: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        x = corners @ self.vertices[whose]
        (a, b), (c, d) = ((x[:, k] - x[:, 0]).unbind(1) for k in (1, 2))
        return torch.einsum("mk,nkd->mnd", tau, x), (0.5 * (a * d - b * c).abs())[None]

    # What search asks of it beside.
    def start(self, first: None) -> list[NewTriangles]:
        whose = torch.arange(len(self.vertices))
        return [NewTriangles(whose, whose, torch.eye(3, dtype=torch.float64).expand(len(whose), 3, 3))]

    def place(self, new: NewTriangles) -> SimpleNamespace:
        x, factor = self.nodes(new.whose, new.corners, NODES)
        return SimpleNamespace(x=x, owner=new.whose, factor=factor)

    def split(self, cells: Cells, moves: EvenMoves, counts: list[int]) -> list[NewTriangles]:
        parent = torch.nonzero_static(moves.splits, size=counts[0]).squeeze(1)
        owner, _, whose = cells.whole[:, parent].repeat_interleave(4, 1)
        corners = QUARTERS @ cells.real[:, parent].T.reshape(-1, 1, 3, 3)
        return [NewTriangles(owner, whose, corners.reshape(-1, 3, 3))]


def estimate(new: NewTriangles, places: SimpleNamespace, y: Tensor, noise: float) -> Cells:
    values = y * places.factor
    floor, error = 10 * noise * (WEIGHTS @ values.abs()), ((WEIGHTS - LOWER) @ values).abs()
    sums = torch.stack((WEIGHTS @ values, error.maximum(floor), floor))
    whole = torch.stack((new.owner, (~(error <= floor)).long(), new.whose))
    lost = ~error.isfinite()
    sums[0, lost], sums[1, lost], sums[2, lost] = 0.0, torch.inf, 0.0
    return Cells(sums, whole, new.corners.flatten(1).T)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TrianglePlan(CellPlan, geometry="triangle"):
    corners: Tensor
    columns = ("row", "error", "kind", "corners")
    mesh = lambda self, vertices: Triangles(vertices)


def integrate(f, vertices: Tensor, args=(), rtol: float = 1e-6, chunk_size: int | None = None) -> Result:
    """A verb: integrals over triangles ``(*batch, 3, 2)`` of f(x, *args), x of shape ``(..., 2)``."""
    shape = torch.broadcast_shapes(vertices.shape[:-2], *(a.shape for a in args))
    domain, known = Triangles(vertices.expand(*shape, 3, 2).reshape(-1, 3, 2)), make_tolerance(rtol, 0.0, 2**-52)
    arguments = tuple(make_argument(a, shape) for a in args)
    integrand = Integrand(f, arguments, len(shape), torch.float64, torch.float64, True, point_ndim=1)
    problem = Problem(integrand, domain, shape, get_rule("gk21"), known, chunk_size=chunk_size)
    problem, probe, lanes = open_call(problem, (rtol, 0.0), None, alone=False)

    def record(cells: Cells, *totals: Tensor) -> Found:
        row, order = cells.whole[0].sort(stable=True)
        plan = TrianglePlan(
            rule="radon7", batch_shape=problem.batch_shape, pieces=1, row=row, error=cells.sums[-2, order],
            kind=torch.zeros_like(row, dtype=torch.int8), tau=NODES, weight=WEIGHTS,
            corners=cells.real[:, order].T.reshape(-1, 3, 3),
        )  # fmt: skip
        return Found(plan, *totals)

    with problem.outside() as plain:
        found = search_rounds(TensorBodies(plain, plain.limits, estimate, record), None)
    value = found.value
    if problem.flowing:
        value = replay_plan(problem.integrand, found.plan, problem.limits, problem.block, chunk_size is not None)
    return lower(make_result(problem, probe, found, value, Differentiated(value), None, ""), lanes)


CORNERS = t64([[[0, 0], [1, 0], [0, 1]], [[0, 0], [2, 1], [1, 3]], [[-1, 0], [1, 0], [0, -2]]])


def bell(x: Tensor, s: Tensor) -> Tensor:
    return torch.exp(-s * ((x[..., 0] - 0.3) ** 2 + (x[..., 1] - 0.2) ** 2))


def oracle(vertices: Tensor, s: Tensor) -> Tensor:
    """Integrate over one triangle by a product of Gauss rules, in coordinates that collapse one corner."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    u, w = t64(0.5 * nodes + 0.5), t64(0.5 * weights)
    p, q = torch.meshgrid(u, u, indexing="ij")
    edges = vertices[1:] - vertices[0]
    x = vertices[0] + (p * (1 - q))[..., None] * edges[0] + (p * q)[..., None] * edges[1]
    return torch.linalg.det(edges).abs() * (w[:, None] * w * p * bell(x, s)).sum()


def test_triangles_converge() -> None:
    s = t64([1.0, 5.0, 20.0])
    result = integrate(bell, CORNERS, (s,), rtol=1e-4)
    exact = torch.stack([oracle(*one) for one in zip(CORNERS, s, strict=True)])
    assert result.converged.all() and result.nfev.min() > 50
    assert ((result.value - exact).abs() <= result.error).all() and (result.error <= 1e-4 * exact).all()
    assert result.nfev.unique().numel() == 3  # each has cells of its own
    alone = integrate(bell, CORNERS[1], (s[1],), rtol=1e-4)
    assert alone.value == result.value[1] and alone.nfev == result.nfev[1]


def test_what_does_not_converge_says_so() -> None:
    hole = lambda x: torch.where(x[..., 0] > 0.75, torch.nan, x[..., 1])
    assert integrate(hole, CORNERS[0]).status == qg.Status.NONFINITE
    assert integrate(lambda x: (x**2).sum(-1).clamp_min(1e-300) ** -1.01, CORNERS[0]).status != qg.Status.CONVERGED


@pytest.mark.parametrize("chunk_size", (None, 7, 100))
def test_triangles_are_differentiated(chunk_size: int | None) -> None:
    s, vertices = leaf([1.0, 3.0, 5.0]), CORNERS.clone().requires_grad_()
    exact = sum(oracle(*one) for one in zip(vertices, s, strict=True))
    expected = torch.autograd.grad(exact, (s, vertices))
    sizes: list[int] = []

    def f(x: Tensor, s: Tensor) -> Tensor:
        sizes.append(x[..., 0].numel())
        return bell(x, s)

    value = integrate(f, vertices, (s,), rtol=1e-5, chunk_size=chunk_size).value.sum()
    for one, other in zip(torch.autograd.grad(value, (s, vertices)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert chunk_size is None or max(sizes) <= chunk_size
    check = lambda s, v: integrate(bell, v, (s,), rtol=1e-9).value.sum()
    if chunk_size is None:
        small = (leaf([1.0]), CORNERS[:1].clone().requires_grad_())
        assert torch.autograd.gradcheck(check, small, atol=1e-6) and torch.autograd.gradgradcheck(
            check, small, atol=1e-5
        )


def test_triangles_under_transforms() -> None:
    s = t64([1.0, 5.0, 40.0])
    batch = integrate(bell, CORNERS, (s,))
    lanes = torch.func.vmap(lambda v, s: integrate(bell, v, (s,)).value)(CORNERS, s)
    assert torch.equal(lanes, batch.value)
    captured = torch.func.vmap(lambda v, s: integrate(lambda x: bell(x, s), v).value)(CORNERS, s)
    torch.testing.assert_close(captured, batch.value, rtol=1e-14, atol=0.0)
    slope = torch.func.vmap(torch.func.grad(lambda v, s: integrate(bell, v, (s,)).value, argnums=(0, 1)))(
        CORNERS, s
    )
    exact = torch.func.vmap(torch.func.grad(oracle, argnums=(0, 1)))(CORNERS, s)
    for one, other in zip(slope, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------------ a rule


@pytest.fixture
def gauss20(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Enter Gauss' rule with 20 nodes, of which none is in the middle: no kernel knows such a rule."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    monkeypatch.setitem(RULES, "gauss20", Rule("gauss20", 0.5 * nodes + 0.5, 0.5 * weights, 39))
    yield "gauss20"
    get_rule.cache_clear()


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return e / ((x - c) ** 2 + e**2)


def test_a_rule(gauss20: str) -> None:
    c, e = leaf([0.3, 0.5, 0.0]), t64([1e-4, 0.1, 1e-2])
    result = qg.quad(peak, 0.0, 1.0, (c, e), rule=gauss20, rtol=1e-9)
    exact = torch.atan((1 - c) / e) + torch.atan(c / e)
    assert result.converged.all() and ((result.value - exact).abs() <= result.error).all()
    assert not get_rule(gauss20).mirrored
    known = torch.autograd.grad(exact.sum(), c)[0]
    torch.testing.assert_close(torch.autograd.grad(result.value.sum(), c)[0], known, rtol=1e-6, atol=1e-6)
    singular = qg.quad(lambda x: x**-0.5, t64(0.0), 1.0, rule=gauss20, rtol=1e-9)
    assert singular.converged and abs(float(singular.value) - 2) <= float(singular.error)
    again = qg.quad(peak, 0.0, 1.0, (c.detach(), e), rule=gauss20, plan=result.plan, rtol=1e-9)
    # With both edges; with logarithmic nodes also at looks, and close to the end.
    spent = torch.where(result.plan.kind == 0, 22, 26)
    named = again.nfev.new_tensor([2, 2, 1])  # arguments between the limits, where f is called, too
    assert torch.equal(again.nfev, named.index_add(0, result.plan.owner, spent))


# --------------------------------------------------------------------------------------------- a gradient mode


class Finer(GradientMode):
    """Differentiate the sum on the halves of all cells, of which the value's own error says nothing."""

    def apply(self, primal: Primal) -> Differentiated:
        plan = primal.plan
        even = plan.take(plan.linear)
        middle = 0.5 * (even.start + even.stop)
        turn = (middle >= 0.5).to(middle.dtype)
        left, right = replace(even, stop=middle), replace(even, start=middle - turn, stop=even.stop - turn)
        value = primal.replay(left.join(right).join(plan.take(~plan.linear)))
        return Differentiated(primal.value + value - value.detach())


@pytest.mark.parametrize("b", (1.0, float("inf")))
def test_a_gradient_mode(b: float) -> None:
    c, a = leaf([0.3, 0.5]), leaf(0.1)
    f = lambda x, c: torch.exp(-8 * (x - c) ** 2) * x**0.3
    result = qg.quad(f, a, b, (c,), rtol=1e-4, gradient=Finer())
    exact = torch.autograd.grad(qg.quad(f, a, b, (c,), rtol=1e-12).value.sum(), (c, a))
    own = torch.autograd.grad(qg.quad(f, a, b, (c,), rtol=1e-4).value.sum(), (c, a))
    for one, known, plain in zip(torch.autograd.grad(result.value.sum(), (c, a)), exact, own, strict=True):
        assert (one - known).abs().max() <= 1e-12 + (plain - known).abs().max()
    jacobian = torch.func.jacrev(lambda c: qg.quad(f, a.detach(), b, (c,), gradient=Finer()).value)(c.detach())
    torch.testing.assert_close(jacobian, exact[0].diag(), rtol=1e-6, atol=1e-8)
