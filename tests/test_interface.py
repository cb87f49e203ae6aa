"""What callers see without integrating: names, printed results, saved results, warnings, options checked early."""

from __future__ import annotations

import copy
import inspect
import linecache
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, vmap

import quadgrad as qg
from helpers import leaf, t64

# ------------------------------------------------------------------------------------------------------ names


def test_dir_shows_what_is_public() -> None:
    assert {name for name in dir(qg) if not name.startswith("__")} == {*qg.__all__, "bridge", "doctor"}
    assert all(hasattr(qg, name) for name in dir(qg))


def test_modules_are_private_or_public_on_purpose() -> None:
    code = "import pkgutil, quadgrad; print(*[m.name for m in pkgutil.iter_modules(quadgrad.__path__)])"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in names if not name.startswith("_")] == ["bridge", "doctor", "tensorflow"]


def test_tracebacks_and_help_name_the_package() -> None:
    for name in ("IntegrationWarning", "IntegrandError", "Status", "quad", "replay", "element", "gradient_error"):
        assert getattr(qg, name).__module__ == "quadgrad"
        assert pickle.loads(pickle.dumps(getattr(qg, name))) is getattr(qg, name)
    assert re.match(r"(@\w+\n)*def quad\(", inspect.getsource(qg.quad))


def test_the_package_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "quadgrad", "integrate", "2*x", "--over", "x", "0", "1"]
    assert "value        1" in subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_objects_with_tensors_compare_by_identity() -> None:
    one, other = (qg.quad(torch.exp, 0.0, t64([1.0, 2.0])) for _ in range(2))
    elements = [qg.element(torch.ones(2), ndim=1) for _ in range(2)]
    for a, b in ((one, other), (one.plan, other.plan), (qg.Integrator(), qg.Integrator()), elements):
        assert a == a and a != b and len({a, b}) == 2


def test_configuration_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    qg.show_config()
    lines = capsys.readouterr().out.splitlines()
    names = ["quadgrad", "torch", "numpy", "scipy", "python", "threads", "processor", "kernel"]
    assert [line.split(":")[0] for line in lines] == names
    assert all(line.split(": ")[1] for line in lines)


# ---------------------------------------------------------------------------------------------------- printing


def decay(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(-p * x)


def failing(p: Tensor, **options: Any) -> qg.Result:
    return qg.quad(lambda x, p: 1 / ((x - 0.3) ** 2 + p**2), t64(0.0), 1.0, (p,), max_nfev=100, **options)


@pytest.mark.parametrize("shape", ((), (3,), (0,), (20, 100)))
def test_printed_in_a_few_lines(shape: tuple[int, ...]) -> None:
    p = torch.logspace(-4, 0, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape).requires_grad_()
    result = failing(p, gradient=qg.Resolve(), on_failure="ignore")
    integrator = qg.Integrator(qg.quad, rtol=1e-4, plan=result.plan)
    for shown in (result, result.derivative, result.plan, integrator):
        lines = repr(shown).splitlines()
        assert len(lines) <= 10 and "tensor(" not in repr(shown)
        assert shown._repr_html_().count("<tr>") == len(lines) - 1


def test_what_is_printed() -> None:
    result = qg.quad(decay, t64(0.0), 1.0, (t64(1.0),))
    assert repr(result).splitlines()[:4] == [
        "Result of 1 integral",
        "   value: 0.6321205588",
        f"   error: {float(result.error):.2g}",
        "  status: CONVERGED",
    ]
    many = repr(failing(torch.logspace(-5, 1, 2000, dtype=torch.float64), on_failure="ignore"))
    assert "Result of 2,000 integrals" in many and "shape (2000,), float64" in many
    assert " CONVERGED, " in many and " MAX_NFEV" in many and "raise max_nfev" in many
    wave = qg.quad(lambda x: torch.exp(1j * x), t64(0.0), torch.linspace(1.0, 2.0, 9, dtype=torch.float64))
    assert "value: modulus 0.958851077" in repr(wave)
    assert repr(qg.Integrator(qg.quad, rtol=1e-4)).startswith("Integrator of quad(rtol=0.0001)\n")


@pytest.mark.parametrize("transform", (grad, vmap, jacfwd, lambda f: vmap(grad(f))))
def test_printed_inside_transforms(transform: Any) -> None:
    shown: list[str] = []

    def area(p: Tensor) -> Tensor:
        result = qg.quad(decay, t64(0.0), 1.0, (p,))
        shown.append(repr(result))
        return result.value

    transform(area)(t64([1.0, 2.0]) if transform in (vmap,) or "lambda" in transform.__name__ else t64(1.0))
    assert "CONVERGED" in shown[0] and "0.632120558" in shown[0]


# ------------------------------------------------------------------------------------------------------ saving


def test_saved_results_lose_their_gradient_alone(tmp_path: Any) -> None:
    p = leaf([1.0, 2.0])
    result = qg.quad(decay, 0.0, 1.0, (p,), gradient=qg.Resolve())
    torch.save({"result": result}, tmp_path / "result.pt")
    for saved in (
        torch.load(tmp_path / "result.pt", weights_only=True)["result"],
        pickle.loads(pickle.dumps(result)),
    ):
        assert isinstance(saved, qg.Result) and not saved.value.requires_grad and saved.primal is None
        for name in ("value", "error", "status", "nfev"):
            assert torch.equal(getattr(saved, name), getattr(result, name).detach())
        assert saved.message == result.message and saved.derivative.names == ("args[0]",)
        assert torch.equal(
            qg.replay(decay, saved.plan, 0.0, 1.0, (p,)), qg.replay(decay, result.plan, 0.0, 1.0, (p,))
        )
    assert b"_core" not in (tmp_path / "result.pt").read_bytes()
    assert copy.copy(result).value.requires_grad


# ----------------------------------------------------------------------------------------------------- warnings


def peak(p: Tensor) -> Tensor:
    f = lambda x, p: 1 / ((x - 0.3) ** 2 + p**2)
    return qg.quad(f, t64(0.0), 1.0, (p,), max_nfev=100).value  # this line is named


def nested(p: Tensor) -> Tensor:
    inner = lambda x, p: qg.quad(lambda y, x, p: 1 / ((x + y) ** 2 + p**2), 0.0, 1.0, (x, p), max_nfev=46).value
    return qg.quad(inner, 0.0, 1.0, (p,)).value  # this line is named


def integrator(p: Tensor) -> Tensor:
    integrate = qg.Integrator(qg.quad, max_nfev=100)
    return integrate(lambda x, p: 1 / ((x - 0.3) ** 2 + p**2), t64(0.0), 1.0, (p,)).value  # this line is named


def infinite(p: Tensor) -> Tensor:
    return qg.quad(lambda x: (x - p.detach()) ** -0.5, p, 1.0).value  # this line is named


def unmarked(p: Tensor) -> Tensor:
    return qg.quad(lambda x, p: p * (x > 0.3), t64(0.0), 1.0, (p,)).value  # this line is named


def severed(p: Tensor) -> Tensor:
    return qg.quad(lambda x, p: x * float(p), t64(0.0), 1.0, (p,)).value  # this line is named


WAYS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda f: f(leaf(1e-4)),
    "grad": lambda f: grad(f)(t64(1e-4)),
    "vmap": lambda f: vmap(f)(t64([1e-4, 1e-5])),
    "vmap of grad": lambda f: vmap(grad(f))(t64([1e-4, 1e-5])),
    "no_grad": lambda f: torch.no_grad()(f)(t64(1e-4)),
    "compiled": lambda f: torch.compile(f, backend="eager")(leaf(1e-4)),
}
WARNED = [
    *((f, way) for f in (peak, nested, integrator) for way in WAYS),
    *((f, way) for f in (infinite, unmarked) for way in ("plain", "grad", "vmap of grad", "compiled")),
    (severed, "plain"),
]


@pytest.mark.parametrize(("function", "way"), WARNED, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_warnings_name_the_line_of_the_caller(function: Callable[[Tensor], Tensor], way: str) -> None:
    torch.compiler.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WAYS[way](function)
    ours = [w for w in caught if w.category.__module__ == "quadgrad"]
    assert ours
    for warning in ours:
        assert warning.filename == __file__
        assert "# this line is named" in linecache.getline(__file__, warning.lineno)


def test_warnings_of_a_replayed_plan() -> None:
    b = leaf(1.0)
    plan = qg.quad(lambda x: x, 0.0, b).plan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qg.replay(lambda x: x, plan, 0.0, b)
        qg.quad(lambda x: 1 / ((x - 0.3) ** 2 + 1e-8), 0.0, b, plan=plan, max_nfev=100)  # this line is named
    assert all("# this line is named" in linecache.getline(w.filename, w.lineno) for w in caught) and caught


def test_one_line_for_a_training_that_warns_in_every_step() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for step in range(50):
            failing(t64([1.0, 1e-4 + 1e-6 * step, 10.0 ** (-step / 10)]))
    assert len(caught) == 1 and "did not converge" in str(caught[0].message)


def test_a_filter_that_changes_is_obeyed() -> None:
    def step(p: float) -> None:
        failing(t64(p))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        step(1e-4)
        step(2e-4)
        assert len(caught) == 1
        warnings.simplefilter("always")
        step(3e-4)
        step(4e-4)
        assert len(caught) == 3
        warnings.simplefilter("error")
        with pytest.raises(qg.IntegrationWarning):
            step(5e-4)
        warnings.simplefilter("default")
        step(6e-4)
        step(7e-4)
        assert len(caught) == 4


# ------------------------------------------------------------------------------------------ options, checked early


@pytest.mark.parametrize(
    "options",
    (
        {"rtol": 0.0},
        {"rtol": -1.0},
        {"epsabs": 1e-8},
        {"limit": 100},
        {"rule": "gk22"},
        {"on_failure": "explode"},
        {"max_nfev": 3},
        {"gradient": "reuse"},
        {"limit_gradient": "sometimes"},
        {"chunk_size": 0},
    ),
    ids=lambda options: f"{options}",
)
def test_an_integrator_refuses_options_as_its_verb_does(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        qg.quad(torch.exp, 0.0, 1.0, **options)
    with pytest.raises(theirs.type) as ours:
        qg.Integrator(qg.quad, **options)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", ("args", "points", "jumps"))
def test_what_belongs_to_a_call_is_no_option(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is no option"):
        qg.Integrator(qg.quad, **{name: None})


@pytest.mark.parametrize(
    "options", ({"vectorized": False}, {"log": True}, {"gradient": qg.Resolve()}, {"rule": "cc11"})
)
def test_good_options_are_taken_without_a_call_that_matters(options: dict[str, Any]) -> None:
    integrate = qg.Integrator(qg.quad, **options)
    assert integrate.calls == integrate.nfev == 0 and integrate.plan is None


def test_any_verb_will_do() -> None:
    asked: list[dict[str, Any]] = []

    def verb(f: Any, a: Any, b: Any, args: Any = (), *, plan: Any = None, twice: bool = False) -> qg.Result:
        asked.append({"plan": plan, "twice": twice})
        return qg.quad(f, a, b, args, plan=plan)

    integrate = qg.Integrator(verb, twice=True)
    first, second = (integrate(decay, t64(0.0), 1.0, (leaf(1.0),)) for _ in range(2))
    assert [call["twice"] for call in asked] == [True] * 3
    assert asked[1]["plan"] is None and asked[2]["plan"] is first.plan and second.converged
    with pytest.raises(TypeError, match="thrice"):
        qg.Integrator(verb, thrice=True)


def test_a_plan_to_start_from() -> None:
    p = leaf(1e-3)
    f = lambda x, p: 1 / ((x - 0.3) ** 2 + p**2)
    plan = qg.quad(f, t64(0.0), 1.0, (p,)).plan
    integrate = qg.Integrator(plan=plan)
    assert integrate(f, t64(0.0), 1.0, (p,)).converged and integrate.started == 0
