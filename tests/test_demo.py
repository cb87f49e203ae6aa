"""The demo: the data it ships, the numbers it reproduces, and that it notices when they are off."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import quadgrad as qg
from quadgrad._demo import cells, distances, network, outcome, report, survival
from quadgrad._demo.data import load_distances, load_lifetimes
from quadgrad._demo.report import Report


def ignore(evaluations: int, value: float) -> None:
    pass


@pytest.fixture(scope="module")
def flies():
    return load_lifetimes()


@pytest.fixture(scope="module")
def weibull(flies):
    return survival.fit_weibull(flies, ignore)


@pytest.fixture(scope="module")
def fitted_network(flies):
    return network.fit_network(flies, seed=0, progress=ignore)


@pytest.fixture(scope="module")
def universe():
    return distances.compare_distances(load_distances())


@pytest.fixture(scope="module")
def peak():
    return cells.integrate_peak()


def value_of(checks, label):
    return next(check.ours for check in checks if check.label == label)


# ------------------------------------------------------------------------------------------------ data


def test_lifetimes_are_the_waltons_data(flies):
    assert flies.days.shape == flies.died.shape == flies.group.shape == (163,)
    assert flies.days.dtype == torch.float64
    assert flies.died.sum() == 156
    assert flies.group.sum() == 34
    assert (flies.days.min(), flies.days.max()) == (6, 75)
    assert flies.days.mean().item() == pytest.approx(49.613497, abs=1e-6)


def test_distances_are_a_thousand_increasing_redshifts():
    reference = load_distances()
    assert reference.redshift.shape == (1000,)
    assert (reference.redshift.diff() > 0).all()
    assert {0.5, 1.0, 2.0} <= set(reference.redshift.tolist())
    assert reference.distance.shape == reference.gradient.shape == (3, 1000)


# -------------------------------------------------------------------------------------------- survival


def test_weibull_fit_reproduces_the_closed_form_fit(weibull):
    assert weibull.scale == pytest.approx(55.733, abs=1e-3)
    assert weibull.shape == pytest.approx(3.4505, abs=1e-4)
    assert weibull.log_likelihood == pytest.approx(-672.062, abs=1e-3)
    assert all(check.passed for check in weibull.checks)


def test_standard_errors_agree_with_the_hessian_of_the_closed_form(flies, weibull):
    def negative_log_likelihood(parameters):
        scale, shape = parameters
        hazard = shape / scale * (flies.days / scale) ** (shape - 1)
        return ((flies.days / scale) ** shape - flies.died * hazard.log()).sum()

    best = torch.tensor([weibull.scale, weibull.shape], dtype=torch.float64)
    errors = torch.linalg.inv(torch.func.hessian(negative_log_likelihood)(best)).diagonal().sqrt()
    ours = [check.ours for check in weibull.checks if "standard error" in check.label]
    assert ours == pytest.approx(errors.tolist(), rel=1e-6)


def test_kaplan_meier_by_hand():
    # Five alive; one dies at 1 (4/5), one is lost at 2, two of the three left die at 3 (4/15).
    ages, alive = survival.kaplan_meier(
        torch.tensor([1.0, 2.0, 3.0, 3.0, 4.0], dtype=torch.float64),
        torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64),
    )
    assert ages.tolist() == [1.0, 3.0]
    assert alive.tolist() == pytest.approx([4 / 5, 4 / 15])


def test_network_agrees_with_the_unrolled_sum(fitted_network):
    likelihood, derivative, *_ = fitted_network.checks
    assert likelihood.passed
    assert derivative.passed


def test_network_fits_better_than_one_weibull_hazard(fitted_network):
    assert fitted_network.log_likelihood == pytest.approx(-595.64, abs=0.02)  # Weibull: -672.06


def test_network_finds_the_median_ages(fitted_network):
    for check, error in zip(fitted_network.checks[2:], fitted_network.median_errors, strict=True):
        assert 0 < error < 5
        assert abs(check.difference) < 3 * error


def test_network_bands_are_bands(fitted_network):
    lower, middle, upper = fitted_network.lower, fitted_network.survival, fitted_network.upper
    assert ((lower >= 0) & (lower <= middle) & (middle <= upper) & (upper <= 1)).all()
    assert (middle.diff() < 0).all()


def test_progress_follows_the_fit(flies):
    seen = []
    survival.fit_weibull(flies, lambda evaluations, value: seen.append((evaluations, value)))
    assert [evaluations for evaluations, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == pytest.approx(-672.062, abs=1e-3)


# ------------------------------------------------------------------------------------------- distances


def test_distances_reproduce_astropy(universe):
    for label, value in {
        "D(0.5), flat LCDM": 2832.93809,
        "D(1), flat LCDM": 6607.65761,
        "D(2), flat LCDM": 15539.58622,
        "D(1), curved w0wa": 6470.18833,
    }.items():
        assert value_of(universe.checks, label) == pytest.approx(value, abs=1e-5)
    assert value_of(universe.checks, "dD(1)/dOm, flat LCDM") == pytest.approx(-3920.5677, abs=1e-3)
    assert all(check.passed for check in universe.checks)


def test_all_redshifts_and_derivatives_reproduce_astropy(universe):
    reference = load_distances()
    torch.testing.assert_close(universe.distance, reference.distance, rtol=1.5e-8, atol=0)
    torch.testing.assert_close(universe.gradient[1:], reference.gradient, rtol=1e-7, atol=0)
    torch.testing.assert_close(universe.gradient[0], -reference.distance[1] / 70, rtol=1.5e-8, atol=0)


def test_einstein_de_sitter_and_milne_have_closed_forms():
    z = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    hubble = distances.LIGHT_SPEED / 70
    matter = distances.luminosity_distance(z, distances.Cosmology(70.0, 1.0, 0.0))
    torch.testing.assert_close(matter, 2 * hubble * (1 + z) * (1 - (1 + z) ** -0.5))
    empty = distances.luminosity_distance(z, distances.Cosmology(70.0, 0.0, 0.0))
    torch.testing.assert_close(empty, hubble * (1 + z) * torch.sinh(torch.log1p(z)))


# ----------------------------------------------------------------------------------------------- cells


def test_peak_agrees_with_the_arctangent(peak):
    assert all(check.passed for check in peak.checks)


def test_cells_tile_the_interval_and_crowd_at_the_peak(peak):
    assert peak.lower[0] == 0
    assert peak.upper[-1] == 1
    torch.testing.assert_close(peak.lower[1:], peak.upper[:-1], rtol=0, atol=1e-15)
    narrowest = (peak.upper - peak.lower).argmin()
    assert abs(peak.lower[narrowest] - cells.CENTRE) < 0.02


def test_every_reported_error_covers_the_true_one(weibull, fitted_network, universe, peak):
    for part in (weibull, fitted_network, universe, peak):
        assert part.cost.honest, part.cost


# ---------------------------------------------------------------------------------------------- report


def test_a_check_passes_within_its_tolerance_only():
    check = outcome.Check("x", "1", 1.0, 1.5, 0.5)
    assert check.passed
    assert not replace(check, ours=0.9).passed
    assert not replace(check, ours=float("nan")).passed
    assert replace(check, ours=0.9, tolerance=None).passed


def test_an_error_reported_too_small_is_noticed(peak):
    assert not replace(peak.cost, true=peak.cost.reported + 1e-9).honest


def test_the_report_marks_what_is_off():
    text = io.StringIO()
    report = Report(Console(file=text, width=80))
    good = outcome.Check("good", "Mpc", 1.0, 1.0, 1e-3)
    report.checks([good, replace(good, label="bad", ours=2.0)], "the book")
    lines = text.getvalue().splitlines()
    fine = next(line for line in lines if "good" in line).split()
    assert fine[-4:] == ["1.0000", "+0.0e+00", "1.0e-03", "ok"]
    assert next(line for line in lines if "bad" in line).split()[-1] == "OFF"


def test_quad_is_called_once_for_all_flies(flies, monkeypatch):
    shapes = []
    quad = qg.quad

    def counting(f, a, b, **options):
        shapes.append(b.shape)
        return quad(f, a, b, **options)

    monkeypatch.setattr(qg, "quad", counting)
    scale, shape = torch.tensor([55.0, 3.0], dtype=torch.float64)
    survival.negative_log_likelihood(survival.weibull_hazard, flies, (scale, shape))
    assert shapes == [(163,)]


def test_the_report_says_why_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "describe", lambda: "none, and so slower: there was no compiler")
    text = io.StringIO()
    Report(Console(file=text, width=120)).closing([], Path("picture.png"), 1.0)
    assert "The search's compiled kernel: none, and so slower: there was no compiler." in text.getvalue()
