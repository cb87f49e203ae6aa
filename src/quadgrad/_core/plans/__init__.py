"""What a search found, and a replay needs."""
