"""How an integral ended: each status is a sentence that says what to do."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["AT_POINTS", "IN_BOXES", "Status"]


class Status(IntEnum):
    """The end of one integral; ``Result.status`` holds one for each element of the batch.

    Examples
    --------
    >>> from quadgrad import Status
    >>> Status.CONVERGED.message
    'The reported error meets the tolerance.'
    """

    message: str

    def __new__(cls, value: int, message: str) -> Status:
        """Attach the sentence to the number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.message = message
        return member

    CONVERGED = 0, "The reported error meets the tolerance."
    MAX_NFEV = (
        1,
        "The budget ran out before the tolerance was met: raise max_nfev (n where points are sampled), loosen rtol "
        "or atol, or name the hard places in points.",
    )
    ROUNDOFF = (
        2,
        "Rounding (or noise in the integrand) keeps the error above the tolerance: loosen rtol or atol, "
        "or compute in float64.",
    )
    NONFINITE = (
        3,
        "The integrand is NaN or infinite on more than isolated points: restrict the interval or rewrite "
        "the integrand there.",
    )
    DIVERGENT = (
        4,
        "The integral seems to diverge, or its singularity is too strong to resolve: check that it exists, "
        "name interior singularities in points, and move the singularity to 0 by a change of variable.",
    )
    SAMPLED = (
        5,
        "A sample of n points was asked for, and no tolerance: the error is the half-width of its confidence "
        "interval.",
    )


_SPENT = "The budget ran out before the tolerance was met: "

IN_BOXES = {
    Status.MAX_NFEV: _SPENT + "raise max_nfev, loosen rtol or atol, or split the box at the hard places.",
    Status.DIVERGENT: "The integral seems to diverge, or its singularity is too strong to resolve: check that it "
    "exists, and split the box so that the singularity lies in a corner.",
}
"""What is said of cells of boxes, which have no breakpoints."""

AT_POINTS = {Status.MAX_NFEV: _SPENT + "raise n, or loosen rtol or atol."}
"""What is said of samples."""
