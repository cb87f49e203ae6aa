"""The public functions: each checks its input, calls search and gradient mode, and returns a result."""
