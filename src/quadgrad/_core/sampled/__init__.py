"""Integrals of samples: rules and splines in ordinary torch, which know nothing of functions that can be called."""
