"""Every rule is exact to 1e-15 for its degree, and not beyond it."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest

from quadgrad._core.rules import get_rule

NAMES = ("gk15", "gk21", "gk31", "gk41", "gk51", "gk61", "cc11", "cc15", "cc31", "cc63")
GAUSS_KRONROD_DEGREE = {"gk15": 23, "gk21": 31, "gk31": 47, "gk41": 61, "gk51": 77, "gk61": 91}


@pytest.mark.parametrize("name", NAMES)
def test_nodes_ascend_inside_the_unit_interval_and_mirror(name: str) -> None:
    rule = get_rule(name)
    assert rule.nodes.dtype == rule.weights.dtype == np.float64
    assert rule.nodes.shape == rule.weights.shape == (int(name[2:]),)
    assert rule.nodes[0] > 0 and rule.nodes[-1] < 1 and (np.diff(rule.nodes) > 0).all()
    assert np.abs(rule.nodes + rule.nodes[::-1] - 1).max() <= 1e-15
    assert np.abs(rule.weights - rule.weights[::-1]).max() <= 1e-15


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_positive_and_sum_to_one(name: str) -> None:
    weights = get_rule(name).weights
    assert (weights > 0).all()
    with mp.workdps(30):
        assert abs(mp.fsum(map(mp.mpf, weights)) - 1) <= 1e-15


@pytest.mark.parametrize(("name", "degree"), GAUSS_KRONROD_DEGREE.items())
def test_degree_of_gauss_kronrod_rules(name: str, degree: int) -> None:
    assert get_rule(name).degree == degree


@pytest.mark.parametrize("count", (11, 15, 31, 63))
def test_degree_of_clenshaw_curtis_rules(count: int) -> None:
    assert get_rule(f"cc{count}").degree == count


@pytest.mark.parametrize("name", NAMES)
def test_exact_for_every_legendre_polynomial_up_to_the_degree(name: str) -> None:
    rule = get_rule(name)
    assert max(abs(legendre_sum(rule, k)) for k in range(1, rule.degree + 1)) <= 1e-15


@pytest.mark.parametrize("name", NAMES)
def test_exact_for_every_monomial_up_to_the_degree(name: str) -> None:
    rule = get_rule(name)
    with mp.workdps(40):
        for k in range(rule.degree + 1):
            total = mp.fsum(mp.mpf(w) * mp.mpf(t) ** k for t, w in zip(rule.nodes, rule.weights, strict=True))
            assert abs(total - mp.mpf(1) / (k + 1)) <= 1e-15


@pytest.mark.parametrize("name", NAMES)
def test_degree_is_not_understated(name: str) -> None:
    # The first polynomial that a symmetric rule gets wrong has even degree. Its error is tiny for high-order
    # Gauss-Kronrod rules, which is why the Legendre sum is set beside the rounding of the exact ones.
    rule = get_rule(name)
    rounding = max(abs(legendre_sum(rule, k)) for k in range(1, rule.degree + 1))
    assert abs(legendre_sum(rule, rule.degree + 1)) > 100 * rounding


def legendre_sum(rule, k: int) -> mp.mpf:
    """Return the rule's sum of the k-th Legendre polynomial shifted to [0, 1], whose integral is 0."""
    with mp.workdps(30):
        nodes, weights = map(mp.mpf, rule.nodes), map(mp.mpf, rule.weights)
        return mp.fsum(w * mp.legendre(k, 2 * t - 1) for t, w in zip(nodes, weights, strict=True))
