"""Programs of kinds that are easily overlooked: what torch makes integers of, transforms in each other, draws.

Of each kind one that is sick, which must not be called OK, and one that is healthy, which must.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quadgrad as qg
from quadgrad.doctor.program import Program as Moved

DTYPES = {"double": torch.float64, "single": torch.float32}
Program = Callable[[Tensor], Any]
WEIGHTS = [0.3, 1.7, -0.6, 0.9, 2.0, -1.1, 0.4, 1.2]


def start(dtype: torch.dtype) -> Tensor:
    return torch.tensor([0.8, -0.4, 1.3, 0.15, -0.9, 0.55, -0.2, 1.1], dtype=dtype, requires_grad=True)


def weights(x: Tensor) -> Tensor:
    return torch.tensor(WEIGHTS, dtype=x.dtype)


def straight_through(x: Tensor) -> Tensor:
    soft = torch.softmax(x, 0)
    hard = torch.zeros_like(soft).scatter(0, soft.argmax(0, keepdim=True), 1.0)
    return (hard - soft.detach() + soft) @ weights(x)


def safe_norm(x: Tensor) -> Tensor:
    rows = x.reshape(4, 2)
    size = rows.norm(dim=-1, keepdim=True)
    return torch.where(size > 1.0, rows / size, rows).pow(3).sum() + x.sum()


def lifted(x: Tensor) -> Tensor:
    """Forty bends, and one element that jumps."""
    many = (x[:, None] + 0.03 * torch.arange(5.0, dtype=x.dtype)).flatten()
    lift = torch.zeros_like(many)
    lift[31] = 0.3
    return torch.where(many > 0.1, many - 0.1 + lift, 0.0 * many).sum() + (x**2).sum()


def pixels(x: Tensor, mode: str, **how: Any) -> Tensor:
    image = torch.arange(30.0, dtype=x.dtype).sin().reshape(1, 1, 5, 6) * x.sum()
    return F.grid_sample(image, 0.97 * x.reshape(1, 2, 2, 2), mode=mode, **how).pow(2).sum() + (x**2).sum()


PIXELS = [{"padding_mode": p, "align_corners": a} for p in ("zeros", "border", "reflection") for a in (True, False)]


SICK: dict[str, tuple[Program, str]] = {
    "k-th place": (lambda x: weights(x)[x.kthvalue(2).indices] * x.sum() + (x**2).sum(), "STEP"),
    "places of maxima": (lambda x: (weights(x)[x.cummax(0).indices] * x).sum(), "STEP"),
    "number of positive ones": (lambda x: torch.count_nonzero(F.relu(x)) * (x**2).sum(), "STEP"),
    "share that is not zero": (lambda x: (F.relu(x) != 0).to(x.dtype).mean() * (x**2).sum(), "STEP"),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.0).sum() + (x**2).sum(), "STEP"),
    "one of forty": (lifted, "STEP"),
    "mask of something detached": (lambda x: torch.where(x.detach() > 0, x + 1.0, x**2).sum(), "STEP"),
    "scatter by what is rounded": (
        lambda x: torch.zeros(9).to(x).scatter_add(0, x.round().long() + 4, x) @ torch.arange(9.0).to(x),
        "STEP",
    ),
    "straight through": (straight_through, "SEVERED"),
    "gradient in vmap": (lambda x: torch.vmap(torch.func.grad(lambda t: t.detach() ** 2 * t))(x).sum(), "SEVERED"),
    "Hessian": (lambda x: torch.func.hessian(lambda t: (t.detach() ** 2 * t**2).sum())(x).sum(), "SEVERED"),
    "Jacobian": (lambda x: torch.autograd.functional.jacobian(torch.sin, x).pow(2).sum() + x.sum(), "SEVERED"),
    "sparse": (
        lambda x: (
            torch.sparse_coo_tensor(torch.arange(8)[None], x.detach(), (8,), check_invariants=True).to_dense() @ x
        ),
        "SEVERED",
    ),
    "drawn": (
        lambda x: torch.distributions.Gamma(x.exp(), torch.ones_like(x)).sample().pow(2).sum() + x.sum(), "SEVERED",
    ),
    "complex": (lambda x: (torch.fft.rfft(x).abs() * torch.fft.rfft(x).angle().detach()).sum(), "SEVERED"),
}  # fmt: skip

HEALTHY: dict[str, Program] = {
    "order": lambda x: (
        (x.sort().values * weights(x)).sum() + x.topk(3).values.pow(2).sum() + x.median() + x.kthvalue(2).values
        + x.cummax(0).values.sum() + torch.quantile(x, 0.3)
    ),
    "relus": lambda x: (
        torch.where(x > 0, x, 0.1 * x).pow(3).sum() + x.masked_fill(x < 0.2, 0.2).sum() + (x * (x > 0)).sum()
    ),
    "Huber": lambda x: torch.where(x.abs() < 0.5, 0.5 * x**2, 0.5 * (x.abs() - 0.25)).sum(),
    "gates": lambda x: torch.where(x > 0, x * x.flip(0), torch.zeros_like(x)).sum() + (x**2).sum(),
    "safe norm": safe_norm,
    "integers of its shape": lambda x: (x * torch.ones_like(x, dtype=torch.long)).sum() * (x == x).sum(),
    "gradient in vmap": lambda x: torch.vmap(torch.func.grad(lambda t: torch.where(t > 0, t**2, 0 * t)))(x).sum(),
    "Hessian": lambda x: torch.func.hessian(lambda t: (t.sin() * t.sum()).sum())(x).pow(2).sum(),
    "Gamma": lambda x: torch.distributions.Gamma(x.exp(), torch.ones_like(x)).rsample().sum(),
    "Dirichlet": lambda x: torch.distributions.Dirichlet(x.exp()).rsample().pow(2).sum(),
    "Beta": lambda x: torch.distributions.Beta(x.exp(), 1.0 + x.exp()).rsample((3,)).sin().sum(),
    "Student": lambda x: torch.distributions.StudentT(2.0 + x.exp()).rsample().sin().sum(),
    "nested integrals": lambda x: qg.quad(
        lambda t: torch.exp(-x[0] * t) * qg.quad(lambda s: torch.cos(x[2] * s), 0.0, 1.0).value, 0.0, 1.0
    ).value,
    "nest": lambda x: {"loss": (x**2).sum(), "others": [(x**3), x.sin()]},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SICK)
def test_what_is_sick_is_told(kind: str, dtype: str) -> None:
    program, verdict = SICK[kind]
    report = qg.doctor.check(program, start(DTYPES[dtype]))
    assert report.verdict == verdict, str(report)
    lines = {(row.file, row.line) for row in report.rows}
    assert report.runs <= 25 + 6 * len(lines), report.runs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", HEALTHY)
def test_what_is_healthy_is_ok(kind: str, dtype: str) -> None:
    report = qg.doctor.check(HEALTHY[kind], start(DTYPES[dtype]))
    assert report.ok, str(report)
    assert report.runs <= 25 + 6 * max(1, len(report.rows)), report.runs


@pytest.mark.parametrize("how", PIXELS, ids=str)
def test_the_nearest_pixel_is_a_step_and_is_sampled_as_torch_does(how: dict[str, Any]) -> None:
    x = start(torch.float64)
    report = qg.doctor.check(lambda x: pixels(x, "nearest", **how), x)
    assert {(row.operation, row.verdict) for row in report.findings} == {("grid_sample(nearest)", "STEP")}, str(
        report
    )
    autograd = torch.autograd.grad(pixels(x, "nearest", **how), x)[0]
    steps = Moved(lambda x: x, [x], [], 0, lambda: None).direction(0)[0]
    assert abs(report.autograd - float(autograd @ steps)) <= 1e-12 * float(autograd.abs() @ steps.abs())
    assert qg.doctor.check(lambda x: pixels(x, "bilinear", **how), x).ok


@pytest.mark.parametrize("weight", [[1.0, 1.0, 2.0], [2.0, 2.0, 1.0], [3.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
@pytest.mark.parametrize("level", [0.0, 0.1, -0.3])
def test_places_whose_first_change_does_not_matter_are_followed(weight: list[float], level: float) -> None:
    chosen = torch.tensor(weight, dtype=torch.float64)
    x = torch.tensor([0.32, -0.63, 0.87, -0.21], dtype=torch.float64, requires_grad=True)
    f = lambda x: chosen[F.relu(x - level).nonzero()[0, 0]] * x.sum() + (x**2).sum()
    steps = Moved(f, [x], [], 0, lambda: None).direction(0)[0]
    there = [x.detach() + t * steps for t in torch.linspace(-0.9, 0.9, 181).tolist()]
    jumps = len({float(chosen[(y > level).nonzero()[0, 0]]) for y in there}) > 1
    report = qg.doctor.check(f, x)
    assert report.verdict == ("STEP" if jumps else "OK"), str(report)
    assert report.runs <= 25 + 6, report.runs


def test_a_backward_pass_that_makes_up_for_what_is_severed_hides_it_not() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return 2.0 * grads[0]

    report = qg.doctor.check(lambda x: Doubled.apply(x.detach() * x).sum(), start(torch.float64))
    assert {row.verdict for row in report.findings} == {"SEVERED", "WRONG"}, str(report)


def test_lines_that_make_up_for_each_other_are_no_findings() -> None:
    def f(x: Tensor) -> Tensor:
        shift = x.max().detach()
        exponentials = (x - shift).exp()
        return exponentials.sum().log() + x.max().detach()

    report = qg.doctor.check(f, start(torch.float64))
    assert report.ok, str(report)


def test_what_a_parametrization_severs_is_told() -> None:
    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w.triu() + w.triu(1).detach().T

    layer = nn.Linear(3, 3).double()
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    x = torch.tensor([[0.3, -1.0, 0.6]], dtype=torch.float64)
    report = qg.doctor.check(lambda: layer(x).pow(2).sum(), modules=[layer])
    assert report.verdict == "SEVERED" and "detach" in report.findings[0].source, str(report)


def test_a_function_of_no_tensors_in_between_and_two_outputs_is_checked() -> None:
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, kind: str, y: Tensor) -> Any:
            ctx.save_for_backward(x, y)
            return x * y, x + y

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            x, y = ctx.saved_tensors
            return grads[0] * y + grads[1], None, grads[0] * x  # forgets the sum

    def f(x: Tensor) -> Tensor:
        product, total = Sum.apply(x, "any", x**2)
        return (product * total).sum()

    report = qg.doctor.check(f, start(torch.float64))
    assert report.verdict == "WRONG" and report.findings[0].operation == "Sum.backward", str(report)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("element", [0, 2, 5, 7])
def test_a_size_by_a_number_is_told(element: int, dtype: str) -> None:
    def f(x: Tensor) -> Tensor:
        return F.interpolate(torch.ones(1, 1, 4, 4).to(x), scale_factor=float(x[element])).sum() * x[0]

    report = qg.doctor.check(f, start(DTYPES[dtype]))
    assert report.verdict == "STEP", str(report)


@pytest.mark.parametrize("size", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("matters", [True, False])
@pytest.mark.parametrize("count", [3, 9, 10, 11, 12, 15])
def test_of_the_largest_others_than_the_first_to_change_are_followed(
    count: int, matters: bool, size: float
) -> None:
    """The nearest change is an exchange of the two largest, which is nothing; then a smaller one may come in.

    What is ordered is up to 15000 times as large as what is varied.
    """
    weight = torch.ones(16, dtype=torch.float64)
    weight[15 - count] = 3.0 if matters else 1.0

    def f(x: Tensor) -> Tensor:
        y = 10.0 * torch.arange(16.0).to(x)
        moved = torch.stack([y[14] + x[0], y[16 - count] - x[1]])
        return weight[y.index_put((torch.tensor([15, 15 - count]),), moved).topk(count).indices].sum() * x.sum()

    report = qg.doctor.check(f, torch.tensor([size, 4.0 * size], dtype=torch.float64, requires_grad=True))
    assert report.verdict == ("STEP" if matters else "OK"), str(report)


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("values", list(itertools.permutations([0.5, -0.6, 0.2, 0.9])))
def test_an_order_of_which_one_place_matters(values: tuple[float, ...], descending: bool) -> None:
    """What comes to that place may not have been its neighbour at the point."""
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    place = lambda x: int(x.argsort(descending=descending)[0])
    f = lambda x: weights(x)[x.argsort(descending=descending)][0] * x.sum() + (x**2).sum()
    steps = Moved(f, [x], [], 0, lambda: None).direction(0)[0]
    jumps = len({place(x.detach() + t * steps) for t in torch.linspace(-0.9, 0.9, 181).tolist()}) > 1
    verdict = qg.doctor.check(f, x).verdict
    assert verdict == "STEP" or not jumps
