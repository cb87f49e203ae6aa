"""What is typed wrong in models that are larger than a first try: each message names the line to write instead."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import quadgrad as qg
from helpers import t64
from quadgrad._cli.main import make_app
from test_first_hour import told

F64 = torch.float64
ROWS, UNTIL = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)), torch.linspace(0.1, 1.0, 7)
NORMAL = torch.distributions.Normal(0.0, 0.1)
BELL = lambda x: torch.exp(-(x**2).sum(-1))
HAZARD = nn.Linear(4, 1)


def hazard(t: Tensor, z: Tensor) -> Tensor:
    return HAZARD(torch.cat([t[..., None], z.expand(*t.shape, 3)], -1))[..., 0]


# -- limits and options ---------------------------------------------------------------------------------

PAIRS = [[-6.0, 6.0], [-5.0, 5.0]]
TURNED = r"turned round: a=\[-6.0, -5.0\], b=\[6.0, 5.0\]"


@pytest.mark.parametrize("verb", [qg.vegas, qg.qmc, qg.cubature])
@pytest.mark.parametrize(
    "pairs", [PAIRS, tuple(map(tuple, PAIRS)), torch.tensor(PAIRS)], ids=["list", "tuple", "tensor"]
)
def test_a_pair_of_limits_for_each_coordinate_is_turned_round(verb: Callable[..., Any], pairs: Any) -> None:
    if verb is not qg.vegas and isinstance(pairs, Tensor):
        return  # a tensor may be the corners of a batch, of which b alone is missing
    assert re.search(TURNED, told(lambda: verb(BELL, pairs), TypeError))


def test_two_numbers_are_still_two_limits() -> None:
    assert "here quad(f, 0.0, 2.0)" in told(lambda: qg.quad(torch.exp, [0.0, 2.0]), TypeError)  # type: ignore[call-arg]


@pytest.mark.parametrize("region", [None, qg.Where(lambda x: 1 - (x**2).sum(-1))], ids=["box", "part"])
def test_a_budget_may_be_given_as_1e5(region: Any) -> None:
    for call in (lambda n: qg.quad(torch.exp, 0.0, 1.0, max_nfev=n),
                 lambda n: qg.cubature(BELL, [-2.0, -2.0], 2.0, region=region, max_nfev=n, rtol=1e-4)):  # fmt: skip
        assert torch.equal(call(1e5).value, call(100_000).value)
        assert "max_nfev=100.5 must be a whole number" in told(lambda call=call: call(100.5), ValueError)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"atol": None}, r"atol=None is no number: write atol=1e-6, or leave it out"),
    ({"rtol": [1e-3]}, r"rtol=\[0.001\] is no number"),
    ({"rtol": "1e-3"}, r"rtol='1e-3' is no number: write rtol=1e-6"),
    ({"rule": 21}, r"rule=21 is no name: write rule='gk21'"),
    ({"points": {0.5}}, r"points=\[0.3, 0.7\]"),
    ({"points": {"a": 0.5}}, r"make a list of them"),
    ({"points": (p for p in (0.5,))}, r"make a list of them"),
    ({"points": "0.5"}, r"write points=\[0.3, 0.7\]"),
    ({"points": [[0.5], [0.5, 0.7]]}, r"each integral has a row, and NaN fills up"),
    ({"gradient": qg.Resolve}, r"quadgrad.Reuse\(\) or quadgrad.Resolve\(\)"),
    ({"region": qg.Ball([0.0], 1.0)}, r"quadgrad.cubature and quadgrad.qmc have it"),
    ({"seed": 3}, r"nothing is drawn at random"),
    ({"progress": True}, r"cubature, qmc and vegas have it"),
    ({"opts": {}}, r"are arguments here: rtol, atol, points"),
]


@pytest.mark.parametrize(("option", "says"), OPTIONS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_options_of_another_kind(option: dict[str, Any], says: str) -> None:
    assert re.search(says, told(lambda: qg.quad(torch.exp, 0.0, 1.0, **option), TypeError))


def test_jumps_are_for_one_dimension() -> None:
    call = lambda: qg.cubature(BELL, [0.0, 0.0], 1.0, jumps=BELL)  # type: ignore[call-arg]
    assert "region=quadgrad.Where(g)" in told(call, TypeError)


# -- what belongs to an integral ------------------------------------------------------------------------

OWN = [
    (lambda: qg.quad(lambda t: hazard(t, ROWS), 0.0, UNTIL), r"quadgrad.element\(c, ndim=1\), and not closed over"),
    (lambda: qg.quad(lambda t: torch.cat([t[..., None], ROWS], -1).sum(-1), 0.0, UNTIL), r"and not closed over"),
    (lambda: qg.quad(lambda t, z: torch.cat([t[..., None], z], -1).sum(-1), 0.0, UNTIL, (qg.element(ROWS, 1),)),
     r"c.expand\(\*x.shape, c.shape\[-1\]\)"),
    (lambda: qg.qmc(lambda x, c: torch.cat([x, c], -1).sum(-1), [0.0, 0.0], 1.0, (qg.element(ROWS, 1),)),
     r"x stands beside c.expand\(\*x.shape\[:-1\], c.shape\[-1\]\)"),
    (lambda: qg.expectation(lambda x: torch.relu(x - UNTIL), NORMAL), r"passed in args.* not closed over"),
    (lambda: qg.qmc(lambda x, c: ((x @ c) * x).sum(-1), [0.0] * 3, 1.0, (torch.eye(3),)),
     r"quadgrad.element\(m, ndim=2\)"),
    (lambda: qg.quad(torch.mul, 0.0, UNTIL, (torch.ones(2),)), r"or closed over if it is the same for all"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), OWN)
def test_rows_of_each_integral(call: Callable[[], Any], says: str) -> None:
    assert re.search(says, told(call))


def test_what_is_said_of_rows_works() -> None:
    result = qg.quad(hazard, 0.0, UNTIL, (qg.element(ROWS, ndim=1),))
    alone = qg.quad(lambda t: hazard(t, ROWS[3]), 0.0, UNTIL[3])
    assert torch.allclose(result.value[3], alone.value, rtol=1e-5)
    assert result.value.requires_grad


def test_rows_of_several_lengths_are_no_element() -> None:
    for rows in ([torch.ones(3), torch.ones(2)], [[1.0, 2.0], [1.0]]):
        assert "filled up to one" in told(lambda rows=rows: qg.element(rows, ndim=1), TypeError)  # type: ignore[arg-type]


def test_limits_in_double_precision_beside_a_network_and_rows_in_single() -> None:
    text = told(lambda: qg.quad(hazard, 0.0, UNTIL.double(), (qg.element(ROWS, 1),)))
    assert re.search(r"pass args\[0\] as .double\(\), and a network that f calls; or limits in float32", text)
    assert qg.quad(hazard, 0.0, UNTIL, (qg.element(ROWS, 1),)).converged.all()


def test_an_argument_in_single_precision_that_spoils_double_is_named() -> None:
    rounded = lambda x, p: torch.sin(1e3 * x.float() * p).double()
    with pytest.warns(qg.IntegrationWarning, match=r"args\[0\] is not in double precision.*pass it as .double\(\)"):
        qg.quad(rounded, 0.0, t64(1.0), args=(torch.tensor(1.0),))


def test_a_density_in_the_place_of_its_logarithm() -> None:
    with pytest.warns(qg.IntegrationWarning, match=r"With log=True f returns the logarithm of the integrand"):
        qg.quad(lambda u: torch.exp(-(u**2)), -math.inf, t64(math.inf), log=True)


# -- losses over perturbations --------------------------------------------------------------------------

ITEMS, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
MODEL = nn.Linear(3, 2)
LOSS = lambda xs, ys: nn.functional.cross_entropy(MODEL(xs), ys, reduction="none")


@pytest.mark.parametrize("loss", [MODEL, lambda xs: MODEL(xs).sum(-1)], ids=["model", "one argument"])
def test_a_loss_of_other_arguments(loss: Any) -> None:
    text = told(lambda: qg.perturbation_loss(loss, ITEMS, LABELS, NORMAL))
    assert "loss(xs, targets) with xs of shape (64, 3), torch.float32, targets of shape (64,)" in text
    assert "cross_entropy(model(xs), targets, reduction='none')" in text


def test_items_of_another_dtype_than_the_model() -> None:
    assert "xs of shape (64, 3), torch.float64" in told(
        lambda: qg.perturbation_loss(LOSS, ITEMS.double(), LABELS, NORMAL)
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("n_samples", 4, "n=4"),
        ("batch_size", 4, "chunk_size"),
        ("sigma", 0.1, "distribution"),
        ("generator", 1, "seed"),
    ],
)
def test_arguments_of_a_loss_under_other_names(name: str, value: Any, says: str) -> None:
    text = told(lambda: qg.perturbation_loss(LOSS, ITEMS, LABELS, NORMAL, **{name: value}), TypeError)
    assert f"'{name}': that is" in text and says in text


def test_what_is_no_loss_is_not_printed_whole() -> None:
    assert len(told(lambda: qg.perturbation_loss(torch.zeros(999), LOSS, LABELS, NORMAL), TypeError)) < 200  # type: ignore[arg-type]


# -- the doctor in the shell ----------------------------------------------------------------------------

SCRIPT = """
import torch
x = torch.ones(2, requires_grad=True)
def breaks(x):
    return x.nope
def refuses():
    raise ValueError("mine")
"""


@pytest.mark.parametrize(
    ("script", "target", "says"),
    [
        (SCRIPT, "breaks", "breaks raised AttributeError: 'Tensor' object has no attribute 'nope' (script.py:5)"),
        (SCRIPT, "refuses", "refuses raised ValueError: mine (script.py:7)"),
        (SCRIPT, ":breaks", "should be script.py:function"),
        ("\n1 / 0", "f", "script.py raised ZeroDivisionError: division by zero (script.py:2)"),
    ],
)
def test_a_program_that_raises_is_a_mistake_and_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, target: str, says: str
) -> None:
    (tmp_path / "script.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # which the command adds, and leaves
    done = CliRunner().invoke(make_app(), ["doctor", f"script.py:{target}"])
    assert done.exit_code == 2
    assert done.stderr.startswith("quadgrad: ") and says in done.stderr
