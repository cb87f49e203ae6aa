"""The compiled body of the search, and how Python calls it."""
