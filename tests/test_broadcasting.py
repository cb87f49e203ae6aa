"""Shapes that broadcast, without what torch loads to tell."""

import itertools
import subprocess
import sys

import pytest
import torch

from quadgrad._core.broadcasting import broadcast_shapes

SHAPES = [(), (0,), (1,), (3,), (1, 1), (2, 1), (2, 3), (2, 0), (4, 1, 3), (1, 2, 1)]


def test_shapes_broadcast_as_in_torch():
    for shapes in [(), *itertools.product(SHAPES), *itertools.product(SHAPES, repeat=3)]:
        try:
            known = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            with pytest.raises(RuntimeError, match="do not broadcast"):
                broadcast_shapes(*shapes)
        else:
            assert broadcast_shapes(*shapes) == known


def test_the_first_call_loads_no_sympy():
    code = (
        "import sys, torch, quadgrad as qg\n"
        "p, two = torch.tensor(0.3, requires_grad=True), torch.ones(2)\n"
        "qg.expectation(lambda x: x, torch.distributions.LogNormal(p, 0.5)).value.backward()\n"
        "box = torch.zeros(3), torch.ones(3)\n"
        "for verb in (qg.qmc, qg.vegas):\n"
        "    verb(lambda x, p: torch.exp(p * x.sum(-1)), *box, args=(p,), n=64).value.backward()\n"
        "qg.doctor.check(lambda p: (p * two).sin(), p)\n"
        "qg.quad(lambda x, p, q: p * x + q, 0.0, two, args=(p, two[:, None])).value.sum().backward()\n"
        "qg.antiderivative(lambda x, p: torch.exp(p * x), 0.0, 1.0, args=(p,))(two / 2)\n"
        "qg.spline(torch.ones(2, 5), torch.arange(5.0)).integral(0.0, two)\n"
        "print('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
