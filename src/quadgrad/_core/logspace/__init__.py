"""Integrands given by their logarithms."""
