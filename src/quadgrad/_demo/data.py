"""The data sets shipped with the demo, as tensors; each CSV file names its source in its header."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor

__all__ = ["Distances", "Lifetimes", "load_distances", "load_lifetimes"]


@dataclass(frozen=True)
class Lifetimes:
    """Lifetimes of fruit flies, one entry per fly.

    Attributes
    ----------
    days : Tensor
        Age in days at death, or when the fly was last seen. Shape (163,).
    died : Tensor
        1 where death was seen, 0 where the fly was lost before (censored). Shape (163,).
    group : Tensor
        0 for the control group, 1 for the miR-137 genotype. Shape (163,).
    """

    days: Tensor
    died: Tensor
    group: Tensor


@dataclass(frozen=True)
class Distances:
    """Redshifts and astropy's luminosity distances for three cosmologies.

    Attributes
    ----------
    redshift : Tensor
        Shape (1000,), increasing.
    distance : Tensor
        Luminosity distances in Mpc, in the order of ``distances.COSMOLOGIES``. Shape (3, 1000).
    gradient : Tensor
        Derivatives of the flat w0wa distance with respect to Om, w0 and wa, in Mpc. Shape (3, 1000).
    """

    redshift: Tensor
    distance: Tensor
    gradient: Tensor


def load_lifetimes() -> Lifetimes:
    """Return the 163 lifetimes of the ``waltons`` data set."""
    columns = read_columns("waltons.csv")
    return Lifetimes(
        days=numbers(columns["days"]),
        died=numbers(columns["died"]),
        group=numbers([str(int(name == "miR-137")) for name in columns["group"]]),
    )


def load_distances() -> Distances:
    """Return astropy's distances at 1,000 redshifts."""
    columns = {name: numbers(column) for name, column in read_columns("distances.csv").items()}
    return Distances(
        redshift=columns["redshift"],
        distance=torch.stack([columns[name] for name in ("flat_lcdm", "flat_w0wa", "curved_w0wa")]),
        gradient=torch.stack([columns[name] for name in ("d_om", "d_w0", "d_wa")]),
    )


def read_columns(name: str) -> dict[str, list[str]]:
    """Read a shipped CSV file by columns, without its comment lines."""
    text = resources.files("quadgrad._demo").joinpath("data", name).read_text(encoding="utf-8")
    rows = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    header = next(rows)
    return {key: list(column) for key, column in zip(header, zip(*rows, strict=True), strict=True)}


def numbers(column: list[str]) -> Tensor:
    """Convert a column of text to float64."""
    return torch.tensor([float(entry) for entry in column], dtype=torch.float64)
