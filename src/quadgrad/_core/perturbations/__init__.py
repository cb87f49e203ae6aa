"""Random perturbations of items: noise keyed by item, its transport to a distribution, losses averaged over it."""
