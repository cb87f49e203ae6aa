"""The antiderivative as a curve: a polynomial on each cell, and a law for what lies beyond the last node."""
