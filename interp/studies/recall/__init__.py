"""Every task over its ladder of sizes: what a model can recall, and from which size on it no longer can."""
