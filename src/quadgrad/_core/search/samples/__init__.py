"""The search by samples: how many points, and by which maps they are drawn."""
