"""The page ``peers``: quadgrad beside other integrators, on the same integrals in one run."""

from benchmarks.peers.page import measure

__all__ = ["measure"]
