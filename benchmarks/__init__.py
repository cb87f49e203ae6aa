"""Benchmarks: how fast quadgrad is beside its peers and beside its own integrand; see ``__main__``."""
