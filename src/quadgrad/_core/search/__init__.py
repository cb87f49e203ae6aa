"""The search: rounds of evaluating, estimating and deciding, in any geometry."""
