"""A formula typed by a person, such as ``exp(-a*x**2)``, as a differentiable function of tensors.

Called by the command line. Nothing is ever handed to ``eval``: Python's parser makes a tree, and each node must be
on a list of what is allowed (numbers, names that were announced, arithmetic, comparisons, calls of the functions
below). Everything else is refused with its place. It knows nothing of integrals.
"""

from __future__ import annotations

import ast
import keyword
import math
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import numpy as np
import scipy
import torch
from torch import Tensor

from quadgrad._cli.vocabulary import BESSEL, CONSTANTS, FUNCTIONS, PHYSICAL, nearest

__all__ = ["Expression", "ExpressionError", "check_name", "physical_value"]

MAX_LENGTH = 2000
MAX_DEPTH = 100
EXCERPT = 30
"""How many characters an error shows on either side of the place it points at."""

Node = Callable[[Mapping[str, Tensor]], Tensor]


OPERATORS: dict[type[ast.AST], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.Div: torch.div,
    ast.Pow: torch.pow,
}
COMPARISONS: dict[type[ast.AST], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Lt: torch.lt,
    ast.LtE: torch.le,
    ast.Gt: torch.gt,
    ast.GtE: torch.ge,
}
REFUSED_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.BitXor: ("^", "write ** for powers"),
    ast.FloorDiv: ("//", "write floor(a / b)"),
    ast.Mod: ("%", "write a - b*floor(a / b)"),
    ast.BitAnd: ("&", "multiply two comparisons for 'and'"),
    ast.BitOr: ("|", "write abs(x) for an absolute value, maximum of two comparisons for 'or'"),
    ast.LShift: ("<<", "write < to compare"),
    ast.RShift: (">>", "write > to compare"),
    ast.MatMult: ("@", "write * to multiply"),
}
REFUSED_NODES: dict[type[ast.AST], str] = {
    ast.Attribute: "there are no attributes here",
    ast.Subscript: "there are no subscripts here",
    ast.Lambda: "there are no lambdas here",
    ast.IfExp: "write where(condition, a, b) for a choice",
    ast.BoolOp: "multiply two comparisons for 'and', take their maximum for 'or'",
    ast.List: "there are no lists here: write 0.3,0.7 where several values can be given",
    ast.Tuple: "there is one number too many: a decimal comma? Write a point",
}


class ExpressionError(ValueError):
    """A formula that cannot be used; the text has three lines: the reason, the formula, a caret at the place.

    Parameters
    ----------
    reason : str
        One line.
    text : str
        The formula.
    position : int
        Index of the offending character.
    """

    def __init__(self, reason: str, text: str, position: int) -> None:
        self.reason, self.text, self.position = reason, text, position
        shown, caret = _excerpt(text, position)
        super().__init__(f"{reason}\n  {shown}\n  {' ' * caret}^" if text else reason)


class Expression:
    """A parsed formula.

    Parameters
    ----------
    text : str
        Python's notation: ``+ - * / **``, ``< <= > >=`` (1 where true, else 0), and calls of :data:`FUNCTIONS`.
    names : iterable of str
        The variables, in the order in which :meth:`__call__` takes them.

    Attributes
    ----------
    used : set of str
        The variables that occur.
    physical : set of str
        The constants of nature that occur.
    stepped : set of str
        Those of the variables that occur inside a comparison, a ``floor``, a ``ceil`` or a ``sign``: what jumps
        when they change.

    Raises
    ------
    ExpressionError
        If anything in the text is not on the list of what is allowed.

    Examples
    --------
    >>> import torch
    >>> from quadgrad._cli.expression import Expression
    >>> square = Expression("a * x**2", ["x", "a"])
    >>> square(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0))
    tensor([ 2.,  8., 18.])
    >>> Expression("a * x^2", ["x", "a"])
    Traceback (most recent call last):
    quadgrad._cli.expression.ExpressionError: there is no operator ^: write ** for powers
      a * x^2
           ^
    """

    def __init__(self, text: str, names: Iterable[str]) -> None:
        self.text = " ".join(text.splitlines()).strip()
        self.names = tuple(check_name(name) for name in names)
        builder = _Builder(self.text, self.names)
        self._evaluate = builder.build(_parse(self.text), 1)
        self.used, self.stepped, self.physical = builder.used, builder.stepped, builder.physical

    def __call__(self, *values: Tensor) -> Tensor:
        """Evaluate at one tensor for each name; the result has the shape to which they broadcast."""
        value = self._evaluate(dict(zip(self.names, values, strict=True)))
        # torch's own function of that name imports SymPy: 0.4 s
        return value.expand(np.broadcast_shapes(value.shape, *(v.shape for v in values)))


def physical_value(name: str) -> float:
    """Return a constant of nature in SI units, as CODATA recommends and SciPy has it."""
    return float(getattr(scipy.constants, PHYSICAL[name][0]))


def check_name(name: str) -> str:
    """Return a variable's name in Python's normal form.

    Raises
    ------
    ValueError
        If it is no name, or means something already.
    """
    name = unicodedata.normalize("NFKC", name)
    if keyword.iskeyword(name):
        raise ValueError(f"{name} is a word of Python and cannot be a name: call it {name[:3]}, for example")
    if not name.isidentifier():
        raise ValueError(f"{ascii(name)} is not a name: use letters, digits and underscores")
    if name in CONSTANTS or name in FUNCTIONS:
        kind = "constant" if name in CONSTANTS else "function"
        raise ValueError(f"{name} is a {kind} and cannot be a name: choose another")
    return name


def _parse(text: str) -> ast.expr:
    """Return the tree of a text that is neither too long nor anything but an expression."""
    if not text:
        raise ExpressionError("there is nothing here", text, 0)
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH:,} characters", text, MAX_LENGTH)
    for i, character in enumerate(text):
        if character in "#\\'\";$" or not character.isprintable():
            raise ExpressionError(f"unexpected character {ascii(character)}", text, i)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own advice on a text that is refused, or right, anyway
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(_say_syntax(error.msg, text), text, max(0, (error.offset or 1) - 1)) from None
    except (RecursionError, MemoryError, ValueError, OverflowError):
        raise ExpressionError("too deeply nested to be read", text, 0) from None


def _say_syntax(message: str, text: str) -> str:
    if any(character in text for character in "\u00b2\u00b3"):
        return "write **2 and **3 for raised digits"
    if "literal" in message:
        return "a number runs into a name: write * to multiply"
    if "closed" in message or "unmatched" in message or "match" in message or "character" in message:
        return message
    if "nested" in message:
        return "too deeply nested to be read"
    return "cannot be read" + (": write abs(x) for |x|" if "|" in text else ": is an operator such as * missing?")


class _Builder:
    """Turns the tree into nested functions, node by node, and refuses what it does not know."""

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        self.text, self.names = text, names
        self.used: set[str] = set()
        self.stepped: set[str] = set()
        self.physical: set[str] = set()
        self._steps = 0

    def build(self, node: ast.expr, depth: int) -> Node:
        """Return the function that evaluates this node."""
        if depth > MAX_DEPTH:
            self._refuse(node, f"nested deeper than {MAX_DEPTH} levels (a sum of n terms has n)")
        match node:
            case ast.Constant():
                return self._number(node)
            case ast.Name():
                return self._name(node)
            case ast.UnaryOp():
                return self._unary(node, depth)
            case ast.BinOp():
                return self._binary(node, depth)
            case ast.Compare():
                return self._comparison(node, depth)
            case ast.Call():
                return self._call(node, depth)
            case ast.Attribute() | ast.Subscript():
                symbol = "." if isinstance(node, ast.Attribute) else "["
                at = self.text.find(symbol, self._index(node.value.end_col_offset or 0))
                raise ExpressionError(REFUSED_NODES[type(node)], self.text, at)
            case _:
                self._refuse(node, REFUSED_NODES.get(type(node), "not allowed in an expression"))

    def _number(self, node: ast.Constant) -> Node:
        value = node.value
        if type(value) is not int and type(value) is not float:
            self._refuse(node, "only real numbers are allowed")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            self._refuse(node, "this number is too large for float64; write inf for infinity")
        tensor = torch.tensor(number, dtype=torch.float64)
        return lambda values: tensor

    def _name(self, node: ast.Name) -> Node:
        name = node.id
        if name in self.names:
            self.used.add(name)
            if self._steps:
                self.stepped.add(name)
            return lambda values: values[name]
        if name in CONSTANTS:
            tensor = torch.tensor(CONSTANTS[name], dtype=torch.float64)
            return lambda values: tensor
        if name in PHYSICAL:
            self.physical.add(name)
            constant = torch.tensor(physical_value(name), dtype=torch.float64)
            return lambda values: constant
        if name in FUNCTIONS or name in BESSEL:
            self._refuse(node, f"{name} is a function: write {name}(...)")
        self._refuse(node, f"unknown name {name}" + nearest(name, [*self.names, *CONSTANTS, *PHYSICAL, *FUNCTIONS]))

    def _unary(self, node: ast.UnaryOp, depth: int) -> Node:
        operand = self.build(node.operand, depth + 1)
        if isinstance(node.op, ast.USub):
            return lambda values: -operand(values)
        if isinstance(node.op, ast.UAdd):
            return operand
        self._refuse(node, "for 'not', write 1 - condition")

    def _binary(self, node: ast.BinOp, depth: int) -> Node:
        left = self.build(node.left, depth + 1)
        if type(node.op) in REFUSED_OPERATORS:
            symbol, hint = REFUSED_OPERATORS[type(node.op)]
            at = self.text.find(symbol, self._index(node.left.end_col_offset or 0))
            raise ExpressionError(f"there is no operator {symbol}: {hint}", self.text, at)
        right = self.build(node.right, depth + 1)
        if isinstance(node.op, ast.Pow) and (exponent := _literal(node.right)) is not None:
            return lambda values: torch.pow(left(values), exponent)  # x**2 is x*x then: faster, and exact
        call = OPERATORS[type(node.op)]
        return lambda values: call(left(values), right(values))

    def _comparison(self, node: ast.Compare, depth: int) -> Node:
        refused = [op for op in node.ops if type(op) not in COMPARISONS]
        if refused:
            self._refuse(node, "compare with <, <=, > or >=")
        self._steps += 1
        sides = [self.build(side, depth + 1) for side in (node.left, *node.comparators)]
        self._steps -= 1
        calls = [COMPARISONS[type(op)] for op in node.ops]

        def compare(values: Mapping[str, Tensor]) -> Tensor:
            at = [side(values) for side in sides]
            truth = calls[0](at[0], at[1])
            for i, call in enumerate(calls[1:], start=1):
                truth = truth & call(at[i], at[i + 1])
            return truth.to(torch.float64)

        return compare

    def _call(self, node: ast.Call, depth: int) -> Node:
        if isinstance(node.func, ast.Attribute):
            self._refuse(node.func, f"write {node.func.attr}(...) alone: functions are called by their names")
        if not isinstance(node.func, ast.Name):
            self._refuse(node.func, "only the known functions can be called; write * to multiply")
        name = node.func.id
        if name in self.names or name in CONSTANTS or name in PHYSICAL:
            self._refuse(node.func, f"{name} is not a function: write {name}*(...) to multiply")
        function = (FUNCTIONS | BESSEL).get(name)
        if function is None:
            like = nearest(name, FUNCTIONS | BESSEL) or ": quadgrad integrate --help lists those that are known"
            self._refuse(node.func, f"unknown function {name}{like}")
        if node.keywords:
            self._refuse(node.keywords[0], "arguments have no names here")
        if len(node.args) != function.arity:
            plural = "" if function.arity == 1 else "s"
            self._refuse(node, f"{name} takes {function.arity} argument{plural}, not {len(node.args)}")
        self._steps += function.step
        arguments = [self.build(argument, depth + 1) for argument in node.args]
        self._steps -= function.step
        call = function.resolved()
        return lambda values: call(*(argument(values) for argument in arguments))

    def _index(self, offset: int) -> int:
        """Python counts bytes."""
        return len(self.text.encode()[:offset].decode())

    def _refuse(self, node: ast.expr | ast.keyword, reason: str) -> NoReturn:
        raise ExpressionError(reason, self.text, self._index(node.col_offset))


def _literal(node: ast.expr) -> float | None:
    """Return the number that an exponent is, with its sign, if it is one."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _literal(node.operand)
        return None if number is None else -number
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    return None


def _excerpt(text: str, position: int) -> tuple[str, int]:
    """Return the formula, or the part around the place if it is long, printable, and where the caret goes."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    if len(shown) <= 2 * EXCERPT + 10:
        return shown, position
    start, stop = max(0, position - EXCERPT), position + EXCERPT
    before, after = "..." if start > 0 else "", "..." if stop < len(shown) else ""
    return before + shown[start:stop] + after, position - start + len(before)
