"""From values at nodes to an integral, its error, and what to do about it."""
