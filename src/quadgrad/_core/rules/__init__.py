"""Quadrature rules by name. A new rule is a function in a file of its own, entered here."""

from __future__ import annotations

import re
from functools import cache

from quadgrad._core.rules.box import BoxRule, BoxRuleTensors
from quadgrad._core.rules.clenshaw_curtis import clenshaw_curtis
from quadgrad._core.rules.gauss_kronrod import NAMES, gauss_kronrod
from quadgrad._core.rules.genz_malik import DEGREES, genz_malik
from quadgrad._core.rules.product import product_rule
from quadgrad._core.rules.rule import Rule, RuleTensors

__all__ = ["RULES", "BoxRule", "BoxRuleTensors", "Rule", "RuleTensors", "get_box_rule", "get_rule"]

RULES: dict[str, Rule] = {}
"""Further rules by their names: a rule from elsewhere is entered here before it is used."""


@cache
def get_rule(name: str) -> Rule:
    """Return a rule by its name.

    Parameters
    ----------
    name : str
        ``"gk15"``, ``"gk21"``, ``"gk31"``, ``"gk41"``, ``"gk51"`` or ``"gk61"`` (Gauss-Kronrod), or
        ``"cc<n>"`` with odd n from 11 to 255 (open Clenshaw-Curtis with n nodes).

    Raises
    ------
    ValueError
        If there is no such rule.

    Examples
    --------
    >>> from quadgrad._core.rules import get_rule
    >>> rule = get_rule("gk21")
    >>> rule.nodes.size, rule.degree
    (21, 31)
    """
    if name in RULES:
        return RULES[name]
    if name in NAMES:
        return gauss_kronrod(name)
    match = re.fullmatch(r"cc(\d{1,3})", name)
    if match and int(match[1]) % 2 == 1 and 11 <= int(match[1]) <= 255:
        return clenshaw_curtis(name, int(match[1]))
    raise ValueError(
        f"rule={name!r} is not known: choose one of {', '.join(NAMES)}, or 'cc<n>' with odd n from 11 to 255"
    )


def get_box_rule(name: str, d: int) -> BoxRule:
    """Return a rule on boxes of d dimensions by its name.

    Parameters
    ----------
    name : str
        ``"gm7"``, ``"gm9"`` or ``"gm11"`` (Genz and Malik), or in two and three dimensions ``"gk15"`` to
        ``"gk61"`` (a product of Gauss-Kronrod rules).
    d : int
        At least 2.

    Raises
    ------
    ValueError
        If there is no such rule.

    Examples
    --------
    >>> from quadgrad._core.rules import get_box_rule
    >>> get_box_rule("gm7", 3).nodes.shape
    (33, 3)
    """
    if name in {f"gm{degree}" for degree in DEGREES}:
        return genz_malik(int(name[2:]), d)
    if name in NAMES and d <= 3:
        return product_rule(name, d)
    known = "'gm7', 'gm9', 'gm11'" + (", 'gk15' to 'gk61'" if d <= 3 else "")
    raise ValueError(f"rule={name!r} is not known for d={d}: choose 'auto', {known}")
