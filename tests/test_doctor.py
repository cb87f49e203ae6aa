"""The doctor's ledger, its marks, its report, its fixture and its command."""

from __future__ import annotations

import io
import linecache
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._cli.doctor import examine
from quadgrad.doctor import Report, Verdict

pytest_plugins = ["pytester"]


def lines_of(report: Report) -> list[str]:
    return [row.source for row in report.findings]


# -- the ledger


def test_losses_are_those_of_the_severed_paths_exactly() -> None:
    """Along one direction autograd's part and the lost one are known in closed form."""
    x = leaf(0.7)

    def f(x: Tensor) -> Tensor:
        a = x.detach() ** 2
        return a * torch.sin(x)

    report = qg.doctor.check(f, x)
    step = report.autograd / (x**2 * torch.cos(x)).item()
    lost = (2 * x * torch.sin(x)).item() * step
    assert report.verdict == "SEVERED" and len(report.findings) == 1
    assert abs(report.findings[0].lost - lost) <= max(report.findings[0].error, 1e-9 * abs(lost))
    assert abs(report.true - report.autograd - lost) <= report.error
    assert abs(report.gap) <= report.error


def test_a_path_that_meets_two_lines_counts_for_the_first() -> None:
    def f(x: Tensor) -> Tensor:
        a = x.detach() * 2.0
        b = (a + x).detach()
        return (a * b).sum()

    report = qg.doctor.check(f, leaf([0.3, -0.8]))
    first, second = sorted(report.findings, key=lambda row: row.line)
    # along v: a moves by 2v (and b with it), b by v of its own
    v = second.lost and report.true
    assert abs(first.lost + second.lost - v) <= 1e-8 * abs(v)
    # f = 2 x * 3 x: the first line loses 2 * 3x + 2x * 2, the second 2x
    assert abs(first.lost / second.lost - 5.0) < 1e-7


def test_wrong_backward_passes_are_sized_within_a_chain() -> None:
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
            ctx.factor = factor
            return 3.0 * x

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return ctx.factor * grads[0], None

    def f(x: Tensor) -> Tensor:
        y = Off.apply(x, 2.0)
        return Off.apply(y, 1.0)

    report = qg.doctor.check(f, leaf(1.0))
    first, second = sorted(report.findings, key=lambda row: row.line)
    assert {first.verdict, second.verdict} == {Verdict.WRONG}
    # true 9, autograd 2; the second loses (3 - 1) * 3, the first 1 * (3 - 2)
    assert abs(first.lost / report.true - 1 / 9) < 1e-8 and abs(second.lost / report.true - 6 / 9) < 1e-8


def test_a_kink_at_the_point_is_no_finding() -> None:
    report = qg.doctor.check(lambda x: torch.relu(x).sum() + x.abs().sum(), leaf([0.0, 0.0, 1.0]))
    assert report.ok and any("kink" in note for note in report.notes)


def test_outputs_of_any_shape_and_nest_are_contracted() -> None:
    x = leaf([0.3, -0.8])
    assert qg.doctor.check(lambda x: {"a": [x**2, x.sin().sum()], "n": 3}, x).ok
    assert qg.doctor.check(lambda x: torch.complex(x, x**2) ** 2, x).ok
    z = torch.tensor([0.3 + 0.1j, -0.8j], dtype=torch.complex128, requires_grad=True)
    assert qg.doctor.check(lambda z: z.abs().sum() + (z**3).real.sum(), z).ok
    assert not qg.doctor.check(lambda z: (z.detach() * z).real.sum(), z).ok


@pytest.mark.parametrize(
    "inside",
    [
        lambda x: torch.vmap(lambda t: t.detach() * t)(x),
        lambda x: torch.func.grad(lambda t: (t**3 + t.detach() ** 2 * t).sum())(x),
        lambda x: torch.autograd.grad((x.detach() * x**2).sum(), x, create_graph=True)[0],
        lambda x: checkpoint(lambda t: t.detach() * t, x, use_reentrant=False),
        lambda x: checkpoint(lambda t: t.detach() * t, x, use_reentrant=True),
        lambda x: torch.vmap(torch.vmap(lambda t: t.detach() * t))(x[:, None] * x),
    ],
    ids=["vmap", "func.grad", "autograd.grad", "checkpoint", "reentrant", "vmap of vmap"],
)
def test_lines_inside_transforms_are_named(inside: Any) -> None:
    report = qg.doctor.check(lambda x: inside(x).sin().sum(), leaf([0.4, 0.9]))
    assert report.verdict == "SEVERED", str(report)
    assert all("detach()" in line for line in lines_of(report))


# -- what is varied, what is restored


def test_leaves_that_were_not_given_are_found_and_varied() -> None:
    layer = nn.Linear(2, 1).double()
    report = qg.doctor.check(lambda: (layer(t64([1.0, 2.0])) * layer.weight.detach().sum()).sum())
    assert report.verdict == "SEVERED" and any("2 tensors" in note for note in report.notes)
    assert lines_of(report) == [
        "report = qg.doctor.check(lambda: (layer(t64([1.0, 2.0])) * layer.weight.detach().sum()).sum())"
    ]


def test_random_state_and_buffers_are_put_back_for_each_run_and_afterwards() -> None:
    own, norm = np.random.default_rng(3), nn.BatchNorm1d(2).double()
    generator, python = torch.Generator().manual_seed(5), random.Random(2)

    def f(x: Tensor) -> Tensor:
        noise = torch.randn(6, 2, dtype=torch.float64, generator=generator) + torch.rand(2, dtype=torch.float64)
        chance = own.normal() + np.random.rand() + random.random() + python.random()  # noqa: NPY002
        return (norm(x * noise) * chance).exp().sum() + norm.running_mean.sum()

    states = lambda: (
        torch.get_rng_state().sum().item(), generator.get_state().sum().item(),
        own.bit_generator.state["state"]["state"], random.getstate(), python.getstate(),
        norm.running_mean.tolist(), int(norm.num_batches_tracked),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    )  # fmt: skip
    before = states()
    report = qg.doctor.check(f, leaf([1.0, 2.0]))
    # what a normalisation remembers is no part of the graph, and here it is part of the output
    assert report.verdict in ("SEVERED", "SEVERED OR WRONG"), str(report)
    assert states() == before
    assert qg.doctor.check(lambda x: f(x) - norm.running_mean.sum(), leaf([1.0, 2.0])).ok


def test_nothing_to_vary_and_no_function_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="requires_grad_"):
        qg.doctor.check(lambda x: x.sum(), t64([1.0]))
    with pytest.raises(TypeError, match="first argument is the function"):
        qg.doctor.check(t64([1.0]))  # pyright: ignore
    with pytest.raises(ValueError, match="directions=0"):
        qg.doctor.check(lambda x: x, leaf(1.0), directions=0)
    with pytest.raises(ZeroDivisionError):
        qg.doctor.check(lambda x: x / (1 // 0), leaf(1.0))
    with pytest.raises(ValueError, match="reason"), qg.doctor.intended(" "):
        pass


# -- what is meant


def test_what_is_marked_is_listed_and_no_finding() -> None:
    @qg.doctor.intended("straight-through estimator")
    def quantised(x: Tensor) -> Tensor:
        return (x.round() - x).detach()

    report = qg.doctor.check(lambda x: (x + quantised(x)).pow(2).sum(), leaf([0.3, 1.2]))
    assert report.ok and not report.findings, str(report)
    assert [(row.verdict, row.remedy) for row in report.rows][:1] == [
        (Verdict.INTENDED, "straight-through estimator")
    ]


def test_a_mark_covers_its_own_lines_only() -> None:
    def f(x: Tensor) -> Tensor:
        with qg.doctor.intended("a baseline"):
            baseline = x.detach().mean()
        return ((x - baseline) * x.detach()).sum()

    report = qg.doctor.check(f, leaf([0.3, 1.2]))
    assert lines_of(report) == ["return ((x - baseline) * x.detach()).sum()"]


# -- integrals


def test_an_integrand_that_severs_is_named_with_the_users_line() -> None:
    scale = leaf(1.5)

    def integrand(x: Tensor, p: Tensor) -> Tensor:
        factor = scale.item()
        return p.detach() * torch.exp(-factor * x * p)

    for inputs in ((leaf(0.8),), (leaf([0.8, 1.1]),)):
        report = qg.doctor.check(lambda p: qg.quad(integrand, 0.0, p, args=(p,)).value, *inputs)
        assert {row.source for row in report.findings} == {
            "factor = scale.item()", "return p.detach() * torch.exp(-factor * x * p)",
        }  # fmt: skip
        assert abs(report.gap) <= report.error


def test_integrals_in_every_verb_are_examined() -> None:
    p = leaf(0.8)
    box = t64([0.0, 0.0]), t64([1.0, 1.0])
    inner = lambda x, p: qg.quad(lambda y, x: torch.exp(-p * y * x), 0.0, 1.0, (x,)).value
    cases = [
        lambda p: qg.qmc(lambda x: torch.exp(-p * x.sum(-1)), *box, n=64).value,
        lambda p: qg.vegas(lambda x: torch.exp(-p * x.sum(-1)), *box, n=512).value,
        lambda p: qg.quad(inner, 0.0, p, (p,)).value,
        lambda p: qg.quad(lambda x, p: torch.cos(p * x), 0.0, 1.0, (p,), gradient=qg.Resolve()),
    ]
    for function in cases:
        report = qg.doctor.check(function, p)
        assert report.ok, str(report)
    severed = lambda x, p: qg.quad(lambda y, x: torch.exp(-p.detach() * y * x), 0.0, 1.0, (x,)).value
    report = qg.doctor.check(lambda p: qg.quad(severed, 0.0, p, (p,)).value, p)
    assert report.verdict == "SEVERED" and "p.detach()" in lines_of(report)[0]


def in_torch(x: Tensor, p: Tensor) -> Tensor:
    return p.item() * torch.exp(x)


PRESCRIPTIONS = {
    "alias": ("qg.quad(sever, 0.0, 1.0, (p,))", "import quadgrad as qg\n{}"),
    "whole name": ("quadgrad.quad(\n    sever, 0.0, 1.0,  # two limits\n    args=(p,),\n)", "import quadgrad\n{}"),
    "one function": ("quad(sever, 0.0, 1.0, (p,))", "from quadgrad import quad\n{}"),
    "local": (
        "qg.quad(sever, 0.0, 1.0, (q,))",
        "import quadgrad as qg\ndef f():\n    q = 2 * p\n    return {}\nf()",
    ),
    "loop": ("qg.quad(sever, 0.0, b, (p.exp(),))", "import quadgrad as qg\n[{} for b in (1.0, 2.0)]"),
    "integrator": ("f(sever, 0.0, 1.0, (p,))", "import quadgrad as qg\nf = qg.Integrator(qg.quad)\n{}"),
}


@pytest.mark.parametrize("form", PRESCRIPTIONS)
def test_the_warning_of_a_severed_gradient_prescribes_what_names_the_line(form: str) -> None:
    """The printed statement runs in the place of the call, whatever that calls the library."""
    (call, around), said, file = PRESCRIPTIONS[form], list[str](), f"prescribed_{form}.py"
    text = around.format(call)
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space = {"sever": in_torch, "p": leaf(0.8), "said": said, "__name__": "theirs"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(text, file, "exec"), space)
    (message,) = {str(w.message) for w in caught}
    found = re.search(r"In place of this call, the line is named by: (import quadgrad; )?print\((.*)\)$", message)
    assert found and (found[1] is not None) == (form == "one function")
    space.pop("__name__")
    exec(around.format(f"said.append(str({found[2]}))"), space | {"quadgrad": __import__("quadgrad")})
    assert all("SEVERED" in one and "p.item() * torch.exp(x)" in one for one in said) and said


# -- the report


def severed(x: Tensor) -> Tensor:
    noted = x.sum().item()
    y = torch.from_numpy(np.exp(x.detach().numpy()))
    return (y * x).sum() + 0.0 * noted


def test_the_report_prints_and_writes_a_page(tmp_path: Path) -> None:
    report = qg.doctor.check(severed, leaf([0.3, 1.2]))
    text = str(report)
    assert not report and not report.ok and "torch.exp for np.exp" in text and "ledger:" in text
    assert "1 more line severed what changes nothing" in text and len(report.folded) == 1
    assert re.search(r"\d+ runs, [\d.e-]+ s; one run by itself takes", text)
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<mark>" in page and "np.exp" in page and "SEVERED" in page and page == report._repr_html_()


def test_rich_shows_a_table() -> None:
    from rich.console import Console

    from quadgrad.doctor.show import as_table

    console = Console(width=150, record=True, file=io.StringIO())
    console.print(as_table(qg.doctor.check(severed, leaf([0.3, 1.2]))))
    assert "write instead" in console.export_text()


def test_the_cost_is_bounded() -> None:
    """Twenty-five runs, and six for each line that severs."""
    report = qg.doctor.check(lambda x: (x.exp() * x).sum(), leaf([0.3, 1.2]))
    assert report.ok and report.runs <= 25
    report = qg.doctor.check(severed, leaf([0.3, 1.2]))
    assert report.runs <= 25 + 6 * len(report.rows)


def test_the_fixture_fails_a_test_with_the_report(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["quadgrad.doctor.fixture"]')
    pytester.makepyfile(
        """
        import torch
        x = torch.ones(2, dtype=torch.float64, requires_grad=True)

        def test_good(gradient_doctor):
            assert gradient_doctor(lambda x: x.exp().sum(), x).ok

        def test_bad(gradient_doctor):
            gradient_doctor(lambda x: (x.detach() * x).sum(), x)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*SEVERED: a part of the derivative never reaches autograd.*"])


# -- the command

SCRIPT = """
import torch
w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

def loss(w, power=2):
    return (w.detach() * w**power).sum()

def fine():
    return (w**2).sum()

def other(v):
    return v
"""


def test_the_command_names_the_line(tmp_path: Path) -> None:
    script = tmp_path / "script_for_the_doctor.py"
    script.write_text(SCRIPT)
    report = examine(f"{script}:loss", 2, 0)
    assert report.verdict == "SEVERED" and lines_of(report) == ["return (w.detach() * w**power).sum()"]
    assert examine(f"{script}:fine", 2, 0).ok
    for target, message in {
        f"{script}:los": "has no los; it has the functions loss, fine, other",
        f"{script}:other": "takes v, and the script has no variable of that name",
        f"{script}:w": "is a Tensor, no function",
        f"{script}": "should be script.py:function",
        f"{tmp_path}/none.py:f": "there is no file",
        "no_such_module_anywhere:f": "there is no module",
    }.items():
        with pytest.raises(ValueError, match=message):
            examine(target, 2, 0)


def hard_sample(logits: Tensor) -> Tensor:
    return (nn.functional.gumbel_softmax(logits, 0.7, True) * t64([1.0, 2.0, 4.0])).sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_hard_sample_is_a_straight_through_estimator(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.1, 0.5, -0.3], dtype=dtype, requires_grad=True)
    report = qg.doctor.check(hard_sample, logits)
    assert report.verdict == Verdict.SEVERED and abs(report.true) < 1e-8, str(report)
    assert "straight-through" in report.findings[0].remedy, str(report)
    assert report.findings[0].operation == "gumbel_softmax"
    report = qg.doctor.check(qg.doctor.intended("straight-through")(hard_sample), logits)
    assert report.ok and not report.findings, str(report)


@pytest.mark.parametrize("normalise", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_what_a_power_iteration_takes_away_is_told_until_it_has_converged(normalise: Any) -> None:
    layer = nn.Linear(3, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(t64([[2.0, 0.3, -0.1], [0.2, 1.0, 0.4], [0.5, -0.2, 0.3]]))
    x, layer = t64([[0.3, -0.8, 0.5]]), normalise(layer)
    for name, vector in layer.named_buffers():
        vector.copy_(t64([0.6, 0.8, 0.0]) if name.endswith("u") else t64([0.0, 0.6, 0.8]))
    loss = lambda: layer(x).square().sum()
    report = qg.doctor.check(loss, modules=[layer])
    assert report.verdict == Verdict.SEVERED, str(report)
    assert report.findings[0].operation == "spectral_norm" and "converged" in report.findings[0].remedy
    assert qg.doctor.check(qg.doctor.intended("a power iteration")(loss), modules=[layer]).ok
    for _ in range(60):
        layer(x)
    assert qg.doctor.check(loss, modules=[layer]).ok
    assert qg.doctor.check(loss, modules=[layer.eval()]).ok
