"""Geometry and nothing else: cells of intervals, where their nodes are, how they are parted."""
