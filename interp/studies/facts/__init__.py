"""Fact recall of a model: what it knows and why, where causal maps put it, how it flows, and which findings hold."""
