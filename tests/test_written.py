"""A plan written out as arrays: a replay in NumPy gives torch's own values, and moves as torch's gradients say."""

import numpy as np
import pytest
import torch

import quadgrad as qg
from quadgrad._core.gradient import Differentiated, GradientMode
from quadgrad._core.gradient.boundary import NODES, WEIGHTS
from quadgrad._core.gradient.written import place_in_pieces, write_out


class Written(GradientMode):
    """Writes the call out, and replays it in torch."""

    def apply(self, primal):
        self.primal = primal
        self.arrays = write_out(primal.plan, primal.problem.limits, primal.treatment)
        return Differentiated(primal.replay())


def epsilon(terms, column):
    """Column 2 ``column`` of Wynn's table, from its definition."""
    table = [np.zeros(len(terms) + 2), np.concatenate(([0.0], np.cumsum(terms)))]
    for _ in range(2 * column):
        step = np.diff(table[-1])
        table.append(table[-2][1:-1][: len(step)] + 1.0 / step)
    return table[-1][-1]


def replay(f, written, d):
    """Sum up what is written out, in NumPy, for moves ``d`` ``(marks, batch)`` of the marks."""
    w = {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in vars(written).items()}
    d = np.concatenate((d, np.zeros((1, d.shape[1]))))
    lower, upper = d[w["lower_mark"], w["owner"]], d[w["upper_mark"], w["owner"]]
    x = w["x"] + w["lower"] * lower + w["upper"] * upper
    weights = w["weights"] + w["rate"] * (upper - lower)
    cells = (weights * f(x, w["owner"])).sum(0)
    ends = w["extrapolated"]
    factor = w["end_factor"] + w["end_rate"] * (upper - lower)[ends]
    parts = w["end_functionals"] @ (factor * f(x[:, ends], w["owner"][ends]))
    cells[ends] = [p[0] if c == 0 else epsilon(p[1:], c) for p, c in zip(parts.T, w["column"], strict=True)]
    value = np.bincount(w["owner"], cells, len(w["orientation"])) * w["orientation"]
    for mark, start, sign in zip(w["mark"], w["start"], w["sign"], strict=True):
        move = np.where(sign == 0.0, 0.0, d[mark])
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            value += sign * move * weight * f(start + node * move, np.arange(len(value)))
    return value


INTEGRANDS = {  # f, limits, breakpoint; a list is what is differentiated. Whether f depends on it, too.
    "smooth": (lambda x, s: torch.sin(3 * x), 0.0, [1.0, 2.5, -1.0], None, False),
    "half line": (lambda x, s: torch.exp(-x * x), [0.5, 1.0, -0.3], np.inf, None, False),
    "log at a limit": (lambda x, s: torch.log(x), 0.0, [1.0, 2.5, 0.1], None, False),
    "moves with the limit": (lambda x, s: (s - x) ** -0.5, 0.0, [1.0, 2.5, 0.1], None, True),
    "half line, moving": (lambda x, s: torch.exp(s - x) * (x - s) ** -0.5, [1.0, 2.5, 0.1], np.inf, None, True),
    "jump": (lambda x, s: torch.where(x < s, x, 2.0), 0.0, 2.0, [1.0, 0.3, 1.7], False),
}


@pytest.mark.parametrize("name", INTEGRANDS)
def test_numpy_sums_up_what_torch_does_and_moves_as_its_derivative_says(name):
    f, a, b, points, follows = INTEGRANDS[name]
    s = torch.tensor(
        next(v for v in (points, a, b) if isinstance(v, list)), dtype=torch.float64, requires_grad=True
    )
    pick, mode = (lambda v: s if isinstance(v, list) else v), Written()
    result = qg.quad(
        f, pick(a), pick(b), (s if follows else s.detach(),), points=None if points is None else s[:, None],
        gradient=mode, rtol=1e-10, limit_gradient="pathwise" if "moving" in name else "auto",
    )  # fmt: skip
    written, still = mode.arrays, s.detach()
    at = lambda step: lambda x, i: f(torch.from_numpy(x), (still + step * follows)[i]).numpy()
    index, d = 0 if isinstance(a, list) else 1, np.zeros((2 if points is None else 3, 3))
    assert np.allclose(replay(at(0.0), written, d), result.value.detach(), rtol=1e-13, atol=0)
    # A small move of the mark, with f's own parameter, changes the sum as the derivative says.
    (slope,) = torch.autograd.grad(result.value.sum(), s)
    if points is not None:  # the first order alone: however small a step, it would lead across the jump
        assert written.mark.tolist() == [2, 2]
        jump = sum(sign * f(x, still) for sign, x in zip(written.sign, written.start, strict=True))
        assert torch.allclose(jump, slope, rtol=1e-9)
        return
    h, ends = 1e-6, []
    for step in (h, -h):
        d[index] = step
        ends.append(replay(at(step), written, d))
    rounding = 1e-15 * 2.0**12 / h  # of x - s on the last octaves before s
    assert np.allclose((ends[0] - ends[1]) / (2 * h), slope, rtol=1e-7, atol=rounding if follows else 1e-8)
    assert written.moving == ("mov" in name)


def test_fractions_have_all_digits_of_the_distance_from_either_end():
    plan = qg.quad(lambda x: x**-0.5 * (1 - x) ** -0.5, 0.0, 1.0).plan
    at = place_in_pieces(plan)
    assert 0.0 < float(at.from_lower.min()) < 1e-3 and 0.0 < float(at.from_upper.min()) < 1e-3
    assert torch.allclose(at.from_lower + at.from_upper, torch.ones(()).double(), rtol=1e-15, atol=0)
    a, b = torch.tensor(-3.0).double(), torch.tensor(5.0).double()
    assert torch.allclose(plan.nodes(a, b), a * at.from_upper + b * at.from_lower, rtol=0, atol=4e-15)
    assert torch.allclose(plan.weights(a, b), plan.weight[:, None] * at.density * 8.0, rtol=1e-14)
