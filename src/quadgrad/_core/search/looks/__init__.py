"""The looks for what the nodes may have missed: needles, spikes, and what arguments say may be there."""
