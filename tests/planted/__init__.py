"""Models built by hand, in which the mechanism that a locator should find is known (no training)."""
