"""Ends of pieces that bisection never reaches: series of the integrals of cells towards them."""
