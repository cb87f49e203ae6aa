"""``quadgrad integrate``: values and gradients beside closed forms, mistakes, JSON, pictures, exit codes."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quadgrad import Status
from quadgrad._cli import main as cli
from quadgrad._plots import plot_plan

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
GAUSS = ("exp(-a*x**2)*cos(b*x)", "--over", "x", "0", "inf", "--param", "a=2", "--param", "b=3")


def invoke(*words: str):
    return CliRunner().invoke(cli.make_app(), ["integrate", *words])


def answer(*words: str, exit_code: int = 0):
    result = invoke(*words, "--json")
    assert result.exit_code == exit_code, result.output
    assert len(result.stdout.splitlines()) == 1
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def refused(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_command_without_a_variable_shows_how_to_write_it():
    assert "--over x 0 inf" in refused("exp(-x)", "0", "inf")
    assert "--over" in invoke("--help").output


@pytest.mark.parametrize(
    ("text", "lower", "upper", "exact"),
    [
        ("exp(-x**2)", "-inf", "inf", math.sqrt(math.pi)),
        ("sin(x)**2", "0", "2*pi", math.pi),
        ("1/(1 + x**2)", "0", "inf", math.pi / 2),
        ("log(x)", "0", "1", -1.0),
        ("x**-0.5", "0", "4", 4.0),
        ("-x**2", "-1", "1", -2 / 3),
        ("x**3*exp(-x)", "0", "inf", 6.0),
        ("1/x", "1", "e", 1.0),
        ("sqrt(1 - x**2)", "-1", "1", math.pi / 2),
        ("erfc(x)", "0", "inf", 1 / math.sqrt(math.pi)),
        ("x", "1", "0", -0.5),
        ("1", "sqrt(4)", "7", 5.0),
    ],
)
def test_values_are_those_of_closed_forms(text, lower, upper, exact):
    found = answer(text, "--over", "x", lower, upper)
    assert found["status"] == "CONVERGED"
    assert found["message"] == Status.CONVERGED.message
    assert abs(found["value"] - exact) <= found["error"] + 1e-15
    assert 0.0 < found["error"] <= 1.5e-8 * abs(exact)
    assert isinstance(found["evaluations"], int)
    assert found["gradient"] == {}


def test_gradients_are_those_of_closed_forms():
    found = answer(*GAUSS, "--grad", "a,b", "--rtol", "1e-10")
    value = math.sqrt(math.pi / 2) / 2 * math.exp(-9 / 8)
    assert found["value"] == pytest.approx(value, rel=1e-10)
    assert found["gradient"] == pytest.approx({"a": value * (9 / 16 - 1 / 4), "b": value * -3 / 4}, rel=1e-9)


def test_a_limit_that_is_a_parameter_counts_on_both_sides():
    found = answer("a*x**2", "--over", "x", "a/2", "a", "--param", "a=2", "--grad", "a, lower, upper")
    assert found["value"] == pytest.approx(14 / 3)
    assert found["gradient"] == pytest.approx({"a": 7 / 3 - 1.0 + 8.0, "lower": -2.0, "upper": 8.0})


def test_a_limit_alone_and_a_parameter_that_does_not_occur():
    found = answer("exp(x)", "--over", "x", "-inf", "1", "--param", "a=1", "--grad", "upper,a")
    assert found["gradient"] == pytest.approx({"a": 0.0, "upper": math.e})


def test_a_jump_counts_where_points_names_it_and_a_note_says_so_where_not():
    jump = ("x > s", "--over", "x", "-1", "1", "--param", "s=0.3", "--grad", "s")
    assert answer(*jump, "--points", "s")["gradient"] == pytest.approx({"s": -1.0})
    unmarked = invoke(*jump)
    assert unmarked.exit_code == 0
    assert "note: the integrand jumps at a place that s moves" in unmarked.stderr


def test_points_rule_and_budget_reach_the_integral():
    words = ("abs(x - 0.3) + (x > 0.5)", "--over", "x", "0", "1")
    assert answer(*words, "--points", "0.3,0.5")["evaluations"] == 78
    assert answer(*words, "--points", "0.3, 1/2", "--rule", "gk15")["evaluations"] == 60
    poor = answer("abs(x - 0.3)", "--over", "x", "0", "1", "--max-nfev", "42", exit_code=1)
    assert poor["evaluations"] == 26
    assert poor["status"] == "MAX_NFEV"
    assert answer(*words, "--atol", "0.1")["evaluations"] < 100


def test_an_integral_that_does_not_converge_is_printed_with_the_sentence():
    result = invoke("1/x", "--over", "x", "0", "1")
    assert result.exit_code == 1
    assert re.search(r"^value +\d", result.stdout)
    assert Status.DIVERGENT.message in result.stdout


def test_what_json_has_no_number_for_is_a_string():
    found = answer("log(-x)", "--over", "x", "0", "1", exit_code=1)
    assert (found["value"], found["error"], found["status"]) == ("nan", "inf", "NONFINITE")
    assert "For example f(x) = nan at x = " in found["message"]
    assert "integral 0" not in found["message"]
    assert answer("x**-0.5", "--over", "x", "0", "1", "--grad", "lower")["gradient"] == {"lower": "-inf"}


def test_notes_speak_of_lower_and_upper():
    result = invoke("x**-0.5", "--over", "x", "0", "1", "--grad", "lower")
    assert "note: the derivative with respect to the lower limit is infinite" in result.stderr


def test_a_derivative_that_where_spoils_is_explained():
    result = invoke("where(x > 0, a*x*log(a*x), 0)", "--over", "x", "-1", "1", "--param", "a=2", "--grad", "a")
    assert re.search(r"d/da +nan", result.stdout)
    assert "where(c, a, b) computes both" in result.stderr


def test_a_derivative_that_overflow_spoils_is_explained_in_functions_of_formulas():
    words = ("--over", "x", "0", "inf", "--param", "T=300", "--grad", "T")
    note = invoke("x**3/expm1(x/T)", *words).stderr
    assert "exp(-u) / -expm1(-u) for 1 / expm1(u)" in note and "torch" not in note and "where(c" not in note
    found = answer("x**3*exp(-x/T)/-expm1(-x/T)", *words)["gradient"]["T"]
    assert found == pytest.approx(4 * math.pi**4 / 15 * 300**3, rel=1e-8)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("x^2", "--over", "x", "0", "1"), "there is no operator ^: write ** for powers\n  x^2\n   ^\n"),
        (("a*x", "--over", "x", "0", "1"), "unknown name a: give it a value, as in --param a=2\n  a*x\n  ^\n"),
        (("x", "--over", "x", "0", "2*pii"), "--over: unknown name pii: did you mean pi?\n  2*pii\n    ^\n"),
        (("x.__class__", "--over", "x", "0", "1"), "there are no attributes here\n  x.__class__\n   ^\n"),
        (
            ("__import__('os')", "--over", "x", "0", "1"),
            "unexpected character \"'\"\n  __import__('os')\n             ^\n",
        ),
        (("x", "--over", "x", "0", "0/0"), "--over: this is not a number\n  0/0\n  ^\n"),
        (("x", "--over", "x", "0", "1", "--points", "0.3,"), "--points: there is nothing here\n"),
        (("x", "--over", "x", "0", "1", "--points", "inf"), "--points: this must be finite\n  inf\n  ^\n"),
        (("x", "--over", "x", "0", "1", "--param", "a"), "--param: 'a' should be written name=value, as in a=2\n"),
        (
            ("x", "--over", "x", "0", "1", "--param", "a=9**9**9"),
            "--param: this must be finite\n  9**9**9\n  ^\n",
        ),
        (
            ("x", "--over", "x", "0", "1", "--param", "a=b"),
            "--param: unknown name b: a parameter is a number\n  b\n  ^\n",
        ),
        (("x", "--over", "x", "0", "1", "--param", "x=1"), "--param: x is integrated over\n"),
        (("x", "--over", "x", "0", "1", "--param", "lower=1"), "--param: lower means the limit\n"),
        (("x", "--over", "x", "0", "1", "--param", "pi=3"), "--param: pi is a constant and cannot be a name: cho"),
        (("x", "--over", "x", "0", "1", "--param", "a=1", "--param", "a=2"), "--param: a has a value already\n"),
        (("x", "--over", "2", "0", "1"), "--over: '2' is not a name: use letters, digits and underscores\n"),
        (
            ("x", "--over", "x", "0", "1", "--grad", "uper"),
            "--grad: there is no parameter uper: did you mean",
        ),
        (
            ("x", "--over", "x", "0", "1", "--grad", "x"),
            "--grad: x is integrated over, there is no",
        ),
        (("exp(-x)", "--over", "x", "0", "inf", "--grad", "upper"), "--grad: the upper limit is infinite, there"),
        (("x", "--over", "x", "0", "1", "--rule", "gk16"), "rule='gk16' is not known"),
        (("x", "--over", "x", "0", "1", "--rtol", "-1"), "rtol=-1.0 must be a finite number"),
        (("x", "--over", "x", "0", "1", "--max-nfev", "5"), "max_nfev=5 is less than the first round"),
        (("x", "--over", "x", "0", "1", "--rtl", "1"), "no such option --rtl: did you mean --rtol?\n"),
        (("exp(x)", "+", "1", "--over", "x", "0", "1"), "one expression is expected, and more was found: + 1. Put"),
        (
            ("x", "--over", "x", "0", "1", "--points", "0.5", "0.6"),
            "one expression is expected, and more was found: 0.6",
        ),
        (("x", "--over", "x", "0,1"), "--over takes three words, a name and two limits: --over x 0 inf\n"),
        (("x", "--over", "x", "0", "--json"), "--over takes three words, a name and two limits: --over x 0 inf\n"),
        (("np.sin(x)", "--over", "x", "0", "1"), "write sin(...) alone: functions are called by their names\n"),
        (
            ("x", "--over", "x", "0", "1", "--points", "[0.5]"),
            "--points: there are no lists here: write 0.3,0.7 where",
        ),
        (("normal(x)", "--over", "x", "0", "1"), "unknown function normal: quadgrad integrate --help lists those"),
        (("exp(-x\u00b2)", "--over", "x", "0", "1"), "write **2 and **3 for raised digits\n"),
        (
            ("a*x", "--over", "x", "0", "1", "--param", "a=2,b=3"),
            "--param: give one for each, --param a=... --param",
        ),
    ],
)
def test_mistakes_get_one_line_and_a_caret(words, expected):
    assert refused(*words).startswith(f"quadgrad: {expected}")


def test_an_expression_may_begin_with_any_number_of_signs():
    assert answer("--x", "--over", "x", "0", "1")["value"] == pytest.approx(0.5)


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_picture_is_written_whatever_the_backend(tmp_path, monkeypatch, ending):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    file = tmp_path / f"cells.{ending}"
    result = invoke(*GAUSS, "--grad", "a,b", "--plot", str(file))
    assert result.exit_code == 0, result.output
    assert file.stat().st_size > 5_000


def test_a_picture_of_what_is_not_finite_or_empty_does_not_fail(tmp_path):
    for words, code in ((("log(-x)", "--over", "x", "0", "1"), 1), (("x", "--over", "x", "1", "1"), 0)):
        file = tmp_path / f"{code}.png"
        result = invoke(*words, "--plot", str(file))
        assert result.exit_code == code, result.output
        assert file.exists()


@pytest.mark.parametrize("name", ["missing/cells.png", "cells.docx"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, name):
    assert "--plot" in refused("x", "--over", "x", "0", "1", "--plot", str(tmp_path / name))


def test_a_picture_that_cannot_be_written_after_all_is_one_line(tmp_path):
    file = tmp_path / ("x" * 300 + ".png")
    result = invoke("x", "--over", "x", "0", "1", "--plot", str(file))
    assert result.exit_code == 2
    assert result.stdout.startswith("value")
    assert result.stderr.startswith("quadgrad: --plot: ")


def test_help_lists_the_functions():
    result = invoke("--help")
    assert result.exit_code == 0
    assert "atan2" in result.stdout


def test_the_readme_shows_what_is_printed():
    command, shown = re.findall(r"^\$ quadgrad integrate ([^\n]*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[0]
    printed = invoke(*shlex.split(command)).stdout
    for mine, theirs in zip(printed.splitlines(), shown.splitlines(), strict=True):
        (name, value), (its_name, its_value) = mine.split(), theirs.split()
        assert name == its_name
        if name != "error":
            number = r"-?[\d.]+"
            assert value == its_value or (
                re.fullmatch(number, its_value) and float(value) == pytest.approx(float(its_value), rel=1e-12)
            )
    assert printed.splitlines()[-1].index("-") == shown.splitlines()[-1].index("-")


SIMPLEX = ("a*x*y", "--over", "x", "0", "b", "--over", "y", "0", "b - x", "--param", "a=3", "--param", "b=2")


@pytest.mark.parametrize(
    ("words", "exact"),
    [
        (("x*y", "--over", "x", "0", "1", "--over", "y", "0", "2*pi"), math.pi**2),
        (("y*x**2", "--over", "y", "1", "0", "--over", "x", "-y", "y"), -2 / 15),
        (("1", "--over", "r", "0", "1", "--over", "s", "-r**2", "r", "--over", "t", "s", "r"), 31 / 60),
        (("exp(-x**2 - y**2)", "--over", "x", "-inf", "inf", "--over", "y", "0", "inf"), math.pi / 2),
        (("-x - y", "--over", "x", "0", "1", "--over", "y", "0", "x", "--rule", "gm9"), -0.5),
    ],
)
def test_several_variables_the_outermost_first(words, exact):
    found = answer(*words, "--rtol", "1e-9")
    assert found["value"] == pytest.approx(exact, rel=1e-9)
    assert found["error"] >= abs(found["value"] - exact) - 1e-15


@pytest.mark.parametrize(
    "words", [SIMPLEX, ("exp(-x**2 - y**2)", "--over", "x", "-inf", "inf", "--over", "y", "0", "inf")]
)
def test_a_picture_of_two_variables(words, tmp_path):
    file = tmp_path / "cells.svg"
    result = invoke(*words, "--plot", str(file), "--rtol", "1e-6")
    assert result.exit_code == 0, result.output
    assert file.read_text(encoding="utf-8").startswith("<?xml")


def test_gradients_through_limits_that_name_outer_variables():
    found = answer(*SIMPLEX, "--grad", "a,b", "--rtol", "1e-10")
    assert found["value"] == pytest.approx(3 * 2**4 / 24, rel=1e-10)
    assert found["gradient"] == pytest.approx({"a": 2**4 / 24, "b": 3 * 2**3 / 6}, rel=1e-10)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("x", "--over", "x", "0", "y", "--over", "y", "0", "1"),
            "--over: a limit of x cannot name y, which is no",
        ),
        (
            ("x", "--over", "x", "0", "x", "--over", "y", "0", "1"),
            "--over: a limit of x cannot name x, which is no",
        ),
        (("x", "--over", "x", "0", "1", "--over", "x", "0", "1"), "--over: x is integrated over twice\n"),
        (
            ("x", "--over", "x", "0", "1", "--over", "y", "0", "z"),
            "--over: unknown name z: give it a value, as in ",
        ),
        (("z", "--over", "x", "0", "1", "--over", "y", "0", "1"), "unknown name z: give it a value, as in --param"),
        ((*SIMPLEX, "--grad", "upper"), "--grad: there are 2 upper limits: make the one that is meant a parameter"),
        ((*SIMPLEX, "--grad", "y"), "--grad: y is integrated over, there is no derivative by it\n"),
        ((*SIMPLEX, "--param", "x=1"), "--param: x is integrated over\n"),
        ((*SIMPLEX, "--points", "0.5"), "--points: breakpoints are for one variable"),
        ((*SIMPLEX, "--over", "z", "0", "1", "--plot", "cells.png"), "--plot: pictures are of one variable or two"),
        ((*SIMPLEX, "--rule", "gk16"), "rule='gk16' is not known"),
    ],
)
def test_mistakes_with_several_variables(words, expected):
    assert refused(*words).startswith(f"quadgrad: {expected}")


def test_a_jump_in_several_variables_that_a_parameter_moves_is_told():
    jump = ("x > s", "--over", "x", "0", "1", "--over", "y", "0", "1", "--param", "s=0.3", "--grad", "s")
    told = invoke(*jump, "--rtol", "1e-3").stderr
    assert "d/ds counts the jump only if it is a limit" in told


def test_a_constant_of_nature_is_told_and_can_be_a_parameter():
    planck = ("x**3/(exp(h*x/(k*T)) - 1)", "--over", "x", "1", "1e16", "--param", "T=300")
    result = invoke(*planck, "--points", "1e13", "--rtol", "1e-10")
    assert result.exit_code == 0, result.output
    assert "k is the Boltzmann constant, in J/K, 1.380649e-23" in result.stderr
    exact = (math.pi**4 / 15) * (1.380649e-23 * 300 / 6.62607015e-34) ** 4
    assert float(re.search(r"value +(\S+)", result.stdout)[1]) == pytest.approx(exact, rel=1e-9)
    own = invoke("c*x", "--over", "x", "0", "1", "--param", "c=2")
    assert "1" in own.stdout and "light" not in own.stderr


@pytest.mark.parametrize(
    ("text", "exact"),
    [("j0(x)", 1.4257702931970265), ("sinc(x/pi)", 1.6054129768026948), ("ln(x)", 2 * math.log(2) - 2)],
)
def test_special_functions_are_integrated(text, exact):  # from mpmath
    found = answer(text, "--over", "x", "0", "a", "--param", "a=2", "--grad", "upper")
    assert found["value"] == pytest.approx(exact, rel=1e-9)
    last = {"j0(x)": 0.22389077914123567, "sinc(x/pi)": math.sin(2) / 2, "ln(x)": math.log(2)}[text]
    assert found["gradient"]["upper"] == pytest.approx(last, rel=1e-12)


@pytest.mark.parametrize("text", ("exp(-x/100)", "exp(-x**2)"))
def test_a_half_line_is_drawn_without_a_kink(tmp_path, monkeypatch, text):
    scales = []

    def keep(*args, **options):
        scales.append(plot_plan(*args, **options))
        return scales[-1]

    monkeypatch.setattr("quadgrad._cli.integrate.plot_plan", keep)
    result = invoke(text, "--over", "x", "0", "inf", "--plot", str(tmp_path / "half.png"))
    assert result.exit_code == 0, result.output
    (ax,) = scales
    x, y = ax.lines[0].get_data()
    picture = ax.transData.transform(list(zip(x, y, strict=True)))
    steps = picture[1:] - picture[:-1]
    steps = steps[abs(steps).max(1) > 1e-6]
    turns = [math.atan2(dy, dx) for dx, dy in steps]
    assert (
        max(abs(one - other) for one, other in zip(turns, turns[1:], strict=False)) < 0.1
    )  # a kink is 0.2 and more
