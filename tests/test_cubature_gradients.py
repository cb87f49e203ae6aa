"""Derivatives of integrals over boxes: by parameters, by all sides, and how far to trust them."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

import quadgrad as qg
from benchmarks.problems.genz import FAMILIES
from helpers import leaf, t64


def bell(x: Tensor, k: Tensor) -> Tensor:
    return torch.exp(-k * ((x - 0.4) ** 2).sum(-1))


def exact_bell(a: Tensor, b: Tensor, k: Tensor) -> Tensor:
    s = k.sqrt()
    return (math.sqrt(math.pi) / (2 * s) * (torch.erf(s * (b - 0.4)) - torch.erf(s * (a - 0.4)))).prod(-1)


def integral(a: Tensor, b: Tensor, k: Tensor, rtol: float = 1e-9) -> Tensor:
    return qg.cubature(bell, a, b, (k,), rtol=rtol).value


A, B, K = t64([0.0, 0.1, 0.2]), t64([1.0, 0.9, 0.8]), t64(3.0)


def largest(one: object, other: object) -> float:
    one, other = (torch.utils._pytree.tree_leaves(t) for t in (one, other))
    return max(float((x - y).abs().max()) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("d", (2, 3))
def test_first_and_second_derivatives_by_everything(d: int) -> None:
    inputs = (A[:d], B[:d], K)
    for order, tolerance in ((torch.autograd.functional.jacobian, 1e-8), (torch.autograd.functional.hessian, 1e-6)):
        assert largest(order(integral, inputs), order(exact_bell, inputs)) < tolerance
    by_b = lambda f: hessian(lambda b: f(A[:d], b, K))(B[:d])
    assert largest(by_b(integral), by_b(exact_bell)) < 1e-8


def test_the_corner_peak() -> None:
    f, _ = FAMILIES["corner peak"]
    integrand = lambda x, c: f(x, c, c)

    def exact(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        terms = 0.0
        for corner in range(8):
            upper = t64([corner >> k & 1 for k in range(3)])
            x = torch.where(upper > 0, b, a)
            terms = terms + (-1.0) ** (3 + upper.sum()) * -1 / (1 + (c * x).sum())
        return terms / (6 * c.prod())

    own = lambda a, b, c: qg.cubature(integrand, a, b, (qg.element(c, 1),), rtol=1e-9).value
    inputs = (t64([0.0, 0.0, 0.1]), t64([1.0, 0.8, 1.0]), t64([0.6, 1.0, 0.5]))
    assert abs(float(own(*inputs) / exact(*inputs)) - 1.0) < 1e-8
    for order, tolerance in ((torch.autograd.functional.jacobian, 1e-8), (torch.autograd.functional.hessian, 1e-6)):
        assert largest(order(own, inputs), order(exact, inputs)) < tolerance


def test_gradcheck() -> None:
    inputs = (leaf(A[:2]), leaf(B[:2]), leaf(K))
    check = lambda *inputs: integral(*inputs, rtol=1e-11)
    assert torch.autograd.gradcheck(check, inputs, atol=1e-7)
    assert torch.autograd.gradgradcheck(check, inputs, atol=1e-6)


def test_transforms() -> None:
    boxes, k = torch.stack([B, 1.1 * B]), t64([3.0, 20.0])
    for wanted in (lambda b, k: integral(A, b, k), lambda b, k: qg.cubature(lambda x: bell(x, k), A, b).value):
        slopes = vmap(grad(wanted, argnums=(0, 1)))(boxes, k)
        assert largest(slopes, vmap(grad(lambda b, k: exact_bell(A, b, k), argnums=(0, 1)))(boxes, k)) < 1e-7
    along = lambda f: jvp(lambda b: f(A, b, K), (B,), (t64([1.0, -2.0, 0.5]),))
    assert largest(along(integral), along(exact_bell)) < 1e-9


@pytest.mark.parametrize("d", (3, 4, 5))
def test_a_third_mixed_derivative(d: int) -> None:
    a, sides = torch.linspace(0.0, 0.2, d, dtype=torch.float64), torch.linspace(1.0, 0.8, d, dtype=torch.float64)

    def third(f):
        b = leaf(sides)
        value = f(a, b, K)
        for axis in range(3):
            value = torch.autograd.grad(value, b, create_graph=True)[0][axis]
        return value.detach()

    assert float(third(exact_bell)) > 0.02
    own = third(lambda a, b, k: integral(a, b, k, rtol=1e-6))
    torch.testing.assert_close(own, third(exact_bell), rtol=1e-9, atol=0.0)


def test_reversed_collapsed_and_infinite_sides() -> None:
    for a, b in (([1.0, 0.0, 0.0], [0.0, 1.0, 1.0]), ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0])):
        a, b = leaf(a), leaf(b)
        own = torch.autograd.grad(integral(a, b, K), (a, b))
        assert largest(own, torch.autograd.grad(exact_bell(a, b, K), (a, b))) < 1e-9
        assert any(bool(g.abs().max() > 0.1) for g in own)
    a, b = leaf([0.0, 0.0]), leaf([math.inf, 1.0])
    by_a, by_b = torch.autograd.grad(integral(a, b, K), (a, b))
    root = math.sqrt(3)
    half = lambda b: math.sqrt(math.pi / 3) / 2 * (math.erf(root * (b - 0.4)) + math.erf(root * 0.4))
    line = half(math.inf)
    torch.testing.assert_close(by_a, t64([-half(1.0), -line]) * math.exp(-3 * 0.16), rtol=1e-8, atol=0.0)
    torch.testing.assert_close(by_b, t64([0.0, line * math.exp(-3 * 0.36)]), rtol=1e-8, atol=0.0)


def test_where_the_value_does_not_care_the_face_does() -> None:
    """Hardly anything of f is at the upper side, where its derivative is: the value's cells alone know little of
    it."""
    f = lambda x: 1 + 1e-4 * torch.exp(-((x[..., 1] - 0.37) ** 2) * 4e4) * x[..., 0] ** 40
    b = leaf([1.0, 1.0])
    (slope,) = torch.autograd.grad(qg.cubature(f, t64([0.0, 0.0]), b, rtol=1e-8).value, b)
    assert abs(float(slope[0]) - 1 - 1e-4 * math.sqrt(math.pi / 4e4)) < 1e-11


def test_a_singularity_that_moves_with_its_side() -> None:
    a, b = leaf([0.0, 0.0]), leaf([1.0, 1.0])
    f = lambda x, a: (x - a)[..., 0] ** -0.5 * torch.exp(x[..., 1])
    value = qg.cubature(f, a, b, (qg.element(a, 1),), rtol=1e-7).value
    by_a, by_b = torch.autograd.grad(value, (a, b))
    torch.testing.assert_close(by_a, t64([1 - math.e, -2.0]), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(by_b, t64([math.e - 1, 2 * math.e]), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("chunk_size", (None, 500))
def test_chunks_and_closures(chunk_size: int | None) -> None:
    k, w = leaf([1.0, 9.0]), leaf(0.7)
    f = lambda x, k: w * bell(x, k)
    value = qg.cubature(f, A, B, (k,), rtol=1e-9, chunk_size=chunk_size).value.sum()
    own = torch.autograd.grad(value, (k, w))
    exact = (w * exact_bell(A, B, k[:, None])).sum()
    assert largest(own, torch.autograd.grad(exact, (k, w))) < 1e-8


def peak(x: Tensor, e: Tensor) -> Tensor:
    return torch.exp(x[..., 1]) / ((x[..., 0] - 0.3) ** 2 + e**2)


def exact_peak(e: Tensor) -> Tensor:
    return (torch.atan(0.7 / e) + torch.atan(0.3 / e)) / e * (math.e - 1)


def test_resolve() -> None:
    e, zero, one = leaf([0.05, 0.2]), t64([0.0, 0.0]), t64([1.0, 1.0])
    exact = torch.autograd.grad(exact_peak(e).sum(), e)[0]
    errors = []
    for mode in (qg.Reuse(), qg.Resolve(rtol=1e-9)):
        result = qg.cubature(peak, zero, one, (e,), rtol=1e-3, gradient=mode)
        errors.append(float((torch.autograd.grad(result.value.sum(), e)[0] / exact - 1).abs().max()))
    assert errors[0] > 1e-6 > 1e-9 > errors[1]
    assert result.derivative.converged.all() and result.derivative.names == ("args[0]",)
    w = leaf(0.1)
    closed = qg.cubature(lambda x: peak(x, w), zero, one, rtol=1e-3, gradient=qg.Resolve(rtol=1e-8, params=w))
    (slope,) = torch.autograd.grad(closed.value, w)
    torch.testing.assert_close(slope, torch.autograd.grad(exact_peak(w), w)[0], rtol=1e-8, atol=0.0)


def test_gradient_error_covers_what_is_off() -> None:
    a, b, e, w = leaf([0.0, 0.0]), leaf([0.9, 0.8]), leaf([0.05, 0.2]), leaf(1.3)
    inputs = (a, b, e, w)
    result, exact = (qg.cubature(lambda x, e: w * peak(x, e), a, b, (e,), rtol=rtol) for rtol in (1e-3, 1e-11))
    errors = qg.gradient_error(result, inputs)
    own, known = (torch.autograd.grad(r.value.sum(), inputs) for r in (result, exact))
    for error, one, other in zip(errors, own, known, strict=True):
        assert error.shape == one.shape and (error + 1e-9 >= (one - other).abs()).all()
        assert (error <= 10 * (1 + other.abs())).all()


def test_replay_compiles() -> None:
    k = leaf([1.0, 9.0])
    plan = qg.cubature(bell, A, B, (k.detach(),), rtol=1e-9).plan
    compiled = torch.compile(lambda k: qg.replay(bell, plan, A, B, (k,)), fullgraph=True, backend="aot_eager")
    value = compiled(k)
    torch.testing.assert_close(value, exact_bell(A, B, k[:, None]), rtol=1e-9, atol=0.0)
    (slope,) = torch.autograd.grad(value.sum(), k)
    torch.testing.assert_close(
        slope, torch.autograd.grad(exact_bell(A, B, k[:, None]).sum(), k)[0], rtol=1e-7, atol=0.0
    )


def test_what_a_comparison_severs_is_sent_to_a_region() -> None:
    r = leaf(0.5)
    with pytest.warns(qg.SeveredGradientWarning, match="region=Where of cubature"):
        inside = lambda x, r: ((x**2).sum(-1) < r**2).double()
        qg.cubature(inside, [0.0, 0.0], [1.0, 1.0], (r,), rtol=1e-2, on_failure="ignore")


def test_a_side_computed_from_where_the_integrand_bends() -> None:
    """Rounding puts the bend on the wrong side of some sides: the second derivative was 0 there."""
    s, far = leaf(torch.linspace(0.2, 3.0, 200, dtype=torch.float64)), 12.0
    f = lambda x, s: torch.relu(torch.exp(0.37 * (x[..., 0] - 1.1)) - 7.3 * s) * x[..., 1]
    root = torch.log(7.3 * s) / 0.37 + 1.1
    value = qg.cubature(f, torch.stack((root, torch.zeros_like(root)), -1), [far, math.sqrt(2.0)], (s,)).value
    (first,) = torch.autograd.grad(value.sum(), s, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), s)
    torch.testing.assert_close(first, -7.3 * (far - root), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(second, 7.3 / (0.37 * s), rtol=1e-10, atol=0.0)
