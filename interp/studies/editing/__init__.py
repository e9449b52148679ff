"""The editing study: counterfactuals written by ROME and MEMIT, what that does, and whether a trace says where."""
