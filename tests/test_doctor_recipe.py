"""The recipe on NumPy in a convolution: what the doctor says of every way to write it."""

from __future__ import annotations

import pytest
import torch

import quadgrad as qg
from examples import numpy_in_a_convolution as recipe

SAID = {
    recipe.detached: ("SEVERED", "kernel.detach().cpu().numpy()", "bridge.wrap"),
    recipe.rewrapped: ("SEVERED", "kernel.detach().cpu().numpy()", "requires_grad=True at"),
    recipe.custom_wrong: ("WRONG", "Flipped.apply(kernel)", "gradcheck"),
    recipe.activation_in_numpy: ("SEVERED", "np.clip", "torch.clamp"),
    recipe.scipy_rewrapped: ("SEVERED", "special.jv", "bridge.wrap"),
}


@pytest.mark.parametrize(("wrong", "right"), recipe.PAIRS, ids=[wrong.__name__ for wrong, _ in recipe.PAIRS])
def test_the_doctor_names_what_is_wrong_and_finds_nothing_in_what_is_right(
    wrong: recipe.Loss, right: recipe.Loss
) -> None:
    verdict, line, remedy = SAID[wrong]
    report = qg.doctor.check(wrong, recipe.make_kernel())
    (row,) = report.findings
    assert report.verdict.value == verdict and line in row.source and remedy in row.remedy, str(report)
    assert qg.doctor.check(right, recipe.make_kernel()).ok
    one, other = recipe.make_kernel(), recipe.make_kernel()
    assert torch.allclose(wrong(one), right(other), rtol=1e-12)
