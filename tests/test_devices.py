"""Every tensor is made on the device of what it meets: shown on the CPU, with another default device."""

import pytest
import torch

import quadgrad as qg
from calls import CALLS, lorentzian
from helpers import t64


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore::quadgrad.UnmarkedJumpWarning", "ignore::quadgrad.IntegrationWarning")
def test_no_tensor_is_made_on_the_default_device(call: str) -> None:
    """A tensor made without a device would be a meta tensor, and fail where it meets one that has values."""
    p = t64([0.5, 0.7, 0.9]).requires_grad_()
    with torch.device("meta"):
        value = CALLS[call](p)
        (slope,) = torch.autograd.grad(value.sum(), p)
    assert value.device.type == slope.device.type == "cpu"
    assert slope.isfinite().all()


def test_the_doctor_makes_none_there() -> None:
    p = t64([0.5, 0.7]).requires_grad_()
    with torch.device("meta"):
        assert qg.doctor.check(lambda p: qg.quad(lorentzian, 0.0, 1.0, (p, 0.1)).value, p).ok
        assert not qg.doctor.check(lambda p: (p.detach() * p).sum(), p).ok


def test_plain_numbers_are_integrated_on_the_host() -> None:
    with torch.device("meta"):
        assert float(qg.quad(lambda x: x**2, 0.0, 3.0).value) == pytest.approx(9.0)
        assert float(qg.cubature(lambda x: x.sum(-1), [0.0, 0.0], [1.0, 1.0]).value) == pytest.approx(1.0)
        assert float(qg.qmc(lambda x: x.sum(-1), [0.0, 0.0], 1.0, n=1024).value) == pytest.approx(1.0, rel=0.1)
        assert float(qg.simpson([0.0, 1.0, 4.0])) == pytest.approx(8.0 / 3.0)
        assert float(qg.antiderivative(lambda x: 2 * x, 0.0, 3.0)(2.0)) == pytest.approx(4.0)
