"""Typed formulas: what they compute, their derivatives, and that everything else is refused at its place."""

from __future__ import annotations

import math

import mpmath
import pytest
import scipy.constants
import torch

from helpers import leaf, t64
from quadgrad._cli.expression import CONSTANTS, FUNCTIONS, MAX_DEPTH, Expression, ExpressionError, check_name

X = t64([-1.7, -0.4, 0.3, 2.6])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2*x - x/4", lambda x: 1 + 2 * x - x / 4),
        ("-x**2", lambda x: -(x**2)),
        ("2**-x", lambda x: 2.0**-x),
        ("x**-2", lambda x: 1 / x**2),
        ("2**3**2", lambda x: torch.full_like(x, 512.0)),
        ("+x", lambda x: x),
        ("  1_000 * x  ", lambda x: 1000 * x),
        ("x\n* 2", lambda x: 2 * x),
        ("x < 0.3", lambda x: (x < 0.3).double()),
        ("x <= 0.3", lambda x: (x <= 0.3).double()),
        ("0 < x <= 1", lambda x: ((x > 0) & (x <= 1)).double()),
        ("(x > 0) * (x >= 1)", lambda x: (x >= 1).double()),
        ("where(x > 0, x, 2)", lambda x: torch.where(x > 0, x, 2.0)),
        ("minimum(x, 1) + maximum(0, x)", lambda x: x.clamp(max=1) + x.clamp(min=0)),
        ("atan2(x, -1)", lambda x: torch.atan2(x, -torch.ones_like(x))),
        ("pi*x + e", lambda x: math.pi * x + math.e),
        ("exp(-inf)", torch.zeros_like),
        ("softplus(x) - relu(x)", lambda x: torch.log1p(torch.exp(-x.abs()))),
        ("floor(x) + ceil(x) + sign(x)", lambda x: x.floor() + x.ceil() + x.sign()),
        ("1/0", lambda x: torch.full_like(x, math.inf)),
        ("7", lambda x: torch.full_like(x, 7.0)),
    ],
)
def test_it_computes_what_it_says(text, expected):
    torch.testing.assert_close(Expression(text, ["x"])(X), expected(X), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_is_torchs_or_pythons_and_has_a_derivative(name):
    function = FUNCTIONS[name]
    at = [1.3, 0.6, 0.2] if name == "acosh" else [0.3, 0.6, 0.2]
    arguments = [leaf(value) for value in at[: function.arity]]
    expression = Expression(f"{name}({', '.join('xyz'[: function.arity])})", "xyz"[: function.arity])
    value = expression(*arguments)
    assert value.dtype == torch.float64
    reference = getattr(math, {"abs": "fabs", "gamma": "gamma"}.get(name, name), None)
    if reference is not None:
        assert value.item() == pytest.approx(reference(*at[: function.arity]), rel=1e-14)
    torch.autograd.gradcheck(expression, arguments)


def test_gamma_has_the_sign_that_lgamma_drops():
    for x in (-2.5, -1.5, -0.5, 0.5, 1.0, 4.2, 20.0):
        assert Expression("gamma(x)", ["x"])(t64(x)).item() == pytest.approx(math.gamma(x), rel=1e-13)


def test_values_come_in_the_order_of_the_names_and_broadcast():
    expression = Expression("a - b", ["x", "b", "a"])
    assert expression.names == ("x", "b", "a")
    assert expression(torch.zeros(3, 1), t64([1.0, 2.0]), t64(5.0)).tolist() == [[4.0, 3.0]] * 3
    with pytest.raises(ValueError, match="zip"):
        expression(t64(1.0))


def test_it_knows_what_occurs_and_what_moves_a_jump():
    expression = Expression("where(x > s + t, a, b) + floor(c*x) * s", ["x", "s", "t", "a", "b", "c", "d"])
    assert expression.used == {"x", "s", "t", "a", "b", "c"}
    assert expression.stepped == {"x", "s", "t", "c"}


def test_greek_letters_are_names():
    assert Expression("µ*x", ["x", "μ"])(t64(2.0), t64(3.0)) == 6.0


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ("x^2", "for powers", 1),
        ("(x + 1) ^ 2", "for powers", 8),
        ("x // 2", "floor", 2),
        ("x % 2", "floor", 2),
        ("(x > 0) & (x < 1)", "multiply", 8),
        ("exp(-x**2", "never closed", 3),
        ("x + 1)", "unmatched", 5),
        ("2x", "to multiply", 0),
        ("2(x + 1)", "to multiply", 0),
        ("x(x + 1)", r"write x\*\(", 0),
        ("sin x", "operator", 4),
        ("|x|", "abs", 0),
        ("1 + sinn(x)", r"unknown function sinn: did you mean sin\?", 4),
        ("1 + arctan(x)", r"unknown function arctan: did you mean atan\?", 4),
        ("1 + besselj(0, x)", r"unknown function besselj: did you mean jv\(n, x\)\?", 4),
        ("c(x)", r"c is not a function: write c\*", 0),
        ("1 + j0", r"j0 is a function: write j0\(\.\.\.\)", 4),
        ("alpa * x", r"unknown name alpa: did you mean alpha\?", 0),
        ("q * x", "unknown name q\n", 0),
        ("x + sin", r"write sin\(", 4),
        ("exp(x, 1)", "exp takes 1 argument, not 2", 0),
        ("where(x)", "where takes 3 arguments, not 1", 0),
        ("exp(input=x)", "no names", 4),
        ("exp(*x)", "not allowed", 4),
        ("λ * x", "unknown name λ", 0),
        ("alpha + λ + y", "unknown name λ", 8),
        ("x and 1", "multiply", 0),
        ("not x", "1 - condition", 0),
        ("x == 1", "compare with", 0),
        ("x if x else 1", r"where\(", 0),
        ("1,5 * x", "decimal comma", 0),
        ("1j * x", "real numbers", 0),
        ("True * x", "real numbers", 0),
        ("... + x", "real numbers", 0),
        ("1e999 * x", "too large", 0),
        ("9" * 400, "too large", 0),
        ("x = 1", "cannot be read", 2),
        ("x # + 1", "unexpected character '#'", 2),
        ("x + 'y'", "unexpected character", 4),
        ("x\x1b[31m", "unexpected character '.x1b'", 1),
        ("x\0", "unexpected character", 1),
        ("", "nothing", 0),
    ],
)
def test_mistakes_are_refused_with_their_place(text, reason, position):
    with pytest.raises(ExpressionError, match=reason) as caught:
        Expression(text, ["x", "alpha"])
    assert caught.value.position == position
    lines = str(caught.value).splitlines()
    assert len(lines) == (3 if text else 1)
    assert all(line.isprintable() and len(line) < 120 for line in lines)
    if text:
        shown, caret = lines[1:]
        assert caret.strip() == "^"
        assert shown[caret.index("^")] == (text[position] if text[position].isprintable() else "?")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "__import__(x)",
        "eval(x)",
        "x.__class__.__mro__",
        "(1).__class__",
        "x.grad",
        "x[0]",
        "exp.__globals__",
        "(lambda: x)()",
        "[x for x in x]",
        "{x}",
        "{x: x}",
        "(y := x)",
        "f'{x}'",
        "await x",
        "(yield x)",
        "x; x",
        "import os",
        "exp(x)(x)",
        "x is x",
        "x in x",
        "~x",
        "x @ x",
        "(x, x)",
    ],
)
def test_nothing_else_of_python_is_allowed(text):
    with pytest.raises(ExpressionError):
        Expression(text, ["x"])


@pytest.mark.parametrize(
    "text",
    [
        "-" * 1900 + "x",
        "(" * 1900,
        "(" * 190 + "x",
        "+".join(["x"] * 900),
        "x**" * 600 + "x",
        "exp(" * 150 + "x" + ")" * 150,
        "x" * 2001,
        "9" * 1900,
        "x<" * 200 + "-" * 200 + "x",
    ],
    ids=["minus", "brackets", "open brackets", "sum", "power", "calls", "long", "digits", "comparison"],
)
def test_bombs_are_refused(text):
    with pytest.raises(ExpressionError, match=r"nested|characters|too large|closed") as caught:
        Expression(text, ["x"])
    assert max(map(len, str(caught.value).splitlines())) < 120


def test_towers_of_powers_are_floating_point_and_end_at_once():
    assert Expression("9**9**9", [])().item() == math.inf
    assert Expression("9**9**9**9**9", [])().item() == math.inf
    assert Expression("2**-9**9", [])().item() == 0.0


def test_the_deepest_expression_that_is_allowed_is_evaluated():
    text = "sin(" * (MAX_DEPTH - 1) + "x" + ")" * (MAX_DEPTH - 1)
    assert 0.0 < Expression(text, ["x"])(t64(1.0)).item() < 0.2
    with pytest.raises(ExpressionError, match="deeper than 100"):
        Expression(f"sin({text})", ["x"])


def test_names_that_mean_something_else_are_refused():
    for name, reason in {"lambda": "Python", "2a": "letters", "": "letters", "a-b": "letters"}.items():
        with pytest.raises(ValueError, match=reason):
            check_name(name)
    for name in (*CONSTANTS, *FUNCTIONS):
        with pytest.raises(ValueError, match=f"{name} is a"):
            Expression("1", [name])


@pytest.mark.parametrize("kind", ("j", "y", "i", "k"))
@pytest.mark.parametrize("order", (0, 1, 2.5))
def test_bessel_functions_are_those_of_mpmath_with_their_derivatives(kind, order):
    texts = [f"{kind}v({order}, x)"] + ([f"{kind}{order}(x)"] if order in (0, 1) else [])
    exact = getattr(mpmath, f"bessel{kind}")
    for text in texts:
        expression = Expression(text, ["x"])
        for at in (0.3, 2.0, 11.0):
            x = leaf(at)
            value = expression(x)
            assert value.item() == pytest.approx(float(exact(order, at)), rel=1e-13)
            (slope,) = torch.autograd.grad(value, x)
            assert slope.item() == pytest.approx(float(mpmath.diff(lambda t: exact(order, t), at)), rel=1e-12)
        torch.autograd.gradgradcheck(expression, leaf(1.7))
    shape = Expression(f"{kind}v(n, x)", ["x", "n"])(t64([[1.0], [2.0]]), t64([0.0, 1.0, 3.0])).shape
    assert shape == (2, 3)


def test_the_order_of_a_bessel_function_has_no_derivative():
    with pytest.raises(ValueError, match="no derivative by the order"):
        Expression("jv(n, x)", ["x", "n"])(t64(1.0), leaf(2.0))


def test_sinc_is_that_of_numpy():
    torch.testing.assert_close(Expression("sinc(x)", ["x"])(X), torch.sin(torch.pi * X) / (torch.pi * X))
    assert Expression("sinc(x)", ["x"])(t64(0.0)).item() == 1.0


def test_constants_of_nature_are_those_of_codata_unless_a_variable_has_their_name():
    expression = Expression("h*c/k + hbar", ["x"])
    assert expression.physical == {"h", "c", "k", "hbar"}
    exact = scipy.constants.h * scipy.constants.c / scipy.constants.k + scipy.constants.hbar
    assert expression(t64(0.0)).item() == pytest.approx(exact, rel=1e-15)
    variables = Expression("h*c/k*j0", ["h", "c", "k", "j0"])
    assert not variables.physical
    assert variables(t64(2.0), t64(3.0), t64(4.0), t64(5.0)).item() == 7.5
