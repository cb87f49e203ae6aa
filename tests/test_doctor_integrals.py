"""The doctor through every verb that integrates: the user's line where one severs, and nothing where none does."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, Poisson

import quadgrad as qg

DOUBLE = torch.float64
ITEMS = torch.linspace(-1.0, 1.0, 18, dtype=DOUBLE).reshape(6, 3)


def same(k):
    return k


def severed(k):
    return k.detach()  # the line


def bell(cut):
    return lambda x, k: torch.exp(-cut(k) * x.square().sum(-1))


def box(k, cut):
    return qg.cubature(bell(cut), [0.0, 0.0], [1.0, 1.0], (k,)).value


def sides(k, cut):
    return qg.cubature(bell(same), torch.zeros(2, dtype=DOUBLE), torch.stack((cut(k), 0.5 * k)), (k,)).value


def parts_in_chunks(k, cut):
    return qg.cubature(bell(cut), [0.0, 0.0, 0.0], [1.0, 1.0, 2.0], (k,), rtol=1e-4, chunk_size=500).value


def ball(k, cut):
    return qg.cubature(bell(same), region=qg.Ball([0.0, 0.0], cut(k)), args=(k,)).value


def nested(k, cut):
    region = qg.Nested([(0.0, k), (0.0, lambda x, k: cut(k) * x[..., 0])])
    return qg.cubature(bell(same), region=region, args=(k,)).value


def cut_out(k, cut):
    region = qg.Where(lambda x, k: cut(k) - x.square().sum(-1))
    return qg.cubature(bell(same), [-2.0, -2.0], [2.0, 2.0], (k,), region=region).value


def inside_of_cut_out(k, cut):
    region = qg.Where(lambda x, k: k - x.square().sum(-1))
    return qg.cubature(bell(cut), [-2.0, -2.0], [2.0, 2.0], (k,), region=region).value


def boundary(k, cut):
    region = qg.Boundary(lambda x, k: cut(k) - x.square().sum(-1))
    return qg.cubature(bell(same), [-2.0, -2.0], [2.0, 2.0], (k,), region=region).value


def expected_by_quad(k, cut):
    return qg.expectation(lambda x, k: torch.sin(cut(k) * x), Normal(k, 0.2 * k + 0.1), (k,)).value


def expected_of_a_parameter(k, cut):
    return qg.expectation(torch.sin, Normal(cut(k), 0.2 * k + 0.1)).value


def expected_by_points(k, cut):
    cloud = MultivariateNormal(torch.stack((k, k)), torch.eye(2, dtype=DOUBLE))
    return qg.expectation(lambda x, k: torch.sin(cut(k) * x.sum(-1)), cloud, (k,), n=1024).value


def expected_by_score(k, cut):
    cloud = Independent(Normal(torch.stack((k, cut(k))), 1.0), 1)
    return qg.expectation(lambda x: torch.sin(x.sum(-1)), cloud, estimator="score", n=1024).value


def expected_by_sum(k, cut):
    return qg.expectation(lambda x, k: torch.exp(-cut(k) * x), Poisson(k), (k,)).value


def expected_by_nodes(k, cut):
    return qg.expectation(lambda x, k: torch.sin(cut(k) * x), Normal(k, 0.5), (k,), method="gauss").value


def antiderivative(k, cut):
    height = qg.antiderivative(lambda x, k: torch.exp(-cut(k) * x), 0.0, 2.0, (k,))
    return height(torch.tensor(1.5, dtype=DOUBLE)) + height(0.2 * k)


def inverse(k, cut):
    height = qg.antiderivative(lambda x, k: torch.exp(-cut(k) * x), 0.0, 2.0, (k,))
    return height.inverse(0.1 * k)


def perturbed_loss(k, cut):
    loss = lambda x, y: ((x * cut(k)).sum(-1) - y) ** 2
    return qg.perturbation_loss(loss, ITEMS, ITEMS[:, 0], Normal(torch.zeros((), dtype=DOUBLE), 0.2), n=16)


PROGRAMS = [
    box, sides, parts_in_chunks, ball, nested, cut_out, inside_of_cut_out, boundary, expected_by_quad,
    expected_of_a_parameter, expected_by_points, expected_by_score, expected_by_sum, expected_by_nodes,
    antiderivative, inverse, perturbed_loss,
]  # fmt: skip
LINE = inspect.getsourcelines(severed)[1] + 1


def examine(program, cut):
    return qg.doctor.check(lambda k: program(k, cut), torch.tensor(1.3, dtype=DOUBLE, requires_grad=True))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_healthy_program_is_ok(program):
    report = examine(program, same)
    assert report.verdict == "OK", str(report)
    assert not report.rows


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_line_that_severs_is_named(program):
    report = examine(program, severed)
    assert report.verdict == "SEVERED", str(report)
    assert [row.line for row in report.rows] == [LINE], str(report)
    assert abs(report.gap) < 1e-6 * abs(report.true)


def test_a_loose_tolerance_hides_no_small_loss():
    def program(k):
        f = lambda x, k: torch.exp(-k * x * x) + 1e-4 * torch.exp(-severed(k) * x * x)
        return qg.quad(f, 0.0, 3.0, (k,), rtol=1e-3).value

    report = qg.doctor.check(program, torch.tensor(2.0, dtype=DOUBLE, requires_grad=True))
    assert [row.line for row in report.rows] == [LINE], str(report)


def test_a_program_that_fails_far_from_the_point_is_examined_all_the_same():
    def program(k):
        with torch.no_grad():
            useless = torch.relu(-k)
        return torch.sin(Normal(0.0, k).log_prob(0.3 * k)) + useless

    report = qg.doctor.check(program, torch.tensor(2.0, dtype=DOUBLE, requires_grad=True))
    assert report.verdict == "OK", str(report)
