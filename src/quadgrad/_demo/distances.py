"""Cosmology: luminosity distances at 1,000 redshifts in three universes, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import quadgrad as qg
from quadgrad._demo.data import Distances
from quadgrad._demo.outcome import RELATIVE, Check, Cost, cost_of, fixed_sum, stopwatch

__all__ = ["COSMOLOGIES", "Cosmology", "DistanceResult", "compare_distances", "luminosity_distance"]

LIGHT_SPEED = 299792.458
"""In km/s, exact."""

# d D_L(1) / d Om of FlatLambdaCDM(70, 0.3, Tcmb0=0), central differences of astropy 8.0.2, in Mpc.
ASTROPY_SLOPE = -3920.5677


@dataclass(frozen=True)
class Cosmology:
    """A universe of matter, dark energy with w(z) = w0 + wa z / (1 + z), and curvature; no radiation.

    Attributes
    ----------
    h0 : float or Tensor
        Hubble constant in km/s/Mpc.
    om, ode : float or Tensor
        Densities of matter and dark energy; what they lack to 1 is curvature.
    w0, wa : float or Tensor
        Pressure over density of dark energy today, and how it changes.
    """

    h0: float | Tensor
    om: float | Tensor
    ode: float | Tensor
    w0: float | Tensor = -1.0
    wa: float | Tensor = 0.0


COSMOLOGIES = {
    "flat LCDM": Cosmology(70.0, 0.3, 0.7),
    "flat w0wa": Cosmology(70.0, 0.3, 0.7, -0.9, 0.2),
    "curved w0wa": Cosmology(70.0, 0.3, 0.75, -0.9, 0.2),
}


@dataclass(frozen=True)
class DistanceResult:
    """Distances and their gradient beside astropy's.

    Attributes
    ----------
    redshift : Tensor
        Shape (1000,).
    distance : Tensor
        In Mpc, in the order of ``COSMOLOGIES``. Shape (3, 1000).
    gradient : Tensor
        Derivatives of the flat w0wa distance with respect to H0, Om, w0, wa. Shape (4, 1000).
    checks : list of Check
        Selected numbers, and the largest differences over all redshifts.
    cost : Cost
        What the 3,000 integrals cost.
    gradient_seconds : float
        Time for 1,000 distances together with their 4,000 derivatives.
    """

    redshift: Tensor
    distance: Tensor
    gradient: Tensor
    checks: list[Check]
    cost: Cost
    gradient_seconds: float


def inverse_expansion(z: Tensor, om: Tensor, ode: Tensor, w0: Tensor, wa: Tensor) -> Tensor:
    """Return H0 / H(z), Friedmann's equation with Chevallier-Polarski-Linder dark energy."""
    a = 1 / (1 + z)
    dark_energy = ode * a ** (-3 * (1 + w0 + wa)) * torch.exp(-3 * wa * z * a)
    return (om * a**-3 + (1 - om - ode) * a**-2 + dark_energy).rsqrt()


def line_of_sight(redshift: Tensor, densities: Sequence[Tensor]) -> qg.Result:
    """Integrate H0 / H(z) from here to each redshift: every redshift and every universe in one call."""
    return qg.quad(inverse_expansion, 0.0, redshift, args=tuple(densities))


def luminosity_distance(redshift: Tensor, cosmology: Cosmology) -> Tensor:
    """Return the luminosity distance in Mpc.

    Parameters
    ----------
    redshift : Tensor
        Any shape.
    cosmology : Cosmology
        Numbers, or tensors that broadcast with the redshifts.

    Returns
    -------
    Tensor
        The broadcast shape.
    """
    h0, om, ode, w0, wa = (
        torch.as_tensor(value, dtype=redshift.dtype)
        for value in (cosmology.h0, cosmology.om, cosmology.ode, cosmology.w0, cosmology.wa)
    )
    straight = line_of_sight(redshift, (om, ode, w0, wa)).value
    return (1 + redshift) * LIGHT_SPEED / h0 * bend(straight, 1 - om - ode)


def bend(distance: Tensor, curvature: Tensor) -> Tensor:
    """Turn a distance along the line of sight into one across it, both in units of c / H0.

    The sign of the curvature decides between sinh, sin, and no change. At curvature 0 only values and the
    derivative with respect to the distance are right, which is all a flat universe needs.
    """
    flat = curvature.abs() < 1e-12
    root = torch.where(flat, torch.ones_like(curvature), curvature).abs().sqrt()
    bent = torch.where(curvature > 0, torch.sinh(root * distance), torch.sin(root * distance)) / root
    return torch.where(flat, distance, bent)


def stack_cosmologies() -> Cosmology:
    """Return the three universes as one, with columns of three for parameters."""
    rows = [(c.h0, c.om, c.ode, c.w0, c.wa) for c in COSMOLOGIES.values()]
    return Cosmology(*torch.tensor(rows, dtype=torch.float64).T.unsqueeze(-1))


def flat_gradient(redshift: Tensor, *values: float) -> Tensor:
    """Return the derivatives of flat distances with respect to H0, Om, w0, wa in one backward pass.

    Each redshift gets its own copy of the parameters, so that the gradient of the sum holds every
    derivative of every distance.

    Parameters
    ----------
    redshift : Tensor
        Shape (n,).
    *values : float
        H0, Om, w0, wa.

    Returns
    -------
    Tensor
        Shape (4, n), in Mpc per unit of the parameter.
    """
    copies = [torch.full_like(redshift, value).requires_grad_() for value in values]
    h0, om, w0, wa = copies
    distance = luminosity_distance(redshift, Cosmology(h0, om, 1 - om, w0, wa))
    return torch.stack(torch.autograd.grad(distance.sum(), copies))


def compare_distances(reference: Distances) -> DistanceResult:
    """Compute distances in three universes and the gradient in one, and put them beside astropy's."""
    redshift = reference.redshift
    universes = stack_cosmologies()
    with stopwatch() as watch:
        gradient = flat_gradient(redshift, 70.0, 0.3, -0.9, 0.2)
    distance = luminosity_distance(redshift, universes)
    slope = flat_gradient(redshift.new_tensor([1.0]), 70.0, 0.3, -1.0, 0.0)[1].item()
    densities = tuple(torch.as_tensor(v) for v in (universes.om, universes.ode, universes.w0, universes.wa))
    exact = fixed_sum(lambda z: inverse_expansion(z, *(d.unsqueeze(-1) for d in densities)), redshift)
    cost = cost_of(
        "distances",
        lambda: line_of_sight(redshift, densities),
        exact,
        "fixed sum",
    )
    checks = distance_checks(reference, distance, gradient, slope)
    return DistanceResult(redshift, distance, gradient, checks, cost, watch.seconds)


def distance_checks(reference: Distances, distance: Tensor, gradient: Tensor, slope: float) -> list[Check]:
    """Pick the distances worth showing, and the largest differences over all redshifts."""
    checks: list[Check] = []
    for row, name, at in (
        (0, "flat LCDM", 0.5),
        (0, "flat LCDM", 1.0),
        (0, "flat LCDM", 2.0),
        (1, "flat w0wa", 1.0),
        (2, "curved w0wa", 1.0),
    ):
        index = int((reference.redshift - at).abs().argmin())
        ours, theirs = distance[row, index].item(), reference.distance[row, index].item()
        checks.append(Check(f"D({at:g}), {name}", "Mpc", ours, theirs, 1e-5, digits=5))
    checks.append(Check("dD(1)/dOm, flat LCDM", "Mpc", slope, ASTROPY_SLOPE, 1e-3))
    at_one = int((reference.redshift - 1.0).abs().argmin())
    for row, name in enumerate(("Om", "w0", "wa")):
        ours, theirs = gradient[row + 1, at_one].item(), reference.gradient[row, at_one].item()
        checks.append(Check(f"dD(1)/d{name}, flat w0wa", "Mpc", ours, theirs, 1e-3))
    apart = (distance / reference.distance - 1).abs().max().item()
    checks.append(Check("worst of 3,000 D", RELATIVE, apart, 0.0, 1.5e-8))
    apart = (gradient[1:] / reference.gradient - 1).abs().max().item()
    checks.append(Check("worst of 3,000 dD", RELATIVE, apart, 0.0, 1e-7))
    return checks
