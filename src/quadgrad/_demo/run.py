"""The order of the demo: fit, compare, print, draw."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from quadgrad._demo.cells import integrate_peak
from quadgrad._demo.data import load_distances, load_lifetimes
from quadgrad._demo.distances import compare_distances
from quadgrad._demo.network import GROUPS, fit_network
from quadgrad._demo.picture import draw
from quadgrad._demo.report import Report
from quadgrad._demo.survival import fit_weibull

__all__ = ["run"]

WEIBULL_TEXT = """\
How long do flies live? Some of the 163 were lost alive, so the likelihood needs, for every fly, its
cumulative hazard: the integral of the death rate from birth to its last day. quad computes all 163 in
one call, L-BFGS climbs along their gradient, and the standard errors are second derivatives through the
same integrals. For the Weibull hazard a formula exists, so the answer is known."""

NETWORK_TEXT = """\
Now the hazard is a small neural network that also sees the fly's group. Nobody has a formula for its
integral, and the likelihood is the same line of code; in the picture it follows both groups, which one
Weibull curve cannot. The fixed sum beside it needs someone to know that
100 points are enough; quad finds out."""

DISTANCE_TEXT = """\
How far away is a supernova? Its distance is an integral over the expansion history of the universe.
1,000 redshifts in three universes are one call; all derivatives come from one backward pass, and are
compared with finite differences of astropy."""

PEAK_TEXT = """\
A peak a thousandth wide: cells are halved only where the error is (see the picture)."""

COST_TEXT = """\
Errors are relative, the worst of each call; the tolerance asked for was the default, 1.5e-8. The reported
error is meant to be larger than the true one, always."""


def run(output: Path, seed: int, console: Console) -> bool:
    """Run the whole demo.

    Parameters
    ----------
    output : Path
        Where to write the picture.
    seed : int
        Of the network's initial weights.
    console : Console
        Where to print.

    Returns
    -------
    bool
        Whether every number agrees with its reference.
    """
    start = time.perf_counter()
    report = Report(console)
    report.say("[bold]quadgrad[/]: integrals you can differentiate")
    flies = load_lifetimes()

    report.chapter("Survival: a Weibull hazard", WEIBULL_TEXT)
    with report.fitting("fitting the Weibull hazard") as progress:
        weibull = fit_weibull(flies, progress)
    report.checks(weibull.checks, "lifelines")
    report.say(f"Fitted in {weibull.seconds:.1f} s, {weibull.evaluations} evaluations of likelihood and gradient.")

    report.chapter("Survival: a neural network", NETWORK_TEXT)
    with report.fitting("fitting the network") as progress:
        network = fit_network(flies, seed, progress)
    report.checks(network.checks[:2], "fixed sum")
    report.checks(network.checks[2:], "Kaplan-Meier")
    errors = " and ".join(f"{error:.1f}" for error in network.median_errors)
    report.say(f"Standard errors of the medians ({', '.join(GROUPS)}): {errors} days.")
    report.say(f"Fitted in {network.seconds:.1f} s, {network.evaluations} evaluations of likelihood and gradient.")

    report.chapter("Distances in the universe", DISTANCE_TEXT)
    distances = compare_distances(load_distances())
    report.checks(distances.checks, "astropy")
    report.say(f"1,000 distances with their 4,000 derivatives took {1e3 * distances.gradient_seconds:.0f} ms.")

    report.chapter("One hard integral", PEAK_TEXT)
    cells = integrate_peak()
    report.checks(cells.checks, "closed form")

    report.chapter("What it cost", COST_TEXT)
    costs = [weibull.cost, network.cost, distances.cost, cells.cost]
    report.costs(costs)
    draw(output, flies, weibull, network, distances, cells)
    checks = [*weibull.checks, *network.checks, *distances.checks, *cells.checks]
    failed = [check.label.strip() for check in checks if not check.passed]
    failed += [f"error of the {cost.label}" for cost in costs if not cost.honest]
    if not all(error > 0 for error in network.median_errors):
        failed.append("standard errors of the network")
    report.closing(failed, output, time.perf_counter() - start)
    return not failed
