"""The search in several dimensions: boxes, points held out from their rules, and scouts for what they missed."""
