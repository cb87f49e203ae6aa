"""Regions that move with parameters: images of the unit cube, and what functions cut out of boxes."""
